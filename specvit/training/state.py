"""All that a run must remember besides weights and optimizer, and the decisions at a validation from it.

Randomness is not in it: every draw is keyed by the step.
"""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from specvit.config.schema import EarlyStoppingConfig, OptConfig


@dataclass
class TrainState:
    """One object, saved whole in every checkpoint. Tensors stay on the device between reads."""

    step: int = 0
    best_value: float | None = None
    best_epoch: int | float = 0
    epochs_since_best: int = 0
    """Validations since the best one; one each epoch by default."""
    plateau_factor: float = 1.0
    plateau_epochs: int = 0
    """Validations since the best one or since the plateau schedule last lowered its rate."""
    ended: str | None = None
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Sums over the steps since the last validation: `task`, `loss`, `norms`, `steps`; and `skipped`, `bad` over the
    run; `first` is the loss of the first step, 0 if that was not finite."""
    logged: dict[str, Tensor] = field(default_factory=dict)
    """`loss`, `norms` and `steps` as they were at the last line of the log; empty if a validation came after it."""

    def start_sums(self, *, task: int, norms: int, device: torch.device) -> None:
        """Create the sums in a new run, and move them to `device`; `task` and `norms` are their lengths."""
        if not self.sums:
            sizes = {"task": task, "loss": 1, "norms": norms, "steps": 1, "skipped": 1, "bad": 1}
            self.sums = {name: torch.zeros(size, dtype=torch.float64, device=device) for name, size in sizes.items()}
        self.sums = {name: value.to(device) for name, value in self.sums.items()}
        self.logged = {name: value.to(device) for name, value in self.logged.items()}

    def clear_sums(self) -> None:
        """Set the sums since the last validation to zero."""
        for name in ("task", "loss", "norms", "steps"):
            self.sums[name].zero_()
        self.logged = {}

    def sums_since_log(self) -> dict[str, Tensor]:
        """Return `loss`, `norms` and `steps` since the last line of the log or validation; a new line begins."""
        now = {name: self.sums[name].clone() for name in ("loss", "norms", "steps")}
        since = {name: value - self.logged.get(name, 0.0) for name, value in now.items()}
        self.logged = now
        return since

    def update_best(
        self, scores: dict[str, float], *, epoch: int | float, rule: EarlyStoppingConfig, opt: OptConfig
    ) -> bool:
        """Record a validation's scores (`val_...`) and return whether they are the best so far.

        After more than `opt.plateau_patience` validations without improvement the plateau schedule lowers its rate.
        """
        value = scores[rule.monitor]
        if math.isfinite(value) and (self.best_value is None or _is_better(value, self.best_value, rule.mode)):
            self.best_value, self.best_epoch, self.epochs_since_best, self.plateau_epochs = value, epoch, 0, 0
            return True
        self.epochs_since_best += 1
        self.plateau_epochs += 1
        if opt.lr_sch == "plateau" and self.plateau_epochs > opt.plateau_patience:
            self.plateau_factor *= opt.factor
            self.plateau_epochs = 0
        return False

    def should_stop_early(self, rule: EarlyStoppingConfig) -> bool:
        """Return whether the target is reached or the patience, in validations, used up."""
        best, target = self.best_value, rule.target
        if best is not None and target is not None and (best == target or _is_better(best, target, rule.mode)):
            return True
        return rule.patience is not None and self.epochs_since_best >= rule.patience

    def to_plain(self) -> dict[str, Any]:
        """Return numbers and tensors only, for a checkpoint."""
        tensors = {"sums": self.sums, "logged": self.logged}
        copied = {part: {name: value.cpu().clone() for name, value in one.items()} for part, one in tensors.items()}
        return {**asdict(self), **copied}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "TrainState":
        """Return the state that `to_plain` wrote; a field that an older version did not write takes its default."""
        return cls(**{f.name: plain[f.name] for f in fields(cls) if f.name in plain})


def _is_better(value: float, other: float, mode: str) -> bool:
    return value < other if mode == "min" else value > other
