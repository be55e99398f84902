"""A full disk costs a run nothing but time: it ends with its cause on file, and goes on to the same bits."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harm import after_metrics, before_anything, before_metrics, before_the_checkpoint, before_the_test_scores
from mounts import fill, small_disk
from whole_runs import assert_same_run, only_run

from specvit.config import ballast as ballasts
from specvit.config.ballast import BALLAST_BYTES, ballast
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.folder import RunFolder
from specvit.data.builtin import make_shards
from specvit.data.shards import open_shard, read_labels, write_shard
from specvit.engine import checkpoint, failure
from specvit.errors import DataError
from specvit.run import Result, run
from specvit.tracking.console import Screen
from specvit.train import main

pytestmark = pytest.mark.slow

SETTINGS = ("train.epochs=5", "opt.lr=3e-3", "train.threads=1")
SMALL_FILES = 4 * 4096  # half-written heartbeats and records, which give their blocks back at any moment
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
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    assert free <= BALLAST_BYTES + SMALL_FILES, "the disk is as full as it was"
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


class Full(io.TextIOBase):
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


@pytest.fixture(params=["buffered", "unbuffered"])
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the environment of a Python that writes its output at once, or that does not."""
    return {**os.environ, "PYTHONUNBUFFERED": "1" if request.param == "unbuffered" else ""}


def test_output_into_a_full_disk_fails_no_run_and_no_exit_code(
    disk: Path, tiny: list[str], tmp_path: Path, environment: dict[str, str]
) -> None:
    fill(disk / "filler")
    command = [sys.executable, "-m", "specvit.train", *tiny, f"tracking.folder={tmp_path / 'outputs'}"]
    with open(disk / "out.txt", "w") as out:
        ended = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, timeout=120, env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (disk / "out.txt").stat().st_size == 0
    assert RunFolder(only_run(tmp_path / "outputs"), "").state() in ("completed", "plateau")


@pytest.mark.parametrize("room", [False, True])
def test_a_report_that_does_not_reach_the_disk_is_told(
    room: bool, disk: Path, toy_sets: Path, environment: dict[str, str]
) -> None:
    if not room:
        fill(disk / "filler")
    command = [sys.executable, "-m", "specvit.data", "inspect", str(toy_sets / "val" / "dataset.h5")]
    with open(disk / "out.txt", "w") as out:
        ended = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, timeout=120, env=environment)
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
