"""What metrics are computed from: statistics of a set of rows, and under the same names those of its resamples.

Legend: N rows, R resamples, C classes that occur.

A resample is held as counts (how often it has each row): a sum over it is a product with the counts, and one sort of
the rows serves the quantiles of every resample. Everything is computed at first use: quantiles, which need the rows in
order, take two thirds of the time of all metrics.
"""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import numpy as np

from specvit.metrics.distributions import Distribution, Uncertainty
from specvit.metrics.metrics import CLASSIFICATION, REGRESSION, Metric

Statistic = Any
"""A float of a set of rows, or (R,) of resamples."""


class LabelErrors:
    """Predictions of one label over N rows, label units, float64."""

    def __init__(
        self, true_N: np.ndarray, predicted_N: np.ndarray, scale: float, uncertainty: Uncertainty | None = None
    ) -> None:
        """`scale` is the training scaler's, for `mae_norm`; `uncertainty` is of the same rows, if there is one."""
        self.true_N, self.predicted_N = np.asarray(true_N, np.float64), np.asarray(predicted_N, np.float64)
        self.scale, self.uncertainty = scale, uncertainty
        self.signed_N = self.predicted_N - self.true_N
        self.absolute_N, self.squared_N = np.abs(self.signed_N), np.square(self.signed_N)

    @cached_property
    def centred_true_N(self) -> np.ndarray:
        """The true values less their mean."""
        return self.true_N - self.true_N.mean()

    def __len__(self) -> int:
        """Return N."""
        return len(self.true_N)

    @cached_property
    def _scaled(self) -> tuple[Distribution, np.ndarray, np.ndarray]:
        """The predicted distribution, its scale (N,) and the label's distance from the prediction in scales (N,)."""
        assert self.uncertainty is not None
        scale_N = self.uncertainty.std / self.uncertainty.distribution.std
        return self.uncertainty.distribution, scale_N, -self.signed_N / scale_N

    @cached_property
    def minus_log_density_N(self) -> np.ndarray:
        """Minus the logarithm of the predicted density at the true value, natural, of the label in its unit."""
        distribution, scale_N, z_N = self._scaled
        return np.log(scale_N) + distribution.minus_log_density(z_N)

    @cached_property
    def crps_N(self) -> np.ndarray:
        """The continuous ranked probability score of each row."""
        distribution, scale_N, z_N = self._scaled
        return scale_N * distribution.crps(z_N)

    @property
    def inside_68_N(self) -> np.ndarray:
        """1 for each row whose true value is in the interval of level 0.68, else 0; NaN for an infinite interval."""
        assert self.uncertainty is not None
        return self._inside(self.uncertainty.half_68)

    @property
    def inside_95_N(self) -> np.ndarray:
        """As `inside_68_N`, of level 0.95."""
        assert self.uncertainty is not None
        return self._inside(self.uncertainty.half_95)

    @property
    def width_N(self) -> np.ndarray:
        """The width of the interval of level 0.68; NaN for an infinite one."""
        assert self.uncertainty is not None
        return np.where(np.isfinite(self.uncertainty.half_68), 2 * self.uncertainty.half_68, np.nan)

    def _inside(self, half_N: np.ndarray) -> np.ndarray:
        return np.where(np.isfinite(half_N), self.absolute_N <= half_N, np.nan)

    @cached_property
    def sorted_signed(self) -> "SortedValues":
        """The errors in order."""
        return SortedValues(self.signed_N)

    @cached_property
    def sorted_absolute(self) -> "SortedValues":
        """The sizes of the errors in order."""
        return SortedValues(self.absolute_N)


