"""The run folder: one writer at a time, a state that is true."""

import errno
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from processes import ready_process

from specvit.run_folder import heartbeat
from specvit.run_folder.folder import RunFolder
from specvit.run_folder.heartbeat import HEARTBEAT_DEAD_SECONDS
from specvit.utils import files
from specvit.utils.errors import FolderError
from specvit.utils.files import read_json, write_json

RUN_ID = "0123abcd"
CLAIMER = """
import os, socket, sys, time
from pathlib import Path
from specvit.run_folder.folder import RunFolder
folder = RunFolder(Path(sys.argv[1]), "0123abcd")
with folder.claimed():
    folder.set_status("running", pid=os.getpid(), host=socket.gethostname())
    print("ready", flush=True)
    time.sleep(60)
"""
WATCHER = """
import sys
from pathlib import Path
from specvit.run_folder.folder import RunFolder
print("ready", flush=True)
while True:
    RunFolder(Path(sys.argv[1]), "0123abcd").state()
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / f"toy-{RUN_ID}").mkdir()
    return RunFolder(tmp_path / f"toy-{RUN_ID}", RUN_ID)


# who writes


def test_a_run_whose_process_was_killed_is_lost(folder: RunFolder) -> None:
    with ready_process(CLAIMER, str(folder.path)) as child:
        assert folder.state() == "running"
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert folder.state() == "lost"
        assert folder.status()["state"] == "running"  # what was written is not rewritten by looking
        with folder.claimed():
            folder.set_status("running", pid=os.getpid(), host=socket.gethostname())
            assert folder.state() == "running"


def test_a_second_process_is_refused_and_names_the_first(folder: RunFolder) -> None:
    with ready_process(CLAIMER, str(folder.path)) as child:
        with pytest.raises(FolderError) as refusal, folder.claimed():
            pass
        for part in (str(folder.path), f"process {child.pid} on {socket.gethostname()}"):
            assert part in str(refusal.value)
        child.kill()
        child.wait()
        with folder.claimed():
            assert folder.file(".heartbeat").exists()


@pytest.mark.parametrize("state", ["queued", "running", "requeued"])
@pytest.mark.parametrize(
    ("age", "lost"), [(0.0, False), (2 * HEARTBEAT_DEAD_SECONDS, True), (-3600.0, True), (None, True)]
)
def test_the_heartbeat_speaks_for_a_process_on_another_host(
    state: str, age: float | None, lost: bool, folder: RunFolder
) -> None:
    folder.set_status(state, pid=1, host="another-host")
    if age is not None:
        folder.file(".heartbeat").touch()
        os.utime(folder.file(".heartbeat"), times=(time.time() - age,) * 2)
    assert folder.state() == ("lost" if lost else state)


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize(("beat", "lost"), [(0.0, False), (2 * HEARTBEAT_DEAD_SECONDS, True)])
def test_a_heartbeat_is_as_old_as_the_clock_of_its_folder_says(
    writes: bool, beat: float, lost: bool, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, ours = time.time(), 86400.0  # this host's clock is a day ahead of the file server's
    monkeypatch.setattr(heartbeat, "_offsets", {})
    folder.set_status("running", pid=1, host="another-host")
    folder.file(".heartbeat").touch()
    os.utime(folder.file(".heartbeat"), times=(real - beat + (0.0 if writes else ours),) * 2)
    monkeypatch.setattr(heartbeat.time, "time", lambda: real + ours)
    if not writes:
        monkeypatch.setattr(heartbeat.tempfile, "mkstemp", refuse)
    assert heartbeat.is_fresh(folder.file(".heartbeat"), probe=True) is not lost  # as who wants to write asks
    assert folder.state() == ("lost" if lost else "running")
    assert {path.name for path in folder.path.iterdir()} == {"status.json", ".heartbeat"}


def test_looking_at_a_run_of_another_host_needs_the_right_to_read_alone(folder: RunFolder) -> None:
    folder.set_status("running", pid=1, host="another-host")
    folder.file(".heartbeat").touch()
    before = folder.path.stat().st_mtime_ns
    assert folder.state() == "running"
    assert folder.path.stat().st_mtime_ns == before


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize("state", ["completed", "early_stopped", "preempted", "crashed", "pruned"])
def test_an_ended_run_keeps_its_state_without_a_process(state: str, folder: RunFolder) -> None:
    folder.set_status(state, host=socket.gethostname(), pid=1)
    assert folder.state() == state


@pytest.mark.parametrize(
    ("state", "cause", "shown"),
    [
        ("preempted", "stopped by SIGINT", "stopped"),
        ("preempted", "stopped by Ctrl-C", "stopped"),
        ("preempted", "stopped by SIGTERM in job 7", "preempted"),
        ("crashed", "stopped by SIGINT", "crashed"),
    ],
)
def test_only_a_run_that_its_user_interrupts_is_shown_as_stopped(
    folder: RunFolder, state: str, cause: str, shown: str
) -> None:
    folder.set_status(state, cause=cause)
    assert (folder.shown_state(), folder.state()) == (shown, state)


def test_a_claim_is_not_refused_because_somebody_looks_at_the_state(folder: RunFolder) -> None:
    folder.set_status("running", host=socket.gethostname(), pid=1)
    with ready_process(WATCHER, str(folder.path)):
        for _ in range(500):
            with folder.claimed():
                pass


def test_no_run_has_no_state_and_looking_creates_nothing(tmp_path: Path) -> None:
    nowhere = RunFolder(tmp_path / "none", RUN_ID)
    assert (nowhere.state(), nowhere.status(), nowhere.path.exists()) == ("", {}, False)


def test_leftovers_of_a_killed_writer_are_removed_by_the_next(folder: RunFolder) -> None:
    folder.file(".last.ckpt.x1y2.tmp").write_bytes(b"half")
    folder.file("last.ckpt").write_bytes(b"whole")
    with folder.claimed():
        assert not folder.file(".last.ckpt.x1y2.tmp").exists()
    assert folder.file("last.ckpt").read_bytes() == b"whole"


# status


def test_a_status_keeps_facts_and_a_cause_only_as_long_as_its_state(folder: RunFolder) -> None:
    folder.set_status("running", pid=7, step=3)
    folder.set_status("crashed", cause="a bug", remedy="correct it", traceback="...")
    folder.set_status("crashed", step=5)
    kept = folder.status()
    assert (kept["pid"], kept["step"], kept["cause"], kept["remedy"]) == (7, 5, "a bug", "correct it")
    folder.set_status("running")
    assert folder.status().keys() == {"state", "updated", "pid", "step"}


def test_an_unknown_state_is_refused(folder: RunFolder) -> None:
    with pytest.raises(AssertionError, match="finished"):
        folder.set_status("finished")
    assert folder.status() == {}


def test_attempts_are_added_up(folder: RunFolder) -> None:
    folder.record_attempt(event="start")
    folder.record_attempt(event="end", state="completed")
    rows = [json.loads(line) for line in folder.file("attempts.jsonl").read_text().splitlines()]
    assert [row["event"] for row in rows] == ["start", "end"]
    assert {row["pid"] for row in rows} == {os.getpid()}
    assert rows == folder.attempts()


def test_an_attempt_after_one_that_was_cut_off_is_a_line_of_its_own(folder: RunFolder) -> None:
    folder.record_attempt(event="start")
    folder.record_attempt(event="ready")
    path = folder.file("attempts.jsonl")
    path.write_bytes(path.read_bytes()[:-9])
    folder.record_attempt(event="end", state="completed")
    assert [row["event"] for row in folder.attempts()] == ["start", "end"]


@pytest.mark.parametrize("damaged", [b"", b"\x00" * 300, b'{"state": "comp', b"[1]", b'{"state": "fini"}', b"\xff{}"])
@pytest.mark.parametrize(
    ("last", "summary", "truth"),
    [
        ({"event": "end", "state": "completed"}, {"state": "completed"}, "completed"),
        ({"event": "end", "state": "plateau"}, {"state": "plateau"}, "plateau"),
        ({"event": "end", "state": "crashed", "cause": "the disk is full"}, None, "crashed"),
        ({"event": "ready"}, {"state": "completed"}, "completed"),
        ({"event": "ready"}, None, "lost"),
        (None, None, "lost"),
    ],
)
def test_where_the_status_is_damaged_the_other_records_speak(
    damaged: bytes, last: dict | None, summary: dict | None, truth: str, folder: RunFolder
) -> None:
    folder.file("status.json").write_bytes(damaged)
    if last:
        folder.record_attempt(event="start")
        folder.record_attempt(**last)
    if summary:
        write_json(folder.file("summary.json"), summary)
    assert folder.state() == truth
    assert folder.status().get("cause") == (last or {}).get("cause")
    folder.set_status("running")
    assert read_json(folder.file("status.json"))["state"] == "running"


def test_where_status_and_last_attempt_are_damaged_the_one_before_counts(folder: RunFolder) -> None:
    folder.set_status("completed")
    folder.record_attempt(event="start")
    folder.record_attempt(event="end", state="completed")
    folder.file("status.json").write_text("{")
    assert folder.state() == "completed"
    folder.file("attempts.jsonl").write_bytes(folder.file("attempts.jsonl").read_bytes()[:-30])
    assert folder.state() == "lost"


@pytest.mark.parametrize("name", ["last.ckpt", "previous.ckpt", "metrics.jsonl"])
def test_results_without_a_status_are_a_lost_run(name: str, folder: RunFolder) -> None:
    folder.create({}, "a: 1\n")
    folder.record_attempt(event="ready")
    assert folder.state() == ""
    folder.file(name).touch()
    assert folder.state() == "lost"


def test_a_damaged_status_of_a_run_at_work_does_not_make_it_lost(folder: RunFolder) -> None:
    with ready_process(CLAIMER, str(folder.path)):
        folder.record_attempt(event="start")
        folder.file("status.json").write_text("{")
        os.utime(folder.file(".heartbeat"), (1e9, 1e9))  # on its own host the lock counts
        assert folder.state() == "running"


def test_progress_that_cannot_be_written_is_let_go(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.note_progress(step=1)
    assert folder.status()["step"] == 1
    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    folder.note_progress(step=2)
    assert folder.status()["step"] == 1
    with pytest.raises(OSError, match="Read-only"):
        folder.set_status("running", step=2)
