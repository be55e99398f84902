"""The training loop: step, log, evaluate, decide, save. Legend: B rows of a step, P pixels, K outputs.

Everything random is keyed by (seed, step), so the loop can be left after any step and entered again at the next.
"""

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from specvit.config.schema import OptConfig, TrainConfig
from specvit.training import checkpoint
from specvit.training.amp import autocast
from specvit.training.async_checkpoint import AsyncCheckpointWriter, copied
from specvit.training.early_stopping import note_validation, stops_early
from specvit.training.optimizer import Optimizer
from specvit.training.protocols import EvalView, NoPruner, Pruner, Stop, Task, Tracker, TrainView
from specvit.training.schedule import Schedule
from specvit.training.state import TrainState
from specvit.utils import seeding
from specvit.utils.errors import Diverged, Pruned
from specvit.utils.quantities import Batch

CHECK_STEPS = 10
"""Steps between two looks at the health counter, which costs a device sync; also how many bad steps are too many."""


@dataclass
class Learner:
    """The module and all that changes it."""

    module: nn.Module
    task: Task
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    schedule: Schedule
    train: TrainConfig
    precision: str
    device: torch.device

    def step(self, batch: Batch, state: TrainState) -> None:
        """Take one optimizer step on the rows of `batch`, in `train.accumulate` forward passes."""
        self.module.train()
        self.optimizer.lr = self.schedule.lr(state.step, state.plateau_factor)
        pieces = zip(batch.flux_BP.chunk(self.train.accumulate), batch.target.chunk(self.train.accumulate), strict=True)
        step_loss = torch.zeros((), device=self.device)
        for number, (flux_BP, target) in enumerate(pieces):
            step_loss += self._forward_backward(
                flux_BP, target, seeding.key(self.train.seed, "dropout", state.step, number), state
            )
        if state.step == 0:
            state.sums["first"] = torch.where(torch.isfinite(step_loss), step_loss, 0.0).double().reshape(1)
        optimizer = cast("torch.optim.Optimizer", self.optimizer)  # what the scaler needs of one, ours has
        self.scaler.unscale_(optimizer)
        norms = self.optimizer.gradient_norms()
        if self.train.gradient_clip is not None:
            self.optimizer.clip(norms[0], self.train.gradient_clip)
        self.scaler.step(optimizer)
        self.scaler.update()
        self.optimizer.zero_gradients()
        _count(state.sums, step_loss, norms, fp16=self.scaler.is_enabled())

    def _forward_backward(self, flux_BP: Tensor, target: Tensor, key: int, state: TrainState) -> Tensor:
        set_step_key = getattr(self.module, "set_step_key", None)
        if set_step_key:
            set_step_key(key)
        with autocast(self.precision, self.device):
            output_BK = self.module(flux_BP)
        output_BK = output_BK.float()
        loss = self.task.loss(output_BK, target) / self.train.accumulate
        self.scaler.scale(loss).backward()
        sums = self.task.sums(output_BK.detach(), target)
        state.sums["task"] += torch.where(torch.isfinite(sums).all(), sums, 0.0)
        return loss.detach()

    def divergence_reason(self, state: TrainState) -> str:
        """Return what is wrong with the last steps, "" if nothing is: one device sync."""
        if state.sums["bad"].item() >= CHECK_STEPS:
            return f"the loss was not finite for {CHECK_STEPS} steps"
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1.0:
            return "gradients overflowed fp16 until the loss scale fell below 1"
        return ""


def _count(sums: dict[str, Tensor], loss: Tensor, norms: Tensor, *, fp16: bool) -> None:
    """Add one step to the sums, on the device."""
    finite = torch.isfinite(norms[0])
    sums["loss"] += torch.where(finite, loss, 0.0)
    sums["norms"] += torch.where(finite, norms, 0.0)
    sums["steps"] += finite
    if fp16:
        sums["skipped"] += ~finite
    sums["bad"].copy_(torch.where(torch.isfinite(loss), 0.0, sums["bad"] + 1.0))


@dataclass
class CheckpointManager:
    """Writes checkpoints: `last` to go on from, `best` by the monitored metric; `constants` go into both.

    The checkpoint before the last stays beside it as `previous.ckpt`. A file is on disk when `finish` returns at the
    latest.
    """

    last: Path
    best: Path
    constants: dict[str, Any]
    writer: AsyncCheckpointWriter = field(default_factory=AsyncCheckpointWriter)

    def save_last(self, learner: Learner, state: TrainState) -> bool:
        """Write all that is needed to go on; a non-finite state is not written. Says whether it was."""
        parts = {"model": learner.module.state_dict(), "optimizer": learner.optimizer.state_dict()}
        content = copied({"state": state.to_plain(), **parts, "scaler": learner.scaler.state_dict()})
        if not checkpoint.is_finite([content["model"], content["optimizer"]]):
            return False
        self.writer.put(self.last, {**self.constants, **content}, keep=self.last.with_name("previous.ckpt"))
        return True

    def save_best(self, learner: Learner, state: TrainState) -> None:
        """Write the weights of the best epoch so far."""
        model = copied(learner.module.state_dict())
        if checkpoint.is_finite(model):
            facts = {"epoch": state.best_epoch, "step": state.step}
            self.writer.put(self.best, {**self.constants, **facts, "model": model})


