"""Runs of other programs, from a table, counted and ranked as ours are. They are shown beside ours, never compared."""

from pathlib import Path

from specvit.analysis.ablation_report import Ablation, ablation_of
from specvit.analysis.records import run_row, run_table
from specvit.config.schema import Config
from specvit.importing.run_table import read_run_table, summary
from specvit.study.results import Outcome

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
    for row in table.rows:
        outcome = Outcome(row["scores"], [], [{"train_seconds": row["seconds"]}])
        place = {"folder": file, "run_state": row["state"], "named": False}
        rows.append(run_row(row["name"], row["factors"], row["seed"], row["state"], Config(), outcome, **place))
    return ablation_of(run_table(rows), own, str(file), {}, search=True), notes
