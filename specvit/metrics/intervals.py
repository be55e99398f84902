"""Bootstrap intervals of metrics: the rows of a set drawn again with replacement, a thousand times.

Legend: N rows, R resamples of a chunk. Percentile intervals; see Efron & Tibshirani 1993, chapter 13.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from specvit.metrics.statistics import ClassRows, RegressionRows
from specvit.utils.seeding import numpy_rng

RESAMPLES = 1000
LEVEL = 95
"""Percent of the resamples in an interval."""
SEED = 0
"""One seed for all: two sets of as many rows are resampled alike, and so compared on the same resamples."""
CHUNK_ELEMENTS = 2**18
"""Counts held at a time; bounds memory to some tens of megabytes, changes no result."""

Interval = tuple[float, float]


def intervals(sets: Sequence[RegressionRows | ClassRows], *, chunk: int | None = None) -> list[dict[str, Interval]]:
    """Return for each of `sets`, all of N rows, the intervals of its metrics, from the same resamples for all."""
    return [
        {name: percentile_interval(value_R) for name, value_R in of_set.items()}
        for of_set in resampled(sets, chunk=chunk)
    ]


def resampled(
    sets: Sequence[RegressionRows | ClassRows], names: Sequence[str] | None = None, *, chunk: int | None = None
) -> list[dict[str, np.ndarray]]:
    """Return for each of `sets`, all of N rows, its metrics (those in `names`, or all) in all resamples, (R,) each."""
    chunks: list[dict[str, list[np.ndarray]]] = [{name: [] for name in names or rows.metrics} for rows in sets]
    for counts_RN in count_matrices(len(sets[0]), chunk):
        for values, rows in zip(chunks, sets, strict=True):
            statistics = rows.resampled(counts_RN)
            for name, value in values.items():
                value.append(rows.metrics[name].function(statistics))
    return [{name: np.concatenate(value) for name, value in of_set.items()} for of_set in chunks]


def count_matrices(rows: int, chunk: int | None = None) -> Iterator[np.ndarray]:
    """Yield the counts of all `RESAMPLES` resamples of `rows` rows, (chunk, rows), int64; each row sums to `rows`."""
    rng = numpy_rng(SEED, "bootstrap", rows)
    chunk = chunk or max(1, CHUNK_ELEMENTS // rows)
    for first in range(0, RESAMPLES, chunk):
        size = min(chunk, RESAMPLES - first)
        drawn_RN = rng.integers(rows, size=(size, rows))
        drawn_RN += rows * np.arange(size)[:, None]
        yield np.bincount(drawn_RN.ravel(), minlength=size * rows).reshape(size, rows)


def percentile_interval(values_R: np.ndarray) -> Interval:
    """Return the central `LEVEL` percent of the values; undefined ones (NaN) do not count, and alone give NaN."""
    defined_R = values_R[~np.isnan(values_R)]
    if not len(defined_R):
        return float("nan"), float("nan")
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(defined_R, (tail, 100 - tail))
    return float(low), float(high)
