"""Scores against the number of training rows: points with intervals, laws with a limit, and who overtakes whom.

Everything is computed from the predictions in run folders. R² is over a test set's rows; resamples draw test rows (the
same ones for all runs of a test set) and seeds.
"""

import itertools
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np

from specvit.analysis.runs import FinishedRun, TestSet
from specvit.analysis.scaling_law import Crossover, Law, crossover, fit_law, mean_over_seeds
from specvit.analysis.series import Series
from specvit.metrics.intervals import SEED, percentile_interval, resampled
from specvit.metrics.scores import regression_scores
from specvit.metrics.statistics import RegressionRows
from specvit.study.results import NOT_LEARNT
from specvit.utils.seeding import numpy_rng

SCORES = ("r2", "mae", "rmse")


@dataclass(frozen=True)
class Score:
    """A score of one setting: mean and standard deviation over seeds, and the interval of the mean."""

    mean: float
    sd: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """The scores of a setting on a training set of one size; `r2_R` are resampled means over seeds."""

    rows: int
    runs: tuple[FinishedRun, ...]
    scores: dict[str, Score]
    best_epochs: tuple[int | None, ...]
    r2_R: np.ndarray


@dataclass(frozen=True)
class Line:
    """A series with its points in order of size, its law, and the law's intervals."""

    series: Series
    points: list[Point]
    law: Law | None
    """Of the means: one row."""
    laws: Law | None
    """Of the resamples."""

    @property
    def rows_K(self) -> np.ndarray:
        """The sizes."""
        return np.array([point.rows for point in self.points], np.float64)


@dataclass(frozen=True)
class Pair:
    """Two lines with sizes in common, `ahead` the one with the higher mean R² at the greatest of them."""

    ahead: Line
    behind: Line
    sizes: tuple[int, ...]
    found: Crossover


@dataclass(frozen=True)
class Scaling:
    """All that is found on one test set."""

    label: str
    test_set: TestSet
    lines: list[Line]
    pairs: list[Pair]
    limit: float
    """The greatest R² that a law may tend to: the van Trees bound if there is one, else 1."""


def scaling_of(label: str, test_set: TestSet, series: list[Series], limit: float = 1.0) -> Scaling:
    """Return points, laws and overtakings of the series of a test set."""
    replicates = _resample(test_set.runs)
    lines = []
    for one in series:
        points = [_point(one, size, replicates) for size in one.sizes]
        lines.append(Line(one, points, *_laws(points, limit)))
    return Scaling(label, test_set, lines, _pairs(lines), limit)


def _resample(runs: list[FinishedRun]) -> dict[str, dict[str, np.ndarray]]:
    """Return the resampled scores of each run by its id, (R,) each."""
    scores = resampled([RegressionRows(run.true_N, run.predicted_N) for run in runs], SCORES)
    return {run.run_id: of_run for run, of_run in zip(runs, scores, strict=True)}


def _point(series: Series, rows: int, replicates: dict[str, dict[str, np.ndarray]]) -> Point:
    runs = series.points[rows].runs
    own = [regression_scores(run.true_N, run.predicted_N) for run in runs]
    scores, resampled_means = {}, {}
    for name in SCORES:
        values = [found[name] for found in own]
        drawn = numpy_rng(SEED, "bootstrap", "seeds", series.key, rows)
        mean_R = mean_over_seeds([replicates[run.run_id][name] for run in runs], drawn)
        spread = statistics.stdev(values) if len(values) > 1 else None
        scores[name] = Score(statistics.fmean(values), spread, *percentile_interval(mean_R))
        resampled_means[name] = mean_R
    return Point(rows, runs, scores, tuple(run.best_epoch for run in runs), resampled_means["r2"])


def _laws(points: list[Point], limit: float) -> tuple[Law | None, Law | None]:
    if not points:
        return None, None
    rows_K = np.array([point.rows for point in points], np.float64)
    mean_1K = np.array([[point.scores["r2"].mean for point in points]])
    r2_RK = np.stack([point.r2_R for point in points], axis=1)
    return fit_law(rows_K, mean_1K, limit), fit_law(rows_K, r2_RK, limit)


def _pairs(lines: list[Line]) -> list[Pair]:
    """Return what is to be said of each two lines that have two sizes or more in common."""
    pairs = []
    for first, second in itertools.combinations(lines, 2):
        points = [{point.rows: point for point in line.points} for line in (first, second)]
        sizes = sorted(points[0].keys() & points[1].keys())
        if len(sizes) < 2:
            continue
        mean_2K = np.array([[of[size].scores["r2"].mean for size in sizes] for of in points])
        r2_2RK = np.array([[of[size].r2_R for size in sizes] for of in points]).transpose(0, 2, 1)
        lines_here = (first, second)
        ahead = int(mean_2K[1, -1] > mean_2K[0, -1])
        found = crossover(
            np.array(sizes, np.float64), mean_2K[ahead] - mean_2K[1 - ahead], r2_2RK[ahead] - r2_2RK[1 - ahead]
        )
        pairs.append(Pair(lines_here[ahead], lines_here[1 - ahead], tuple(sizes), found))
    return pairs


def said(pair: Pair) -> str:
    """Return a sentence on who is ahead, from how many rows on, how sure that is, and what was not tested."""
    return _order_said(pair) + _untested(pair)


def _untested(pair: Pair) -> str:
    """Return how many runs of either line failed before their test, of any size: no mean contains them."""
    failed = {
        line.series.name: sum(count[state] for count in line.series.missing.values() for state in NOT_LEARNT)
        for line in (pair.ahead, pair.behind)
    }
    counts = " and ".join(f"{count} of {name}" for name, count in failed.items() if count)
    return f"; not counted, since they failed before the test: {counts}" if counts else ""


def _order_said(pair: Pair) -> str:
    names, found = (pair.ahead.series.name, pair.behind.series.name), pair.found
    low, high = (_size(value, pair) for value in (found.low, found.high))
    if found.high == 0:
        return f"{names[0]} is ahead of {names[1]} at all sizes from {pair.sizes[0]:,} to {pair.sizes[-1]:,}"
    if found.rows == 0:
        when = f"the interval of where it overtakes goes from {low} to {high}"
        return f"{names[0]} is ahead of {names[1]} at all sizes, which may be chance: {when}"
    what = f"{names[0]} overtakes {names[1]} at {_size(found.rows, pair)} rows [{low}, {high}]"
    return what + (", so it is not sure that it does" if np.isinf(found.high) else "")


def _size(value: float, pair: Pair) -> str:
    if value == 0:
        return f"below {pair.sizes[0]:,}"
    if np.isinf(value):
        return f"above {pair.sizes[-1]:,}"
    return f"{float(f'{value:.2g}'):,.0f}"


def plain_law(line: Line) -> dict[str, Any] | None:
    """Return a law's constants with their intervals, as JSON can hold them."""
    if line.law is None or line.laws is None:
        return None
    return {
        name: {"value": float(getattr(line.law, f"{name}_R")[0]), "interval": percentile_interval(drawn_R)}
        for name, drawn_R in (
            ("limit", line.laws.limit_R),
            ("scale", line.laws.scale_R),
            ("exponent", line.laws.exponent_R),
        )
    }
