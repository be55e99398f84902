"""Final scores with their intervals, of a whole set and bin by bin. Legend: N rows, n rows of a bin, K labels.

A row here is one label's scores: `label`, `rows`, each metric of `metrics`, and its interval as `<metric>_low` and
`<metric>_high`. Rows of bins also hold the bin's `low` (inclusive) and `high` (exclusive).
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from specvit.metrics.intervals import Interval, Replicate, class_replicate, intervals, regression_replicate
from specvit.metrics.metrics import class_scores, regression_scores

Row = dict[str, Any]

INTERVAL_ROWS = 10
"""Fewest rows with an interval (NaN below): resamples of two or three rows are those rows again, and span nothing."""


def label_rows(
    true_NK: np.ndarray, predicted_NK: np.ndarray, names: Sequence[str], scales: Sequence[float]
) -> list[Row]:
    """Return one row a label, in label units; `scales` are the training scaler's, for `mae_norm`."""
    parts: list[Replicate] = []
    scores: list[dict[str, float]] = []
    for true_N, predicted_N, scale in zip(true_NK.T, predicted_NK.T, scales, strict=True):
        scores.append(regression_scores(true_N, predicted_N, scale=scale))
        parts.append(regression_replicate(true_N, predicted_N, scale=scale))
    ranges = _ranges(parts, len(true_NK))
    return [_row(*row, rows=len(true_NK)) for row in zip(names, scores, ranges, strict=True)]


def class_rows(true_N: np.ndarray, predicted_N: np.ndarray, name: str) -> list[Row]:
    """Return the one row of class numbers."""
    (ranges,) = _ranges([class_replicate(true_N, predicted_N)], len(true_N))
    return [_row(name, class_scores(true_N, predicted_N), ranges, rows=len(true_N))]


def rows_by(
    values_N: np.ndarray, edges: Sequence[float], rows_of: Callable[[np.ndarray], list[Row]], least: int = 2
) -> list[Row]:
    """Return the rows of each bin of `values_N` between `edges`, label by label.

    `rows_of` gets the numbers (n,) of the rows in a bin. A bin with fewer than `least` rows is left out, and so are
    rows without a value (NaN). The last bin includes an infinite value.
    """
    bins = []
    for low, high in itertools.pairwise(edges):
        inside_N = (values_N >= low) & ((values_N < high) | (high == float("inf")))
        if inside_N.sum() >= least:
            found = rows_of(np.flatnonzero(inside_N))
            bins.append([{"label": row["label"], "low": low, "high": high, **row} for row in found])
    return [row for of_label in zip(*bins, strict=True) for row in of_label]


def flat_scores(rows: Sequence[Row]) -> dict[str, float]:
    """Return the scores of the first row under plain names and, if there are several, of each as `r2_NAME`.

    The interval of `r2_NAME` is `r2_NAME_low` to `r2_NAME_high`.
    """
    metrics = [name for name in rows[0] if name not in ("label", "rows")]
    flat = {metric: rows[0][metric] for metric in metrics}
    if len(rows) > 1:
        flat |= {with_label(metric, row["label"]): row[metric] for row in rows for metric in metrics}
    return flat


def with_label(metric: str, label: str) -> str:
    """Return a label's own metric name: `r2` -> `r2_T_eff`, `r2_low` -> `r2_T_eff_low`."""
    for end in ("_low", "_high"):
        if metric.endswith(end):
            return f"{metric.removesuffix(end)}_{label}{end}"
    return f"{metric}_{label}"


def _ranges(parts: Sequence[Replicate], rows: int) -> list[dict[str, Interval]]:
    return intervals(parts, rows) if rows >= INTERVAL_ROWS else [{} for _ in parts]


def _row(label: str, scores: dict[str, float], ranges: dict[str, Interval], *, rows: int) -> Row:
    row: Row = {"label": label, "rows": rows}
    for metric, value in scores.items():
        row[metric] = value
        row[f"{metric}_low"], row[f"{metric}_high"] = ranges.get(metric, (float("nan"), float("nan")))
    return row
