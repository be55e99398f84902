"""Conformal intervals: errors on rows that were not trained on -> an interval of any model's next prediction.

A row that is exchangeable with the calibration rows is inside with at least the probability `level`, whatever the
model and the distribution of its errors: split conformal intervals (Vovk, Gammerman & Shafer 2005, Algorithmic
Learning in a Random World; Lei et al. 2018, JASA 113, 1094), here within bins of S/N, since noise widens errors. Where
a model predicts a standard deviation, errors are in units of it (Papadopoulos, Gammerman & Vovk 2008, Normalized
Nonconformity Measures for Regression Conformal Prediction, IASTED AIA, 64). CV+ takes the errors of a cross-validation
instead (Barber et al. 2021, Annals of Statistics 49, 486).

Legend: n calibration rows, N rows that get intervals, B bins of S/N, F folds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from specvit.metrics.distributions import NORMAL, Uncertainty

BIN_ROWS = 100
"""Fewest calibration rows in a bin."""
MAX_BINS = 8
LEVELS = {"coverage_68": 0.68, "coverage_95": 0.95}
"""Of the intervals whose coverage is a score."""
ONE_SIGMA = 0.6827
"""Share of a normal distribution within one standard deviation."""
CHUNK_ELEMENTS = 2**20
"""Candidate ends of CV+ held at a time; bounds memory, changes no result."""


def rank(rows: int, level: float) -> int:
    """Return which of `rows` errors in ascending order, from 1, is the half-width at `level`.

    Above `rows` there are too few of them, and the half-width is infinite.
    """
    return max(1, math.ceil(round((rows + 1) * level, 9)))  # 100 * 0.07 is 7.000000000000001


def rows_needed(level: float) -> int:
    """Return the fewest calibration rows that give a finite interval."""
    return math.ceil(round(level / (1 - level), 9))


@dataclass(frozen=True)
class HalfWidths:
    """Half-widths of one label's intervals at one level, in bins of S/N between the inner `edges` (B - 1,)."""

    edges: np.ndarray
    width_B: np.ndarray
    overall: float
    """Of all calibration rows, for a row whose S/N is undefined."""

    def of(self, snr_N: np.ndarray, std_N: np.ndarray | None = None) -> np.ndarray:
        """Return half-widths (N,); `std_N` are predicted standard deviations, if the errors were in units of them."""
        bin_N = np.searchsorted(self.edges, snr_N, side="right")
        width_N = np.where(np.isnan(snr_N), self.overall, self.width_B[bin_N])
        return width_N if std_N is None else width_N * std_N


@dataclass(frozen=True)
class Residuals:
    """Errors (n,) of one label on calibration rows, label units or those of a predicted std, and the rows' S/N (n,)."""

    error_n: np.ndarray
    snr_n: np.ndarray

    def at(self, level: float) -> HalfWidths:
        """Return the half-widths at `level` (0 to 1); infinite where there are too few rows for it."""
        edges = bin_edges(self.snr_n, max(BIN_ROWS, rows_needed(level)))
        known_n = ~np.isnan(self.snr_n)
        bin_n = np.searchsorted(edges, self.snr_n, side="right")
        overall = _quantile(self.error_n, level)
        of_bins = [_quantile(self.error_n[known_n & (bin_n == number)], level) for number in range(len(edges) + 1)]
        return HalfWidths(edges, np.array(of_bins if len(edges) else [overall]), overall)


def residuals(
    true_n: np.ndarray, predicted_n: np.ndarray, snr_n: np.ndarray, std_n: np.ndarray | None = None
) -> Residuals:
    """Return |predicted - true|, over `std_n` if it is given, of the rows that have the label (not NaN)."""
    known_n = ~np.isnan(true_n)
    return Residuals(errors(true_n, predicted_n, std_n)[known_n], snr_n[known_n])


