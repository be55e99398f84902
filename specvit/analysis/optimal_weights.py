"""Where the information is: what the best estimator that is linear about each star would do with its pixels.

It takes a star's labels to be near their true values and to have, before anything is seen, the variance of their box,
and the amplitude of the flux to be unknown. With the slopes J = d flux / sigma by label (coordinates of the box) and
amplitude, and the prior's precision A = 12 for labels and 0 for the amplitude, its weights on flux / sigma are the
rows of (J J^T + A)^-1 J. Shape suffixes: N stars, B stars of a chunk, L labels, P pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specvit.analysis.bounds.inputs import Stars
from specvit.physics.fisher import CHUNK, slopes

PRECISION = 12.0
"""One over the variance of a uniform distribution from 0 to 1."""


@dataclass(frozen=True)
class OptimalWeights:
    """What that estimator does, as `gaze.Attribution` says it of a model."""

    share_P: np.ndarray
    """Pixel's share of the variance that noise gives to the estimate, mean over stars; sums to 1."""
    noise: float
    """Standard deviation that noise gives to the estimate, label unit; root mean square over stars."""


def optimal_weights(stars: Stars, label: str) -> OptimalWeights | None:
    """Return what the estimator of a label does; None where no star has a spectrum with finite flux / sigma."""
    column, share_P, variance, told = stars.names.index(label), np.zeros(0), 0.0, 0
    for start in range(0, len(stars), CHUNK):
        rows_B = np.arange(start, min(start + CHUNK, len(stars)))
        scaled_BP, slope_BLP, _ = slopes(stars.observe, rows_B, stars.place_NL[rows_B])
        finite_B = torch.isfinite(scaled_BP).all(dim=1) & torch.isfinite(slope_BLP).all(dim=(1, 2))
        part_bP = best_weights(slope_BLP[finite_B], scaled_BP[finite_B])[:, column].square()
        whole_b1 = part_bP.sum(dim=1, keepdim=True)
        share_P = (part_bP / whole_b1).sum(dim=0).numpy() + (share_P if told else 0.0)
        variance += float(whole_b1.sum()) * float(stars.span_L[column]) ** 2
        told += int(finite_B.sum())
    return OptimalWeights(share_P / told, (variance / told) ** 0.5) if told else None


def best_weights(slope_BLP: Tensor, scaled_BP: Tensor) -> Tensor:
    """Return the estimator's weights (B, L, P) on flux / sigma, from its slopes and from the flux / sigma itself."""
    slopes_BMP = torch.cat((slope_BLP, scaled_BP[:, None]), dim=1)
    prior_M = torch.full(slopes_BMP.shape[1:2], PRECISION, dtype=slopes_BMP.dtype)
    prior_M[-1] = 0.0
    matrix_BMM = slopes_BMP @ slopes_BMP.mT + torch.diag(prior_M)
    return torch.linalg.solve(matrix_BMM, slopes_BMP)[:, :-1]
