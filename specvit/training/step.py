"""One optimizer step. Legend: B rows of a step, P pixels, K outputs.

Everything random is keyed by (seed, step), so that a step can be repeated.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from specvit.config.schema import TrainConfig
from specvit.training.device import autocast
from specvit.training.optimizer import Optimizer
from specvit.training.protocols import Task
from specvit.training.schedule import Schedule
from specvit.training.state import TrainState
from specvit.utils import seeding
from specvit.utils.quantities import Batch

CHECK_STEPS = 10
"""Steps between two checks for divergence, each of which costs a device sync; also how many bad steps are too many."""


@dataclass
class Learner:
    """The module and everything that updates it."""

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
        step_loss, count = torch.zeros((), device=self.device), self.task.count(batch.target)
        for number, (flux_BP, target) in enumerate(pieces):
            dropout_key = seeding.key(self.train.seed, "dropout", state.step, number)
            step_loss += self._forward_backward(flux_BP, target, count, dropout_key, state)
        if state.step == 0:
            state.sums["first"] = torch.where(torch.isfinite(step_loss), step_loss, 0.0).double().reshape(1)
        optimizer = cast("torch.optim.Optimizer", self.optimizer)  # ours has the attributes that the scaler uses
        self.scaler.unscale_(optimizer)
        norms = self.optimizer.gradient_norms()
        if self.train.gradient_clip is not None:
            self.optimizer.clip(norms[0], self.train.gradient_clip)
        self.scaler.step(optimizer)
        self.scaler.update()
        self.optimizer.zero_gradients()
        _count(state.sums, step_loss, norms, fp16=self.scaler.is_enabled())

    def _forward_backward(
        self, flux_BP: Tensor, target: Tensor, count: Tensor | None, dropout_key: int, state: TrainState
    ) -> Tensor:
        """Add the gradient of a piece of a step, whose known labels are `count` if some are missing."""
        set_step_key = getattr(self.module, "set_step_key", None)
        if set_step_key:
            set_step_key(dropout_key)
        with autocast(self.precision, self.device):
            output_BK = self.module(flux_BP)
        output_BK = output_BK.float()
        loss = self.task.loss(output_BK, target, count) / (self.train.accumulate if count is None else 1)
        self.scaler.scale(loss).backward()
        sums = self.task.sums(output_BK.detach(), target)
        state.sums["task"] += torch.where(torch.isfinite(sums).all(), sums, 0.0)
        return loss.detach()

    def divergence_reason(self, state: TrainState) -> str:
        """Return why the latest steps count as diverged, or "": one device sync."""
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