@dataclass(frozen=True)
class Callbacks:
    """The loop's surroundings."""

    tracker: Tracker
    stop: Stop
    checkpoints: CheckpointManager
    pruner: Pruner = field(default_factory=NoPruner)


def fit(
    learner: Learner, state: TrainState, train: TrainView, val: EvalView, opt: OptConfig, callbacks: Callbacks
) -> str:
    """Train from `state` to the end and return "completed" or "early_stopped".

    Returns "interrupted" when `ports.stop` asked for it, with everything saved. Raises `Diverged`, `Pruned`, also with
    everything saved, and `OSError` where a checkpoint could not be written.
    """
    try:
        ended = _fit(learner, state, train, val, opt, callbacks)
    except BaseException:
        with contextlib.suppress(Exception):  # what ended the training is the cause
            callbacks.checkpoints.writer.finish()
        raise
    callbacks.checkpoints.writer.finish()
    return ended


def _fit(
    learner: Learner, state: TrainState, train: TrainView, val: EvalView, opt: OptConfig, callbacks: Callbacks
) -> str:
    settings, epoch_steps = learner.train, train.steps_per_epoch
    started = time.perf_counter()
    while state.ended is None:
        learner.step(train.batch(state.step), state)
        state.step += 1
        epoch, within = divmod(state.step, epoch_steps)
        due = within == 0 and epoch % settings.save_every == 0
        callbacks.tracker.progress(state.step, lambda: mean_loss(state))
        callbacks.checkpoints.writer.check()
        if (state.step % CHECK_STEPS == 0 or within == 0) and (divergence_reason := learner.divergence_reason(state)):
            raise Diverged(f"{divergence_reason}, up to step {state.step}")
        if within == 0:
            row = _train_row(learner, state, epoch)
            trained = time.perf_counter()
            row |= {f"val_{name}": value for name, value in evaluate(learner, val).items()}
            best = note_validation(state, row, epoch=epoch, rule=settings.early_stopping, opt=opt)
            callbacks.tracker.metrics(row)
            times = {"train_seconds": trained - started, "val_seconds": time.perf_counter() - trained}
            callbacks.tracker.timing({"step": state.step, "epoch": epoch, **times})
            pruned = callbacks.pruner.prunes(row)
            state.clear_epoch_sums()
            early = stops_early(state, settings.early_stopping)
            if early or epoch == settings.epochs:
                state.ended = "early_stopped" if early else "completed"
                if state.best_epoch == 0:
                    raise Diverged(f"{settings.early_stopping.monitor} was not finite in any epoch")
            if best:
                callbacks.checkpoints.save_best(learner, state)
            if (due or state.ended or pruned) and not callbacks.checkpoints.save_last(learner, state):
                raise Diverged(f"the weights are not finite after step {state.step}")
            if pruned and state.ended is None:
                raise Pruned(pruned)
            started = time.perf_counter()
        if callbacks.stop.requested() and state.ended is None:
            if not due:  # else it is saved already, and once more would make the previous one the same
                callbacks.checkpoints.save_last(learner, state)
            return "interrupted"
    return state.ended


def mean_loss(state: TrainState) -> float:
    """Return the mean training loss of the epoch so far; one device sync."""
    return (state.sums["loss"] / state.sums["steps"]).item()


@torch.no_grad()
def predict(module: nn.Module, view: EvalView) -> tuple[np.ndarray, np.ndarray]:
    """Return outputs (N, K) and targets of a whole split as NumPy arrays; always in float32, in fixed batches.

    Both have their place before the second batch: small arrays kept between large ones that come and go would keep
    the memory of all of them.
    """
    module.eval()
    outputs, targets = torch.empty(0), torch.empty(0)
    start = 0
    for batch in view.batches():
        output, target = module(batch.flux_BP).float(), batch.target
        if not start:
            outputs, targets = (part.new_empty((len(view), *part.shape[1:])) for part in (output, target))
        stop = start + len(output)
        outputs[start:stop], targets[start:stop] = output, target
        start = stop
    return outputs.cpu().numpy(), targets.cpu().numpy()


def evaluate(learner: Learner, view: EvalView) -> dict[str, float]:
    """Return the scores of a split."""
    return learner.task.scores(*predict(learner.module, view))


def _train_row(learner: Learner, state: TrainState, epoch: int) -> dict[str, Any]:
    """Read the epoch's sums from the device and return them as metrics."""
    sums = {name: value.cpu() for name, value in state.sums.items()}
    norms = (sums["norms"] / sums["steps"].clamp(min=1.0)).tolist()
    names = ("grad_norm", *(f"grad_norm_{part}" for part in learner.optimizer.parts))
    return {
        "step": state.step,
        "epoch": epoch,
        "lr": learner.schedule.lr(state.step - 1, state.plateau_factor),
        "train_loss": (sums["loss"] / sums["steps"]).item(),
        **{f"train_{name}": value for name, value in learner.task.running_scores(sums["task"]).items()},
        **dict(zip(names, norms, strict=True)),
        "skipped_steps": int(sums["skipped"].item()),
        **({"first_step_loss": sums["first"].item() or None} if epoch == 1 and "first" in sums else {}),
    }
