"""Scores by training size: a power law with a limit, slopes, and where one series overtakes another.

Shape suffixes: R resamples of test rows and seeds, K sizes of training sets, B exponents tried.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from specvit.metrics.intervals import LEVEL, SEED, percentile_interval
from specvit.utils.seeding import numpy_rng

Array = np.ndarray
FEWEST_SIZES = 4
"""Fewer sizes do not test a law of three constants."""
EXPONENTS = np.geomspace(0.02, 4.0, 160)


@dataclass(frozen=True)
class Law:
    """R²(N) = limit − scale · N^−exponent, by least squares, of each resample."""

    limit_R: Array
    scale_R: Array
    exponent_R: Array

    def at(self, rows_K: Array) -> Array:
        """Return the law's values at sizes (K,), shape (R, K)."""
        return self.limit_R[:, None] - self.scale_R[:, None] * rows_K ** -self.exponent_R[:, None]


def fit_law(rows_K: Array, r2_RK: Array, top: float = 1.0) -> Law | None:
    """Return the law that fits each resample's points best, with a limit of at most `top`; None for too few sizes.

    For each exponent tried limit and scale are linear; a scale below 0 is held at 0, a limit above `top` at `top`.
    """
    if len(rows_K) < FEWEST_SIZES:
        return None
    middle = np.exp(np.log(rows_K).mean())
    x_BK = (rows_K / middle) ** -EXPONENTS[:, None]
    x_BK1, y_1KR = x_BK[:, :, None], r2_RK.T[None]
    moved_BK1, mean_R = x_BK1 - x_BK1.mean(1, keepdims=True), r2_RK.mean(1)
    scale_BR = np.maximum(0, -(moved_BK1 * y_1KR).sum(1) / (moved_BK1**2).sum(1))
    limit_BR = mean_R + scale_BR * x_BK.mean(1)[:, None]
    capped_BR = ((top - y_1KR) * x_BK1).sum(1) / (x_BK1**2).sum(1)
    over_BR = limit_BR > top
    limit_BR, scale_BR = np.where(over_BR, top, limit_BR), np.where(over_BR, np.maximum(0, capped_BR), scale_BR)
    squares_BR = ((limit_BR[:, None] - scale_BR[:, None] * x_BK1 - y_1KR) ** 2).sum(1)
    best_R, resample_R = squares_BR.argmin(0), np.arange(len(r2_RK))
    exponent_R = EXPONENTS[best_R]
    return Law(limit_BR[best_R, resample_R], scale_BR[best_R, resample_R] * middle**exponent_R, exponent_R)


@dataclass(frozen=True)
class Crossover:
    """The training size from which one series remains ahead of another: by the means, and an interval.

    0: from the first size or earlier. inf: not at the last size.
    """

    rows: float
    low: float
    high: float


def crossover(rows_K: Array, mean_K: Array, difference_RK: Array) -> Crossover:
    """Return the size from which a difference remains above 0, linear in log N between two sizes.

    `mean_K` are the differences of the means, `difference_RK` those of resamples.
    """
    tail = (100 - LEVEL) / 200
    low, high = np.quantile(_turns(rows_K, difference_RK), (tail, 1 - tail), method="inverted_cdf")
    return Crossover(float(_turns(rows_K, mean_K[None])[0]), float(low), float(high))


def _turns(rows_K: Array, difference_RK: Array) -> Array:
    """Return the size from which each row of differences remains above 0."""
    above_RK = difference_RK > 0
    ahead_RK = np.cumprod(above_RK[:, ::-1], axis=1)[:, ::-1].astype(bool)  # at this size and all above it
    first_R = np.where(ahead_RK.any(1), ahead_RK.argmax(1), len(rows_K))
    turns_R = np.full(len(difference_RK), np.inf)
    turns_R[first_R == 0] = 0.0
    between_R = np.flatnonzero((first_R > 0) & (first_R < len(rows_K)))
    upper_R = first_R[between_R]
    before_R, after_R = difference_RK[between_R, upper_R - 1], difference_RK[between_R, upper_R]
    share_R = -before_R / (after_R - before_R)
    log_K = np.log(rows_K)
    turns_R[between_R] = np.exp(log_K[upper_R - 1] + share_R * (log_K[upper_R] - log_K[upper_R - 1]))
    return turns_R


@dataclass(frozen=True)
class Slopes:
    """Score gained for each decade of rows by two series, least squares through their means, and the difference."""

    ahead: float
    behind: float
    difference: float
    low: float
    high: float
    paired: bool
    """Whether both have the same seeds at each size, so that a resample draws the same ones for both."""


def slopes(rows_K: Array, mean_2K: Array, replicates: Sequence[Sequence[Mapping[int, Array]]]) -> Slopes:
    """Return the slopes of two series and the interval of their difference, the first less the second.

    `replicates` are the resampled scores (R,) by seed, of each series at each size. Seeds are drawn again: the same
    ones at all sizes that have the same seeds, and for both series where both have the same.
    """
    decades_K = np.log10(rows_K) - np.log10(rows_K).mean()
    weight_K = decades_K / (decades_K @ decades_K)
    paired = [ahead.keys() == behind.keys() for ahead, behind in zip(*replicates, strict=True)]
    mean_2KR = np.array(
        [
            [_drawn(of_seed, "" if same else side) for of_seed, same in zip(of_size, paired, strict=True)]
            for side, of_size in zip(("ahead", "behind"), replicates, strict=True)
        ]
    )
    ahead, behind = (mean_2K @ weight_K).tolist()
    low, high = percentile_interval(weight_K @ (mean_2KR[0] - mean_2KR[1]))
    return Slopes(ahead, behind, ahead - behind, low, high, all(paired))


def _drawn(of_seed: Mapping[int, Array], side: str) -> Array:
    """Return the mean over seeds drawn again, (R,): of the same seeds and `side` the same draw."""
    seeds = sorted(of_seed)
    return mean_over_seeds([of_seed[seed] for seed in seeds], numpy_rng(SEED, "bootstrap", "slopes", side, *seeds))


def mean_over_seeds(replicates: Sequence[Array], rng: np.random.Generator) -> Array:
    """Return the mean over seeds of resampled scores, each (R,), with the seeds drawn again too, shape (R,)."""
    score_SR = np.stack(replicates)
    seeds, resamples = score_SR.shape
    drawn_SR = rng.integers(seeds, size=score_SR.shape)
    return score_SR[drawn_SR, np.arange(resamples)].mean(0)
