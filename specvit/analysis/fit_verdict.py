"""Whether a setting overfits, underfits, or neither: by its gap, and against trees and the bound on the same rows.

Only runs that finished and learnt are judged, not those that learnt nothing, diverged, were pruned or are still open.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from specvit.analysis.bounds.report import read_bounds
from specvit.analysis.grouping import by_test_set
from specvit.analysis.records import TEST_R2, Record, finished_runs
from specvit.utils.errors import FolderError

STRONG, MILD = 0.20, 0.08
"""Training less validation R² of the tested epoch from which a setting is strongly, or mildly, overfit."""
SHARE_OF_BOUND = 0.5
"""A test R² below this share of what any estimator could reach is underfit."""


def gap_of(records: Sequence[Record]) -> float | None:
    """Return training less validation R² in the tested epoch, mean over the finished runs; None where none has both."""
    gaps = []
    for record in records:
        train, val = (record.outcome.best_row.get(f"{split}_r2") for split in ("train", "val"))
        if record.finished and isinstance(train, float) and isinstance(val, float):
            gaps.append(train - val)
    return statistics.fmean(gaps) if gaps else None


def fit_verdict(records: Sequence[Record], trees: Mapping[str, float], bounds: Mapping[str, float]) -> str:
    """Return the verdict on runs that differ by their seed alone, "" where none learnt or nothing is known.

    `trees` is test R² of trees by `rows_of`, `bounds` the greatest possible test R² by run id; where neither is known
    nothing is called underfit.
    """
    gap = gap_of(records)
    if gap is not None and gap >= MILD:
        return "strongly overfit" if gap >= STRONG else "mildly overfit"
    scores = [(record, score) for record in records if record.finished and (score := record.value(TEST_R2)) is not None]
    if scores:
        score, first = statistics.fmean(score for _, score in scores), scores[0][0]
        least = [SHARE_OF_BOUND * bounds[first.run_id]] if first.run_id in bounds else []
        least += [trees[rows_of(first)]] if rows_of(first) in trees else []
        if any(score < limit for limit in least):
            return "underfit"
    return "" if gap is None else "balanced"


def trees_of(records: Sequence[Record]) -> dict[str, float]:
    """Return the best test R² of finished LightGBM runs, by the rows that they were trained and tested on."""
    best: dict[str, float] = {}
    for record in records:
        if record.config.model.kind == "lightgbm" and record.finished and (score := record.value(TEST_R2)) is not None:
            best[rows_of(record)] = max(score, best.get(rows_of(record), score))
    return best


def bounds_of(folders: Sequence[Path], records: Sequence[Record]) -> dict[str, float]:
    """Return the van Trees bound on test R² by run id, for test sets whose `ceiling.json` is in one of the folders."""
    if not any(path for folder in folders for path in (folder / "ceiling").rglob("ceiling.json")):
        return {}
    bounds: dict[str, float] = {}
    for label in dict.fromkeys(record.config.data.param[0] for record in records):
        try:
            runs, _ = finished_runs(folders, label)
        except FolderError:
            continue
        for test_set in by_test_set(runs):
            if bound := read_bounds(test_set, label, folders).get("van_trees"):
                of_label = [run for run in test_set.runs if run.config.data.param[0] == label]
                bounds |= {run.run_id: bound for run in of_label}
    return bounds


def rows_of(record: Record) -> str:
    """Return a text that is the same for runs on the same rows, label and noise."""
    data = record.config.data
    where = (data.kind, data.root, data.file_path, data.val_path, data.test_path, data.builtin_seed, data.max_redshift)
    which = (data.num_samples, data.val_samples, data.test_samples, data.subset, data.subset_seed, data.endless)
    return repr((where, which, data.param[0], record.config.noise))
