"""Disks, folders, records, processes and clocks that let a run down: how it ends, and that it goes on."""

import errno
import operator
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mounts import fill, read_only, small_disk
from planted import At, Changed, Fail, OnceWritten, Stop, limit, wait_for
from whole_runs import STEADY, only_run, state_of

pytestmark = pytest.mark.slow

STEP = "specvit.engine.loop.Learner.step"
FULL: dict[str, tuple[str, int]] = {
    "first status": ("specvit.config.folder.RunFolder.set_status", 1),
    "metrics": ("specvit.tracking.files.FileTracker.metrics", 3),
    "checkpoint best.ckpt": ("specvit.engine.loop.Keeper.save_best", 3),
    "checkpoint last.ckpt": ("specvit.engine.loop.Keeper.save_last", 3),
    "predictions": ("specvit.score.write_scored", 1),
    "summary": ("specvit.score.write_json", 1),
    "final status": ("specvit.engine.failure.RunFolder.set_status", 7),
}


@pytest.mark.parametrize("place", FULL)
def test_the_disk_is_full_at(place: str, promised: Any, trained: Any, unbroken: Any, tiny: list[str], tmp_path) -> None:
    where, call = FULL[place]
    with small_disk(tmp_path / "disk", 4096) as disk:
        arguments = [*tiny, *STEADY, f"tracking.folder={disk / 'runs'}"]
        ended = trained(arguments, At(where, partial(fill, disk / "filler"), call=call))
        assert ended.code == 1, ended.said
        assert "Traceback" not in ended.said
        run = only_run(disk / "runs")
        state = state_of(run)
        (disk / "filler").unlink()
        again = trained(arguments)
        assert again.code == 0, again.said
        promised.kept(state=state, said=ended.said)
        promised.whole(run, unbroken([*tiny, *STEADY]))


def test_the_disk_is_full_before_the_start(
    promised: Any, trained: Any, unbroken: Any, tiny: list[str], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 4096) as disk:
        arguments = [*tiny, *STEADY, f"tracking.folder={disk / 'runs'}"]
        fill(disk / "filler")
        ended = trained(arguments)
        assert ended.code == 2, ended.said
        assert state_of(only_run(disk / "runs")) == "nothing yet"
        promised.kept(state="refused", said=ended.said)
        (disk / "filler").unlink()
        assert trained(arguments).code == 0


def test_outputs_cannot_be_written(promised: Any, tiny: list[str], tmp_path: Path, refused: Any) -> None:
    (tmp_path / "disk").mkdir()
    with read_only(tmp_path / "disk"):
        promised.kept(state="refused", said=refused([*tiny, f"tracking.folder={tmp_path / 'disk' / 'runs'}"]))


def test_the_disk_becomes_read_only(promised: Any, launch: Any, trained: Any, unbroken: Any, tiny: list[str], tmp_path):
    (tmp_path / "disk").mkdir()
    arguments = [*tiny, *STEADY, f"tracking.folder={tmp_path / 'disk' / 'runs'}"]
    child = launch(arguments, At(STEP, partial(wait_for, tmp_path / "go"), call=31))
    child.until("\nepoch 2/")
    with read_only(tmp_path / "disk"):
        (tmp_path / "go").touch()
        assert child.wait() == 1, child.said
    run = only_run(tmp_path / "disk" / "runs")
    promised.kept(state=state_of(run), said=child.said)
    assert trained(arguments).code == 0
    promised.whole(run, unbroken([*tiny, *STEADY]))


REFUSALS: dict[str, tuple[str, OSError]] = {
    "no locks": ("fcntl.flock", OSError(errno.ENOLCK, "No locks available")),
    "no permission": ("pathlib.Path.mkdir", PermissionError(errno.EACCES, "Permission denied", "runs")),
}


@pytest.mark.parametrize("fault", REFUSALS)
def test_the_folder_gives(fault: str, promised: Any, trained: Any, tiny: list[str], tmp_path: Path) -> None:
    where, error = REFUSALS[fault]
    ended = trained([*tiny, f"tracking.folder={tmp_path / 'runs'}"], At(where, Fail(error), lasting=True))
    assert ended.code == 2, ended.said
    promised.kept(state="refused", said=ended.said)


