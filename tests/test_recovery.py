"""Where a run is resumed from whatever is left of its checkpoints: on a toy, with the same bits in the end."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import by_day
from harm import DAMAGES, rewrite
from toys import LIVELY, Recorder, Run, StopAfter, assert_identical, toy_run

from specvit.config.schema import TrainConfig
from specvit.run_folder.folder import RunFolder
from specvit.tracking.metric_files import FileTracker
from specvit.training import checkpoint
from specvit.training.recovery import Start, faults_of_best, find_start
from specvit.training.schedule import build_rhythm

EPOCH_STEPS, EPOCHS = 4, 5
RHYTHM = build_rhythm(TrainConfig(epochs=EPOCHS), EPOCH_STEPS)
NOTHING = Start(None)
HASTY = dataclasses.replace(LIVELY, lr=0.1)
"""At this rate the toy's third epoch is its best, and each before it was when it ended."""


class Both(Recorder):
    """Keeps all rows, and writes them into the run folder."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the run folder."""
        super().__init__()
        self.file = FileTracker(folder)

    def metrics(self, row: dict[str, Any]) -> None:
        """Keep and write one epoch's row."""
        super().metrics(row)
        self.file.metrics(row)


def start(folder: RunFolder, found: Start = NOTHING, **changes: Any) -> Run:
    """Return the toy from the beginning or from what was found, as `run.train_network` does."""
    run = toy_run(folder.path, opt=HASTY, dropout=0.5, saved=found.saved, **changes)
    run.recorder = Both(folder.path)
    folder.cut_back(run.state.step)
    return run


def outcome(run: Run, folder: RunFolder) -> dict[str, Any]:
    """Return all that a run must end with, bit for bit, files included."""
    saved = {name: checkpoint.load(folder.file(name)) for name in ("last.ckpt", "best.ckpt")}
    parts = {name: part for name, part in run.everything().items() if name != "rows"}
    return {**parts, **saved, "rows": folder.file("metrics.jsonl").read_text().splitlines()}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run", "toy")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = RunFolder(tmp_path_factory.mktemp("unbroken"), "toy")
    whole = start(folder)
    whole.fit()
    assert (whole.state.step, whole.state.best_epoch) == (EPOCHS * EPOCH_STEPS, 3)
    return outcome(whole, folder)


# last.ckpt


STARTS = [(3, 0), (4, 0), (6, 4), (8, 4), (13, 12), (16, 12), (20, 16)]
"""After how many steps a run stops, and from which step it resumes without its last checkpoint."""


@pytest.mark.parametrize(
    ("damage", "steps", "resuming_from"),
    by_day(
        [(damage, *start) for damage in DAMAGES for start in STARTS],
        *[(damage, 13, 12) for damage in DAMAGES],
        *[(damage, *start) for damage in ("truncated", "missing") for start in STARTS],
    ),
)
def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(
    damage: str, steps: int, resuming_from: int, folder: RunFolder, unbroken: dict[str, Any]
) -> None:
    start(folder).fit(StopAfter(steps))
    spoil, words = DAMAGES[damage]
    spoil(folder.file("last.ckpt"))
    found = find_start(folder, RHYTHM)
    if damage == "missing" and steps <= 4:
        assert found.saved is None  # nothing was ever saved, for all one can see
    else:
        outcome_words = f"resuming from previous.ckpt, step {resuming_from}" if resuming_from else "from nothing"
        assert f"note: last.ckpt {words}" in found.note
        assert outcome_words in found.note
    assert folder.file("last.ckpt.damaged").exists() == (damage != "missing")
    assert not folder.file("last.ckpt").exists()
    again = start(folder, found)
    assert again.state.step == resuming_from
    again.fit()
    assert_identical(outcome(again, folder), unbroken)


