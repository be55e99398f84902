"""Bootstrap intervals of scores: the rows of a set drawn again with replacement, a thousand times.

Legend: N rows, R resamples of a chunk, C classes that occur.

A resample is held as counts (how often it has each row): a sum over it is a product with the counts, and one sort of
the rows serves the quantiles of every resample. Percentile intervals; see Efron & Tibshirani 1993, chapter 13.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from specvit.utils.seeding import numpy_rng

RESAMPLES = 1000
LEVEL = 95
"""Percent of the resamples in an interval."""
SEED = 0
"""One seed for all: two sets of as many rows are resampled alike, and so compared on the same resamples."""
CHUNK_ELEMENTS = 2**18
"""Counts held at a time; bounds memory to some tens of megabytes, changes no result."""

Interval = tuple[float, float]
Replicate = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Takes counts (R, N), int64, and returns each score of the R resamples; NaN where it is undefined."""


def count_matrices(rows: int, chunk: int | None = None) -> Iterator[np.ndarray]:
    """Yield the counts of all `RESAMPLES` resamples of `rows` rows, (chunk, rows), int64; each row sums to `rows`."""
    rng = numpy_rng(SEED, "bootstrap", rows)
    chunk = chunk or max(1, CHUNK_ELEMENTS // rows)
    for first in range(0, RESAMPLES, chunk):
        size = min(chunk, RESAMPLES - first)
        drawn_RN = rng.integers(rows, size=(size, rows))
        drawn_RN += rows * np.arange(size)[:, None]
        yield np.bincount(drawn_RN.ravel(), minlength=size * rows).reshape(size, rows)


def intervals(parts: Sequence[Replicate], rows: int, *, chunk: int | None = None) -> list[dict[str, Interval]]:
    """Return for each of `parts` the intervals of its scores, all from the same resamples of `rows` rows."""
    found = resampled(parts, rows, chunk=chunk)
    return [{name: percentile_interval(value_R) for name, value_R in of.items()} for of in found]


def resampled(parts: Sequence[Replicate], rows: int, *, chunk: int | None = None) -> list[dict[str, np.ndarray]]:
    """Return for each of `parts` the scores of all `RESAMPLES` resamples, the same ones for all, each (R,)."""
    found: list[dict[str, list[np.ndarray]]] = [{} for _ in parts]
    for counts_RN in count_matrices(rows, chunk):
        for values, part in zip(found, parts, strict=True):
            for name, value_R in part(counts_RN).items():
                values.setdefault(name, []).append(value_R)
    return [{name: np.concatenate(value) for name, value in of.items()} for of in found]


def percentile_interval(values_R: np.ndarray) -> Interval:
    """Return the central `LEVEL` percent of the values; undefined ones (NaN) do not count, and alone give NaN."""
    defined_R = values_R[~np.isnan(values_R)]
    if not len(defined_R):
        return float("nan"), float("nan")
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(defined_R, (tail, 100 - tail))
    return float(low), float(high)


def regression_replicate(
    true_N: np.ndarray, predicted_N: np.ndarray, *, scale: float = 1.0, ranked: bool = True
) -> Replicate:
    """Return what scores resamples of one label as `metrics.regression_scores` does, label units.

    Without `ranked` those are left out that need the errors in order (bias, p90), which take two thirds of the time.
    """
    true_N, predicted_N = np.asarray(true_N, np.float64), np.asarray(predicted_N, np.float64)
    error_N = predicted_N - true_N
    size_N, square_N = np.abs(error_N), np.square(error_N)
    moved_N = predicted_N - predicted_N.mean()  # slopes are blind to it, rounding is not
    middle, tail = (_Quantiles(error_N), _Quantiles(size_N)) if ranked else (None, None)

    def replicate(counts_RN: np.ndarray) -> dict[str, np.ndarray]:
        weights_RN, rows = counts_RN.astype(np.float64), counts_RN.shape[1]
        mae_R, mse_R = _weighted(weights_RN, size_N) / rows, _weighted(weights_RN, square_N) / rows
        total_R, joint_R = _spread(weights_RN, true_N, moved_N)
        in_order = {"bias": middle.median(counts_RN), "p90": tail.at(0.9, counts_RN)} if middle and tail else {}
        return {
            "r2": 1.0 - _ratio(mse_R * rows, total_R),
            "mae": mae_R,
            "rmse": np.sqrt(mse_R),
            **in_order,
            "slope": _ratio(joint_R, total_R),
            "mae_norm": mae_R / scale,
        }

    return replicate


def class_replicate(true_N: np.ndarray, predicted_N: np.ndarray) -> Replicate:
    """Return what scores resamples of class numbers as `metrics.class_scores` does."""
    order_N = np.argsort(true_N, kind="stable")
    right_N = (true_N == predicted_N)[order_N]
    starts_C = np.flatnonzero(np.diff(true_N[order_N], prepend=np.nan) != 0)

    def replicate(counts_RN: np.ndarray) -> dict[str, np.ndarray]:
        counts_RN = counts_RN[:, order_N]
        present_RC = np.add.reduceat(counts_RN, starts_C, axis=1)
        right_RC = np.add.reduceat(counts_RN * right_N, starts_C, axis=1)
        recall_RC = np.divide(right_RC, present_RC, out=np.zeros(present_RC.shape), where=present_RC > 0)
        return {
            "accuracy": right_RC.sum(axis=1) / counts_RN.shape[1],
            "balanced_accuracy": recall_RC.sum(axis=1) / (present_RC > 0).sum(axis=1),
        }

    return replicate


class _Quantiles:
    """Quantiles of resamples of `values_N`, to the bit those of NumPy on the rows themselves."""

    def __init__(self, values_N: np.ndarray) -> None:
        self.order_N = np.argsort(values_N)
        self.sorted_N = values_N[self.order_N]
        if np.isnan(self.sorted_N[-1]):  # sorted last; one of them makes every quantile undefined
            self.sorted_N = np.full_like(values_N, np.nan)

    def median(self, counts_RN: np.ndarray) -> np.ndarray:
        """Return medians (R,)."""
        rows = counts_RN.shape[1]
        low_R, high_R = self._ranked(counts_RN, (rows - 1) // 2, rows // 2)
        return (low_R + high_R) / 2

    def at(self, share: float, counts_RN: np.ndarray) -> np.ndarray:
        """Return the quantiles (R,) at `share`, interpolated linearly between two ranks."""
        place = (counts_RN.shape[1] - 1) * share
        rank, part = int(place), place - int(place)
        low_R, high_R = self._ranked(counts_RN, rank, min(rank + 1, counts_RN.shape[1] - 1))
        step_R = high_R - low_R
        # From the nearer rank, as NumPy does: otherwise rounding could pass the rank beyond.
        return high_R - step_R * (1.0 - part) if part >= 0.5 else low_R + step_R * part

    def _ranked(self, counts_RN: np.ndarray, *ranks: int) -> list[np.ndarray]:
        """Return the resamples' values (R,) at each rank, counted from 0."""
        below_RN = np.cumsum(counts_RN[:, self.order_N], axis=1)
        return [self.sorted_N[np.count_nonzero(below_RN <= rank, axis=1)] for rank in ranks]


def _weighted(weights_RN: np.ndarray, terms_N: np.ndarray) -> np.ndarray:
    """Return weighted sums (R,). Not a BLAS product, whose last bits change with the chunk and the threads."""
    return np.einsum("rn,n->r", weights_RN, terms_N)


def _spread(weights_RN: np.ndarray, true_N: np.ndarray, other_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums (R,) of (t - mean t)^2, exactly 0 in a resample of equal labels, and of (t - mean t) * other."""
    centred_N = true_N - true_N.mean()
    mean_R = _weighted(weights_RN, centred_N) / len(true_N)
    apart_RN = centred_N - mean_R[:, None]
    joint_R = np.einsum("rn,rn,n->r", weights_RN, apart_RN, other_N)
    total_R = np.einsum("rn,rn,rn->r", weights_RN, apart_RN, apart_RN)
    largest = float(np.abs(centred_N).max())
    for row in np.flatnonzero(total_R <= 1e-20 * len(true_N) * largest**2):  # rounding alone, or nearly so
        if np.ptp(true_N[weights_RN[row] > 0]) == 0:
            total_R[row] = 0.0
    return total_R, joint_R


def _ratio(above_R: np.ndarray, below_R: np.ndarray) -> np.ndarray:
    """Return the ratio, NaN over 0."""
    return np.divide(above_R, below_R, out=np.full(len(below_R), np.nan), where=below_R != 0)
