"""The learning rate as a function of the step. Durations in epochs become steps here, once."""

import math
from dataclasses import dataclass

from specvit.config.schema import OptConfig

ONECYCLE_RISE = 0.3
ONECYCLE_START = 25.0
"""One-cycle rises over 30 % of the run from lr/25 (Smith & Topin 2017, as torch's OneCycleLR has it)."""


@dataclass(frozen=True)
class Schedule:
    """Learning rate of each step; `plateau` multiplies in a factor that the training state holds."""

    opt: OptConfig
    total_steps: int
    warmup_steps: int
    decay_every_steps: int

    def lr(self, step: int, plateau_factor: float = 1.0) -> float:
        """Return the learning rate of `step` (from 0)."""
        opt = self.opt
        if step < self.warmup_steps:
            return opt.lr * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        if opt.lr_sch == "cosine":
            return opt.eta_min + (opt.lr - opt.eta_min) * 0.5 * (1.0 + math.cos(math.pi * progress))
        if opt.lr_sch == "onecycle":
            return self._onecycle(ONECYCLE_RISE + (1.0 - ONECYCLE_RISE) * progress if self.warmup_steps else progress)
        if opt.lr_sch == "step":
            return opt.lr * opt.factor ** ((step - self.warmup_steps) // self.decay_every_steps)
        if opt.lr_sch == "plateau":
            return max(opt.lr * plateau_factor, min(opt.eta_min, opt.lr))
        return opt.lr

    def _onecycle(self, progress: float) -> float:
        low, top, end = self.opt.lr / ONECYCLE_START, self.opt.lr, self.opt.eta_min
        if progress < ONECYCLE_RISE:
            share, start, goal = progress / ONECYCLE_RISE, low, top
        else:
            share, start, goal = (progress - ONECYCLE_RISE) / (1.0 - ONECYCLE_RISE), top, end
        return goal + (start - goal) * 0.5 * (1.0 + math.cos(math.pi * share))


def build_schedule(opt: OptConfig, *, epochs: int, steps_per_epoch: int) -> Schedule:
    """Return the schedule of a run; its length is the run's own."""
    return Schedule(
        opt=opt,
        total_steps=epochs * steps_per_epoch,
        warmup_steps=round(opt.warmup_epochs * steps_per_epoch),
        decay_every_steps=max(1, round(opt.step_epochs * steps_per_epoch)),
    )
