"""What each factor of a study does: how many runs came through, and scores over seeds; differences: `comparisons`.

All from run folders.
"""

import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specvit.analysis.fit_verdict import fit_verdict, gap_of, trees_of
from specvit.analysis.records import Case
from specvit.study.results import lower_is_better, rank
from specvit.study.schema import ESCAPED
from specvit.study.trial_queue import GROUPS, group_of

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
    """Runs that differ by their seed alone; `values` of the metric are of those that finished, seed by seed."""

    factors: dict[str, Any]
    cases: tuple[Case, ...]
    values: tuple[float, ...]
    ranked: tuple[float, ...]
    """The same with R² 0 for each run that has not learnt."""
    escapes: tuple[float | None, ...]
    gap: float | None
    verdict: str

    @property
    def mean(self) -> float | None:
        """Mean over seeds of the runs that finished."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def score(self) -> float | None:
        """Mean over seeds in which a run that has not learnt has R² 0."""
        return statistics.fmean(self.ranked) if self.ranked else None

    @property
    def finished(self) -> int:
        """The number of runs that finished."""
        return sum(case.finished for case in self.cases)

    @property
    def unlearnt(self) -> int:
        """The number of runs that ended without having learnt."""
        return sum(case.unlearnt for case in self.cases)

    @property
    def sd(self) -> float | None:
        """Standard deviation over seeds."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


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
    ranked = [(case, value) for case in group if (value := case.ranked(metric)) is not None]
    values = tuple(value for case, value in ranked if case.finished or metric == ESCAPED)
    escapes = tuple(case.escape_step for case in group if case.trains_by_steps)
    every = tuple(value for _, value in ranked)
    return Combination(group[0].factors, tuple(group), values, every, escapes, gap_of(group), verdict)


def best_first(combined: Sequence[Combination], metric: str) -> list[Combination]:
    """Return the settings that have a score, sorted; a run that ended without the metric counts as failed."""
    lower = lower_is_better(metric)

    def place(one: Combination) -> tuple[float, float]:
        scored = len(one.values)
        return rank(metric, one.score, scored, one.finished + one.unlearnt - scored, lower=lower)

    return sorted((one for one in combined if one.ranked), key=place)


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


def _factors(cases: Sequence[Case]) -> list[str]:
    return list(dict.fromkeys(itertools.chain.from_iterable(case.factors for case in cases)))
