"""A full disk costs a run nothing but time: it ends with its cause on file, and goes on to the same bits."""

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mounts import fill, read_only, small_disk
from whole_runs import assert_same_run, only_run

from specvit.config import ballast as ballasts
from specvit.config.ballast import BALLAST_BYTES, ballast
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.folder import RunFolder
from specvit.config.schema import Config
from specvit.data.builtin import make_shards
from specvit.data.shards import open_shard, read_labels, write_shard
from specvit.engine import checkpoint, failure
from specvit.engine.failure import End, end_of, put_on_file
from specvit.engine.loop import Keeper
from specvit.errors import DataError, FolderError, explain, os_fault
from specvit.files import read_json
from specvit.run import Result, run
from specvit.tracking.console import Screen
from specvit.tracking.files import FileTracker, StatusTracker
from specvit.train import main

SETTINGS = ("train.epochs=5", "opt.lr=3e-3", "train.threads=1")
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return the folder of a disk of two megabytes; a checkpoint of `tiny` takes 50 kilobytes."""
    with small_disk(tmp_path / "disk", 2048) as path:
        yield path


def train(tiny: list[str], where: Path, *overrides: str) -> Result:
    return run(build_config(compose([*tiny, *SETTINGS, f"tracking.folder={where}", *overrides])))


@pytest.fixture(scope="module")
def reference(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Result:
    return train(tiny, tmp_path_factory.mktemp("reference"))


def before_metrics(fault: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    real = FileTracker.metrics

    def metrics(self: FileTracker, row: dict[str, Any]) -> None:
        if row["epoch"] == 3:
            fault()
        real(self, row)

    monkeypatch.setattr(FileTracker, "metrics", metrics)


def after_metrics(fault: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    real = StatusTracker.metrics

    def metrics(self: StatusTracker, row: dict[str, Any]) -> None:
        real(self, row)
        if row["epoch"] == 3:
            fault()

    monkeypatch.setattr(StatusTracker, "metrics", metrics)


def before_the_checkpoint(fault: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    real = Keeper.save_last

    def save_last(self: Keeper, learner: Any, state: Any) -> bool:
        if state.step == 36:
            fault()
        return real(self, learner, state)

    monkeypatch.setattr(Keeper, "save_last", save_last)


def before_the_test_scores(fault: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    from specvit import score

    real = score.score

    def scored(*arguments: Any) -> Any:
        fault()
        return real(*arguments)

    monkeypatch.setattr(score, "score", scored)


def before_anything(fault: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    real = RunFolder.set_status

    def set_status(self: RunFolder, state: str, **facts: Any) -> None:
        if "pid" in facts:
            fault()
        real(self, state, **facts)

    monkeypatch.setattr(RunFolder, "set_status", set_status)


MOMENTS: dict[Any, int] = {
    before_anything: 0,
    before_metrics: 24,
    after_metrics: 24,
    before_the_checkpoint: 24,
    before_the_test_scores: 60,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_on_a_full_disk_ends_with_its_cause_and_goes_on_when_there_is_space(
    moment: Any, disk: Path, reference: Result, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with monkeypatch.context() as patched:
        moment(lambda: fill(disk / "filler"), patched)
        result = train(tiny, disk / "outputs")
    folder = RunFolder(result.folder, "")
    shown = capsys.readouterr().out
    assert (result.state, result.exit_code, folder.state()) == ("crashed", 1, "crashed")
    assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize <= BALLAST_BYTES, "the disk is as full as it was"
    status = folder.status()
    assert status["cause"] == f"the disk is full ({result.folder})"
    assert status["remedy"] == "free some space there, then the same command goes on"
    assert status["traceback"] == "" and "Traceback" not in shown
    assert f"crashed: {status['cause']}" in shown and f"remedy: {status['remedy']}" in shown
    assert status["cause"] in folder.file("log.txt").read_text()
    assert {name: folder.attempts()[-1][name] for name in ("event", "state")} == {"event": "end", "state": "crashed"}
    assert not folder.file(".ballast").exists()
    assert not list(result.folder.glob(".*.tmp"))
    if MOMENTS[moment]:
        assert checkpoint.load(folder.file("last.ckpt"))["state"]["step"] == MOMENTS[moment]
    (disk / "filler").unlink()
    again = train(tiny, disk / "outputs")
    assert again.state == reference.state
    assert "this run ended as crashed before: the disk is full" in capsys.readouterr().out
    assert_same_run(again.folder, reference.folder)
    assert not folder.file(".ballast").exists()


def test_a_disk_that_is_full_from_the_start_is_one_sentence(
    disk: Path, tiny: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["specvit train"])
    (disk / "outputs").mkdir()
    fill(disk / "filler")
    with open(disk / "filler", "rb+") as stream:  # room for the folder, not for the ballast
        stream.truncate(os.path.getsize(disk / "filler") - 32 * 1024)
    assert main([*tiny, f"tracking.folder={disk / 'outputs'}"]) == 2
    shown = capsys.readouterr()
    folder = only_run(disk / "outputs")
    remedy = "free some space there, then the same command goes on"
    assert shown.err == f"specvit: the disk is full ({folder}); {remedy}.\n"
    assert RunFolder(folder, "").state() == ""
    assert {path.name for path in folder.iterdir()} == {".lock", ".heartbeat"}
    (disk / "filler").unlink()
    assert main([*tiny, f"tracking.folder={disk / 'outputs'}"]) == 0


def test_an_end_that_cannot_be_written_is_told_and_the_run_goes_on_as_lost(
    disk: Path, reference: Result, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with monkeypatch.context() as patched:
        before_metrics(lambda: fill(disk / "filler"), patched)
        patched.setattr(failure, "free_ballast", lambda path: (ballasts.free_ballast(path), fill(disk / "filler")))
        result = train(tiny, disk / "outputs")
    shown = capsys.readouterr().out
    assert (result.state, result.exit_code) == ("crashed", 1)
    assert f"crashed: the disk is full ({result.folder})" in shown and "remedy: free some space" in shown
    assert RunFolder(result.folder, "").status()["state"] == "running"
    assert RunFolder(result.folder, "").state() == "lost"
    (disk / "filler").unlink()
    again = train(tiny, disk / "outputs")
    assert again.state == reference.state
    assert_same_run(again.folder, reference.folder)


def test_a_good_end_that_cannot_be_written_is_no_good_end(
    disk: Path, reference: Result, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(failure, "free_ballast", lambda path: (ballasts.free_ballast(path), fill(disk / "filler")))
        result = train(tiny, disk / "outputs")
    assert (result.state, result.exit_code) == ("crashed", 1)
    assert f"crashed: its end could not be written: the disk is full ({result.folder})" in capsys.readouterr().out
    (disk / "filler").unlink()
    assert_same_run(train(tiny, disk / "outputs").folder, reference.folder)


# the ballast


def test_the_ballast_takes_space_while_a_run_works_and_not_after(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), ballast(tmp_path):
        assert (tmp_path / ".ballast").stat().st_blocks * 512 >= BALLAST_BYTES
        assert len(set((tmp_path / ".ballast").read_bytes()[i : i + 8] for i in range(0, 8000, 8))) == 1000
        raise ZeroDivisionError
    assert not (tmp_path / ".ballast").exists()


def test_a_ballast_that_a_killed_run_left_serves_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".ballast").write_bytes(bytes(BALLAST_BYTES))
    monkeypatch.setattr(ballasts.os, "urandom", lambda _: pytest.fail("written again"))
    with ballast(tmp_path):
        assert (tmp_path / ".ballast").read_bytes() == bytes(BALLAST_BYTES)


def test_a_ballast_that_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / ".ballast").write_bytes(b"part")
    with ballast(tmp_path):
        assert (tmp_path / ".ballast").stat().st_size == BALLAST_BYTES


def test_the_ballast_lies_in_the_folder_while_a_run_trains(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    before_metrics(lambda: seen.append((only_run(tmp_path / "outputs") / ".ballast").stat().st_size), monkeypatch)
    result = train(tiny, tmp_path / "outputs")
    assert seen == [BALLAST_BYTES]
    assert not (result.folder / ".ballast").exists()


# errors of the operating system


@pytest.mark.parametrize(
    ("number", "words", "remedy"),
    [
        (errno.ENOSPC, "the disk is full", "free some space"),
        (errno.EDQUOT, "the disk quota is used up", "free some space"),
        (errno.EIO, "input/output error", "see to the disk"),
        (errno.ESTALE, "the file server no longer knows an open file", "see to the disk"),
        (errno.EROFS, "the file system is read-only", "name a folder elsewhere"),
        (errno.EMFILE, "too many files are open", "type `ulimit"),
    ],
)
@pytest.mark.parametrize("hidden", [False, True])
def test_what_the_system_refuses_is_one_sentence_with_its_own_remedy(
    number: int, words: str, remedy: str, hidden: bool, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        try:
            raise OSError(number, os.strerror(number))
        except OSError:
            if hidden:
                raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0") from None
            raise

    before_metrics(refuse, monkeypatch)
    result = train(tiny, tmp_path / "outputs")
    status = RunFolder(result.folder, "").status()
    assert (status["state"], status["cause"]) == ("crashed", f"{words} ({result.folder})")
    assert status["remedy"].startswith(remedy) and status["traceback"] == ""


def test_a_place_outside_the_run_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", "")
    inside = OSError(errno.ENOSPC, "full", str(tmp_path / "run" / ".last.ckpt.x.tmp"))
    outside = OSError(errno.EIO, "bad block", "/data/train.h5")
    assert end_of(inside, Config(), folder).cause == f"the disk is full ({tmp_path / 'run'})"
    assert end_of(outside, Config(), folder).cause == "input/output error (/data/train.h5)"


@pytest.mark.parametrize(
    ("problem", "end"),
    [
        (KeyboardInterrupt(), End("preempted", "stopped by Ctrl-C", code=130)),
        (
            DataError("flux is not finite", where="a.h5 row 3"),
            End("crashed", "a.h5 row 3: flux is not finite.", code=1),
        ),
    ],
)
def test_ends_without_a_trace(problem: BaseException, end: End, tmp_path: Path) -> None:
    assert end_of(problem, Config(), RunFolder(tmp_path, "")) == end


@pytest.mark.parametrize(
    ("problem", "state", "cause"),
    [
        (SystemExit(3), "crashed", "SystemExit: 3"),
        (OSError(errno.ENOTEMPTY, "Directory not empty"), "crashed", "OSError: [Errno 39] Directory not empty"),
        (ZeroDivisionError(), "crashed", "ZeroDivisionError: no message"),
        (MemoryError(), "oom", "MemoryError: no message"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "oom", "OSError: [Errno 12] Cannot allocate memory"),
        (torch.OutOfMemoryError("CUDA"), "oom", "OutOfMemoryError: CUDA"),
        (RuntimeError("CUDA error: out of memory\nmore"), "oom", "RuntimeError: CUDA error: out of memory"),
    ],
)
def test_ends_with_a_trace(problem: BaseException, state: str, cause: str, tmp_path: Path) -> None:
    end = end_of(problem, Config(), RunFolder(tmp_path, ""))
    assert (end.state, end.cause, end.code) == (state, cause, 1)
    assert type(problem).__name__ in end.trace
    assert bool(end.remedy) == (state == "oom")


@pytest.mark.parametrize("problem", [SystemExit(0), KeyboardInterrupt()])
def test_an_exit_from_inside_a_library_is_an_end_with_a_cause(
    problem: BaseException, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave() -> None:
        raise problem

    with monkeypatch.context() as patched:
        before_metrics(leave, patched)
        result = train(tiny, tmp_path / "outputs")
    assert result.exit_code != 0
    assert RunFolder(result.folder, "").state() == (
        "preempted" if isinstance(problem, KeyboardInterrupt) else "crashed"
    )
    assert RunFolder(result.folder, "").attempts()[-1]["event"] == "end"


def test_an_error_that_was_raised_while_the_disk_was_no_issue_is_not_the_disks() -> None:
    assert os_fault(ValueError("bad")) is None
    assert os_fault(OSError(errno.ENOENT, "no file")) is None
    looped = RuntimeError("a")
    looped.__cause__ = looped
    assert os_fault(looped) is None
    assert explain(FULL, "") == ("the disk is full", "free some space there, then the same command goes on")


def test_a_write_that_a_checkpoint_makes_raises_the_disks_own_error(disk: Path) -> None:
    checkpoint.save(disk / "a.ckpt", {"model": torch.arange(1000)})
    before = (disk / "a.ckpt").read_bytes()
    with pytest.raises(OSError, match="No space left") as refusal:
        checkpoint.save(disk / "a.ckpt", {"model": torch.arange(1_000_000)}, keep=disk / "b.ckpt")
    assert refusal.value.errno == errno.ENOSPC
    assert (disk / "a.ckpt").read_bytes() == before
    assert [path.name for path in disk.iterdir()] == ["a.ckpt"]


# what is not essential


def test_a_log_that_cannot_be_written_fails_no_run(tiny: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    def spoil() -> None:
        (only_run(tmp_path / "outputs") / "log.txt").unlink()
        (only_run(tmp_path / "outputs") / "log.txt").mkdir()

    before_metrics(spoil, monkeypatch)
    assert train(tiny, tmp_path / "outputs").exit_code == 0


def test_a_status_that_cannot_be_written_on_the_way_fails_no_run(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tried = RunFolder.set_status, []

    def set_status(self: RunFolder, state: str, **facts: Any) -> None:
        if state == "running" and "pid" not in facts:
            tried.append(facts)
            raise FULL
        real(self, state, **facts)

    monkeypatch.setattr(RunFolder, "set_status", set_status)
    result = train(tiny, tmp_path / "outputs")
    assert result.exit_code == 0 and len(tried) == 6
    assert RunFolder(result.folder, "").state() == result.state


class Full:
    """A terminal that is gone: every write fails."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        """Fail."""
        raise OSError(errno.EIO, "Input/output error")

    def flush(self) -> None:
        """Fail."""
        self.write("")

    def isatty(self) -> bool:
        """Be a terminal, for which there is a bar."""
        return True


def test_a_terminal_that_is_gone_costs_its_lines_only(tiny: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    screen = Screen("auto")
    screen.log = tmp_path / "log.txt"
    screen.say("one line")
    assert screen.log.read_text().endswith("one line\n")
    result = train(tiny, tmp_path / "outputs", "tracking.progress=bar")
    assert result.exit_code == 0


@pytest.mark.slow
def test_output_into_a_full_disk_fails_no_run_and_no_exit_code(disk: Path, tiny: list[str], tmp_path: Path) -> None:
    fill(disk / "filler")
    command = [sys.executable, "-m", "specvit.train", *tiny, f"tracking.folder={tmp_path / 'outputs'}"]
    with open(disk / "out.txt", "w") as out:
        ended = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (disk / "out.txt").stat().st_size == 0
    assert RunFolder(only_run(tmp_path / "outputs"), "").state() in ("completed", "plateau")


@pytest.mark.parametrize("room", [False, True])
def test_a_report_that_does_not_reach_the_disk_is_told(room: bool, disk: Path, toy_sets: Path) -> None:
    if not room:
        fill(disk / "filler")
    command = [sys.executable, "-m", "specvit.data", "inspect", str(toy_sets / "val" / "dataset.h5")]
    with open(disk / "out.txt", "w") as out:
        ended = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, timeout=120)
    if room:
        assert (ended.returncode, ended.stderr) == (0, "")
        assert "no fault found" in (disk / "out.txt").read_text()
    else:
        assert ended.returncode == 2
        assert ended.stderr == "specvit: the disk is full; free some space there, then the same command goes on.\n"


# shards


@pytest.mark.parametrize("missing", [1000, 240, 150, 60, 8])
def test_a_shard_is_never_left_without_its_labels(missing: int, stars: Any, tmp_path: Path) -> None:
    made = stars(500, 256)
    write_shard(tmp_path / "whole.h5", **made)
    needed = (tmp_path / "whole.h5").stat().st_size // 1024
    with small_disk(tmp_path / "disk", needed - missing) as disk:
        with pytest.raises(DataError, match=r"disk.*full.*free some space"):
            write_shard(disk / "a.h5", **made)
        assert list(disk.iterdir()) == []


def test_a_shard_on_a_disk_with_room_is_whole(stars: Any, tmp_path: Path) -> None:
    made = stars(500, 256)
    with small_disk(tmp_path / "disk", 4096) as disk:
        write_shard(disk / "a.h5", **made)
        assert read_labels(open_shard(disk / "a.h5")).equals(made["labels"])


def test_a_full_cache_is_one_sentence(disk: Path) -> None:
    path = disk / "cache" / "dataset.h5"
    with pytest.raises(DataError, match="the disk is full"):
        make_shards({path: range(70)}, seed=0, split="test", report=lambda *_: None)
    assert list(path.parent.iterdir()) == []


# read-only


def test_a_read_only_data_folder_is_no_hindrance(tiny: list[str], toy_sets: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in toy_sets.rglob("*")}
    with read_only(toy_sets):
        with pytest.raises(OSError, match="Read-only"):
            (toy_sets / "new").touch()
        result = train(tiny, tmp_path / "outputs")
    assert result.exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in toy_sets.rglob("*")} == before


@pytest.mark.parametrize("known", [False, True])
def test_a_read_only_output_folder_is_one_sentence(
    known: bool, tiny: list[str], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["specvit train"])
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    if known:
        with monkeypatch.context() as patched, contextlib.suppress(ZeroDivisionError):
            before_metrics(lambda: 1 // 0, patched)
            train(tiny, outputs)
    with read_only(outputs):
        capsys.readouterr()
        assert main([*tiny, *SETTINGS, f"tracking.folder={outputs}"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"specvit: tracking.folder: the file system is read-only ({outputs}/")
    assert shown.err.count("\n") == 1 and "Traceback" not in shown.out


def test_a_finished_run_in_a_read_only_folder_is_found(tiny: list[str], tmp_path: Path, capsys: Any) -> None:
    first = train(tiny, tmp_path / "outputs")
    with read_only(tmp_path / "outputs"):
        assert train(tiny, tmp_path / "outputs").state == first.state
    assert "finished already" in capsys.readouterr().out


def test_a_damaged_summary_is_made_again(tiny: list[str], reference: Result, tmp_path: Path) -> None:
    first = train(tiny, tmp_path / "outputs")
    (first.folder / "summary.json").write_text('{"state": ')
    assert_same_run(train(tiny, tmp_path / "outputs").folder, reference.folder)
    assert read_json(first.folder / "summary.json")["state"] == first.state


def test_an_end_is_put_on_file(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "")
    folder.set_status("running")
    assert put_on_file(End("crashed", "a cause", "a remedy", "a trace", 1), folder).code == 1
    assert json.loads((tmp_path / "status.json").read_text())["traceback"] == "a trace"
    assert (tmp_path / "log.txt").read_text() == "a trace"
    assert [attempt["event"] for attempt in folder.attempts()] == ["end"]
    (tmp_path / "log.txt").unlink()
    (tmp_path / "log.txt").mkdir()
    assert put_on_file(End("oom", "a cause", "a remedy", "a trace", 1), folder).state == "oom"


def test_a_refused_ballast_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise FULL

    monkeypatch.setattr(ballasts.os, "fsync", refuse)
    with pytest.raises(FolderError, match="the disk is full"), ballast(tmp_path):
        pass
    assert list(tmp_path.glob(".ballast")) == []