def errors(true_n: np.ndarray, predicted_n: np.ndarray, std_n: np.ndarray | None) -> np.ndarray:
    """Return |predicted - true| (n,), over `std_n` if it is given; NaN where the label is missing.

    Infinite where a known label has no prediction or a std of 0: such a row widens intervals, and is not left out.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        error_n = np.abs(predicted_n - true_n) / (1.0 if std_n is None else std_n)
    return np.where(np.isnan(error_n) & ~np.isnan(true_n), np.inf, error_n)


def bin_edges(snr_n: np.ndarray, least: int) -> np.ndarray:
    """Return the S/N (inner edges, ascending) between bins of as many rows each, up to `MAX_BINS`.

    Neighbours are merged until each bin has at least `least` rows: many rows may have one S/N. An edge belongs to the
    bin above it; rows without S/N (NaN) are in none.
    """
    sorted_n = np.sort(snr_n[~np.isnan(snr_n)])
    bins = max(1, min(MAX_BINS, len(sorted_n) // least))
    edges = np.unique(sorted_n[np.arange(1, bins) * len(sorted_n) // bins])
    while len(edges):
        rows_B = np.bincount(np.searchsorted(edges, sorted_n, side="right"), minlength=len(edges) + 1)
        smallest = int(rows_B.argmin())
        if rows_B[smallest] >= least:
            break
        edges = np.delete(edges, max(0, smallest - 1))
    return edges


def cross_interval(
    centre_NF: np.ndarray, fold_n: np.ndarray, error_n: np.ndarray, level: float, std_NF: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return low and high ends (N,) of CV+ intervals of one label; infinite where there are too few rows.

    `centre_NF` predicts each row by the model of each fold, and `std_NF` its standard deviation, if the errors are in
    units of it. `error_n` are the errors of the calibration rows by the model of the fold that tests them, `fold_n`.
    A row is inside with a probability of at least 2 `level` - 1 - sqrt(2 / n), and usually of nearly `level`.
    """
    rows, place = len(error_n), rank(len(error_n), level)
    low_N, high_N = np.full(len(centre_NF), -np.inf), np.full(len(centre_NF), np.inf)
    if place > rows:
        return low_N, high_N
    step = max(1, CHUNK_ELEMENTS // rows)
    for here in (slice(start, start + step) for start in range(0, len(centre_NF), step)):
        centre_Nn = centre_NF[here][:, fold_n]
        reach_Nn = error_n if std_NF is None else error_n * std_NF[here][:, fold_n]
        low_N[here] = np.partition(centre_Nn - reach_Nn, rows - place, axis=1)[:, rows - place]
        high_N[here] = np.partition(centre_Nn + reach_Nn, place - 1, axis=1)[:, place - 1]
    return low_N, high_N


def together(label_RNK: np.ndarray, std_RNK: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the mean of R runs' predictions and, if all predict a std, that of their mixture.

    Its variance is the mean of their variances and the variance of their predictions (Lakshminarayanan et al. 2017).
    """
    mean_NK = label_RNK.mean(axis=0)
    if std_RNK is None:
        return mean_NK, None
    return mean_NK, np.sqrt(np.square(std_RNK).mean(axis=0) + label_RNK.var(axis=0))


def of_all(std_R: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Return R runs' predicted standard deviations (R, N, K); None unless each run predicts them."""
    found = [std_NK for std_NK in std_R if std_NK is not None]
    return np.stack(found) if len(found) == len(std_R) else None


def by_label(std_NK: np.ndarray | None, labels: int) -> Sequence[np.ndarray | None]:
    """Return the standard deviations (N,) of each label; None for each where none are predicted."""
    return [None] * labels if std_NK is None else list(std_NK.T)


def calibrated(uncertainty: Uncertainty | None, residuals: Sequence[Residuals], snr_N: np.ndarray) -> Uncertainty:
    """Return what is predicted with the half-widths (N, K) of its intervals; `residuals` are one a label.

    A run that predicts no std has in its place the half-width of 68.27 %, as if errors were normal at each S/N.
    """

    def half_NK(level: float) -> np.ndarray:
        stds = by_label(None if uncertainty is None else uncertainty.std, len(residuals))
        of_labels = zip(residuals, stds, strict=True)
        return np.stack([of_label.at(level).of(snr_N, std_N) for of_label, std_N in of_labels], axis=1)

    predicted = uncertainty
    if predicted is None:
        std_NK = half_NK(ONE_SIGMA)
        predicted = Uncertainty(np.where(np.isfinite(std_NK), std_NK, np.nan), NORMAL)
    return replace(predicted, half_68=half_NK(LEVELS["coverage_68"]), half_95=half_NK(LEVELS["coverage_95"]))


def _quantile(error_n: np.ndarray, level: float) -> float:
    """Return the error of the level's rank, infinite if there are too few."""
    place = rank(len(error_n), level)
    return float(np.partition(error_n, place - 1)[place - 1]) if place <= len(error_n) else math.inf
