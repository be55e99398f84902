"""However a run ends, it is one state, one cause and one remedy, in the folder where that can be written."""

import contextlib
import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harm import before_metrics
from mounts import read_only, small_disk
from studies import until
from whole_runs import assert_same_run

from specvit.config import ballast as ballasts
from specvit.config.ballast import ballast
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.folder import RunFolder
from specvit.config.schema import Config
from specvit.engine import checkpoint, preempt
from specvit.engine.failure import End, end_of, put_on_file
from specvit.errors import DataError, FolderError, explain, os_fault
from specvit.files import read_json
from specvit.run import Result, run
from specvit.train import main

pytestmark = pytest.mark.slow

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


def test_what_is_asked_for_elsewhere_stops_a_run_as_a_signal_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preempt, "LOOK_SECONDS", 0.01)
    asked: list[bool] = []
    faults = [OSError(errno.ESTALE, "of the file server")]

    def is_asked() -> bool:
        if faults:
            raise faults.pop()
        return bool(asked)

    with preempt.SignalStop(is_asked).installed() as stop, stop.deferred():
        time.sleep(0.1)
        assert not stop.requested()
        asked.append(True)
        until(stop.requested, "the stop", 5.0)
    assert stop.received == signal.SIGTERM
    assert "stop asked for" not in {thread.name for thread in threading.enumerate()}
