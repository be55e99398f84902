"""What each factor of a study does: how many runs came through, scores over seeds, and differences on the same seeds.

All from run folders. A difference is between runs that are equal in all but one factor, seed for seed. Pairs of one
seed share its start and its order of rows, and some are twins to the last digit (C1D and SW where windows do not
overlap), so they are averaged first, and the interval is Student's over seeds; with one seed only, over its
pairs, twins once.
"""

import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from specvit.analysis.cases import Case
from specvit.analysis.fit_verdict import fit_verdict, gap_of, trees_of
from specvit.sweep.results import lower_is_better
from specvit.sweep.source import GROUPS, group_of

LEVEL = 0.95
MOST_VALUES = 8
"""Of a factor, in a table; a search may try a number a run."""


@dataclass(frozen=True)
class Tally:
    """How the runs with one value of a factor ended, see `group_of`; `minutes` is the mean of those that finished."""

    factor: str
    value: Any
    total: int
    finished: int
    unlearnt: int
    failed: int
    pruned: int
    open: int
    how: dict[str, int]
    minutes: float | None

    @property
    def rate(self) -> float | None:
        """Share of the runs that came to an end of their own which finished."""
        ended = self.finished + self.unlearnt + self.failed
        return self.finished / ended if ended else None


@dataclass(frozen=True)
class Combination:
    """Runs that differ by their seed alone; `values` are those of the metric, seed by seed."""

    factors: dict[str, Any]
    cases: tuple[Case, ...]
    values: tuple[float, ...]
    escapes: tuple[float | None, ...]
    gap: float | None
    verdict: str

    @property
    def mean(self) -> float | None:
        """Mean over seeds."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def sd(self) -> float | None:
        """Standard deviation over seeds."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Difference:
    """What `value` of a factor changes against `base`, the rest and the seed being equal; `seed_sd` is the noise."""

    factor: str
    base: Any
    value: Any
    pairs: int
    seeds: int
    mean: float
    low: float | None
    high: float | None
    seed_sd: float | None


def tallies(cases: Sequence[Case]) -> list[Tally]:
    """Return the counts of each factor's values, and of all runs under the factor "all"."""
    found = [_tally("all", "", cases)]
    for factor in _factors(cases):
        groups: dict[str, list[Case]] = {}
        for case, value in zip(cases, _shown(cases, factor), strict=True):
            groups.setdefault(value, []).append(case)
        found += [_tally(factor, value, own) for value, own in groups.items()]
    return found


def _shown(cases: Sequence[Case], factor: str) -> list[str]:
    """Return each run's value of a factor; of more than `MOST_VALUES` numbers, the quarter that it lies in."""
    values = [case.factors.get(factor) for case in cases]
    numbers = [value for value in values if isinstance(value, float | int) and not isinstance(value, bool)]
    if len(numbers) < len(values) or len(set(numbers)) <= MOST_VALUES:
        return [str(value) for value in values]
    edges = np.quantile(numbers, (0, 0.25, 0.5, 0.75, 1))
    places = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, 3)
    return [f"{edges[place]:.3g} to {edges[place + 1]:.3g}" for place in places]


def _tally(factor: str, value: Any, cases: Sequence[Case]) -> Tally:
    done = [case for case in cases if case.finished]
    minutes = [case.minutes for case in done if case.minutes]
    how = Counter(case.state for case in cases if not case.finished)
    mean = statistics.fmean(minutes) if minutes else None
    groups = Counter(group_of(case.state) for case in cases)
    finished, unlearnt, failed, pruned, still_open = (groups[name] for name in GROUPS)
    return Tally(factor, value, len(cases), finished, unlearnt, failed, pruned, still_open, dict(how), mean)


def combinations(cases: Sequence[Case], metric: str, bounds: Mapping[str, float] | None = None) -> list[Combination]:
    """Return the runs put together by all factors but the seed, in the order in which they were found.

    `bounds`: the greatest possible test R² by run id, where it is known.
    """
    trees = trees_of(cases)
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(repr(case.factors), []).append(case)
    verdicts = {key: fit_verdict(group, trees, bounds or {}) for key, group in groups.items()}
    return [_combination(group, metric, verdicts[key]) for key, group in groups.items()]


def _combination(group: list[Case], metric: str, verdict: str) -> Combination:
    values = [value for case in group if (value := case.value(metric)) is not None]
    escapes = tuple(case.escape_step for case in group if case.trains_by_steps)
    return Combination(group[0].factors, tuple(group), tuple(values), escapes, gap_of(group), verdict)


