"""Regression of labels and classification. Legend: B batch, N rows of a split, K labels or classes.

Training sums are kept on the device and read once an epoch; the scores of a split are computed from all its rows.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from specvit.config.schema import LossConfig
from specvit.metrics.scores import all_label_scores, class_scores


@dataclass(frozen=True)
class Regression:
    """Normalised labels; `offset` and `scale` (one a label) bring them back to label units. A missing label is NaN."""

    loss_config: LossConfig
    names: tuple[str, ...]
    offset: tuple[float, ...]
    scale: tuple[float, ...]
    partial: bool = False
    """Whether training rows lack labels: to ask the batch would cost a device sync a step."""

    num_sums = 5

    def count(self, target_BK: Tensor) -> Tensor | None:
        """Return how many labels of a step's rows are known, or None if no training row lacks one."""
        return target_BK.isnan().logical_not_().sum() if self.partial else None

    def loss(self, output_BK: Tensor, target_BK: Tensor, count: Tensor | None = None) -> Tensor:
        """Return the mean loss over rows and labels, float32; with a `count`, the sum over known labels divided by it.

        A missing label adds nothing to the loss, nor to any gradient.
        """
        reduction, divisor = ("mean", 1) if count is None else ("sum", count)
        if count is not None:
            output_BK, target_BK = torch.where(target_BK.isnan(), 0.0, output_BK), target_BK.nan_to_num(0.0)
        if self.loss_config.name == "l1":
            return F.l1_loss(output_BK, target_BK, reduction=reduction) / divisor
        if self.loss_config.name == "huber":
            return F.huber_loss(output_BK, target_BK, reduction=reduction, delta=self.loss_config.huber_delta) / divisor
        return F.mse_loss(output_BK, target_BK, reduction=reduction) / divisor

    def sums(self, output_BK: Tensor, target_BK: Tensor) -> Tensor:
        """Return (rows, sum e^2, sum |e|, sum t, sum t^2) of the first label, where known, normalised, float64."""
        missing_B = target_BK[:, 0].isnan()
        target_B = target_BK[:, 0].double().nan_to_num(0.0)
        error_B = torch.where(missing_B, 0.0, output_BK[:, 0].double() - target_B)
        count = missing_B.logical_not().double().sum()
        return torch.stack(
            [count, error_B.square().sum(), error_B.abs().sum(), target_B.sum(), target_B.square().sum()]
        )

    def running_scores(self, sums: Tensor) -> dict[str, float]:
        """Return r2 and mae (label units) of the first label over the rows summed up."""
        count, square, absolute, total, total_square = sums.tolist()
        if not count:  # every step of the epoch overflowed
            return {"r2": float("nan"), "mae": float("nan")}
        spread = total_square - total**2 / count
        r2 = 1.0 - square / spread if spread > 1e-12 * total_square else float("nan")
        return {"r2": r2, "mae": absolute / count * self.scale[0]}

    def decode(self, output_NK: np.ndarray) -> np.ndarray:
        """Return labels (N, K) in their units, float64."""
        return output_NK.astype(np.float64) * np.array(self.scale) + np.array(self.offset)

    def scores(self, output_NK: np.ndarray, target_NK: np.ndarray) -> dict[str, float]:
        """Return loss and all scores of a split, in label units, over the labels that are known."""
        output, target = torch.from_numpy(output_NK).double(), torch.from_numpy(target_NK).double()
        missing_NK = target.isnan()
        loss = float(self.loss(output, target, missing_NK.logical_not().sum() if missing_NK.any() else None))
        true, predicted = self.decode(target_NK), self.decode(output_NK)
        return {"loss": loss, **all_label_scores(true, predicted, self.names, self.scale)}


@dataclass(frozen=True)
class Classification:
    """Class numbers; the outputs are unnormalised log-probabilities (B, K).

    The loss includes the label smoothing, in training and in evaluation, so that the two compare; runs that differ in
    it compare by their accuracies only.
    """

    loss_config: LossConfig

    num_sums = 2

    def count(self, target_B: Tensor) -> None:
        """Return None: every row has a class."""

    def loss(self, output_BK: Tensor, target_B: Tensor, count: None = None) -> Tensor:
        """Return the mean cross-entropy, float32."""
        return F.cross_entropy(output_BK, target_B, label_smoothing=self.loss_config.label_smoothing)

    def sums(self, output_BK: Tensor, target_B: Tensor) -> Tensor:
        """Return (rows, right ones), float64."""
        right_B = (output_BK.argmax(dim=1) == target_B).double()
        return torch.stack([torch.full_like(right_B, 1.0).sum(), right_B.sum()])

    def running_scores(self, sums: Tensor) -> dict[str, float]:
        """Return the accuracy over the rows summed up."""
        count, right = sums.tolist()
        return {"accuracy": right / count if count else float("nan")}

    def decode(self, output_NK: np.ndarray) -> np.ndarray:
        """Return class numbers (N, 1)."""
        return output_NK.argmax(axis=1, keepdims=True)

    def scores(self, output_NK: np.ndarray, target_N: np.ndarray) -> dict[str, float]:
        """Return loss, accuracy and balanced accuracy of a split."""
        loss = float(self.loss(torch.from_numpy(output_NK).double(), torch.from_numpy(target_N)))
        return {"loss": loss, **class_scores(target_N, self.decode(output_NK)[:, 0])}
