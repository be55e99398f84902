"""A toy that trains in milliseconds: a small network, rows, a recorder and a run of the training loop."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specvit.config.schema import EarlyStoppingConfig, LossConfig, OptConfig, TrainConfig
from specvit.data.views import epoch_order
from specvit.metrics.distributions import BY_LOSS
from specvit.models.dropout import KeyedDropout, set_dropout_key
from specvit.training.checkpoint import CheckpointManager
from specvit.training.device import build_scaler
from specvit.training.loop import Callbacks, fit
from specvit.training.optimizer import build_optimizer
from specvit.training.schedule import build_schedule
from specvit.training.state import TrainState
from specvit.training.step import Learner
from specvit.training.task import Classification, Regression
from specvit.utils import seeding
from specvit.utils.quantities import Batch

CPU = torch.device("cpu")
PIXELS, ROWS = 6, 64
FREE = OptConfig(type="SGD", lr=1.0, momentum=0.0, weight_decay=0.0, lr_sch="none")
"""Plain descent: a step's displacement is the gradient."""

LIVELY = OptConfig(type="AdamW", lr=0.02, lr_sch="plateau", plateau_patience=1, warmup_epochs=0.5)

# Targets of this size make gradients that overflow fp16 at the toy's scale; the loss itself is finite.
OVERFLOW = 1e5


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
        self.logged: list[dict[str, Any]] = []
        self.losses: dict[int, float] = {}

    def metrics(self, row: dict[str, Any]) -> None:
        """Keep a validation's row."""
        self.rows.append(row)

    def log(self, row: dict[str, Any]) -> None:
        """Keep a line between two validations."""
        self.logged.append(row)

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
    checkpoints: CheckpointManager

    def fit(self, stop: Any = None) -> str:
        """Train."""
        callbacks = Callbacks(tracker=self.recorder, stop=stop or StopAfter(), checkpoints=self.checkpoints)
        return fit(self.learner, self.state, self.view, self.val, self.learner.schedule.opt, callbacks)

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


def toy_parts(module: Toy) -> dict[str, list[nn.Parameter]]:
    """Return the toy's parameters by part."""
    return {"up": list(module.up.parameters()), "down": list(module.down.parameters())}


def toy_run(
    folder: Path,
    *,
    opt: OptConfig = FREE,
    precision: str = "32",
    dropout: float = 0.0,
    view: Shuffled | None = None,
    task: str = "reg",
    loss: str = "mse",
    saved: dict[str, Any] | None = None,
    **train,
) -> Run:
    """Return a run, new or from a checkpoint's content, put together as `run.train_network` does."""
    settings = TrainConfig(**({"epochs": 5, "batch_size": 16, "gradient_clip": None, "precision": precision} | train))
    view = view or (Classes() if task == "cls" else Shuffled())
    if task == "cls" and "early_stopping" not in train:
        settings = dataclasses.replace(settings, early_stopping=EarlyStoppingConfig("val_accuracy", "max"))
    module = Toy(dropout, 2 if task == "cls" or loss in BY_LOSS else 1)
    regression = Regression(LossConfig(loss), ("log_g",), (3.0,), (1.3,))
    learner = Learner(
        module=module,
        task=Classification(LossConfig(name="ce")) if task == "cls" else regression,
        optimizer=build_optimizer(module, toy_parts(module), opt),
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
    checkpoints = CheckpointManager(folder / "last.ckpt", folder / "best.ckpt", {"run_id": "toy"})
    return Run(learner, state, view, Whole(task), Recorder(), checkpoints)


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
