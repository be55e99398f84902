"""Runs that are killed or stopped at exact stages: what they leave is resumed, and nothing is lost.

The run has four epochs of twelve steps. A stage names the function that a run is in, and the how manieth time.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faults import by_day
from planted import At, AtImport, AtRename, Instead, OnceWritten, Stop, Torn, TornCheckpoint, wait_for
from processes import Child, whole_process
from whole_runs import STEADY, only_run, state_of

from specvit.training import checkpoint

pytestmark = pytest.mark.slow

STEP = "specvit.training.step.Learner.step"
LONG = [*STEADY, "train.epochs=20"]
STAGES: dict[str, Any] = {
    "folder is claimed": partial(At, "specvit.run.run.RunFolder.record_attempt"),
    "first step": partial(At, "specvit.training.step.Learner.step"),
    "middle of an epoch": partial(At, "specvit.training.step.Learner.step", call=31),
    "validation": partial(At, "specvit.training.loop.evaluate", call=2),
    "half of a metrics line": partial(Torn, "metrics.jsonl", write=3),
    "between metrics and checkpoint": partial(At, "specvit.training.checkpoint.CheckpointManager.save_best", call=2),
    "between best and last checkpoint": partial(At, "specvit.training.checkpoint.CheckpointManager.save_last", call=3),
    "checkpoint write": partial(TornCheckpoint, call=6),
    "between the renames of a checkpoint": partial(AtRename, "last.ckpt", call=3),
    "checkpoint written": partial(At, "specvit.training.checkpoint.save", call=4, after=True),
    "last checkpoint written": partial(At, "specvit.training.checkpoint.save", call=8, after=True),
    "test prediction": partial(At, "specvit.run.evaluation.predict"),
    "between predictions and summary": partial(At, "specvit.run.evaluation.write_json"),
    "figures": partial(At, "specvit.tracking.figures.draw_curves"),
    "after the summary": partial(At, "specvit.run.run.remedy_for"),
}
KILLED = [(stage, signal.SIGKILL) for stage in STAGES]
STOPPED = [
    ("folder is claimed", signal.SIGTERM),
    ("first step", signal.SIGINT),
    ("middle of an epoch", signal.SIGTERM),
    ("middle of an epoch", signal.SIGINT),
    ("middle of an epoch", signal.SIGUSR2),
    ("middle of an epoch", signal.SIGHUP),
    ("validation", signal.SIGTERM),
    ("half of a metrics line", signal.SIGTERM),
    ("checkpoint write", signal.SIGINT),
    ("between the renames of a checkpoint", signal.SIGTERM),
    ("last checkpoint written", signal.SIGUSR1),
    ("test prediction", signal.SIGTERM),
    ("between predictions and summary", signal.SIGTERM),
    ("figures", signal.SIGTERM),
]
DAILY = [
    ("folder is claimed", signal.SIGKILL),
    ("middle of an epoch", signal.SIGKILL),
    ("half of a metrics line", signal.SIGKILL),
    ("between metrics and checkpoint", signal.SIGKILL),
    ("checkpoint write", signal.SIGKILL),
    ("between the renames of a checkpoint", signal.SIGKILL),
    ("last checkpoint written", signal.SIGKILL),
    ("between predictions and summary", signal.SIGKILL),
    ("after the summary", signal.SIGKILL),
    ("folder is claimed", signal.SIGTERM),
    ("first step", signal.SIGINT),
    ("middle of an epoch", signal.SIGUSR2),
    ("middle of an epoch", signal.SIGHUP),
    ("checkpoint write", signal.SIGINT),
    ("last checkpoint written", signal.SIGUSR1),
    ("test prediction", signal.SIGTERM),
]
"""One kill or stop of each kind."""
SAVED = {"first step": 1, "middle of an epoch": 31, "validation": 24, "half of a metrics line": 36}
SAVED |= {"checkpoint write": 37, "between the renames of a checkpoint": 37}
"""The step that a signal saves; after the training it is the last one."""
HOLD = At("specvit.training.step.Learner.step", OnceWritten(), lasting=True)
"""Training continues during the writing; here each step waits for it, so that it is known what is on disk when."""


def name_of(value: object) -> str:
    return value.name if isinstance(value, signal.Signals) else str(value)


@pytest.mark.parametrize(("stage", "number"), by_day(KILLED + STOPPED, *DAILY), ids=name_of)
def test_killed_at_a_stage(
    stage: str, number: signal.Signals, promised: Any, trained: Any, unbroken: Any, tiny: list[str], tmp_path: Path
) -> None:
    arguments = [*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"]
    ended = trained(arguments, STAGES[stage](act=Stop(number)), HOLD)
    assert ended.code == (-number if number == signal.SIGKILL else 128 + number), ended.said
    run = only_run(tmp_path / "runs")
    state = state_of(run)
    if number != signal.SIGKILL and stage != "folder is claimed":
        assert checkpoint.load(run / "last.ckpt")["state"]["step"] == SAVED.get(stage, 48)
    again = trained(arguments)
    assert again.code == 0, again.said
    promised.kept(state=state, said=again.said if number == signal.SIGKILL else ended.said)
    promised.whole(run, unbroken([*tiny, *STEADY]))
    assert state_of(run) == "completed"
    assert [path.name for path in run.glob(".*.tmp")] == []
    attempts = [json.loads(line)["event"] for line in (run / "attempts.jsonl").read_text().splitlines()]
    assert attempts[-3:] == ["start", "ready", "end"]


def test_a_signal_after_the_summary_changes_nothing(
    promised: Any, trained: Any, unbroken: Any, tiny: list[str], tmp_path: Path
) -> None:
    arguments = [*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"]
    ended = trained(arguments, STAGES["after the summary"](act=Stop(signal.SIGTERM)))
    assert ended.code == 0
    run = only_run(tmp_path / "runs")
    promised.kept(state=state_of(run), said=ended.said)
    promised.whole(run, unbroken([*tiny, *STEADY]))


START_UP: dict[str, Any] = {
    "first import": partial(AtImport, "hydra"),
    "import of torch": partial(AtImport, "torch.nn"),
    "files are opened": partial(At, "specvit.run.context.open_splits", after=True),
    "folder is sought": partial(At, "specvit.run.context.find_folder"),
}
EARLY = [(stage, signal.SIGKILL) for stage in START_UP]
EARLY += [("first import", signal.SIGTERM), ("import of torch", signal.SIGTERM), ("import of torch", signal.SIGINT)]


@pytest.mark.parametrize(
    ("stage", "number"),
    by_day(EARLY, ("folder is sought", signal.SIGKILL), ("import of torch", signal.SIGINT)),
    ids=name_of,
)
def test_killed_before_there_is_a_folder(
    stage: str, number: signal.Signals, promised: Any, trained: Any, unbroken: Any, tiny: list[str], tmp_path: Path
) -> None:
    arguments = [*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"]
    process = whole_process(arguments, [START_UP[stage](act=Stop(number))])
    said, _ = process.communicate(timeout=60)
    handled = number != signal.SIGKILL and stage != "first import"
    assert process.returncode == (128 + number if handled else -number), said
    assert not (tmp_path / "runs").exists()
    again = trained(arguments)
    assert again.code == 0
    promised.kept(state="nothing yet", said=said if handled else again.said)
    promised.whole(only_run(tmp_path / "runs"), unbroken([*tiny, *STEADY]))


MADE = ["data=builtin", "data.num_samples=24", "data.val_samples=8", "data.test_samples=8", "train.batch_size=8"]
MADE += ["model.patch_size=256", "model.hidden_size=16", "model.num_hidden_layers=1", "model.num_attention_heads=2"]
MADE += ["model.intermediate_size=32", "train.epochs=2", "train.precision=32", "train.threads=1"]
MADE += ["tracking.progress=lines", "tracking.live=false"]
SHORT = Instead("specvit.data.synthetic.ROUND_UP", 1)
MAKING: dict[str, Any] = {
    "spectra are made": partial(At, "specvit.data.synthetic._label_table"),
    "a shard is half written": partial(At, "pandas.DataFrame.to_hdf", call=2),
}
MAKING_STOPPED = [("spectra are made", number) for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)]
MAKING_STOPPED += [("a shard is half written", number) for number in (signal.SIGKILL, signal.SIGTERM)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run on built-in spectra that nothing interrupted."""
    place = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SPECVIT_CACHE", str(place / "cache"))
        child = Child([*MADE, f"tracking.folder={place / 'runs'}"], [SHORT], place / "output.txt")
        assert child.wait() == 0, child.said
    child.close()
    return only_run(place / "runs")


