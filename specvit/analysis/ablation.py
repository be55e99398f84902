"""What each factor of a study changes: counts of how runs ended, and scores over seeds; see `comparisons`, too."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from specvit.analysis.fit_verdict import fit_verdict, trees_of
from specvit.analysis.records import Runs, mean_or_none, rows_of, scored
from specvit.study.results import lower_is_better, rank
from specvit.study.schema import ESCAPED
from specvit.study.table import factor_names, setting_text
from specvit.study.trial_queue import GROUPS
from specvit.utils.text import short_value

MOST_VALUES = 8
"""Of a factor, in a table; a search may try a number a run."""
TALLY = ("factor", "value", "total", "finished", "unlearnt", "failed", "pruned", "open", "how", "minutes", "rate")
Tally = Any
"""How the runs with one `value` of a `factor` ended, with the names in `TALLY`: how many, by group; `how` those ended
that did not finish (counts by state); mean `minutes` of those that finished; `rate` of these among those that ended."""
Combination = Any
"""`records` that differ in seed and fold alone: `factors`, `name`, `label` (the name with numbers in short); `values`
of the metric of runs that finished, seed by seed, with `mean` and `sd`; `ranked`, the same with R² 0 for each run that
has not learnt, and the mean of these, `score`; `escapes`, `gap`, `verdict`; how many `finished`, and ended
`unlearnt`."""


def tallies(runs: Runs) -> list[Tally]:
    """Return the counts of each factor's values, after those of all runs under the factor "all"."""
    groups = [("all", "", runs)]
    for factor in factor_names(runs.factors):
        groups += [(factor, value, own) for value, own in runs.groupby(_shown(runs, factor), sort=False)]
    rows = []
    for factor, value, own in groups:
        counts = [int((own.group == name).sum()) for name in GROUPS]
        how, minutes = dict(Counter(own.state[~own.finished])), mean_or_none(own.minutes[own.finished].dropna())
        ended = sum(counts[:3])  # by themselves: finished, learnt nothing or failed
        rows.append((factor, value, len(own), *counts, how, minutes, counts[0] / ended if ended else None))
    return rows_of(pd.DataFrame(rows, columns=list(TALLY), dtype=object))


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


def combinations(runs: Runs, metric: str, bounds: Mapping[str, float] | None = None) -> list[Combination]:
    """Return the runs grouped by all factors but the seed, in the order of first appearance.

    `bounds`: the greatest possible test R² by run id, where it is known.
    """
    trees = trees_of(runs)
    combined = []
    for _, group in scored(runs, metric).groupby("setting", sort=False):
        factors, ranked = group.factors.iloc[0], group.dropna(subset="ranked")
        values = tuple(ranked.ranked if metric == ESCAPED else ranked.ranked[ranked.finished])
        combined.append(
            {
                "factors": factors,
                "name": ", ".join(f"{key}={value}" for key, value in factors.items()) or "all",
                "label": setting_text(factors) or "all",
                "records": rows_of(group),
                **{"values": values, "mean": mean_or_none(values)},
                "sd": statistics.stdev(values) if len(values) > 1 else None,
                **{"ranked": tuple(ranked.ranked), "score": mean_or_none(ranked.ranked)},
                "escapes": tuple(group.escape_step[group.trains_by_steps]),
                **{"gap": mean_or_none(group.gap.dropna()), "verdict": fit_verdict(group, trees, bounds or {})},
                **{"finished": int(group.finished.sum()), "unlearnt": int(group.unlearnt.sum())},
            }
        )
    return rows_of(pd.DataFrame(combined, dtype=object))


def best_first(combined: Sequence[Combination], metric: str, asked: dict[str, str] | None = None) -> list[Combination]:
    """Return the settings that have a score, sorted; a run that ended without the metric counts as failed.

    `asked` has the directions of a search.
    """
    lower = lower_is_better(metric, asked)

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
