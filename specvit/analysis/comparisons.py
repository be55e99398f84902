"""What each value of a factor changes against the first one, and which of the changes are more than chance.

Runs are paired that are equal in all but one factor, seed by seed and fold by fold. The pairs of one seed share its
start and its order of rows, so that only seeds are independent: pairs are averaged within their seed first. Runs that
are equal to the last digit (C1D and SW where windows do not overlap) are one run. A run that has not learnt counts as
R² 0; of other metrics it has no value, and no verdict is given. A run that has not ended is not compared.

The interval of a difference is Student's over its own seeds (of one seed only: over its settings), 95 % for that
comparison alone. The words better and worse are for the whole table, of which 5 % may name one wrongly. They need an
interval without 0, and Holm's p of .05 or less by the variance that all values of the factor have in common: the
residual of settings by seeds (randomised blocks; Montgomery, Design and Analysis of Experiments, ch. 4). Where the runs
of the base, which is in all comparisons, seem to scatter more than the others, Holm's p is by each comparison's own
variance (pooling after a preliminary test: Bancroft, Biometrics 20, 427). How often this is wrong was simulated:
docs/ablation.md.
"""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import special

from specvit.analysis.records import Run, Runs, rows_of, scored
from specvit.analysis.survival import Pair, least_p, logrank_p, resolution, restricted_difference, time_of
from specvit.study.results import has_direction, is_r2, lower_is_better
from specvit.study.schema import ESCAPED
from specvit.utils.errors import FolderError
from specvit.utils.text import counted

LEVEL = 0.95
UNEQUAL = 0.5
"""Level of the F test for a base that scatters more than the others: above the median. At .25 a base that scatters
three times as much as seven others made 5.5 % of studies of three seeds false."""
ENDS = {"plateau": "stayed on the plateau", "diverged": "diverged", "oom": "ran out of memory", "crashed": "crashed"}


@dataclass(frozen=True)
class Difference:
    """What `value` of a factor changes against `base`, the rest and the seed being equal; `seed_sd` is the noise."""

    factor: str
    base: Any
    value: Any
    pairs: int
    """Of different runs; `twins` more are of one and the same."""
    seeds: int
    mean: float | None
    low: float | None
    high: float | None
    seed_sd: float | None
    twins: int = 0
    like: Any = None
    """Another value whose runs are identical, where no other pair exists."""
    p: float | None = None
    """Among the `tests` of its table."""
    tests: int = 0
    failures: tuple[str, ...] = ()
    horizon: float | None = None
    """The steps up to which all runs were seen, where some never left the plateau; `mean` is of steps within it."""


@dataclass(frozen=True)
class _Match:
    """The pairs of one value of a factor with the first: by seed, and in a seed by all other factors."""

    value: Any
    pairs_of: dict[int, dict[str, Pair]]
    twins: int
    like: Any

    @property
    def pairs(self) -> list[Pair]:
        """All pairs."""
        return [pair for by_rest in self.pairs_of.values() for pair in by_rest.values()]


def differences(runs: Runs, metric: str, fewest_pairs: int = 1) -> list[Difference]:
    """Return the paired differences of each factor's values against its first one, of `fewest_pairs` or more."""
    runs = scored(runs, metric)
    has_value = runs.trains_by_steps if metric == ESCAPED else runs.unlearnt | runs.value.notna()
    runs = runs[(runs.unlearnt | runs.finished) & has_value]
    runs = runs.assign(first=first_equals([outcome.rows for outcome in runs.outcome]))
    noise = seed_spread(runs[runs["first"] == np.arange(len(runs))], metric)
    ended = rows_of(runs)
    tested = []
    for factor in dict.fromkeys(itertools.chain.from_iterable(run.factors for run in ended)):
        base, matches = _matches(ended, factor)
        blank = Difference(factor, base, None, 0, 0, None, None, None, noise)
        enough = [one for one in matches if len(one.pairs) + one.twins >= fewest_pairs]
        tested += _compare(blank, enough, metric)
    return _holm(tested)