@pytest.mark.parametrize(
    ("stage", "number"),
    by_day(MAKING_STOPPED, ("spectra are made", signal.SIGINT), ("a shard is half written", signal.SIGKILL)),
    ids=name_of,
)
def test_killed_while_spectra_are_made(
    stage: str, number: signal.Signals, promised: Any, trained: Any, made: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("SPECVIT_CACHE", str(tmp_path / "cache"))
    arguments = [*MADE, f"tracking.folder={tmp_path / 'runs'}"]
    ended = trained(arguments, SHORT, MAKING[stage](act=Stop(number)))
    assert ended.code == (-number if number == signal.SIGKILL else 128 + number), ended.said
    assert not (tmp_path / "runs").exists()
    again = trained(arguments, SHORT)
    assert again.code == 0, again.said
    promised.kept(state="nothing yet", said=again.said if number == signal.SIGKILL else ended.said)
    promised.whole(only_run(tmp_path / "runs"), made)
    names = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != ".lock"]
    assert sorted(names) == ["dataset.h5"] * 3 + ["made.json"] * 3


# several signals, and reruns


def test_a_run_stopped_again_and_again_ends_bitwise_equal(promised, launch, trained, unbroken, tiny, tmp_path) -> None:
    arguments = [*tiny, *LONG, f"tracking.folder={tmp_path / 'runs'}"]
    stops = 0
    for attempt in range(8):
        # Wait until one epoch is through, then a little into the next one.
        child = launch(arguments)
        child.until("\nepoch ")
        time.sleep(0.003 * (attempt % 5))
        child.send(signal.SIGTERM)
        if child.wait() == 0:
            break
        stops += 1
        promised.kept(state=state_of(only_run(tmp_path / "runs")), said=child.said)
    assert stops >= 5
    assert trained(arguments).code == 0
    promised.whole(only_run(tmp_path / "runs"), unbroken([*tiny, *LONG]))


