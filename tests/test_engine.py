"""The training loop on a toy: steps, schedules, number formats, decisions, checkpoints, resume and remedies."""

import dataclasses
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from torch import Tensor, nn

from specvit import seeding
from specvit.config.build import build_config, to_plain
from specvit.config.schema import (
    Config,
    DataConfig,
    EarlyStoppingConfig,
    LossConfig,
    ModelConfig,
    OptConfig,
    TrainConfig,
)
from specvit.config.spelling import is_known
from specvit.data.order import epoch_order
from specvit.engine import checkpoint
from specvit.engine.loop import CHECK_STEPS, Diverged, Keeper, Learner, Ports, evaluate, fit
from specvit.engine.optimizer import build_optimizer, clip_gradients, gradient_norms
from specvit.engine.precision import build_scaler, resolve_precision
from specvit.engine.remedy import remedy_for
from specvit.engine.schedule import Schedule, build_schedule
from specvit.engine.state import TrainState
from specvit.engine.stopping import final_state, note_validation, stops_early
from specvit.engine.task import Classification, Regression
from specvit.errors import CheckpointError
from specvit.models import build_model
from specvit.models.dropout import KeyedDropout, set_dropout_key
from specvit.quantities import Batch

CPU = torch.device("cpu")
PIXELS, ROWS = 6, 64
FREE = OptConfig(type="SGD", lr=1.0, momentum=0.0, weight_decay=0.0, lr_sch="none")
"""Plain descent: a step's displacement is the gradient."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep workers that share the cores from waiting for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Toy(nn.Module):
    """Two layers with dropout between them."""

    def __init__(self, dropout: float, num_outputs: int = 1) -> None:
        """Set the weights from a generator of its own."""
        super().__init__()
        self.up, self.drop, self.down = nn.Linear(PIXELS, 12), KeyedDropout(dropout, 1), nn.Linear(12, num_outputs)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0.0, 0.3, generator=generator)

    def forward(self, flux_BP: Tensor) -> Tensor:
        """Return (B, K)."""
        return self.down(self.drop(torch.tanh(self.up(flux_BP))))

    def set_step_key(self, key: int) -> None:
        """Set the key of the masks."""
        set_dropout_key(self, key)


def rows(seed: int, count: int = ROWS) -> tuple[Tensor, Tensor]:
    """Return input (N, P) and a normalised label (N, 1) that depends on it, with scatter."""
    generator = torch.Generator().manual_seed(seed)
    flux_NP = torch.randn(count, PIXELS, generator=generator)
    target_N1 = torch.sin(flux_NP[:, :1]) + 0.5 * flux_NP[:, 1:2] + 0.3 * torch.randn(count, 1, generator=generator)
    return flux_NP, target_N1


class Shuffled:
    """Training rows in shuffled order with fresh noise; `spoilt` maps a step to what its target is multiplied by."""

    def __init__(self, step_rows: int = 16, spoilt: dict[int, float] | None = None) -> None:
        """Make the rows."""
        self.flux_NP, self.target = rows(1)
        self.step_rows, self.spoilt = step_rows, spoilt or {}

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps an epoch."""
        return ROWS // self.step_rows

    def batch(self, step: int) -> Batch:
        """Return the rows of one step."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order_N = epoch_order(ROWS, seed=3, epoch=epoch, order="global")
        index = torch.from_numpy(order_N[within * self.step_rows : (within + 1) * self.step_rows])
        noise = torch.randn(len(index), PIXELS, generator=seeding.torch_rng(3, "noise", step))
        target = self.target[index]
        return Batch(self.flux_NP[index] + 0.2 * noise, target * self.spoilt[step] if step in self.spoilt else target)


class Whole:
    """Validation rows in order."""

    def __init__(self, task: str = "reg") -> None:
        """Make the rows; `cls` asks for the sign of the label."""
        self.flux_NP, self.target = rows(2)
        if task == "cls":
            self.target = (self.target[:, 0] > 0).long()

    def __len__(self) -> int:
        """Number of rows."""
        return ROWS

    def batches(self) -> Iterator[Batch]:
        """Yield rows in unequal batches."""
        for part in (slice(0, 50), slice(50, ROWS)):
            yield Batch(self.flux_NP[part], self.target[part])


class Classes(Shuffled):
    """The same rows with the sign of the label as class; `spoilt` works on the input here."""

    def batch(self, step: int) -> Batch:
        """Return the rows of one step."""
        batch = super().batch(step)
        return Batch(batch.flux_BP * self.spoilt.get(step, 1.0), (batch.target[:, 0] > 0).long())


class Recorder:
    """Keeps all rows, and the running loss at each step."""

    def __init__(self) -> None:
        """Nothing is kept yet."""
        self.rows: list[dict[str, Any]] = []
        self.losses: dict[int, float] = {}

    def metrics(self, row: dict[str, Any]) -> None:
        """Keep one epoch's row."""
        self.rows.append(row)

    def timing(self, row: dict[str, Any]) -> None:
        """Wall-clock figures are of no interest here."""

    def progress(self, step: int, loss: Any) -> None:
        """Keep the running loss."""
        self.losses[step] = loss()


