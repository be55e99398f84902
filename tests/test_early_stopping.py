"""The best epoch and early stopping."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from toys import FREE, StopAfter, toy_run

from specvit.config.schema import EarlyStoppingConfig, OptConfig
from specvit.training import checkpoint
from specvit.training.checkpoint import CheckpointManager
from specvit.training.loop import evaluate
from specvit.training.state import TrainState


def noted(
    values: list[float], *, mode: str = "min", patience: int | None = None, **opt
) -> tuple[list[bool], TrainState]:
    """Return which epochs were the best so far, and the state, after a course of validation scores."""
    rule = EarlyStoppingConfig(monitor="val_mae", mode=mode, patience=patience)
    state, best = TrainState(), []
    for epoch, value in enumerate(values, start=1):
        best.append(state.update_best({"val_mae": value}, epoch=epoch, rule=rule, opt=OptConfig(**opt)))
        if state.should_stop_early(rule):
            break
    return best, state


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [
        ("min", [3.0, 2.0, 2.5, 1.0], [True, True, False, True]),
        ("max", [3.0, 2.0, 2.5, 4.0], [True, False, False, True]),
        ("min", [3.0, 3.0], [True, False]),
        ("min", [math.nan, 3.0, math.nan, 2.0], [False, True, False, True]),
        ("max", [math.inf, 3.0], [False, True]),
    ],
)
def test_best_epoch_follows_the_mode_and_is_never_non_finite(mode: str, values: list[float], best: list[bool]) -> None:
    found, state = noted(values, mode=mode)
    assert found == best
    last = max(number for number, is_best in enumerate(best) if is_best)
    assert (state.best_epoch, state.best_value) == (last + 1, values[last])


@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 6), (3, 7), (6, 9), (None, 9)])
def test_patience_counts_epochs_since_the_best(patience: int | None, epochs: int) -> None:
    values = [5.0, 4.0, 4.5, 3.0, 3.0, 3.1, 3.2, 3.3, 3.4]
    assert len(noted(values, patience=patience)[0]) == epochs


def test_plateau_schedule_lowers_the_rate_after_its_patience_and_counts_anew() -> None:
    flat = {"lr_sch": "plateau", "plateau_patience": 2, "factor": 0.1}
    factors = [noted([1.0] * count, **flat)[1].plateau_factor for count in range(1, 9)]
    assert factors == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])
    assert noted([1.0, 1.0, 1.0, 0.5, 0.5, 0.5], **flat)[1].plateau_factor == 1.0
    assert noted([1.0] * 9, **(flat | {"lr_sch": "cosine"}))[1].plateau_factor == 1.0


def test_fit_stops_early_after_patience_epochs(tmp_path: Path) -> None:
    rule = EarlyStoppingConfig(monitor="val_accuracy", mode="max", patience=3)
    run = toy_run(tmp_path, opt=dataclasses.replace(FREE, lr=1e-30), epochs=50, early_stopping=rule, task="cls")
    assert run.fit() == "early_stopped"
    assert [row["epoch"] for row in run.recorder.rows] == [1, 2, 3, 4]
    assert checkpoint.load(run.checkpoints.last)["state"]["ended"] == "early_stopped"


class LookAtBest(StopAfter):
    """Reads the best checkpoint after each step, when the loop asks whether to stop."""

    def __init__(self, checkpoints: CheckpointManager) -> None:
        """Nothing is seen yet."""
        super().__init__()
        self.checkpoints, self.epochs = checkpoints, []

    def requested(self) -> bool:
        """Note the epoch in the file, once it is written."""
        self.checkpoints.writer.finish()
        self.epochs.append(checkpoint.load(self.checkpoints.best)["epoch"] if self.checkpoints.best.exists() else 0)
        return super().requested()


def test_best_checkpoint_is_written_only_on_improvement_and_holds_those_weights(tmp_path: Path) -> None:
    run = toy_run(tmp_path, opt=OptConfig(type="Adam", lr=0.15, lr_sch="none"), epochs=25)
    look = LookAtBest(run.checkpoints)
    run.fit(look)
    values = [row["val_mae"] for row in run.recorder.rows]
    running = [1 + int(np.argmin(values[:epoch])) for epoch in range(1, 26)]
    assert 2 < len(set(running)) < 25, "the course must have ups and downs"
    assert look.epochs[3::4] == running
    run.learner.module.load_state_dict(checkpoint.load(run.checkpoints.best)["model"])
    assert evaluate(run.learner, run.val)["mae"] == min(values)
