"""Scores against the number of training rows: points with intervals, laws with a limit, slopes and crossovers.

Everything is computed from the predictions in run folders. R² is over a test set's rows; resamples draw test rows (the
same ones for all runs of a test set) and seeds.
"""

import hashlib
import itertools
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from specvit.analysis.bounds.report import SNR
from specvit.analysis.grouping import Series, TestSet
from specvit.analysis.records import Run
from specvit.analysis.report import Row, bullets, table, with_spread, write_report
from specvit.analysis.scaling_law import Crossover, Law, Slopes, crossover, fit_law, mean_over_seeds, slopes
from specvit.metrics.intervals import SEED, percentile_interval, resampled
from specvit.metrics.metrics import REGRESSION
from specvit.metrics.scores import regression_scores
from specvit.metrics.statistics import RegressionRows
from specvit.study.results import NOT_LEARNT
from specvit.utils.files import finite, write_json
from specvit.utils.quantities import unit_of
from specvit.utils.seeding import numpy_rng
from specvit.utils.text import short_count

LONGEST_NAME = 220
"""Most letters of a series in a file name, which file systems limit to 255 bytes."""
SCORES = ("r2", "mae", "rmse")
DEFINITIONS = {
    "r2": "1 - mean squared error / variance of the label over the test rows, mean over seeds",
    "sd": "standard deviation over seeds",
    "interval": "95 % of 1,000 resamples of test rows (the same for all runs) and of seeds",
    "law": "R²(N) = limit - scale * N^-exponent, least squares through the means",
    "slope": "R² gained for each decade of rows: least squares of the mean R² on log10 N over the sizes in common",
    "overtakes": "from this N on the mean R² is higher at all sizes in common; linear in log N between sizes",
}
POOLED = "all folds together, as in `specvit analysis folds`: a row is a star, training rows are the mean over folds"
COLUMNS = ("series", "rows", *(f"{name}{end}" for name in SCORES for end in ("", "_sd", "_low", "_high")))
COLUMNS += ("best_epochs", "seeds", "run_ids", "missing", "label", "unit", "noise_level", "noise_type", "test_set")


@dataclass(frozen=True)
class Score:
    """A score of one setting: mean and standard deviation over seeds, and the interval of the mean."""

    mean: float
    sd: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """The scores of a setting on a training set of one size.

    `r2_R` are resampled means over seeds, `r2_of_seed` resampled R² of each run by its seed.
    """

    rows: int
    runs: tuple[Run, ...]
    scores: dict[str, Score]
    best_epochs: tuple[int | None, ...]
    r2_R: np.ndarray
    r2_of_seed: dict[int, np.ndarray]


@dataclass(frozen=True)
class Line:
    """A series with its points in order of size, its law, and the law's intervals."""

    series: Series
    points: list[Point]
    law: Law | None
    """Fitted to the means: one row."""
    laws: Law | None
    """Fitted to the resamples."""

    @property
    def sizes(self) -> list[int]:
        """The sizes with a score or with unfinished runs, in order."""
        return sorted({*self.series.points, *self.series.missing})

    @property
    def rows_K(self) -> np.ndarray:
        """The sizes of the points."""
        return np.array([point.rows for point in self.points], np.float64)


@dataclass(frozen=True)
class Pair:
    """Two lines with common sizes; `ahead` has the higher mean R² at the greatest of them."""

    ahead: Line
    behind: Line
    sizes: tuple[int, ...]
    crossover: Crossover
    slopes: Slopes


@dataclass(frozen=True)
class Scaling:
    """The results on one test set."""

    label: str
    test_set: TestSet
    lines: list[Line]
    pairs: list[Pair]
    limit: float
    """The greatest limit that a law may have: the van Trees bound if there is one, else 1."""


def scaling_of(label: str, test_set: TestSet, series: list[Series], limit: float = 1.0) -> Scaling:
    """Return points, laws and crossovers of the series of a test set."""
    resamples = resampled([RegressionRows(run.true_N, run.predicted_N) for run in test_set.runs], SCORES)
    replicates = {run.run_id: of_run for run, of_run in zip(test_set.runs, resamples, strict=True)}
    lines = []
    for one in series:
        points = [_point(one, size, replicates) for size in one.sizes]
        lines.append(Line(one, points, *_laws(points, limit)))
    return Scaling(label, test_set, lines, pairs_of(lines), limit)


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
    of_seed = {run.seed: replicates[run.run_id]["r2"] for run in runs}
    epochs = tuple(run.best_epoch for run in series.points[rows].trained)
    return Point(rows, runs, scores, epochs, resampled_means["r2"], of_seed)


def _laws(points: list[Point], limit: float) -> tuple[Law | None, Law | None]:
    if not points:
        return None, None
    rows_K = np.array([point.rows for point in points], np.float64)
    mean_1K = np.array([[point.scores["r2"].mean for point in points]])
    r2_RK = np.stack([point.r2_R for point in points], axis=1)
    return fit_law(rows_K, mean_1K, limit), fit_law(rows_K, r2_RK, limit)


