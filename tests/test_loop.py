"""Steps of the training loop: accumulation, dropout, number formats and what an epoch logs."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import CPU, FREE, OVERFLOW, Run, Shuffled, toy_run

from specvit.training.device import build_scaler, resolve_precision
from specvit.utils.quantities import Batch


@pytest.mark.parametrize(("clip", "loss"), [(None, "mse"), (0.05, "mse"), (None, "gaussian"), (None, "laplace")])
def test_accumulated_pieces_make_the_step_of_the_whole_batch(tmp_path: Path, clip: float | None, loss: str) -> None:
    each = {"gradient_clip": clip, "loss": loss}
    runs = [toy_run(tmp_path, batch_size=16 // pieces, accumulate=pieces, **each) for pieces in (1, 2, 8)]
    before = runs[0].weights()
    for run in runs:
        run.step()
        torch.testing.assert_close(run.weights() - before, runs[0].weights() - before, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(run.state.sums, runs[0].state.sums, rtol=1e-5, atol=1e-6)


def outputs_in_training(run: Run, batch: Batch, step: int) -> list[float]:
    """Return what the module puts out during one step on `batch`, weights unchanged."""
    outputs: list[float] = []
    hook = run.learner.module.register_forward_hook(
        lambda _module, _input, output: outputs.extend(output[:, 0].tolist())
    )
    run.state.step = step
    run.learner.step(batch, run.state)
    hook.remove()
    return outputs


def test_dropout_masks_depend_on_seed_step_and_piece_alone(tmp_path: Path) -> None:
    frozen = dataclasses.replace(FREE, lr=1e-30)
    batch = Batch(Shuffled().flux_NP[:1].expand(2, -1), torch.zeros(2, 1))
    runs = [toy_run(tmp_path, opt=frozen, batch_size=1, accumulate=2, dropout=0.5, seed=seed) for seed in (1, 2)]
    outputs = [outputs_in_training(run, batch, step) for run in runs for step in (0, 1, 7)]
    assert len({output for pair in outputs for output in pair}) > 9, "masks repeat over seeds, steps or pieces"
    assert outputs_in_training(runs[0], batch, 7) == outputs[2]


@pytest.mark.parametrize(("precision", "tolerance"), [("16-mixed", 2e-3), ("bf16-mixed", 1.5e-2)])
def test_mixed_precision_stays_close_to_fp32(tmp_path: Path, precision: str, tolerance: float) -> None:
    opt = dataclasses.replace(FREE, lr=0.1)
    runs = [toy_run(tmp_path, opt=opt, precision=kind, dropout=0.2) for kind in ("32", precision)]
    before = runs[0].weights()
    for run in runs:
        for number in range(8):
            run.step(number)
    full, mixed = (run.weights() - before for run in runs)
    assert runs[1].state.sums["skipped"].item() == 0
    assert 0 < (mixed - full).norm() < tolerance * full.norm()
    assert all(parameter.dtype == torch.float32 for parameter in runs[1].learner.module.parameters())


def test_only_fp16_scales_its_loss() -> None:
    assert [build_scaler(name, CPU).is_enabled() for name in ("32", "16-mixed", "bf16-mixed")] == [False, True, False]
    assert resolve_precision("16-mixed", CPU) == "16-mixed"
    assert resolve_precision("auto", CPU) in ("32", "bf16-mixed")


def test_an_overflowing_gradient_in_fp16_is_skipped_counted_and_halves_the_scale(tmp_path: Path) -> None:
    run = toy_run(tmp_path, opt=dataclasses.replace(FREE, lr=0.01), precision="16-mixed", epochs=2)
    run.view.spoilt[1] = OVERFLOW
    run.step(0)
    before, scale = run.weights(), run.learner.scaler.get_scale()
    run.step(1)
    assert torch.equal(run.weights(), before)
    assert run.learner.scaler.get_scale() == scale / 2
    run.step(2)
    assert not torch.equal(run.weights(), before)
    assert run.state.sums["skipped"].item() == 1
    assert run.state.sums["steps"].item() == 2


def test_skipped_steps_are_logged_and_leave_the_gradient_norm_finite(tmp_path: Path) -> None:
    run = toy_run(
        tmp_path,
        opt=dataclasses.replace(FREE, lr=0.01),
        precision="16-mixed",
        epochs=2,
        view=Shuffled(spoilt={1: OVERFLOW}),
    )
    run.fit()
    assert [row["skipped_steps"] for row in run.recorder.rows] == [1, 1]
    assert all(math.isfinite(row[name]) for row in run.recorder.rows for name in ("grad_norm", "grad_norm_up"))


@pytest.mark.parametrize("spoilt", [{}, {1: OVERFLOW}])
def test_running_loss_ends_as_the_epochs_training_loss(tmp_path: Path, spoilt: dict[int, float]) -> None:
    run = toy_run(
        tmp_path, opt=dataclasses.replace(FREE, lr=0.01), precision="16-mixed", epochs=1, view=Shuffled(spoilt=spoilt)
    )
    run.fit()
    assert run.recorder.losses[4] == pytest.approx(run.recorder.rows[0]["train_loss"], rel=1e-6)


def test_logged_training_figures_are_those_of_the_steps_taken(tmp_path: Path) -> None:
    frozen = dataclasses.replace(FREE, lr=1e-30)
    run = toy_run(tmp_path, opt=frozen, epochs=1)
    run.fit()
    batches = [run.view.batch(step) for step in range(4)]
    outputs = [run.learner.module(batch.flux_BP).detach() for batch in batches]
    losses = [(output - batch.target).square().mean() for output, batch in zip(outputs, batches, strict=True)]
    scores = run.learner.task.scores(torch.cat(outputs).numpy(), torch.cat([batch.target for batch in batches]).numpy())
    row = run.recorder.rows[0]
    assert row["train_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert [row["train_r2"], row["train_mae"]] == pytest.approx([scores["r2"], scores["mae"]], rel=1e-5)
    left = {name for name in ("task", "loss", "norms", "steps") if run.state.sums[name].any()}
    assert left == set(), "the sums must start the next epoch at zero"