def first_equals(epochs: Sequence[Sequence[dict[str, Any]]]) -> list[int]:
    """Return for each run's epochs the number of the first run with the same ones; its own if nothing was measured."""
    firsts: dict[str, int] = {}
    numbers = []
    for number, rows in enumerate(epochs):
        values = [value for row in rows for key, value in row.items() if key.startswith(("train_", "val_"))]
        measured = any(isinstance(value, float) and math.isfinite(value) for value in values)
        numbers.append(firsts.setdefault(repr(rows), number) if measured else number)
    return numbers


def seed_spread(runs: Runs, metric: str) -> float | None:
    """Return the standard deviation over seeds, pooled over settings and folds; of R² that of runs that finished."""
    known = runs[runs.ranked.notna() & (runs.finished | (metric == ESCAPED))]
    places = [known.setting, known.config.map(lambda config: config.data.fold)]
    several = [list(values) for _, values in known.ranked.groupby(places, sort=False) if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    squares = sum((len(values) - 1) * statistics.variance(values) for values in several)
    return (squares / freedom) ** 0.5 if freedom else None


def _matches(runs: Sequence[Run], factor: str) -> tuple[Any, list[_Match]]:
    """Return a factor's first value and the pairs of each other one with it; equal pairs of a seed count once."""
    levels = {repr(run.factors.get(factor)): run.factors.get(factor) for run in runs}
    sides: dict[str, dict[tuple[int, str], Run]] = {level: {} for level in levels}
    for run in runs:
        others = sorted((k, repr(v)) for k, v in run.factors.items() if k != factor)
        rest = repr([*others, run.config.data.fold])
        side = sides[repr(run.factors.get(factor))]
        if side.setdefault((run.seed, rest), run).run_id != run.run_id:
            raise _alike(side[run.seed, rest], run)
    base, *others = levels
    matches = []
    seen: dict[frozenset[tuple[int, int, int]], Any] = {}
    for level in others:
        pairs_of: dict[int, dict[str, Pair]] = {}
        known: set[tuple[int, int, int]] = set()
        twins = 0
        for (seed, rest), run in sides[level].items():
            other = sides[base].get((seed, rest))
            if other is None or (named := (seed, run.first, other.first)) in known:
                continue
            known.add(named)
            if run.first == other.first:
                twins += 1
            else:
                pairs_of.setdefault(seed, {})[rest] = run, other
        equal = frozenset(known)
        if equal in seen:
            matches.append(_Match(levels[level], {}, len(equal), seen[equal]))
        elif equal:
            seen[equal] = levels[level]
            matches.append(_Match(levels[level], pairs_of, twins, levels[base]))
    return levels[base], matches


def _alike(one: Run, other: Run) -> FolderError:
    """Return the error of two runs of which either could be in a pair."""
    what = f"runs {one.run_id} and {other.run_id} have the same settings and seed, on other data or by another specvit"
    where = ", ".join(dict.fromkeys(str(run.folder.parent) for run in (one, other)))
    return FolderError(what, where=where, remedy="name the study or the runs of one of them")


Tested = tuple[Difference, float | None, float | None]
"""A difference, its p by its own variance, and p by the variance that all values of its factor share."""


def _compare(blank: Difference, matches: Sequence[_Match], metric: str) -> list[Tested]:
    """Return the differences of one factor."""
    tested: list[Tested] = []
    means_of: list[dict[int, float]] = []
    for match in matches:
        failures = tuple(_failures(match, blank.base, metric))
        difference = replace(
            blank, value=match.value, failures=failures, pairs=len(match.pairs), twins=match.twins, like=match.like
        )
        tested.append(_own_difference(replace(difference, seeds=len(match.pairs_of)), match, metric))
        means_of.append(_seed_means(match) if tested[-1][0].horizon is None and len(match.pairs_of) > 1 else {})
    for failing in (False, True):  # failing is not the noise of seeds: it widens only comparisons that it is part of
        chosen = [
            n
            for n, (one, own, _) in enumerate(tested)
            if means_of[n] and own is not None and (failing or not one.failures)
        ]
        shared = _pooled_sd([means_of[n] for n in chosen])
        for n in chosen:
            one, own, _ = tested[n]
            if shared and one.mean is not None and bool(one.failures) == failing:
                error, freedom = shared
                error = max(error, _rounding_error(matches[n], metric)) * (2 / len(means_of[n])) ** 0.5
                tested[n] = one, own, 2 * float(special.stdtr(freedom, -abs(one.mean) / error))
    return tested


def _failures(match: _Match, base: Any, metric: str) -> Iterator[str]:
    """Yield how many runs of either side have not learnt; of steps off the plateau, how many left it if not all did."""
    sides = [(value, [pair[n] for pair in match.pairs]) for n, value in enumerate((match.value, base))]
    if metric == ESCAPED:
        left = [sum(time_of(record)[1] for record in records) for _, records in sides]
        if sum(left) < 2 * len(match.pairs):
            yield from (
                f"{n} of {len(records)} left the plateau with {v}" for n, (v, records) in zip(left, sides, strict=True)
            )
        return
    for value, records in sides:
        ends = Counter(ENDS[record.state] for record in records if record.unlearnt)
        yield from (f"{count} of {len(records)} {end} with {value}" for end, count in ends.items())


def _difference(pair: Pair) -> float | None:
    return None if None in (pair[0].ranked, pair[1].ranked) else pair[0].ranked - pair[1].ranked


def _seed_means(match: _Match) -> dict[int, float]:
    """Return the mean difference of each seed's pairs."""
    known = {
        seed: [value for pair in by_rest.values() if (value := _difference(pair)) is not None]
        for seed, by_rest in match.pairs_of.items()
    }
    return {seed: statistics.fmean(values) for seed, values in known.items() if values}


def _setting_means(match: _Match) -> list[float]:
    """Return the mean difference of each setting's pairs: folds share most of their training stars."""
    known: dict[str, list[float]] = {}
    for pair in match.pairs:
        if (value := _difference(pair)) is not None:
            known.setdefault(repr(pair[0].factors), []).append(value)
    return [statistics.fmean(values) for values in known.values()]


def _rounding_error(match: _Match, metric: str) -> float:
    """Return the standard error of a step that is known to the nearest look only (Sheppard); 0 for other metrics."""
    return max(map(resolution, itertools.chain(*match.pairs))) / 12**0.5 if metric == ESCAPED else 0.0


def _own_difference(difference: Difference, match: _Match, metric: str) -> Tested:
    """Return a difference by its own runs alone: mean, p, and Student's interval where nothing failed."""
    if metric == ESCAPED and difference.failures:
        mean, horizon = restricted_difference(match.pairs_of)
        p = logrank_p(match.pairs_of) if difference.seeds > 1 else None
        return replace(difference, mean=mean, horizon=horizon), p, p
    values = list(_seed_means(match).values())
    if not values:
        return difference, None, None
    difference = replace(difference, mean=statistics.fmean(values))
    if difference.seeds == 1:
        values = _setting_means(match)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    spread = max(spread, 2**0.5 * _rounding_error(match, metric)) if len(values) > 1 else spread
    if spread <= 1e-12 * max(map(abs, values)) or (difference.failures and not is_r2(metric)):
        return difference, None, None
    mean, error = statistics.fmean(values), spread / len(values) ** 0.5
    p = 2 * float(special.stdtr(len(values) - 1, -abs(mean) / error))
    if difference.failures:
        return difference, p, p
    half = float(special.stdtrit(len(values) - 1, (1 + LEVEL) / 2)) * error
    return replace(difference, low=mean - half, high=mean + half), p, p


def _pooled_sd(means_of: Sequence[Mapping[int, float]]) -> tuple[float, int] | None:
    """Return the standard deviation of a run about setting and seed, and its degrees of freedom.

    From paired differences, whose base is a row of zeros. None where the base scatters more than the others, or where
    nothing is left to estimate it from.
    """
    rows: list[Mapping[int, float]] = [dict.fromkeys(itertools.chain(*means_of), 0.0), *means_of]
    seeds = {seed: len(rows) + n for n, seed in enumerate(rows[0])}
    cells = [(n, seeds[seed], value) for n, row in enumerate(rows) for seed, value in row.items()]
    design = np.zeros((len(cells), len(rows) + len(seeds)))
    for cell, (row, column, _) in enumerate(cells):
        design[cell, [row, column]] = 1.0
    value_N = np.array([value for *_, value in cells])
    solution, _, rank, _ = np.linalg.lstsq(design, value_N)
    square_N = (value_N - design @ solution) ** 2
    freedom = len(cells) - int(rank)
    total = float(square_N.sum())
    if freedom < 1 or total <= 1e-24 * float(value_N @ value_N):
        return None
    if len(rows) > 2:
        own, share = float(square_N[: len(rows[0])].sum()), freedom * len(rows[0]) / len(cells)
        rest = (total - own) / (freedom - share)
        if rest <= 0.0 or special.fdtrc(share, freedom - share, own / share / rest) < UNEQUAL:
            return None
    return (total / freedom) ** 0.5, freedom


def _holm(tested: Sequence[Tested]) -> list[Difference]:
    """Return the differences with their p among all (Holm, Scand. J. Statist. 6, 65), never below their own."""
    shared = sorted((p, n) for n, (_, _, p) in enumerate(tested) if p is not None)
    adjusted, least = {}, 0.0
    for place, (p, n) in enumerate(shared):
        least = max(least, min(1.0, p * (len(shared) - place)))
        adjusted[n] = max(least, tested[n][1] or 0.0)
    return [replace(one, p=adjusted.get(n), tests=len(shared)) for n, (one, *_) in enumerate(tested)]


def sentence(difference: Difference, metric: str, asked: dict[str, str] | None = None) -> str:
    """Return a sentence on a difference: which way it goes, and whether it is more than chance.

    `asked` has the directions of a search.
    """
    what = f"{difference.factor}={difference.value} against {difference.base}"
    if not difference.pairs:
        return f"{what}: the same runs to the last digit as {difference.like}"
    pairs = ", ".join(counted(count, noun) for count, noun in ((difference.pairs, "pair"), (difference.seeds, "seed")))
    pairs += f", {difference.twins} more of equal runs" if difference.twins else ""
    size = "" if difference.mean is None else f"{metric} {_signed(difference.mean)}"
    if difference.horizon is not None:
        size += f" within {difference.horizon:,.0f} steps"
    if difference.low is not None and difference.high is not None:
        size += f" [{_signed(difference.low)}, {_signed(difference.high)}]"
    failures = "; ".join(difference.failures) + (", counted as R² 0" if difference.failures and is_r2(metric) else "")
    facts = ", ".join(part for part in (size, pairs, failures) if part)
    return f"{what}: {facts}: {_verdict(difference, metric, asked)}"


def _verdict(difference: Difference, metric: str, asked: dict[str, str] | None) -> str:
    if difference.failures and not is_r2(metric) and metric != ESCAPED:
        return f"no verdict, since a run that has not learnt has no {metric}"
    if difference.p is None or difference.mean is None:
        return "that says nothing of chance"
    if difference.horizon is not None and least_p(difference.seeds) > 1 - LEVEL:
        return f"{difference.seeds} seeds are too few to test it"
    if difference.seed_sd is not None and abs(difference.mean) < difference.seed_sd and difference.horizon is None:
        return f"smaller than the seed spread of {_plain(difference.seed_sd, 2)}"
    if difference.p > 1 - LEVEL:
        low, high = difference.low, difference.high
        clear = low is not None and high is not None and not low <= 0 <= high
        return f"may be chance among {difference.tests} comparisons" if clear else "may be chance"
    if not has_direction(metric, asked):
        return "more than chance"
    return "better" if (difference.mean < 0) == lower_is_better(metric, asked) else "worse"


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "-") + _plain(abs(value), 4)


def _plain(value: float, digits: int) -> str:
    """Return some digits of a number, all of a large one's before the point."""
    return f"{value:,.0f}" if value >= 10**digits / 10 else f"{value:.{digits}g}"