class RegressionStatistics(ABC):
    """What the statistics of rows and of resamples share: a property added here serves both."""

    sqrt = staticmethod(np.sqrt)

    def __init__(self, errors: LabelErrors) -> None:
        """`errors` are of all rows, also where the statistics are of resamples."""
        self.errors = errors

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics that these predictions have."""
        has = {"", *(self.errors.uncertainty.has if self.errors.uncertainty else ())}
        return {name: metric for name, metric in REGRESSION.items() if metric.needs in has}

    @abstractmethod
    def mean(self, term_N: np.ndarray) -> Statistic:
        """Return the mean of a term over the rows."""

    @cached_property
    def mae(self) -> Statistic:
        """Mean absolute error."""
        return self.mean(self.errors.absolute_N)

    @cached_property
    def mse(self) -> Statistic:
        """Mean squared error."""
        return self.mean(self.errors.squared_N)


class RegressionRows(RegressionStatistics):
    """Statistics of a set of rows of one label, label units; each a float."""

    def __init__(
        self,
        true_N: np.ndarray,
        predicted_N: np.ndarray,
        *,
        scale: float = 1.0,
        uncertainty: Uncertainty | None = None,
    ) -> None:
        """`scale` is the training scaler's, for `mae_norm`; `uncertainty` is of the same rows, if there is one."""
        super().__init__(LabelErrors(true_N, predicted_N, scale, uncertainty))

    def __len__(self) -> int:
        """Return N."""
        return len(self.errors)

    def resampled(self, counts_RN: np.ndarray) -> "RegressionResamples":
        """Return the statistics of resamples, given as counts (int64)."""
        return RegressionResamples(self.errors, counts_RN)

    def mean(self, term_N: np.ndarray) -> float:
        """Return the mean."""
        return float(term_N.mean())

    @staticmethod
    def ratio(above: float, below: float) -> float:
        """Return the ratio, NaN over 0."""
        return above / below if below > 0 else float("nan")

    def median_error(self) -> float:
        """Return the median."""
        return float(np.median(self.errors.signed_N))

    def absolute_error_quantile(self, share: float) -> float:
        """Return the quantile."""
        return float(np.quantile(self.errors.absolute_N, share))

    @property
    def sse(self) -> float:
        """Sum of squared errors."""
        return float(self.errors.signed_N @ self.errors.signed_N)

    @cached_property
    def sst(self) -> float:
        """Total sum of squares; rounding must not make that of equal labels differ from 0."""
        centred_N = self.errors.centred_true_N
        return float(centred_N @ centred_N) if np.ptp(self.errors.true_N) > 0 else 0.0

    @property
    def sxy(self) -> float:
        """Sum of products."""
        return float(self.errors.centred_true_N @ self.errors.predicted_N)


class RegressionResamples(RegressionStatistics):
    """Statistics of R resamples of the rows of one label, label units; each (R,), NaN where it is undefined."""

    def __init__(self, errors: LabelErrors, counts_RN: np.ndarray) -> None:
        """`counts_RN` (int64) are how often each resample has each row."""
        super().__init__(errors)
        self.counts_RN, self.weights_RN = counts_RN, counts_RN.astype(np.float64)

    def mean(self, term_N: np.ndarray) -> np.ndarray:
        """Return the means. Not a BLAS product, whose last bits change with the chunk and the threads."""
        return np.einsum("rn,n->r", self.weights_RN, term_N) / len(self.errors)

    @staticmethod
    def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        """Return the ratios, NaN over 0."""
        return np.divide(above, below, out=np.full(len(below), np.nan), where=below != 0)

    def median_error(self) -> np.ndarray:
        """Return the medians."""
        return self.errors.sorted_signed.median(self.counts_RN)

    def absolute_error_quantile(self, share: float) -> np.ndarray:
        """Return the quantiles."""
        return self.errors.sorted_absolute.quantile(share, self.counts_RN)

    @property
    def sse(self) -> np.ndarray:
        """Sums of squared errors."""
        return self.mse * len(self.errors)

    @cached_property
    def _deviation_RN(self) -> np.ndarray:
        """Each label's distance from the mean of the resample."""
        centred_N = self.errors.centred_true_N
        return centred_N - self.mean(centred_N)[:, None]

    @cached_property
    def sst(self) -> np.ndarray:
        """Total sums of squares; rounding must not make those of equal labels differ from 0."""
        total_R = np.einsum("rn,rn,rn->r", self.weights_RN, self._deviation_RN, self._deviation_RN)
        largest = float(np.abs(self.errors.centred_true_N).max())
        for row in np.flatnonzero(total_R <= 1e-20 * len(self.errors) * largest**2):  # rounding alone, or nearly so
            if np.ptp(self.errors.true_N[self.weights_RN[row] > 0]) == 0:
                total_R[row] = 0.0
        return total_R

    @property
    def sxy(self) -> np.ndarray:
        """Sums of products."""
        predicted_N = self.errors.predicted_N
        centred_N = predicted_N - predicted_N.mean()  # changes no slope, but its rounding
        return np.einsum("rn,rn,n->r", self.weights_RN, self._deviation_RN, centred_N)