def test_a_second_signal_while_the_first_is_written_down(promised, launch, trained, unbroken, tiny, tmp_path) -> None:
    arguments = [*tiny, *LONG, f"tracking.folder={tmp_path / 'runs'}"]
    child = launch(arguments, At(STEP, partial(wait_for, tmp_path / "go"), call=30))
    child.until("\nepoch 2/")
    child.send(signal.SIGUSR2)
    (tmp_path / "go").touch()
    while child.process.is_alive():
        child.send(signal.SIGTERM)
        time.sleep(0.002)
    promised.kept(state=state_of(only_run(tmp_path / "runs")), said=child.said)
    assert trained(arguments).code == 0
    promised.whole(only_run(tmp_path / "runs"), unbroken([*tiny, *LONG]))


def interrupt_twice() -> None:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_twice(promised: Any, trained: Any, unbroken: Any, tiny: list[str], tmp_path: Path) -> None:
    arguments = [*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"]
    ended = trained(arguments, At(STEP, interrupt_twice, call=31))
    assert ended.code == 130, ended.said
    run = only_run(tmp_path / "runs")
    promised.kept(state=state_of(run), said=ended.said)
    assert trained(arguments).code == 0
    promised.whole(run, unbroken([*tiny, *STEADY]))


def test_a_rerun_that_was_stopped(promised, trained, unbroken, tiny, tmp_path: Path) -> None:
    arguments = [*tiny, *LONG, f"tracking.folder={tmp_path / 'runs'}"]
    assert trained(arguments).code == 0
    assert trained([*arguments, "train.rerun=true"], At(STEP, Stop(signal.SIGTERM), call=40)).code == 143
    state = state_of(only_run(tmp_path / "runs"))
    again = trained([*arguments, "train.rerun=true"])
    promised.kept(state=state, said=again.said)
    promised.whole(only_run(tmp_path / "runs"), unbroken([*tiny, *LONG]))


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


# signals that stop nothing


def test_a_hangup_under_nohup(promised, unbroken, tiny, tmp_path: Path) -> None:
    words = ["nohup", sys.executable, "-m", "specvit.train", *tiny, *LONG, f"tracking.folder={tmp_path / 'runs'}"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    before = list(itertools.takewhile(lambda line: not line.startswith("epoch 2/"), process.stdout))
    process.send_signal(signal.SIGHUP)
    after, _ = process.communicate(timeout=120)
    assert before and process.returncode == 0, after
    run = only_run(tmp_path / "runs")
    promised.kept(state=state_of(run), said=after)
    promised.whole(run, unbroken([*tiny, *LONG]))


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
