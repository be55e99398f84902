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
    """Normalised labels; `offset` and `scale` (one a label) bring them back to label units."""

    loss_config: LossConfig
    names: tuple[str, ...]
    offset: tuple[float, ...]
    scale: tuple[float, ...]

    num_sums = 5

    def loss(self, output_BK: Tensor, target_BK: Tensor) -> Tensor:
        """Return the mean loss over rows and labels, float32."""
        if self.loss_config.name == "l1":
            return F.l1_loss(output_BK, target_BK)
        if self.loss_config.name == "huber":
            return F.huber_loss(output_BK, target_BK, delta=self.loss_config.huber_delta)
        return F.mse_loss(output_BK, target_BK)

    def sums(self, output_BK: Tensor, target_BK: Tensor) -> Tensor:
        """Return (rows, sum e^2, sum |e|, sum t, sum t^2) of the first label, normalised, float64."""
        target_B = target_BK[:, 0].double()
        error_B = output_BK[:, 0].double() - target_B
        count = torch.full_like(error_B, 1.0).sum()
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
        """Return loss and all scores of a split, in label units."""
        loss = float(self.loss(torch.from_numpy(output_NK).double(), torch.from_numpy(target_NK).double()))
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

    def loss(self, output_BK: Tensor, target_B: Tensor) -> Tensor:
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
