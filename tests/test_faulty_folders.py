"""Folders that cannot be written, locked or kept, limits and clocks: how a run ends there, and that it is resumed."""

import errno
import json
import operator
import resource
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mounts import read_only
from planted import At, Changed, Fail, OnceWritten, limit, wait_for
from whole_runs import STEADY, only_run, state_of

from specvit.commands.train import main
from specvit.run_folder.folder import RunFolder
from specvit.tracking import metric_files as trackers
from specvit.tracking.metric_files import StatusTracker

STEP = "specvit.training.step.Learner.step"


# read-only


def test_outputs_cannot_be_written(promised: Any, tiny: list[str], tmp_path: Path, refused: Any) -> None:
    (tmp_path / "disk").mkdir()
    with read_only(tmp_path / "disk"):
        promised.kept(state="refused", said=refused([*tiny, f"tracking.folder={tmp_path / 'disk' / 'runs'}"]))


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_run_that_is_to_be_resumed_in_a_read_only_folder_is_refused(
    stopped: Path, tiny: list[str], tmp_path: Path, refused: Callable[[list[str]], str]
) -> None:
    shutil.copytree(stopped, tmp_path / "disk" / stopped.name)
    with read_only(tmp_path / "disk") as disk:
        sentence = refused([*tiny, *STEADY, f"tracking.folder={disk}"])
    assert sentence.startswith(f"specvit: tracking.folder: the file system is read-only ({tmp_path / 'disk'}/")


def test_a_finished_run_in_a_read_only_folder_is_found(
    finished_run: RunFolder, tiny: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["specvit train"])
    with read_only(finished_run.path.parent) as outputs:
        assert main([*tiny, "train.epochs=3", f"tracking.folder={outputs}"]) == 0
    assert "finished already" in capsys.readouterr().out


# no locks, no permission, no folder


REFUSALS: dict[str, tuple[str, OSError]] = {
    "no locks": ("fcntl.flock", OSError(errno.ENOLCK, "No locks available")),
    "no permission": ("pathlib.Path.mkdir", PermissionError(errno.EACCES, "Permission denied", "runs")),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", REFUSALS)
def test_the_folder_gives(fault: str, promised: Any, trained: Any, tiny: list[str], tmp_path: Path) -> None:
    where, error = REFUSALS[fault]
    ended = trained([*tiny, f"tracking.folder={tmp_path / 'runs'}"], At(where, Fail(error), lasting=True))
    assert ended.code == 2, ended.said
    promised.kept(state="refused", said=ended.said)


def test_outputs_is_a_file(promised: Any, tmp_path: Path, tiny: list[str], refused: Any) -> None:
    (tmp_path / "runs").touch()
    promised.kept(state="refused", said=refused([*tiny, f"tracking.folder={tmp_path / 'runs'}"]))


@pytest.mark.slow
def test_the_run_folder_is_removed(promised: Any, trained: Any, unbroken: Any, tiny: list[str], tmp_path) -> None:
    arguments = [*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"]
    ended = trained(arguments, At(STEP, OnceWritten(partial(shutil.rmtree, tmp_path / "runs")), call=31))
    assert ended.code == 1, ended.said
    assert trained(arguments).code == 0
    promised.kept(state="nothing yet", said=ended.said)


# limits and clocks


WHILE: dict[str, tuple[Callable[[], Any], int]] = {
    "too many files are open": (At(STEP, partial(limit, resource.RLIMIT_NOFILE, 4), call=31), 1),
    "the clock is set back by a day": (Changed("time.time", partial(operator.add, -86400.0), 3, lasting=True), 0),
    "the clock is set ahead by a year": (Changed("time.time", partial(operator.add, 3.2e7), 3, lasting=True), 0),
}


@pytest.mark.slow
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


def test_a_forecast_survives_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = {"monotonic": 100.0, "time": 1_700_000_000.0}
    monkeypatch.setattr(trackers.time, "monotonic", lambda: moments["monotonic"])
    monkeypatch.setattr(trackers.time, "time", lambda: moments["time"])
    folder = RunFolder(tmp_path, "")
    status = StatusTracker(folder, start_step=10, total_steps=110)
    moments["monotonic"] += 50.0
    moments["time"] -= 86_400.0  # the clock is set back by a day
    status.metrics({"step": 60, "epoch": 6, "val_loss": 1.0})
    forecast = time.mktime(time.strptime(folder.status()["forecast"][:19], "%Y-%m-%dT%H:%M:%S"))
    assert forecast == moments["time"] + 50.0
    assert json.loads((tmp_path / "status.json").read_text())["step"] == 60