def pairs_of(lines: list[Line]) -> list[Pair]:
    """Return every two lines with two or more common sizes, and where one overtakes the other."""
    pairs = []
    for both in itertools.combinations(lines, 2):
        points = [{point.rows: point for point in line.points} for line in both]
        sizes = sorted(points[0].keys() & points[1].keys())
        if len(sizes) < 2:
            continue
        mean_2K = np.array([[of[size].scores["r2"].mean for size in sizes] for of in points])
        r2_2RK = np.array([[of[size].r2_R for size in sizes] for of in points]).transpose(0, 2, 1)
        ahead = int(mean_2K[1, -1] > mean_2K[0, -1])
        mean_K, difference_RK = mean_2K[ahead] - mean_2K[1 - ahead], r2_2RK[ahead] - r2_2RK[1 - ahead]
        rows_K, order = np.array(sizes, np.float64), [ahead, 1 - ahead]
        overtakes = crossover(rows_K, mean_K, difference_RK)
        of_seeds = [[points[line][size].r2_of_seed for size in sizes] for line in order]
        gains = slopes(rows_K, mean_2K[order], of_seeds)
        pairs.append(Pair(both[ahead], both[1 - ahead], tuple(sizes), overtakes, gains))
    return pairs


def pair_sentence(pair: Pair) -> str:
    """Return which line is ahead, from how many rows on, how certain that is, and which runs are not counted."""
    failed = {
        line.series.name: sum(count[state] for count in line.series.missing.values() for state in NOT_LEARNT)
        for line in (pair.ahead, pair.behind)
    }
    counts = " and ".join(f"{count} of {name}" for name, count in failed.items() if count)
    return _order(pair) + (f"; not counted, since they failed before the test: {counts}" if counts else "")


def _order(pair: Pair) -> str:
    ahead, behind, overtakes = pair.ahead.series.name, pair.behind.series.name, pair.crossover
    low, high = (_size(value, pair) for value in (overtakes.low, overtakes.high))
    if overtakes.high == 0:
        return f"{ahead} is ahead of {behind} at all sizes from {pair.sizes[0]:,} to {pair.sizes[-1]:,}"
    if overtakes.rows == 0:
        when = f"the interval of where it overtakes goes from {low} to {high}"
        return f"{ahead} is ahead of {behind} at all sizes, which may be chance: {when}"
    what = f"{ahead} overtakes {behind} at {_size(overtakes.rows, pair)} rows [{low}, {high}]"
    return what + (", so it is not sure that it does" if np.isinf(overtakes.high) else "")


def _size(value: float, pair: Pair) -> str:
    if value == 0:
        return f"below {pair.sizes[0]:,}"
    if np.isinf(value):
        return f"above {pair.sizes[-1]:,}"
    return f"{float(f'{value:.2g}'):,.0f}"


def slope_sentence(pair: Pair) -> str:
    """Return what both lines gain for each decade of rows, and the difference with its interval."""
    gains = pair.slopes
    both = f"{pair.ahead.series.name} gains {gains.ahead:.3f} R² a decade of rows, {pair.behind.series.name}"
    difference = f"the difference is {gains.difference:+.3f} [{gains.low:+.3f}, {gains.high:+.3f}]"
    return f"{both} {gains.behind:.3f}: {difference}{', paired by seed' if gains.paired else ''}"


def write_scaling(scaling: Scaling, reference: list[Row], out: Path) -> None:
    """Write scaling.csv, .md and .json into `out`, and the scores by size of each series into scaling_SERIES.json."""
    out.mkdir(parents=True, exist_ok=True)
    models, pairs = [], []
    for line in scaling.lines:
        sizes = {short_count(point.rows): _by_size(line, point) for point in line.points}
        missing = {short_count(size): dict(states) for size, states in line.series.missing.items()}
        models.append({"name": line.series.name, "sizes": sizes, "missing": missing, "law": _law_facts(line)})
        write_json(out / file_of(line.series.name), finite(sizes))
    for pair in scaling.pairs:
        interval = {"rows": pair.crossover.rows, "low": pair.crossover.low, "high": pair.crossover.high}
        names = {"ahead": pair.ahead.series.name, "behind": pair.behind.series.name}
        said = {"said": pair_sentence(pair), "slopes": {**asdict(pair.slopes), "said": slope_sentence(pair)}}
        pairs.append({**interval, **names, "sizes": list(pair.sizes), **said})
    facts = {
        **scaling.test_set.facts(scaling.label),
        "unit": unit_of(scaling.label),
        "definitions": DEFINITIONS | {"snr": SNR} | ({"folds": POOLED} if scaling.test_set.is_pooled else {}),
        "limit_at_most": scaling.limit,
        "models": models,
        "overtaking": pairs,
        "reference": reference,
    }
    blocks = _blocks(scaling, reference)
    write_report(out, "scaling", rows=list(_csv_rows(scaling)), columns=COLUMNS, facts=facts, blocks=blocks)


