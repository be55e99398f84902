"""What each factor of a study changes: counts of how runs ended, and scores over seeds; see `comparisons`, too."""

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specvit.analysis.fit_verdict import fit_verdict, trees_of
from specvit.analysis.records import Run, Runs, rows_of, scored
from specvit.study.results import lower_is_better, rank
from specvit.study.schema import ESCAPED
from specvit.study.table import setting_text
from specvit.study.trial_queue import GROUPS
from specvit.utils.text import short_value

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
    """Runs that differ in their seed alone; `values` of the metric are those of finished runs, seed by seed."""

    factors: dict[str, Any]
    records: tuple[Run, ...]
    values: tuple[float, ...]
    ranked: tuple[float, ...]
    """The same, with R² 0 for each run that has not learnt."""
    escapes: tuple[float | None, ...]
    gap: float | None
    verdict: str

    @property
    def name(self) -> str:
        """Its factors and their values."""
        return ", ".join(f"{key}={value}" for key, value in self.factors.items()) or "all"

    @property
    def label(self) -> str:
        """Its name with numbers in short."""
        return setting_text(self.factors) or "all"

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
        return sum(record.finished for record in self.records)

    @property
    def unlearnt(self) -> int:
        """The number of runs that ended without having learnt."""
        return sum(record.unlearnt for record in self.records)

    @property
    def sd(self) -> float | None:
        """Standard deviation over seeds."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def tallies(runs: Runs) -> list[Tally]:
    """Return the counts of each factor's values, after those of all runs under the factor "all"."""
    counts = [_tally("all", "", runs)]
    for factor in factor_names(runs.factors):
        counts += [_tally(factor, value, own) for value, own in runs.groupby(_shown(runs, factor), sort=False)]
    return counts


def factor_names(factors_of_all: Iterable[dict[str, Any]]) -> list[str]:
    """Return all factors in the order of first appearance."""
    return list(dict.fromkeys(itertools.chain.from_iterable(factors_of_all)))


def _shown(runs: Runs, factor: str) -> list[str]:
    """Return each run's value of a factor; of more than `MOST_VALUES` numbers, the quarter of the values it is in."""
    values = [factors.get(factor) for factors in runs.factors]
    numbers = [value for value in values if isinstance(value, float | int) and not isinstance(value, bool)]
    if len(numbers) < len(values) or len(set(numbers)) <= MOST_VALUES:
        exact, short = ([text(value) for value in values] for text in (str, short_value))
        return short if len(set(short)) == len(set(exact)) else exact
    edges = np.quantile(numbers, (0, 0.25, 0.5, 0.75, 1))
    quarters = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, 3)
    return [f"{edges[quarter]:.3g} to {edges[quarter + 1]:.3g}" for quarter in quarters]


def _tally(factor: str, value: Any, runs: Runs) -> Tally:
    minutes = runs.minutes[runs.finished].dropna()
    how = Counter(runs.state[~runs.finished])
    mean = statistics.fmean(minutes) if len(minutes) else None
    finished, unlearnt, failed, pruned, still_open = ((runs.group == name).sum().item() for name in GROUPS)
    return Tally(factor, value, len(runs), finished, unlearnt, failed, pruned, still_open, dict(how), mean)


def combinations(runs: Runs, metric: str, bounds: Mapping[str, float] | None = None) -> list[Combination]:
    """Return the runs grouped by all factors but the seed, in the order of first appearance.

    `bounds`: the greatest possible test R² by run id, where it is known.
    """
    trees = trees_of(runs)
    combined = []
    for _, group in scored(runs, metric).groupby("setting", sort=False):
        ranked, gaps = group.dropna(subset="ranked"), group.gap.dropna()
        combined.append(
            Combination(
                factors=group.factors.iloc[0],
                records=tuple(rows_of(group)),
                values=tuple(ranked.ranked if metric == ESCAPED else ranked.ranked[ranked.finished]),
                ranked=tuple(ranked.ranked),
                escapes=tuple(group.escape_step[group.trains_by_steps]),
                gap=statistics.fmean(gaps) if len(gaps) else None,
                verdict=fit_verdict(group, trees, bounds or {}),
            )
        )
    return combined


def best_first(combined: Sequence[Combination], metric: str) -> list[Combination]:
    """Return the settings that have a score, sorted; a run that ended without the metric counts as failed."""
    lower = lower_is_better(metric)

    def place(one: Combination) -> tuple[float, float]:
        scored = len(one.values)
        return rank(metric, one.score, scored, one.finished + one.unlearnt - scored, lower=lower)

    return sorted((one for one in combined if one.ranked), key=place)


def stuck(combined: Sequence[Combination]) -> list[str]:
    """Return a sentence on each setting with runs that never left the plateau: no mean contains them."""
    sentences = []
    for one in combined:
        ended = [run for run in one.records if run.trains_by_steps and (run.finished or run.state == "plateau")]
        escaped = sum(run.escape_step is not None for run in ended)
        if escaped < len(ended):
            steps = max(int(run.outcome.rows[-1]["step"]) for run in ended)
            sentences.append(f"{one.name}: {escaped} of {len(ended)} runs left the plateau within {steps:,} steps")
    return sentences
