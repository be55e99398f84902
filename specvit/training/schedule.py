"""The learning rate as a function of the step, and when a run validates, logs and saves.

Durations become steps here, once.
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from specvit.config.durations import Duration, in_steps
from specvit.config.schema import EarlyStoppingConfig, OptConfig, TrainConfig

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


@dataclass(frozen=True)
class Every:
    """Each whole `period` of a run, rounded up to a step, and the run's last step.

    The period need not be whole: four quarters of an epoch of 3,906 steps end with the epoch.
    """

    period: Fraction
    total_steps: int

    @property
    def first(self) -> int:
        """The first such step."""
        return math.ceil(self.period)

    def due(self, step: int) -> bool:
        """Return whether `step`, counted from 1, is one of them."""
        return step == self.total_steps or step // self.period > (step - 1) // self.period

    def until(self, step: int) -> set[int]:
        """Return all of them up to `step`."""
        last = {self.total_steps} if step >= self.total_steps else set()
        return {math.ceil(number * self.period) for number in range(1, step // self.period + 1)} | last


@dataclass(frozen=True)
class Rhythm:
    """At which steps a run validates, logs between two validations (None: never) and saves."""

    epoch_steps: int
    evaluate: Every
    log: Every | None
    save: Every

    def epoch(self, step: int) -> int | float:
        """Return how many epochs `step` steps are: an int where they are whole, else with six decimals."""
        whole, rest = divmod(step, self.epoch_steps)
        return round(step / self.epoch_steps, 6) if rest else whole

    def in_validations(self, rule: EarlyStoppingConfig, opt: OptConfig) -> tuple[EarlyStoppingConfig, OptConfig]:
        """Return both with their patience, which is configured in epochs, as a number of validations."""
        per_epoch = self.epoch_steps / self.evaluate.period
        patience = None if rule.patience is None else math.ceil(rule.patience * per_epoch)
        plateau_patience = math.floor(opt.plateau_patience * per_epoch)
        return replace(rule, patience=patience), replace(opt, plateau_patience=plateau_patience)


def build_rhythm(train: TrainConfig, epoch_steps: int) -> Rhythm:
    """Return when a run of `epoch_steps` an epoch does what; a period shorter than a step is each step."""

    def every(duration: Duration) -> Every:
        return Every(max(Fraction(1), in_steps(duration, epoch_steps)), train.epochs * epoch_steps)

    log = None if train.log_every is None else every(train.log_every)
    return Rhythm(epoch_steps, every(train.eval_every), log, every(train.save_every))