def file_of(series: str) -> str:
    """Return the file name of a series, shortened with a digest where its name lists many settings."""
    name = "".join(letter if letter.isalnum() else "_" for letter in series)
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"scaling_{name}.json"


def _scores(point: Point, prefix: str = "") -> Row:
    """Return the scores of a point with spread and interval, as columns."""
    row: Row = {}
    for name in SCORES:
        score = point.scores[name]
        row |= {f"{prefix}{name}": score.mean, f"{prefix}{name}_sd": score.sd}
        row |= {f"{prefix}{name}_low": score.low, f"{prefix}{name}_high": score.high}
    return row


def _by_size(line: Line, point: Point) -> Row:
    """Return a point as other programs read it: {"test_r2": ..., "test_mae": ..., "best_epoch": ..., ...}."""
    epochs = point.best_epochs[0] if len(point.best_epochs) == 1 else list(point.best_epochs)
    ids = [run.run_id for run in line.series.points[point.rows].trained]
    runs = {"seeds": [run.seed for run in point.runs], "run_ids": ids}
    return {**_scores(point, "test_"), "best_epoch": epochs, **runs}


def _csv_rows(scaling: Scaling) -> Iterator[Row]:
    """Yield a row for each series and size."""
    general = {**scaling.test_set.facts(scaling.label), "unit": unit_of(scaling.label)}
    for line in scaling.lines:
        points = {point.rows: point for point in line.points}
        for size in line.sizes:
            row: Row = {**general, "series": line.series.name, "rows": size, "missing": _missing(line, size)}
            if point := points.get(size):
                epochs = " ".join(str(epoch) for epoch in point.best_epochs)
                row |= {**_scores(point), "best_epochs": epochs, **line.series.points[size].seeds_and_ids}
            yield row


def _missing(line: Line, size: int) -> str:
    return ", ".join(f"{count} {state}" for state, count in line.series.missing.get(size, {}).items())


def _blocks(scaling: Scaling, reference: list[Row]) -> Iterator[str]:
    """Yield the markdown."""
    unit = unit_of(scaling.label)
    yield f"# {scaling.label} by training rows"
    yield f"{scaling.test_set.description}; {len(scaling.test_set.runs[0].true_N):,} rows."
    for metric in (REGRESSION[name] for name in SCORES):
        title = metric.title + (f", {unit}" if unit and metric.unit else "")
        yield table(_score_cells(scaling, metric.name, title))
    if laws := [line for line in scaling.lines if line.law]:
        yield table([["law", "limit", "exponent"], *([line.series.name, *_law_cells(line)] for line in laws)])
    yield bullets(itertools.chain(map(pair_sentence, scaling.pairs), map(slope_sentence, scaling.pairs)))
    if reference:
        points = ([point["name"], f"{point['rows']:,.0f}", f"{point['r2']:g}"] for point in reference)
        yield table([["published", "rows", "R²"], *points])
    cells = [["series", "rows", "seeds", "best epochs", "run ids"]]
    for line in scaling.lines:
        for point in line.points:
            seeds, ids = line.series.points[point.rows].seeds_and_ids.values()
            cells.append([line.series.name, f"{point.rows:,}", seeds, " ".join(map(str, point.best_epochs)), ids])
    yield table(cells)
    r2, spread, interval = (DEFINITIONS[name] for name in ("r2", "sd", "interval"))
    law = f"Law: {DEFINITIONS['law']}; the limit is {scaling.limit:.3f} at most"
    more = [f"{name.capitalize()}: {DEFINITIONS[name]}" for name in ("overtakes", "slope")]
    more += [f"Folds: {POOLED}"] if scaling.test_set.is_pooled else []
    yield bullets([f"R²: {r2}; ±: {spread}; [ ]: {interval}", law, *more])


def _score_cells(scaling: Scaling, name: str, title: str) -> list[list[str]]:
    sizes = sorted({size for line in scaling.lines for size in line.sizes})
    cells = [[title, *(short_count(size) for size in sizes)]]
    for line in scaling.lines:
        points = {point.rows: point for point in line.points}
        row = [line.series.name]
        for size in sizes:
            score = points[size].scores[name] if size in points else None
            text = f"{with_spread(score.mean, score.sd)} [{score.low:.3f}, {score.high:.3f}]" if score else ""
            row.append(", ".join(part for part in (text, _missing(line, size)) if part))
        cells.append(row)
    return cells


def _law_facts(line: Line) -> Row | None:
    """Return a law's constants with their intervals."""
    if line.law is None or line.laws is None:
        return None
    return {
        name: {
            "value": float(getattr(line.law, f"{name}_R")[0]),
            "interval": percentile_interval(getattr(line.laws, f"{name}_R")),
        }
        for name in ("limit", "scale", "exponent")
    }


def _law_cells(line: Line) -> list[str]:
    law = _law_facts(line) or {}
    intervals = ((law[name]["value"], *law[name]["interval"]) for name in ("limit", "exponent"))
    return [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in intervals]