class StopAfter:
    """Asks to stop after some steps of this call; never, by default."""

    def __init__(self, steps: int = 10**9) -> None:
        """`steps` from now."""
        self.left = steps

    def requested(self) -> bool:
        """Return True from then on; the loop asks once a step."""
        self.left -= 1
        return self.left <= 0


@dataclasses.dataclass
class Run:
    """One training run of the toy."""

    learner: Learner
    state: TrainState
    view: Shuffled
    val: Whole
    recorder: Recorder
    keeper: Keeper

    def fit(self, stop: Any = None) -> str:
        """Train."""
        ports = Ports(tracker=self.recorder, stop=stop or StopAfter(), keeper=self.keeper)
        return fit(self.learner, self.state, self.view, self.val, self.learner.schedule.opt, ports)

    def step(self, number: int = 0) -> None:
        """Take one step without the loop."""
        self.learner.step(self.view.batch(number), self.state)

    def weights(self) -> Tensor:
        """Return all weights as one vector."""
        return nn.utils.parameters_to_vector(self.learner.module.parameters()).detach().clone()

    def everything(self) -> dict[str, Any]:
        """Return all that a run must end with, bit for bit."""
        learner = self.learner
        parts = (learner.module.state_dict(), learner.optimizer.state_dict(), learner.scaler.state_dict())
        return {"parts": parts, "state": self.state.to_plain(), "rows": self.recorder.rows}


def toy_run(
    folder: Path,
    *,
    opt: OptConfig = FREE,
    precision: str = "32",
    dropout: float = 0.0,
    view: Shuffled | None = None,
    task: str = "reg",
    saved: dict[str, Any] | None = None,
    **train,
) -> Run:
    """Return a run, new or from a checkpoint's content, put together as the pipeline does."""
    settings = TrainConfig(**({"epochs": 5, "batch_size": 16, "gradient_clip": None, "precision": precision} | train))
    view = view or (Classes() if task == "cls" else Shuffled())
    if task == "cls" and "early_stopping" not in train:
        settings = dataclasses.replace(settings, early_stopping=EarlyStoppingConfig("val_accuracy", "max"))
    module = Toy(dropout, 2 if task == "cls" else 1)
    regression = Regression(LossConfig(), ("log_g",), (3.0,), (1.3,))
    learner = Learner(
        module=module,
        parts={"up": list(module.up.parameters()), "down": list(module.down.parameters())},
        task=Classification(LossConfig(name="ce")) if task == "cls" else regression,
        optimizer=build_optimizer(module, opt),
        scaler=build_scaler(precision, CPU),
        schedule=build_schedule(opt, epochs=settings.epochs, steps_per_epoch=view.steps_per_epoch),
        train=settings,
        precision=precision,
        device=CPU,
    )
    if precision == "16-mixed":
        # From its first scale of 65536 the toy's gradients would overflow now and then.
        learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": 1024.0})
    state = TrainState.from_plain(saved["state"]) if saved else TrainState()
    state.start_sums(task=learner.task.num_sums, norms=3, device=CPU)
    if saved:
        module.load_state_dict(saved["model"])
        learner.optimizer.load_state_dict(saved["optimizer"])
        learner.scaler.load_state_dict(saved["scaler"])
    keeper = Keeper(folder / "last.ckpt", folder / "best.ckpt", {"run_id": "toy"})
    return Run(learner, state, view, Whole(task), Recorder(), keeper)


