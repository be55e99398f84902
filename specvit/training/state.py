"""All that a run must remember besides weights and optimizer. Randomness is not in it: it is keyed by the step."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class TrainState:
    """One object, saved whole in every checkpoint. Tensors stay on the device between reads."""

    step: int = 0
    best_value: float | None = None
    best_epoch: int = 0
    epochs_since_best: int = 0
    plateau_factor: float = 1.0
    plateau_epochs: int = 0
    ended: str | None = None
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Sums over the steps of the current epoch: `task`, `loss`, `norms`, `steps`; and `skipped`, `bad` over the run;
    `first` is the loss of the first step, 0 if that was not finite."""

    def start_sums(self, *, task: int, norms: int, device: torch.device) -> None:
        """Make the sums for the first time; a resumed run has them already."""
        if not self.sums:
            sizes = {"task": task, "loss": 1, "norms": norms, "steps": 1, "skipped": 1, "bad": 1}
            self.sums = {name: torch.zeros(size, dtype=torch.float64, device=device) for name, size in sizes.items()}
        self.sums = {name: value.to(device) for name, value in self.sums.items()}

    def clear_epoch_sums(self) -> None:
        """Set the sums of the current epoch to zero."""
        for name in ("task", "loss", "norms", "steps"):
            self.sums[name].zero_()

    def to_plain(self) -> dict[str, Any]:
        """Return numbers and tensors only, for a checkpoint."""
        return {**asdict(self), "sums": {name: value.cpu().clone() for name, value in self.sums.items()}}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "TrainState":
        """Return the state that `to_plain` wrote."""
        return cls(**{f.name: plain[f.name] for f in fields(cls) if f.name in plain})
