"""Runs of other programs, from a table, counted and ranked as ours are. They are shown beside ours, never compared."""

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specvit.analysis.ablation_report import Ablation, ablation_of
from specvit.analysis.records import run_row, run_table
from specvit.config.schema import Config
from specvit.importing.run_table import read_run_table, summary
from specvit.study.results import Outcome
from specvit.utils.text import counted

SPLITS = ("test", "val", "best_val", "train")
"""Where a score is looked for in a table that lacks the one that is asked for."""


def read_other_runs(file: Path, metric: str) -> tuple[Ablation, list[str]]:
    """Return counts and settings of a table, and lines about it; raises `DataError` for a file of another kind.

    They are ranked by `metric`, or by the nearest score that the table has.
    """
    table = read_run_table(file)
    known = dict.fromkeys(name for row in table.rows for name in row["scores"])
    own = next(
        (one for one in (metric, *(f"{s}_{metric.partition('_')[2]}" for s in SPLITS), *known) if one in known), metric
    )
    notes = [f"{file}: {summary(table)}", *table.notes]
    if not known:
        notes.append("it has no score that specvit has, so its runs are counted alone")
    elif own != metric:
        notes.append(f"it has no {metric}; its runs are ranked by {own}, which is another score")
    rows = []
    seeds = _seeds(table.rows)
    if repeats := len(seeds) - len({(repr(row["factors"]), row["seed"]) for row in table.rows}):
        notes.append(f"{counted(repeats, 'run')} of the settings and seed of another, each counted as another seed")
    for row, seed in zip(table.rows, seeds, strict=True):
        outcome = Outcome(row["scores"], [], [{"train_seconds": row["seconds"]}])
        place = {"folder": file, "run_state": row["state"], "named": False}
        rows.append(run_row(row["name"], row["factors"], seed, row["state"], Config(), outcome, **place))
    return ablation_of(run_table(rows), own, str(file), {}, search=True), notes


def _seeds(rows: Sequence[dict[str, Any]]) -> list[Any]:
    """Return each run's seed; a run that repeats settings and seed of another gets one that no run of the table has."""
    unused = itertools.count(1 + max((row["seed"] for row in rows if isinstance(row["seed"], int)), default=0))
    repeats: Counter[tuple[str, Any]] = Counter()
    further: dict[tuple[Any, int], int] = {}
    seeds = []
    for row in rows:
        same = (repr(row["factors"]), row["seed"])
        place = (row["seed"], repeats[same])
        if repeats[same] and place not in further:
            further[place] = next(unused)
        seeds.append(further.get(place, row["seed"]))
        repeats[same] += 1
    return seeds