def assert_identical(one: Any, other: Any, where: str = "") -> None:
    """Check nested values bit for bit."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_identical(one[name], other[name], f"{where}/{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_identical(left, right, f"{where}/{number}")
    else:
        assert one == other, where


def non_finite(content: Any, where: str = "") -> list[str]:
    """Return the places of a nested value that hold a NaN or an infinity."""
    if isinstance(content, Tensor):
        return [] if torch.isfinite(content.double()).all() else [where]
    if isinstance(content, dict):
        return [place for name, value in content.items() for place in non_finite(value, f"{where}/{name}")]
    if isinstance(content, list | tuple):
        return [place for number, value in enumerate(content) for place in non_finite(value, f"{where}/{number}")]
    return [where] if isinstance(content, float) and not math.isfinite(content) else []


# Gradients and optimizers


def toy_with_gradients(scale: float = 1.0) -> Toy:
    """Return a toy that has been through one backward pass."""
    module = Toy(0.0)
    flux_BP, target_B1 = rows(1)
    (scale * (module(flux_BP) - target_B1).square().mean()).backward()
    return module


def flat_norm(parameters: Any) -> float:
    """Return the 2-norm of the parameters' gradients, laid end to end."""
    return torch.cat([parameter.grad.flatten() for parameter in parameters]).double().norm().item()


def test_gradient_norms_are_the_whole_and_its_parts() -> None:
    module = toy_with_gradients()
    parts = [list(module.up.parameters()), list(module.down.parameters())]
    total, up, down = gradient_norms(parts).tolist()
    assert [up, down] == pytest.approx([flat_norm(part) for part in parts], rel=1e-6)
    assert total == pytest.approx(flat_norm(module.parameters()), rel=1e-6)
    assert total == pytest.approx(math.hypot(up, down), rel=1e-6)