class SortedValues:
    """Values (N,) in order: their quantiles in any resample, to the bit those of NumPy on the resample's rows."""

    def __init__(self, values_N: np.ndarray) -> None:
        """Sort once."""
        self.order_N = np.argsort(values_N)
        self.sorted_N = values_N[self.order_N]
        if np.isnan(self.sorted_N[-1]):  # sorted last; one of them makes every quantile undefined
            self.sorted_N = np.full_like(values_N, np.nan)

    def median(self, counts_RN: np.ndarray) -> np.ndarray:
        """Return medians (R,)."""
        rows = counts_RN.shape[1]
        low_R, high_R = self._at_ranks(counts_RN, (rows - 1) // 2, rows // 2)
        return (low_R + high_R) / 2

    def quantile(self, share: float, counts_RN: np.ndarray) -> np.ndarray:
        """Return the quantiles (R,) at `share`, interpolated linearly between two ranks."""
        place = (counts_RN.shape[1] - 1) * share
        rank, part = int(place), place - int(place)
        low_R, high_R = self._at_ranks(counts_RN, rank, min(rank + 1, counts_RN.shape[1] - 1))
        step_R = high_R - low_R
        # From the nearer rank, as NumPy does: otherwise rounding could pass the rank beyond.
        return high_R - step_R * (1.0 - part) if part >= 0.5 else low_R + step_R * part

    def _at_ranks(self, counts_RN: np.ndarray, *ranks: int) -> list[np.ndarray]:
        """Return the resamples' values (R,) at each rank, counted from 0."""
        below_RN = np.cumsum(counts_RN[:, self.order_N], axis=1)
        return [self.sorted_N[np.count_nonzero(below_RN <= rank, axis=1)] for rank in ranks]


class ClassRows:
    """Statistics of class numbers over a set of rows; each a float."""

    metrics = CLASSIFICATION

    def __init__(self, true_N: np.ndarray, predicted_N: np.ndarray) -> None:
        """Both are class numbers."""
        self.true_N, self.right_N = true_N, true_N == predicted_N

    def __len__(self) -> int:
        """Return N."""
        return len(self.true_N)

    def resampled(self, counts_RN: np.ndarray) -> "ClassResamples":
        """Return the statistics of resamples, given as counts (int64)."""
        return ClassResamples(self, counts_RN)

    @cached_property
    def by_class(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows in order of their true class (N,), whether each is right (N,), and where each class begins (C,)."""
        order_N = np.argsort(self.true_N, kind="stable")
        starts_C = np.flatnonzero(np.diff(self.true_N[order_N], prepend=np.nan) != 0)
        return order_N, self.right_N[order_N], starts_C

    @property
    def accuracy(self) -> float:
        """Share of rows whose class is right."""
        return float(self.right_N.mean())

    @property
    def mean_recall(self) -> float:
        """Mean, over the true classes, of the share of a class's rows that are right."""
        classes_C, number_N = np.unique(self.true_N, return_inverse=True)
        right_C = np.bincount(number_N, weights=self.right_N, minlength=len(classes_C))
        return float((right_C / np.bincount(number_N)).mean())


class ClassResamples:
    """Statistics of class numbers over R resamples; each (R,)."""

    def __init__(self, rows: ClassRows, counts_RN: np.ndarray) -> None:
        """`counts_RN` (int64) are how often each resample has each row."""
        order_N, right_N, starts_C = rows.by_class
        self.rows, counts_RN = len(rows), counts_RN[:, order_N]
        self.present_RC = np.add.reduceat(counts_RN, starts_C, axis=1)
        self.right_RC = np.add.reduceat(counts_RN * right_N, starts_C, axis=1)

    @property
    def accuracy(self) -> np.ndarray:
        """Share of rows whose class is right."""
        return self.right_RC.sum(axis=1) / self.rows

    @property
    def mean_recall(self) -> np.ndarray:
        """Mean recall over the true classes that the resample has."""
        present_RC = self.present_RC
        recall_RC = np.divide(self.right_RC, present_RC, out=np.zeros(present_RC.shape), where=present_RC > 0)
        return recall_RC.sum(axis=1) / (present_RC > 0).sum(axis=1)
