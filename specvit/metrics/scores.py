"""Scores of a split: metrics of each label, whole and bin by bin, with their intervals.

Legend: N rows, n rows of a bin, K labels, C classes. A `Row` here is one label's scores: `label`, `rows`, each metric,
and its interval as `<metric>_low` and `<metric>_high`. Rows of bins also hold the bin's `low` (inclusive) and `high`
(exclusive).
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from specvit.metrics.distributions import Uncertainty
from specvit.metrics.intervals import intervals
from specvit.metrics.statistics import ClassRows, RegressionRows

Row = dict[str, Any]

INTERVAL_ROWS = 10
"""Fewest rows with an interval (NaN below): resamples of two or three rows are those rows again, and span nothing."""


def regression_scores(true_N: np.ndarray, predicted_N: np.ndarray, *, scale: float = 1.0) -> dict[str, float]:
    """Return the metrics of one label, in label units; `scale` is the training scaler's, for `mae_norm`.

    A constant label has no r2 and no slope (NaN). Rows without the label (NaN) are left out.
    """
    return _scores(_known_rows(true_N, predicted_N, scale))


def class_scores(true_N: np.ndarray, predicted_N: np.ndarray) -> dict[str, float]:
    """Return the metrics of class numbers."""
    return _scores(ClassRows(true_N, predicted_N))


def all_label_scores(
    true_NK: np.ndarray,
    predicted_NK: np.ndarray,
    names: Sequence[str],
    scales: Sequence[float],
    uncertainty: Uncertainty | None = None,
) -> dict[str, float]:
    """Return the metrics of all labels under flat names, without intervals."""
    sets = _label_sets(true_NK, predicted_NK, scales, uncertainty)
    return flat_scores([{"label": name, **_scores(rows)} for name, rows in zip(names, sets, strict=True)])


def label_rows(
    true_NK: np.ndarray,
    predicted_NK: np.ndarray,
    names: Sequence[str],
    scales: Sequence[float],
    uncertainty: Uncertainty | None = None,
) -> list[Row]:
    """Return one row a label, over the rows that have it, in label units; `scales` are the training scaler's.

    Metrics that need a standard deviation are there where `uncertainty`, whose `std` is (N, K), is.
    """
    return _rows(names, _label_sets(true_NK, predicted_NK, scales, uncertainty))


def class_rows(true_N: np.ndarray, predicted_N: np.ndarray, name: str) -> list[Row]:
    """Return the one row of class numbers."""
    return _rows([name], [ClassRows(true_N, predicted_N)])


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
            rows = rows_of(np.flatnonzero(inside_N))
            bins.append([{"label": row["label"], "low": low, "high": high, **row} for row in rows])
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


def confusion_matrix(true_N: np.ndarray, predicted_N: np.ndarray, num_classes: int) -> np.ndarray:
    """Return how many rows of each true class (row) were given each class (column), (C, C), int64."""
    pairs_N = true_N.astype(np.int64) * num_classes + predicted_N.astype(np.int64)
    return np.bincount(pairs_N, minlength=num_classes**2).reshape(num_classes, num_classes)


def _label_sets(
    true_NK: np.ndarray, predicted_NK: np.ndarray, scales: Sequence[float], uncertainty: Uncertainty | None
) -> list[RegressionRows]:
    columns = zip(true_NK.T, predicted_NK.T, scales, strict=True)
    return [
        _known_rows(true_N, predicted_N, scale, None if uncertainty is None else uncertainty[:, k])
        for k, (true_N, predicted_N, scale) in enumerate(columns)
    ]


def _known_rows(
    true_N: np.ndarray, predicted_N: np.ndarray, scale: float, uncertainty: Uncertainty | None = None
) -> RegressionRows:
    """Return the statistics of the rows that have the label."""
    known_N = ~np.isnan(true_N)
    of_known = None if uncertainty is None else uncertainty[known_N]
    return RegressionRows(true_N[known_N], predicted_N[known_N], scale=scale, uncertainty=of_known)


def _scores(statistics: RegressionRows | ClassRows) -> dict[str, float]:
    if not len(statistics):  # no row has the label
        return dict.fromkeys(statistics.metrics, float("nan"))
    return {name: float(metric.function(statistics)) for name, metric in statistics.metrics.items()}


def _rows(names: Sequence[str], sets: Sequence[RegressionRows | ClassRows]) -> list[Row]:
    ends: dict[int, dict[str, tuple[float, float]]] = {}
    for size in {len(statistics) for statistics in sets}:  # labels that are known for as many rows share resamples
        numbers = [number for number, statistics in enumerate(sets) if len(statistics) == size]
        if size >= INTERVAL_ROWS:
            ends |= zip(numbers, intervals([sets[number] for number in numbers]), strict=True)
    rows: list[Row] = []
    for number, (name, statistics) in enumerate(zip(names, sets, strict=True)):
        of_set = ends.get(number, {})
        rows.append({"label": name, "rows": len(statistics)})
        for metric, value in _scores(statistics).items():
            low, high = of_set.get(metric, (float("nan"), float("nan")))
            rows[-1] |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
    return rows
