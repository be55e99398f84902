"""Runs whose numbers are no longer finite, and what they leave."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import FREE, Classes, Shuffled, Whole, toy_run

from specvit.config.schema import EarlyStoppingConfig, OptConfig
from specvit.training import checkpoint
from specvit.training.step import CHECK_STEPS
from specvit.utils.errors import Diverged
from specvit.utils.quantities import Batch


def non_finite(content: Any, where: str = "") -> list[str]:
    """Return the places of a nested value that hold a NaN or an infinity."""
    if isinstance(content, Tensor):
        return [] if torch.isfinite(content.double()).all() else [where]
    if isinstance(content, dict):
        return [place for name, value in content.items() for place in non_finite(value, f"{where}/{name}")]
    if isinstance(content, list | tuple):
        return [place for number, value in enumerate(content) for place in non_finite(value, f"{where}/{number}")]
    return [where] if isinstance(content, float) and not math.isfinite(content) else []


@pytest.mark.parametrize("precision", ["32", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("first", [0, 6])
def test_lasting_nan_raises_diverged_and_leaves_only_finite_checkpoints(
    tmp_path: Path, precision: str, first: int
) -> None:
    view = Shuffled(spoilt={step: math.nan for step in range(first, 10_000)})
    run = toy_run(tmp_path, opt=dataclasses.replace(FREE, lr=0.01), precision=precision, view=view, epochs=500)
    with pytest.raises(Diverged):
        run.fit()
    assert run.state.step - first < 2 * CHECK_STEPS + view.steps_per_epoch
    found = {path.name: non_finite(checkpoint.load(path)) for path in tmp_path.glob("*.ckpt")}
    assert set(found) >= ({"last.ckpt", "best.ckpt"} if first else set())
    assert found == {name: [] for name in found}


def test_a_short_fit_of_nan_in_fp16_recovers(tmp_path: Path) -> None:
    view = Shuffled(spoilt={step: math.nan for step in range(5, 5 + CHECK_STEPS - 1)})
    opt = dataclasses.replace(FREE, lr=0.05)
    run = toy_run(tmp_path, opt=opt, precision="16-mixed", view=view, epochs=10)
    assert run.fit() == "completed"
    assert run.recorder.rows[-1]["skipped_steps"] == CHECK_STEPS - 1
    assert math.isfinite(run.recorder.rows[-1]["train_loss"])


@pytest.mark.parametrize("task", ["reg", "cls"])
def test_run_whose_weights_are_not_finite_at_the_end_has_diverged(tmp_path: Path, task: str) -> None:
    spoilt = dict.fromkeys(range(5, 8), math.nan)
    view = Classes(spoilt=spoilt) if task == "cls" else Shuffled(spoilt=spoilt)
    run = toy_run(tmp_path, opt=dataclasses.replace(FREE, lr=0.05), view=view, task=task, epochs=2)
    with pytest.raises(Diverged):
        run.fit()


def test_endless_overflow_in_fp16_is_divergence(tmp_path: Path) -> None:
    view = Shuffled(spoilt=dict.fromkeys(range(10_000), 1e12))
    run = toy_run(tmp_path, opt=FREE, precision="16-mixed", view=view, epochs=100)
    with pytest.raises(Diverged):
        run.fit()
    assert run.state.step < 60


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["weights", "optimizer"])
def test_non_finite_state_is_not_saved_over_a_finite_one(tmp_path: Path, where: str, bad: float) -> None:
    run = toy_run(tmp_path, opt=OptConfig(lr=0.01, lr_sch="none"))
    run.step()
    assert run.checkpoints.save_last(run.learner, run.state)
    run.checkpoints.save_best(run.learner, run.state)
    run.checkpoints.writer.finish()
    before = {path: path.read_bytes() for path in tmp_path.glob("*.ckpt")}
    weight = run.learner.module.up.weight
    tensor = weight[0] if where == "weights" else run.learner.optimizer.flats[0].moments["exp_avg"]
    with torch.no_grad():
        tensor[0] = bad
    assert not run.checkpoints.save_last(run.learner, run.state)
    if where == "weights":
        run.checkpoints.save_best(run.learner, run.state)
    run.checkpoints.writer.finish()
    assert {path: path.read_bytes() for path in tmp_path.glob("*.ckpt")} == before
    assert len(before) == 2


class Blinking(Whole):
    """Validation rows whose label is not finite in some passes, counted from 1."""

    def __init__(self, dark: range) -> None:
        """`dark` are those passes."""
        super().__init__()
        self.dark, self.passes = dark, 0

    def batches(self) -> Iterator[Batch]:
        """Yield rows in unequal batches."""
        self.passes += 1
        for batch in super().batches():
            yield Batch(batch.flux_BP, batch.target * (math.nan if self.passes in self.dark else 1.0))


@pytest.mark.parametrize("patience", [None, 2])
def test_a_run_whose_monitor_was_never_finite_has_diverged_and_says_so(tmp_path: Path, patience: int | None) -> None:
    rule = EarlyStoppingConfig("val_rmse", "min", patience)
    run = toy_run(tmp_path, opt=dataclasses.replace(FREE, lr=0.05), epochs=4, early_stopping=rule)
    run.val = Blinking(range(1, 99))
    with pytest.raises(Diverged, match="val_rmse was not finite in any epoch"):
        run.fit()
    assert run.state.step == 4 * (patience or 4)
    saved = checkpoint.load(tmp_path / "last.ckpt")["state"]
    assert (saved["ended"], saved["step"]) == (None, run.state.step - 4)  # asked for again, it tries again
    assert not (tmp_path / "best.ckpt").exists()


def test_a_run_whose_monitor_was_finite_once_ends_as_usual(tmp_path: Path) -> None:
    run = toy_run(tmp_path, opt=dataclasses.replace(FREE, lr=0.05), epochs=4)
    run.val = Blinking(range(2, 99))
    assert run.fit() == "completed"
    assert checkpoint.load(tmp_path / "best.ckpt")["epoch"] == 1