@pytest.mark.parametrize("also", [(), ("best.ckpt",)])
@pytest.mark.parametrize("damage", DAMAGES)
def test_where_no_checkpoint_is_good_the_run_starts_from_nothing(
    damage: str, also: tuple[str, ...], folder: RunFolder, unbroken: dict[str, Any]
) -> None:
    start(folder).fit(StopAfter(14))
    for name in ("last.ckpt", "previous.ckpt", *also):
        DAMAGES[damage][0](folder.file(name))
    found = find_start(folder, RHYTHM)
    assert found.saved is None
    if damage != "missing":
        assert "last.ckpt.damaged; previous.ckpt" in found.note
        assert found.note.endswith("starting from nothing, which leads to the same numbers")
    again = start(folder, found)
    again.fit()
    assert_identical(outcome(again, folder), unbroken)


def test_a_good_start_says_nothing_and_moves_nothing(folder: RunFolder) -> None:
    assert find_start(folder, RHYTHM) == NOTHING
    start(folder).fit(StopAfter(3))
    found = find_start(folder, RHYTHM)  # before there are best weights
    assert (found.note, found.saved is not None and found.saved["state"]["step"]) == ("", 3)
    start(folder, found).fit(StopAfter(11))
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    assert set(before) == {"last.ckpt", "previous.ckpt", "best.ckpt", "metrics.jsonl"}
    found = find_start(folder, RHYTHM)
    assert found.note == ""
    assert found.saved is not None and found.saved["state"]["step"] == 14
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before


def test_the_previous_checkpoint_is_another_one(folder: RunFolder) -> None:
    for steps in (4, 4, 1, 3):  # stops at an end of an epoch and within one
        start(folder, find_start(folder, RHYTHM)).fit(StopAfter(steps))
    steps_saved = [checkpoint.load(folder.file(name))["state"]["step"] for name in ("previous.ckpt", "last.ckpt")]
    assert steps_saved == [9, 12]


