"""Where the information is: what the best estimator that is linear about each star would do with its pixels.

It takes a star's labels to be near their true values and to have, before anything is seen, the variance of their box,
and the amplitude of the flux to be unknown. With the slopes J = d flux / sigma by label (coordinates of the box) and
amplitude, and the prior's precision A = 12 for labels and 0 for the amplitude, its weights on flux / sigma are the
rows of (J J^T + A)^-1 J. Shape suffixes: N stars, B stars of a chunk, L labels, P pixels.
"""

import numpy as np
import torch
from torch import Tensor

from specvit.analysis.stars import Stars
from specvit.physics.fisher import CHUNK, slopes

PRECISION = 12.0
"""One over the variance of a uniform distribution from 0 to 1."""


def optimal_shares(stars: Stars, label: str) -> np.ndarray:
    """Return each pixel's share of the variance that noise gives to that estimate of a label, (P,), mean over stars."""
    column, share_P = stars.names.index(label), None
    for start in range(0, len(stars), CHUNK):
        rows_B = np.arange(start, min(start + CHUNK, len(stars)))
        scaled_BP, slope_BLP, _ = slopes(stars.observe, rows_B, stars.place_NL[rows_B])
        part_BP = best_weights(slope_BLP, scaled_BP)[:, column].square()
        shares_P = (part_BP / part_BP.sum(dim=1, keepdim=True)).sum(dim=0)
        share_P = shares_P if share_P is None else share_P + shares_P
    assert share_P is not None
    return share_P.numpy() / len(stars)


def best_weights(slope_BLP: Tensor, scaled_BP: Tensor) -> Tensor:
    """Return the estimator's weights (B, L, P) on flux / sigma, from its slopes and from the flux / sigma itself."""
    slopes_BMP = torch.cat((slope_BLP, scaled_BP[:, None]), dim=1)
    prior_M = torch.full(slopes_BMP.shape[1:2], PRECISION, dtype=slopes_BMP.dtype)
    prior_M[-1] = 0.0
    matrix_BMM = slopes_BMP @ slopes_BMP.mT + torch.diag(prior_M)
    return torch.linalg.solve(matrix_BMM, slopes_BMP)[:, :-1]
