"""A full disk costs a run nothing but time: it ends with its cause on file, and is resumed to the same bits."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import by_day
from harm import before_metrics
from mounts import fill, small_disk
from planted import At, OnceWritten
from whole_runs import STEADY, assert_same_run, only_run, state_of

from specvit.commands.train import main
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.data.shards import open_shard, read_labels, write_shard
from specvit.data.synthetic import make_shards
from specvit.run import outcome
from specvit.run.run import Result, run
from specvit.run_folder import folder as run_folder
from specvit.run_folder.folder import DISK_RESERVE_BYTES, RunFolder, disk_reserve
from specvit.tracking.console import Console
from specvit.training import checkpoint
from specvit.utils.errors import DataError, FolderError

SETTINGS = ("train.epochs=3", "opt.lr=3e-3", "train.threads=1")
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


# whole runs

PLACES: dict[str, tuple[str, int]] = {
    "first status": ("specvit.run_folder.folder.RunFolder.set_status", 1),
    "metrics": ("specvit.tracking.metric_files.FileTracker.metrics", 3),
    "checkpoint best.ckpt": ("specvit.training.checkpoint.CheckpointManager.save_best", 3),
    "checkpoint last.ckpt": ("specvit.training.checkpoint.CheckpointManager.save_last", 3),
    "predictions": ("specvit.run.evaluation.write_scored", 1),
    "summary": ("specvit.run.evaluation.write_json", 1),
    "final status": ("specvit.run.outcome.RunFolder.set_status", 7),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", by_day(PLACES, "first status", "metrics", "checkpoint last.ckpt", "summary", "final status")
)
def test_the_disk_is_full_at(
    place: str, promised: Any, trained: Any, unbroken: Any, tiny: list[str], tmp_path: Path
) -> None:
    where, call = PLACES[place]
    with small_disk(tmp_path / "disk", 4096) as disk:
        arguments = [*tiny, *STEADY, f"tracking.folder={disk / 'runs'}"]
        full = OnceWritten(partial(fill, disk / "filler"))  # a checkpoint on its way would give its space back
        ended = trained(arguments, At(where, full, call=call))
        assert ended.code == 1, ended.said
        assert "Traceback" not in ended.said
        run = only_run(disk / "runs")
        state = state_of(run)
        if state == "crashed":
            assert_cause_is_on_file(RunFolder(run, ""), ended.said)
        (disk / "filler").unlink()
        again = trained(arguments)
        assert again.code == 0, again.said
        promised.kept(state=state, said=ended.said)
        promised.whole(run, unbroken([*tiny, *STEADY]))
        assert not (run / ".ballast").exists()


def assert_cause_is_on_file(folder: RunFolder, said: str) -> None:
    """Check status, log and attempts of a run that ended on a full disk, and that it gave its reserve back."""
    status, disk = folder.status(), os.statvfs(folder.path)
    assert disk.f_bavail * disk.f_frsize <= DISK_RESERVE_BYTES, "the disk is as full as it was"
    assert status["cause"] == f"the disk is full ({folder.path})"
    assert status["remedy"] == "free some space there, then run the same command again to resume"
    assert status["traceback"] == ""
    assert f"crashed: {status['cause']}" in said and f"remedy: {status['remedy']}" in said
    assert status["cause"] in folder.file("log.txt").read_text()
    assert {name: folder.attempts()[-1][name] for name in ("event", "state")} == {"event": "end", "state": "crashed"}
    assert [path.name for path in folder.path.iterdir() if path.name == ".ballast" or path.suffix == ".tmp"] == []


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 32 * 1024])  # the latter takes the folder, but not the reserve
def test_the_disk_is_full_before_the_start(
    room: int, promised: Any, disk: Path, tiny: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["specvit train"])
    arguments = [*tiny, f"tracking.folder={disk / 'runs'}"]
    (disk / "runs").mkdir()
    fill(disk / "filler")
    os.truncate(disk / "filler", os.path.getsize(disk / "filler") - room)
    assert main(arguments) == 2
    shown = capsys.readouterr()
    promised.kept(state="refused", said=shown.err)
    assert shown.err.count("\n") == 1 and "Traceback" not in shown.out
    assert {path.name for run in (disk / "runs").iterdir() for path in run.iterdir()} <= {".lock", ".heartbeat"}
    (disk / "filler").unlink()
    assert main(arguments) == 0


@pytest.mark.slow
def test_an_end_that_cannot_be_written_is_reported_and_the_run_is_resumed_as_lost(
    disk: Path, reference_run: Any, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    reference = reference_run([*tiny, *SETTINGS])
    with monkeypatch.context() as patched:
        before_metrics(lambda: fill(disk / "filler"), patched)
        patched.setattr(
            outcome, "free_disk_reserve", lambda path: (run_folder.free_disk_reserve(path), fill(disk / "filler"))
        )
        result = train(tiny, disk / "outputs")
    shown = capsys.readouterr().out
    assert (result.state, result.exit_code) == ("crashed", 1)
    assert f"crashed: the disk is full ({result.folder})" in shown and "remedy: free some space" in shown
    assert RunFolder(result.folder, "").status()["state"] == "running"
    assert RunFolder(result.folder, "").state() == "lost"
    (disk / "filler").unlink()
    assert_same_run(train(tiny, disk / "outputs").folder, reference)


def test_a_write_that_a_checkpoint_makes_raises_the_disks_own_error(disk: Path) -> None:
    checkpoint.save(disk / "a.ckpt", {"model": torch.arange(1000)})
    before = (disk / "a.ckpt").read_bytes()
    with pytest.raises(OSError, match="No space left") as refusal:
        checkpoint.save(disk / "a.ckpt", {"model": torch.arange(1_000_000)}, keep=disk / "b.ckpt")
    assert refusal.value.errno == errno.ENOSPC
    assert (disk / "a.ckpt").read_bytes() == before
    assert [path.name for path in disk.iterdir()] == ["a.ckpt"]


# the reserve


def test_the_disk_reserve_takes_space_while_a_run_works_and_not_after(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), disk_reserve(tmp_path):
        assert (tmp_path / ".ballast").stat().st_blocks * 512 >= DISK_RESERVE_BYTES
        assert len(set((tmp_path / ".ballast").read_bytes()[i : i + 8] for i in range(0, 8000, 8))) == 1000
        raise ZeroDivisionError
    assert not (tmp_path / ".ballast").exists()


def test_a_disk_reserve_that_a_killed_run_left_serves_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".ballast").write_bytes(bytes(DISK_RESERVE_BYTES))
    monkeypatch.setattr(run_folder.os, "urandom", lambda _: pytest.fail("written again"))
    with disk_reserve(tmp_path):
        assert (tmp_path / ".ballast").read_bytes() == bytes(DISK_RESERVE_BYTES)


def test_a_truncated_disk_reserve_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".ballast").write_bytes(b"part")
    with disk_reserve(tmp_path):
        assert (tmp_path / ".ballast").stat().st_size == DISK_RESERVE_BYTES


def test_a_refused_disk_reserve_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise FULL

    monkeypatch.setattr(run_folder.os, "fsync", refuse)
    with pytest.raises(FolderError, match="the disk is full"), disk_reserve(tmp_path):
        pass
    assert list(tmp_path.glob(".ballast")) == []


# what is not essential


@pytest.mark.slow
def test_a_status_that_cannot_be_written_on_the_way_fails_no_run(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tried, reserve_bytes = RunFolder.set_status, [], []

    def set_status(self: RunFolder, state: str, **facts: Any) -> None:
        if state == "running" and "pid" not in facts:
            tried.append(facts)
            reserve_bytes.append(self.file(".ballast").stat().st_size)
            raise FULL
        real(self, state, **facts)

    monkeypatch.setattr(RunFolder, "set_status", set_status)
    result = train(tiny, tmp_path / "outputs")
    assert result.exit_code == 0 and len(tried) == 4
    assert RunFolder(result.folder, "").state() == result.state
    assert set(reserve_bytes) == {DISK_RESERVE_BYTES} and not (result.folder / ".ballast").exists()


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


@pytest.mark.slow
def test_a_terminal_that_is_gone_costs_its_lines_only(tiny: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    console = Console("auto")
    console.log = tmp_path / "log.txt"
    console.say("one line")
    assert console.log.read_text().endswith("one line\n")
    result = train(tiny, tmp_path / "outputs", "tracking.progress=bar")
    assert result.exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("listener", by_day(["head", "full disk", "full disk, unbuffered"], "full disk"))
def test_nobody_listens(listener: str, promised: Any, unbroken: Any, tiny: list[str], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "specvit.train", *tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"]
    to = "| head -n 1; exit ${PIPESTATUS[0]}" if listener == "head" else "> /dev/full"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1" if "unbuffered" in listener else ""}
    ended = subprocess.run(
        ["bash", "-c", f'"$@" {to}', "run", *words], capture_output=True, text=True, timeout=120, env=environment
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    run = only_run(tmp_path / "runs")
    promised.kept(state=state_of(run), said=(run / "log.txt").read_text())
    promised.whole(run, unbroken([*tiny, *STEADY]))


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", by_day(["", "1"], ""))
def test_a_report_that_does_not_reach_the_disk_is_an_error(unbuffered: str, toy_sets: Path) -> None:
    command = [sys.executable, "-m", "specvit.data", "inspect", str(toy_sets / "val" / "dataset.h5")]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as out:
        ended = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, timeout=120, env=environment)
    assert ended.returncode == 2
    assert (
        ended.stderr == "specvit: the disk is full; free some space there, then run the same command again to resume.\n"
    )


# shards


@pytest.mark.slow
@pytest.mark.parametrize("missing", [1000, 240, 150, 60, 8])
def test_a_shard_is_never_left_without_its_labels(missing: int, stars: Any, tmp_path: Path) -> None:
    made = stars(500, 256)
    write_shard(tmp_path / "whole.h5", **made)
    needed = (tmp_path / "whole.h5").stat().st_size // 1024
    with small_disk(tmp_path / "disk", needed - missing) as disk:
        with pytest.raises(DataError, match=r"disk.*full.*free some space"):
            write_shard(disk / "a.h5", **made)
        assert list(disk.iterdir()) == []


@pytest.mark.slow
def test_a_shard_on_a_disk_with_room_is_whole(stars: Any, tmp_path: Path) -> None:
    made = stars(500, 256)
    with small_disk(tmp_path / "disk", 4096) as disk:
        write_shard(disk / "a.h5", **made)
        assert read_labels(open_shard(disk / "a.h5")).equals(made["labels"])


@pytest.mark.slow
def test_a_full_cache_is_one_sentence(disk: Path) -> None:
    path = disk / "cache" / "dataset.h5"
    with pytest.raises(DataError, match="the disk is full"):
        make_shards({path: range(70)}, seed=0, split="test", report=lambda *_: None)
    assert list(path.parent.iterdir()) == []