def differences(cases: Sequence[Case], metric: str) -> list[Difference]:
    """Return the paired differences of each factor's values against its first one, where there are pairs."""
    scored = [case for case in cases if case.value(metric) is not None]
    noise = _seed_sd(scored, metric)
    found = []
    for factor in _factors(scored):
        levels = list({repr(case.factors.get(factor)): case.factors.get(factor) for case in scored}.items())
        sides: dict[str, dict[tuple[int, str], Case]] = {level: {} for level, _ in levels}
        for case in scored:
            rest = case.seed, repr(sorted((k, repr(v)) for k, v in case.factors.items() if k != factor))
            sides[repr(case.factors.get(factor))][rest] = case
        base = sides[levels[0][0]]
        for level, value in levels[1:]:
            pairs_of: dict[int, list[tuple[Case, Case]]] = {}
            for rest, case in sides[level].items():
                if rest in base:
                    pairs_of.setdefault(case.seed, []).append((case, base[rest]))
            if pairs_of:
                mean, low, high = _interval(_units(pairs_of, metric))
                count = sum(map(len, pairs_of.values()))
                found.append(Difference(factor, levels[0][1], value, count, len(pairs_of), mean, low, high, noise))
    return found


def _units(pairs_of: dict[int, list[tuple[Case, Case]]], metric: str) -> list[float]:
    """Return the differences that say something each: the mean of each seed; of a single seed its pairs, twins once."""

    def by(pair: tuple[Case, Case]) -> float:
        own, other = (case.value(metric) for case in pair)
        assert own is not None and other is not None
        return own - other

    if len(pairs_of) > 1:
        return [statistics.fmean(map(by, pairs)) for pairs in pairs_of.values()]
    (pairs,) = pairs_of.values()
    return list({repr([case.outcome.rows or id(case) for case in pair]): by(pair) for pair in pairs}.values())


def _interval(units: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Return the mean with Student's interval, which one unit does not have."""
    mean = statistics.fmean(units)
    if len(units) < 2:
        return mean, None, None
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(units) - 1)) * statistics.stdev(units) / len(units) ** 0.5
    return mean, mean - half, mean + half


def _seed_sd(cases: Sequence[Case], metric: str) -> float | None:
    """Return the standard deviation over seeds, pooled over all combinations."""
    groups = [one.values for one in combinations(cases, metric) if len(one.values) > 1]
    freedom = sum(len(values) - 1 for values in groups)
    squares = sum((len(values) - 1) * statistics.variance(values) for values in groups)
    return (squares / freedom) ** 0.5 if freedom else None


def stuck(combined: Sequence[Combination]) -> list[str]:
    """Return a sentence on each setting with runs that stayed on the plateau to their end: they are in no mean."""
    sentences = []
    for one in combined:
        ended = [case for case in one.cases if case.trains_by_steps and (case.finished or case.state == "plateau")]
        out = sum(case.escape_step is not None for case in ended)
        if out < len(ended):
            name = ", ".join(f"{key}={value}" for key, value in one.factors.items()) or "all"
            steps = max(int(case.outcome.rows[-1]["step"]) for case in ended)
            sentences.append(f"{name}: {out} of {len(ended)} runs left the plateau within {steps:,} steps")
    return sentences


def said(found: Difference, metric: str) -> str:
    """Return a sentence on a difference: which way it goes, and whether it is more than chance."""
    what = f"{found.factor}={found.value} against {found.base}"
    size = f"{metric} {_signed(found.mean)}"
    pairs = f"{found.pairs} pair{'s' if found.pairs > 1 else ''}, {found.seeds} seed{'s' if found.seeds > 1 else ''}"
    if found.low is None or found.high is None:
        return f"{what}: {size} ({pairs}); that says nothing of chance"
    interval = f"[{_signed(found.low)}, {_signed(found.high)}], {pairs}"
    if found.seed_sd is not None and abs(found.mean) < found.seed_sd:
        return f"{what}: {size} {interval}: smaller than the seed spread of {_plain(found.seed_sd, 2)}"
    if found.low <= 0 <= found.high:
        return f"{what}: {size} {interval}: may be chance"
    better = (found.mean < 0) == lower_is_better(metric)
    return f"{what}: {size} {interval}: {'better' if better else 'worse'}"


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "-") + _plain(abs(value), 4)


def _plain(value: float, digits: int) -> str:
    """Return some digits of a number, all of a large one's before the point."""
    return f"{value:,.0f}" if value >= 10**digits / 10 else f"{value:.{digits}g}"


def _factors(cases: Sequence[Case]) -> list[str]:
    return list(dict.fromkeys(itertools.chain.from_iterable(case.factors for case in cases)))
