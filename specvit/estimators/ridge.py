"""Ridge regression from sums over the rows, which need not fit into memory. B rows, P pixels, K labels, A penalties.

Pixels are standardised; the penalty alpha stands beside the sum of squared residuals, as in scikit-learn. One
eigenvalue decomposition serves all penalties.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from specvit.utils.quantities import Batch

Array = NDArray[np.float64]


class Linear(nn.Module):
    """Normalised flux (B, P) -> normalised labels (B, K)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight_PK: Tensor, bias_K: Tensor) -> None:
        """Keep weights and bias, float32."""
        super().__init__()
        self.register_buffer("weight", weight_PK)
        self.register_buffer("bias", bias_K)

    @classmethod
    def of_all(cls, weight_APK: NDArray[np.float32], bias_AK: NDArray[np.float32]) -> "Linear":
        """Return several such models as one, whose outputs stand side by side, (B, A * K)."""
        weight_PX = np.ascontiguousarray(weight_APK.transpose(1, 0, 2)).reshape(weight_APK.shape[1], -1)
        return cls(torch.from_numpy(weight_PX), torch.from_numpy(bias_AK.reshape(-1)))

    def forward(self, flux_BP: Tensor) -> Tensor:
        """Return the labels."""
        return torch.addmm(self.bias, flux_BP, self.weight)


@dataclass
class Moments:
    """Sums over rows, float64: of pixels (P,), labels (K,), products of pixels (P, P) and of both (P, K)."""

    rows: int
    pixel_P: Tensor
    label_K: Tensor
    pixels_PP: Tensor
    cross_PK: Tensor

    def add(self, batch: Batch) -> None:
        """Add the rows of a batch. In float64: at little noise the smallest penalties need all of its digits."""
        flux_BP, label_BK = batch.flux_BP.double(), batch.target.double()
        self.rows += len(flux_BP)
        self.pixel_P += flux_BP.sum(0)
        self.label_K += label_BK.sum(0)
        self.pixels_PP.addmm_(flux_BP.T, flux_BP)
        self.cross_PK.addmm_(flux_BP.T, label_BK)


def sum_up(batches: Iterable[Batch], say: Callable[[int], None]) -> Moments:
    """Return the moments of all rows, on their device; `say` hears how many there are so far. There must be a batch."""
    found: Moments | None = None
    for batch in batches:
        if found is None:
            pixels, labels = batch.flux_BP.shape[1], batch.target.shape[1]
            shapes = ((pixels,), (labels,), (pixels, pixels), (pixels, labels))
            zeros = (batch.flux_BP.new_zeros(shape, dtype=torch.float64) for shape in shapes)
            found = Moments(0, *zeros)
        found.add(batch)
        say(found.rows)
    assert found is not None
    return found


def solve(moments: Moments, alphas_A: Array) -> tuple[Array, Array]:
    """Return weights (A, P, K) and biases (A, K) of each penalty; consumes `moments.pixels_PP`."""
    rows, mean_P, mean_K = moments.rows, moments.pixel_P / moments.rows, moments.label_K / moments.rows
    covariance_PP = moments.pixels_PP.addr_(moments.pixel_P, mean_P, alpha=-1)
    spread_P = (covariance_PP.diagonal() / rows).clamp(min=0).sqrt()
    spread_P[spread_P <= 1e-6 * spread_P.max()] = torch.inf  # a pixel that never changes says nothing
    covariance_PP.div_(spread_P[:, None]).div_(spread_P)
    cross_PK = (moments.cross_PK - torch.outer(mean_P, moments.label_K)) / spread_P[:, None]
    values_P, vectors_PP = torch.linalg.eigh(covariance_PP)
    values_P.clamp_(min=0)
    along_PK = vectors_PP.T @ cross_PK
    weights = [vectors_PP @ (along_PK / (values_P[:, None] + alpha)) / spread_P[:, None] for alpha in alphas_A]
    weight_APK = torch.stack(weights)
    bias_AK = mean_K - torch.einsum("p,apk->ak", mean_P, weight_APK)
    return weight_APK.cpu().numpy(), bias_AK.cpu().numpy()