def test_outputs_is_a_file(promised: Any, tmp_path: Path, tiny: list[str], refused: Any) -> None:
    (tmp_path / "runs").touch()
    promised.kept(state="refused", said=refused([*tiny, f"tracking.folder={tmp_path / 'runs'}"]))


# what goes wrong while the run works


def interrupt_twice() -> None:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)


WHILE: dict[str, tuple[Callable[[], Any], int]] = {
    "too many files are open": (At(STEP, partial(limit, resource.RLIMIT_NOFILE, 4), call=31), 1),
    "the clock is set back by a day": (Changed("time.time", partial(operator.add, -86400.0), 3, lasting=True), 0),
    "the clock is set ahead by a year": (Changed("time.time", partial(operator.add, 3.2e7), 3, lasting=True), 0),
    "Ctrl-C twice": (At(STEP, interrupt_twice, call=31), 130),
}


@pytest.mark.parametrize("fault", WHILE)
def test_while_it_trains(fault: str, promised: Any, trained: Any, unbroken: Any, tiny: list[str], tmp_path) -> None:
    plant, code = WHILE[fault]
    arguments = [*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"]
    ended = trained(arguments, plant)
    assert ended.code == code, ended.said
    run = only_run(tmp_path / "runs")
    promised.kept(state=state_of(run), said=ended.said)
    again = trained(arguments)
    assert again.code == 0, again.said
    promised.whole(run, unbroken([*tiny, *STEADY]))


def test_the_run_folder_is_removed(promised: Any, trained: Any, unbroken: Any, tiny: list[str], tmp_path) -> None:
    arguments = [*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"]
    ended = trained(arguments, At(STEP, OnceWritten(partial(shutil.rmtree, tmp_path / "runs")), call=31))
    assert ended.code == 1, ended.said
    assert trained(arguments).code == 0
    promised.kept(state="nothing yet", said=ended.said)


def test_a_rerun_is_killed_while_it_forgets(
    promised: Any, trained: Any, unbroken: Any, tiny: list[str], tmp_path: Path
) -> None:
    arguments = [*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"]
    assert trained(arguments).code == 0
    plant = At("pathlib.Path.unlink", Stop(signal.SIGKILL), call=4)
    assert trained([*arguments, "train.rerun=true"], plant).code == -signal.SIGKILL
    run = only_run(tmp_path / "runs")
    state = state_of(run)
    again = trained(arguments)
    promised.kept(state=state, said=again.said)
    promised.whole(run, unbroken([*tiny, *STEADY]))


# who listens


@pytest.mark.parametrize("listener", ["head", "full disk"])
def test_nobody_listens(listener: str, promised: Any, unbroken: Any, tiny: list[str], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "specvit.train", *tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"]
    to = "| head -n 1; exit ${PIPESTATUS[0]}" if listener == "head" else "> /dev/full"
    ended = subprocess.run(["bash", "-c", f'"$@" {to}', "run", *words], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")
    run = only_run(tmp_path / "runs")
    promised.kept(state=state_of(run), said=(run / "log.txt").read_text())
    promised.whole(run, unbroken([*tiny, *STEADY]))


def test_suspended_and_continued(promised: Any, launch: Any, unbroken: Any, tiny: list[str], tmp_path: Path) -> None:
    plant = At(STEP, partial(wait_for, tmp_path / "go"), call=31)
    child = launch([*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"], plant)
    child.until("\nepoch 2/")
    child.send(signal.SIGSTOP)
    (tmp_path / "go").touch()
    time.sleep(0.3)
    assert "\nepoch 3/" not in child.said
    child.send(signal.SIGCONT)
    assert child.wait() == 0
    run = only_run(tmp_path / "runs")
    promised.kept(state=state_of(run), said=child.said)
    promised.whole(run, unbroken([*tiny, *STEADY]))