@pytest.mark.parametrize("problem", [PermissionError(13, "Permission denied"), OSError(116, "Stale file handle")])
def test_a_checkpoint_that_is_only_kept_from_us_is_not_set_aside(
    problem: OSError, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(folder).fit(StopAfter(14))

    def refuse(*_: object, **__: object) -> None:
        raise problem

    monkeypatch.setattr(checkpoint.zipfile, "ZipFile", refuse)
    with pytest.raises(OSError, match=problem.strerror):
        find_start(folder, RHYTHM)
    assert folder.file("last.ckpt").exists() and folder.file("previous.ckpt").exists()


def test_a_checkpoint_is_not_set_aside_because_memory_is_short(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(folder).fit(StopAfter(14))

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(RuntimeError, match="allocate"):
        find_start(folder, RHYTHM)
    assert folder.file("last.ckpt").exists()


def test_a_bad_block_under_a_checkpoint_is_damage(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    start(folder).fit(StopAfter(14))
    real = checkpoint.zipfile.ZipFile

    def read(path: Path) -> Any:
        if path.name == "last.ckpt":
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(checkpoint.zipfile, "ZipFile", read)
    found = find_start(folder, RHYTHM)
    assert found.saved is not None and found.saved["state"]["step"] == 12


# metrics.jsonl


@pytest.mark.parametrize(
    ("kept", "resuming_from", "words"),
    [
        (slice(0, 3), 14, ""),
        (slice(0, 2), 8, "lacks epoch 3"),
        (slice(0, 1), 0, "lacks epoch 2"),
        (slice(1, 3), 0, "lacks epoch 1"),
        (slice(0, 0), 0, "lacks epoch 1"),
    ],
)
def test_a_checkpoint_needs_the_rows_of_its_epochs(
    kept: slice, resuming_from: int, words: str, folder: RunFolder, unbroken: dict[str, Any]
) -> None:
    start(folder, save_every=2).fit(StopAfter(14))
    path = folder.file("metrics.jsonl")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[kept]))
    found = find_start(folder, RHYTHM)
    assert words in found.note
    again = start(folder, found, save_every=2)
    assert again.state.step == resuming_from
    again.fit()
    assert_identical(outcome(again, folder), unbroken)


# best.ckpt


STOPS = [4, 7, 8, 11, 12, 14, 16, 18, 20]


@pytest.mark.parametrize(
    ("also", "steps", "damage"),
    by_day(
        itertools.product(["", "last.ckpt"], STOPS, DAMAGES),
        *[("", 14, damage) for damage in DAMAGES],
        *[(also, steps, "truncated") for also in ("", "last.ckpt") for steps in STOPS],
        *[("last.ckpt", steps, "missing") for steps in (4, 11, 12)],
    ),
)
def test_lost_best_weights_are_taken_from_a_checkpoint_or_made_again(
    also: str, steps: int, damage: str, folder: RunFolder, unbroken: dict[str, Any]
) -> None:
    start(folder).fit(StopAfter(steps))
    before = {name: checkpoint.load(folder.file(name)) for name in ("last.ckpt", "best.ckpt")}
    for name in ("best.ckpt", also) if also else ("best.ckpt",):
        DAMAGES[damage][0](folder.file(name))
    found = find_start(folder, RHYTHM)
    if "it is written again" in found.note and not also:
        assert_identical(checkpoint.load(folder.file("best.ckpt"))["model"], before["best.ckpt"]["model"])
    if not also:
        best_epoch, epoch = before["last.ckpt"]["state"]["best_epoch"], steps // EPOCH_STEPS
        kept = best_epoch == epoch or (best_epoch == epoch - 1 and steps % EPOCH_STEPS == 0)
        assert (found.saved is not None) == kept
        assert DAMAGES[damage][1] in found.note
    again = start(folder, found)
    again.fit()
    assert_identical(outcome(again, folder), unbroken)


def test_best_weights_of_a_later_epoch_are_come_to_again(folder: RunFolder, unbroken: dict[str, Any]) -> None:
    start(folder).fit(StopAfter(5))
    first = start(folder, find_start(folder, RHYTHM), save_every=5)
    with pytest.raises(KeyboardInterrupt):
        first.fit(DiesAt(8))
    assert checkpoint.load(folder.file("best.ckpt"))["epoch"] == 3
    found = find_start(folder, RHYTHM)
    assert found.saved is not None
    state = found.saved["state"]
    assert (found.note, state["step"], state["best_epoch"]) == ("", 5, 1)
    again = start(folder, found, save_every=5)
    again.fit()
    assert_identical(outcome(again, folder), unbroken)


class DiesAt(StopAfter):
    """Dies after some steps, with nothing saved."""

    def requested(self) -> bool:
        """Raise when the time has come."""
        if super().requested():
            raise KeyboardInterrupt
        return False


@pytest.mark.parametrize("epoch", [1, 5])
def test_an_ended_run_does_not_take_another_epochs_weights_for_its_best(
    epoch: int, folder: RunFolder, unbroken: dict[str, Any]
) -> None:
    whole = start(folder)
    whole.fit()
    assert whole.state.best_epoch not in (1, 5)
    assert faults_of_best(folder, whole.state, RHYTHM) == ""
    rewrite(lambda content: content.update(epoch=epoch))(folder.file("best.ckpt"))
    assert f"is of epoch {epoch}, not" in faults_of_best(folder, whole.state, RHYTHM)
    found = find_start(folder, RHYTHM)
    again = start(folder, found)
    again.fit()
    assert_identical(outcome(again, folder), unbroken)


def test_a_run_from_nothing_that_is_killed_early_does_not_come_upon_the_old_checkpoints(folder: RunFolder) -> None:
    start(folder).fit(StopAfter(18))
    folder.file("best.ckpt").unlink()
    assert find_start(folder, RHYTHM).saved is None
    again = find_start(folder, RHYTHM)
    assert again == Start(None, "note: there is no checkpoint; starting from nothing, which leads to the same numbers")