@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_clipping_scales_the_whole_gradient_to_the_limit_and_no_further(limit: float) -> None:
    module = toy_with_gradients()
    before = [parameter.grad.clone() for parameter in module.parameters()]
    norm = flat_norm(module.parameters())
    clip_gradients(list(module.parameters()), gradient_norms([list(module.parameters())])[0], limit)
    factor = min(1.0, limit / norm)
    for parameter, was in zip(module.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad, was * factor, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("precision", ["32", "16-mixed"])
@pytest.mark.parametrize("limit", [None, 0.05, 1e6])
def test_step_moves_by_the_clipped_gradient_and_logs_the_unclipped(
    tmp_path: Path, limit: float | None, precision: str
) -> None:
    run = toy_run(tmp_path, gradient_clip=limit, precision=precision)
    before = run.weights()
    run.step()
    moved, logged = (run.weights() - before).norm().item(), run.state.sums["norms"][0].item()
    assert logged > 0.1
    assert moved == pytest.approx(min(limit or math.inf, logged), rel=1e-3)


def parameters_moved_by_decay_alone(opt: OptConfig) -> set[str]:
    """Return which parameters a step with zero gradient changes, all of them starting from one."""
    config = ModelConfig(patch_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = build_model(config, num_pixels=20, num_outputs=1, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    build_optimizer(model, opt).step()
    return {name for name, parameter in model.named_parameters() if not torch.all(parameter == 1.0)}


@pytest.mark.parametrize("kind", ["AdamW", "Adam", "SGD", "RMSprop"])
def test_weight_decay_spares_biases_norms_positions_and_cls(kind: str) -> None:
    layers = ("attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down")
    matrices = {"tokenizer.proj.weight", "head.weight", *(f"blocks.0.{layer}.weight" for layer in layers)}
    assert parameters_moved_by_decay_alone(OptConfig(type=kind, lr=0.1, weight_decay=0.1)) == matrices
    assert parameters_moved_by_decay_alone(OptConfig(type=kind, lr=0.1, weight_decay=0.0)) == set()


@pytest.mark.parametrize(("kind", "lr"), [("AdamW", 0.01), ("Adam", 0.01), ("SGD", 0.02), ("RMSprop", 0.002)])
@pytest.mark.parametrize("precision", ["32", "16-mixed", "bf16-mixed"])
def test_every_optimizer_learns(tmp_path: Path, kind: str, lr: float, precision: str) -> None:
    run = toy_run(tmp_path, opt=OptConfig(type=kind, lr=lr, lr_sch="none"), precision=precision)
    before = evaluate(run.learner, run.val)["loss"]
    for number in range(60):
        run.step(number)
    assert evaluate(run.learner, run.val)["loss"] < 0.4 * before


def test_optimizer_settings_arrive() -> None:
    opt = OptConfig(type="AdamW", betas=(0.7, 0.8), momentum=0.6, lr=0.3)
    assert build_optimizer(Toy(0.0), opt).defaults["betas"] == (0.7, 0.8)
    for kind in ("SGD", "RMSprop"):
        optimizer = build_optimizer(Toy(0.0), dataclasses.replace(opt, type=kind))
        assert optimizer.param_groups[0]["momentum"] == 0.6


# Schedules

SCHEDULES = ["cosine", "onecycle", "step", "constant", "none", "plateau"]


def schedule(kind: str, *, epochs: int = 10, steps_per_epoch: int = 20, **changes) -> Schedule:
    """Return a schedule that rises to 1."""
    opt = OptConfig(**({"lr": 1.0, "lr_sch": kind, "eta_min": 0.01, "step_epochs": 3.0} | changes))
    return build_schedule(opt, epochs=epochs, steps_per_epoch=steps_per_epoch)


def rates(kind: str, **changes) -> np.ndarray:
    """Return the learning rate of every step of a run."""
    built = schedule(kind, **changes)
    return np.array([built.lr(step) for step in range(built.total_steps)])


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("eta_min", [0.0, 0.01])
def test_learning_rate_stays_between_floor_and_top(kind: str, warmup: float, eta_min: float) -> None:
    rate = rates(kind, warmup_epochs=warmup, eta_min=eta_min)
    assert len(rate) == 200
    assert np.all(rate > 0)
    assert rate.max() == pytest.approx(1.0, abs=1e-3)
    assert rate[-1] >= eta_min


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.5, 2.0])
def test_warmup_is_linear_to_the_top(kind: str, warmup: float) -> None:
    steps = int(warmup * 20)
    rate = rates(kind, warmup_epochs=warmup)
    np.testing.assert_allclose(rate[:steps], np.arange(1, steps + 1) / steps)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_rate_does_not_drop_when_warmup_ends(kind: str) -> None:
    rate = rates(kind, warmup_epochs=1.0)
    assert rate[20] == pytest.approx(rate[19], rel=0.05)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
@pytest.mark.parametrize("epochs", [2, 10])
def test_cosine_falls_from_top_to_floor_in_the_runs_own_length(epochs: int, warmup: float) -> None:
    rate = rates("cosine", epochs=epochs, warmup_epochs=warmup)[int(20 * warmup) :]
    assert rate[0] == 1.0
    assert np.all(np.diff(rate) < 0)
    assert rate[-1] == pytest.approx(0.01, abs=2.5 / len(rate) ** 2)
    assert rate[len(rate) // 2] == pytest.approx((1 + 0.01) / 2)


def test_onecycle_follows_torchs() -> None:
    optimizer = torch.optim.SGD(Toy(0.0).parameters(), lr=1.0)
    # torch's own curve ends at its last step, this one would end at the next.
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=2001, pct_start=0.3, div_factor=25.0, final_div_factor=4.0
    )
    expected = []
    for _ in range(2000):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    np.testing.assert_allclose(rates("onecycle", epochs=100), expected, atol=3e-3)


def test_onecycle_rises_then_falls() -> None:
    rate = rates("onecycle")
    assert rate[0] == pytest.approx(1 / 25)
    top = int(rate.argmax())
    assert top == 60
    assert np.all(np.diff(rate[: top + 1]) > 0)
    assert np.all(np.diff(rate[top:]) < 0)
    assert rate[-1] == pytest.approx(0.01, abs=1e-3)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_step_halves_every_few_epochs(warmup: float) -> None:
    rate = rates("step", warmup_epochs=warmup)[int(20 * warmup) :]
    np.testing.assert_allclose(rate, 0.5 ** (np.arange(len(rate)) // 60))


@pytest.mark.parametrize("kind", ["none", "constant", "plateau"])
def test_constant_stays(kind: str) -> None:
    assert np.all(rates(kind, warmup_epochs=1.0)[20:] == 1.0)


def test_plateau_multiplies_its_factor_in_down_to_the_floor() -> None:
    built = schedule("plateau")
    assert [built.lr(50, factor) for factor in (1.0, 0.5, 0.02, 0.001)] == pytest.approx([1.0, 0.5, 0.02, 0.01])
    assert schedule("none").lr(50, 0.5) == 1.0


def test_learner_sets_the_rate_of_the_step(tmp_path: Path) -> None:
    opt = dataclasses.replace(FREE, lr_sch="cosine", lr=0.1)
    run = toy_run(tmp_path, opt=opt, epochs=2)
    run.fit()
    logged = [row["lr"] for row in run.recorder.rows]
    assert logged == [run.learner.schedule.lr(step) for step in (3, 7)]
    assert run.learner.optimizer.param_groups[0]["lr"] == run.learner.schedule.lr(7)


# Accumulation and number formats


@pytest.mark.parametrize("clip", [None, 0.05])
def test_accumulated_pieces_make_the_step_of_the_whole_batch(tmp_path: Path, clip: float | None) -> None:
    runs = [toy_run(tmp_path, batch_size=16 // pieces, accumulate=pieces, gradient_clip=clip) for pieces in (1, 2, 8)]
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


# Targets of this size make gradients that overflow fp16 at the toy's scale; the loss itself is finite.
OVERFLOW = 1e5


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


# Decisions


def noted(
    values: list[float], *, mode: str = "min", patience: int | None = None, **opt
) -> tuple[list[bool], TrainState]:
    """Return which epochs were the best so far, and the state, after a course of validation scores."""
    rule = EarlyStoppingConfig(monitor="val_mae", mode=mode, patience=patience)
    state, best = TrainState(), []
    for epoch, value in enumerate(values, start=1):
        best.append(note_validation(state, {"val_mae": value}, epoch=epoch, rule=rule, opt=OptConfig(**opt)))
        if stops_early(state, rule):
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


@pytest.mark.parametrize(
    ("r2", "early", "expected"),
    [
        (0.9, False, "completed"),
        (0.9, True, "early_stopped"),
        (0.01, False, "plateau"),
        (0.01, True, "plateau"),
        (math.nan, True, "plateau"),
        (None, True, "early_stopped"),
        (None, False, "completed"),
    ],
)
def test_plateau_outranks_early_stopped(r2: float | None, early: bool, expected: str) -> None:
    assert final_state(TrainState(last_val_r2=r2), early=early) == expected


def test_fit_stops_early_after_patience_epochs(tmp_path: Path) -> None:
    rule = EarlyStoppingConfig(monitor="val_accuracy", mode="max", patience=3)
    run = toy_run(tmp_path, opt=dataclasses.replace(FREE, lr=1e-30), epochs=50, early_stopping=rule, task="cls")
    assert run.fit() == "early_stopped"
    assert [row["epoch"] for row in run.recorder.rows] == [1, 2, 3, 4]
    assert checkpoint.load(run.keeper.last)["state"]["ended"] == "early_stopped"


def test_run_that_learnt_nothing_ends_as_plateau(tmp_path: Path) -> None:
    run = toy_run(tmp_path, opt=dataclasses.replace(FREE, lr=1e-30), early_stopping=EarlyStoppingConfig(patience=1))
    assert run.fit() == "plateau"


class LookAtBest(StopAfter):
    """Reads the best checkpoint after each step, when the loop asks whether to stop."""

    def __init__(self, keeper: Keeper) -> None:
        """Nothing is seen yet."""
        super().__init__()
        self.keeper, self.epochs = keeper, []

    def requested(self) -> bool:
        """Note the epoch in the file."""
        self.epochs.append(checkpoint.load(self.keeper.best)["epoch"] if self.keeper.best.exists() else 0)
        return super().requested()


def test_best_checkpoint_is_written_only_on_improvement_and_holds_those_weights(tmp_path: Path) -> None:
    run = toy_run(tmp_path, opt=OptConfig(type="Adam", lr=0.15, lr_sch="none"), epochs=25)
    look = LookAtBest(run.keeper)
    run.fit(look)
    values = [row["val_mae"] for row in run.recorder.rows]
    running = [1 + int(np.argmin(values[:epoch])) for epoch in range(1, 26)]
    assert 2 < len(set(running)) < 25, "the course must have ups and downs"
    assert look.epochs[3::4] == running
    run.learner.module.load_state_dict(checkpoint.load(run.keeper.best)["model"])
    assert evaluate(run.learner, run.val)["mae"] == min(values)


# Divergence


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
    assert run.keeper.save_last(run.learner, run.state)
    run.keeper.save_best(run.learner, run.state)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.ckpt")}
    weight = run.learner.module.up.weight
    tensor = weight if where == "weights" else run.learner.optimizer.state[weight]["exp_avg"]
    with torch.no_grad():
        tensor[0, 0] = bad
    assert not run.keeper.save_last(run.learner, run.state)
    if where == "weights":
        run.keeper.save_best(run.learner, run.state)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.ckpt")} == before
    assert len(before) == 2


# Resume

LIVELY = OptConfig(type="AdamW", lr=0.02, lr_sch="plateau", plateau_patience=1, warmup_epochs=0.5)


@pytest.mark.parametrize("precision", ["32", "16-mixed"])
@pytest.mark.parametrize("stops", [[1], [2], [4], [7, 3], [13], [19], [1] * 19])
def test_interrupted_and_resumed_run_ends_bitwise_equal(tmp_path: Path, stops: list[int], precision: str) -> None:
    def start(saved: dict[str, Any] | None = None) -> Run:
        view = Shuffled(spoilt={2: OVERFLOW} if precision == "16-mixed" else None)
        changes = {"gradient_clip": 0.5, "accumulate": 2, "batch_size": 8, "save_every": 3}
        return toy_run(tmp_path, opt=LIVELY, precision=precision, dropout=0.3, view=view, saved=saved, **changes)

    whole = start()
    ended = whole.fit()
    whole.keeper.last.unlink()
    run, kept_rows, done = start(), [], 0
    for steps in stops:
        assert run.fit(StopAfter(steps)) == "interrupted"
        kept_rows += run.recorder.rows
        run = start(checkpoint.load(run.keeper.last))
        done += steps
        assert run.state.step == done
    assert run.fit() == ended
    run.recorder.rows = kept_rows + run.recorder.rows
    assert_identical(run.everything(), whole.everything())


class Killed(BaseException):
    """The process dies."""


class DiesAt(StopAfter):
    """Dies after some steps, with nothing saved."""

    def requested(self) -> bool:
        """Raise when the time has come."""
        if super().requested():
            raise Killed
        return False


@pytest.mark.parametrize("died_at", [8, 11, 17])
def test_killed_run_goes_on_from_its_last_checkpoint_bitwise_equal(tmp_path: Path, died_at: int) -> None:
    def start(saved: dict[str, Any] | None = None) -> Run:
        return toy_run(tmp_path, opt=LIVELY, dropout=0.3, saved=saved, save_every=2)

    whole = start()
    ended = whole.fit()
    whole.keeper.last.unlink()
    first = start()
    with pytest.raises(Killed):
        first.fit(DiesAt(died_at))
    run = start(checkpoint.load(first.keeper.last))
    assert run.state.step == died_at // 8 * 8
    kept_rows = [row for row in first.recorder.rows if row["step"] <= run.state.step]
    assert run.fit() == ended
    run.recorder.rows = kept_rows + run.recorder.rows
    assert_identical(run.everything(), whole.everything())


def test_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    run = toy_run(tmp_path, opt=LIVELY)
    ended = run.fit()
    again = toy_run(tmp_path, opt=LIVELY, saved=checkpoint.load(run.keeper.last))
    assert again.fit() == ended
    assert again.recorder.rows == []
    assert torch.equal(again.weights(), run.weights())


def test_stop_at_the_last_step_ends_the_run_rather_than_interrupting_it(tmp_path: Path) -> None:
    run = toy_run(tmp_path, opt=dataclasses.replace(FREE, lr=0.05))
    assert run.fit(StopAfter(20)) == "completed"


def test_training_ignores_and_leaves_the_global_generator(tmp_path: Path) -> None:
    weights = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        run = toy_run(tmp_path, opt=LIVELY, dropout=0.3, epochs=2)
        module_draws = torch.get_rng_state()
        run.fit()
        assert torch.equal(torch.get_rng_state(), module_draws)
        assert not torch.equal(before, module_draws), "torch's own initialisation draws; the check would see it"
        weights.append(run.weights())
    assert torch.equal(*weights)


# Checkpoint files


def some_content() -> dict[str, Any]:
    """Return what a checkpoint may hold."""
    nested = {"list": [1, 2.5, None, "text", True], "tuple": (1, 2), "empty": {}}
    tensors = {
        "half": torch.randn(3, 2).half(),
        "whole": torch.arange(4),
        "double": torch.zeros(1, dtype=torch.float64),
    }
    return {"state": nested, "model": tensors}


def test_checkpoint_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path, content = tmp_path / "a.ckpt", some_content()
    checkpoint.save(path, content)
    found = checkpoint.load(path)
    assert_identical({name: found[name] for name in content}, content)
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_checkpoint_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.ckpt"
    checkpoint.save(path, some_content())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        checkpoint.load(path)


def test_checkpoint_with_a_flipped_bit_in_its_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    weights = torch.randn(1000)
    checkpoint.save(path, {"model": {"weight": weights}})
    damaged = bytearray(path.read_bytes())
    place = bytes(damaged).index(weights.numpy().tobytes()) + 2000
    damaged[place] ^= 0x10
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError):
        checkpoint.load(path)


@pytest.mark.parametrize("foreign", [{"state_dict": {}}, [1, 2], {"format": 99, "model": {}}, torch.zeros(3)])
def test_foreign_checkpoint_is_refused(tmp_path: Path, foreign: Any) -> None:
    torch.save(foreign, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*format"):
        checkpoint.load(tmp_path / "a.ckpt")


@pytest.mark.parametrize("name", ["missing.ckpt", "folder"])
def test_missing_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(tmp_path / name)


class MakesFolder:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        """`folder` is what it makes."""
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "a.ckpt", tmp_path / "trace"
    checkpoint.save(path, {"model": MakesFolder(trace)})
    with pytest.raises(CheckpointError):
        checkpoint.load(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the file must be one that would have run code"


def test_failing_writer_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    checkpoint.save(path, some_content())
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(path, {"model": torch.zeros(1000), "not for a file": lambda: None})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_is_finite_looks_into_everything(bad: float) -> None:
    good = {"a": [torch.ones(2), {"b": torch.arange(3)}], "c": 1.0}
    assert checkpoint.is_finite(good)
    assert checkpoint.is_finite({"numbers": torch.arange(3)})
    assert not checkpoint.is_finite(good | {"d": ({"e": torch.tensor([0.0, bad]).half()},)})


def test_state_comes_back_from_its_plain_form() -> None:
    state = TrainState(5, 0.25, 2, 3, 0.5, 1, 0.1, "plateau")
    state.start_sums(task=5, norms=4, device=CPU)
    for value in state.sums.values():
        value += 3.0
    unset = [field.name for field in dataclasses.fields(state) if getattr(state, field.name) == field.default]
    assert unset == [], "a field at its default value shows nothing"
    again = TrainState.from_plain(state.to_plain())
    assert_identical(dataclasses.asdict(again), dataclasses.asdict(state))


# Remedies


def settings(**changes) -> Config:
    """Return a valid configuration on built-in spectra; sections are changed by name."""
    data = DataConfig(kind="builtin", num_samples=10_000, val_samples=100, test_samples=100)
    base = {"data": data} | {
        name: dataclasses.replace(getattr(Config(), name) if name != "data" else data, **values)
        for name, values in changes.items()
    }
    return build_config(to_plain(Config(**base)))


def overrides_in(remedy: str) -> dict[str, Any]:
    """Return the overrides of a remedy, their values as Hydra reads them."""
    texts = re.findall(r"[\w.]+=[^\s,]+", remedy)
    parsed = [OverridesParser.create().parse_override(text) for text in texts]
    return {override.key_or_group: override.value() for override in parsed}


STATES = ["diverged", "oom", "plateau"]
SITUATIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "one epoch": {"train": {"epochs": 1}},
    "low rate": {"opt": {"lr": 2e-5}},
    "high floor": {"opt": {"lr": 1e-3, "eta_min": 9e-4}},
    "one row": {"train": {"batch_size": 1, "accumulate": 4}},
    "odd batch": {"train": {"batch_size": 7, "precision": "32", "gradient_clip": None}},
    "compiled": {"train": {"compile": True, "precision": "32"}},
    "long warmup": {"opt": {"warmup_epochs": 5.0}},
    "legacy": {"model": {"init": "legacy"}, "data": {"flux_norm": "none", "resident": "never"}},
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("state", STATES)
def test_remedy_can_be_pasted_and_changes_something(state: str, situation: str) -> None:
    config = settings(**SITUATIONS[situation])
    overrides = overrides_in(remedy_for(state, config))
    assert overrides
    plain = to_plain(config)
    for dotted, value in overrides.items():
        assert is_known(dotted), dotted
        section, name = dotted.split(".")
        assert plain[section][name] != value, f"{dotted} has this value already"
        plain[section][name] = value
    build_config(plain)


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_remedy_of_memory_takes_fewer_rows_at_a_time_and_no_more_a_step(batch_size: int) -> None:
    config = settings(train={"batch_size": batch_size, "accumulate": 2})
    overrides = overrides_in(remedy_for("oom", config))
    batch = overrides.get("train.batch_size", batch_size)
    assert batch * overrides.get("train.accumulate", 2) == 2 * batch_size
    assert batch == max(1, batch_size // 2)


def test_remedy_of_divergence_lowers_the_rate() -> None:
    assert overrides_in(remedy_for("diverged", settings()))["opt.lr"] < Config().opt.lr


@pytest.mark.parametrize("state", ["completed", "early_stopped", "preempted"])
def test_what_did_not_fail_needs_no_remedy(state: str) -> None:
    assert remedy_for(state, settings()) == ""
