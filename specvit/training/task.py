"""Regression of labels and classification. Legend: B batch, N rows of a split, K labels or classes, X outputs.

Training sums are kept on the device and read once an epoch; the scores of a split are computed from all its rows.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from specvit.config.schema import LossConfig
from specvit.metrics.distributions import BY_LOSS, Distribution, Uncertainty
from specvit.metrics.scores import all_label_scores, class_scores

MOST_LOG_SCALE = 20.0
"""Bound of a predicted log scale s, which is 20 tanh(x / 20) of the network's output x: near x while that is small.

Unbounded, exp(-s) overflows float32 from an output of -89 on, which fp16 can hold, and makes NaN of an error of 0.
A clamp would leave an output beyond it without a gradient, and so there for good.
"""


@dataclass(frozen=True)
class Regression:
    """Normalised labels; `offset` and `scale` (one a label) bring them back to label units. A missing label is NaN.

    The outputs (B, X) are the K labels or, with a loss that assumes a distribution, K locations and then K log scales.
    """

    loss_config: LossConfig
    names: tuple[str, ...]
    offset: tuple[float, ...]
    scale: tuple[float, ...]
    partial: bool = False
    """Whether training rows lack labels: to ask the batch would cost a device sync a step."""

    num_sums = 5

    @property
    def distribution(self) -> Distribution | None:
        """The distribution of a label about its prediction, if the loss assumes one."""
        return BY_LOSS.get(self.loss_config.name)

    def count(self, target_BK: Tensor) -> Tensor | None:
        """Return how many labels of a step's rows are known, or None if no training row lacks one."""
        return target_BK.isnan().logical_not_().sum() if self.partial else None

    def loss(self, output_BX: Tensor, target_BK: Tensor, count: Tensor | None = None) -> Tensor:
        """Return the mean loss over rows and labels, float32; with a `count`, the sum over known labels divided by it.

        A missing label adds nothing to the loss, nor to any gradient.
        """
        if self.distribution:
            return self._mean_cost(self.distribution, output_BX, target_BK, count)
        output_BK = output_BX
        reduction, divisor = ("mean", 1) if count is None else ("sum", count)
        if count is not None:
            output_BK, target_BK = torch.where(target_BK.isnan(), 0.0, output_BK), target_BK.nan_to_num(0.0)
        if self.loss_config.name == "l1":
            return F.l1_loss(output_BK, target_BK, reduction=reduction) / divisor
        if self.loss_config.name == "huber":
            return F.huber_loss(output_BK, target_BK, reduction=reduction, delta=self.loss_config.huber_delta) / divisor
        return F.mse_loss(output_BK, target_BK, reduction=reduction) / divisor

    def _mean_cost(
        self, distribution: Distribution, output_BX: Tensor, target_BK: Tensor, count: Tensor | None
    ) -> Tensor:
        """Return the mean of minus the log-likelihood of normalised labels, natural logarithm."""
        if count is None:
            return self._costs(distribution, output_BX, target_BK).mean()
        missing_BK = target_BK.isnan()  # a NaN must not reach the graph: its gradient would be NaN, even times 0
        output_BX = torch.where(missing_BK.repeat(1, 2), 0.0, output_BX)
        cost_BK = self._costs(distribution, output_BX, target_BK.nan_to_num(0.0))
        return torch.where(missing_BK, 0.0, cost_BK).sum() / count

    def _costs(self, distribution: Distribution, output_BX: Tensor, target_BK: Tensor) -> Tensor:
        log_scale_BK = _log_scale(output_BX[:, len(self.names) :])
        z_BK = (target_BK - output_BX[:, : len(self.names)]) * torch.exp(-log_scale_BK)
        return log_scale_BK + distribution.minus_log_density(z_BK)

    def sums(self, output_BX: Tensor, target_BK: Tensor) -> Tensor:
        """Return (rows, sum e^2, sum |e|, sum t, sum t^2) of the first label, where known, normalised, float64."""
        missing_B = target_BK[:, 0].isnan()
        target_B = target_BK[:, 0].double().nan_to_num(0.0)
        error_B = torch.where(missing_B, 0.0, output_BX[:, 0].double() - target_B)
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

    def decode(self, output_NX: np.ndarray) -> np.ndarray:
        """Return labels (N, K), or their locations, in their units, float64."""
        return output_NX[:, : len(self.names)].astype(np.float64) * np.array(self.scale) + np.array(self.offset)

    def uncertainty(self, output_NX: np.ndarray) -> Uncertainty | None:
        """Return the standard deviation (N, K) of each label in its unit; None if the loss assumes no distribution."""
        if not self.distribution:
            return None
        log_scale_NK = _log_scale(torch.from_numpy(output_NX[:, len(self.names) :]).double()).numpy()
        return Uncertainty(self.distribution.std * np.exp(log_scale_NK) * np.array(self.scale), self.distribution)

    def scores(self, output_NX: np.ndarray, target_NK: np.ndarray) -> dict[str, float]:
        """Return loss and all scores of a split, in label units, over the labels that are known."""
        output, target = torch.from_numpy(output_NX).double(), torch.from_numpy(target_NK).double()
        missing_NK = target.isnan()
        loss = float(self.loss(output, target, missing_NK.logical_not().sum() if missing_NK.any() else None))
        true, predicted = self.decode(target_NK), self.decode(output_NX)
        return {"loss": loss, **all_label_scores(true, predicted, self.names, self.scale, self.uncertainty(output_NX))}


def _log_scale(output: Tensor) -> Tensor:
    """Return the log scale that an output means, normalised label units; see `MOST_LOG_SCALE`."""
    return MOST_LOG_SCALE * torch.tanh(output / MOST_LOG_SCALE)


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

    def uncertainty(self, output_NK: np.ndarray) -> None:
        """Return None: a class has no standard deviation."""

    def scores(self, output_NK: np.ndarray, target_N: np.ndarray) -> dict[str, float]:
        """Return loss, accuracy and balanced accuracy of a split."""
        loss = float(self.loss(torch.from_numpy(output_NK).double(), torch.from_numpy(target_N)))
        return {"loss": loss, **class_scores(target_N, self.decode(output_NK)[:, 0])}
