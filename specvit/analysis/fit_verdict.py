"""Did a setting overfit, underfit, or neither: rules on its gap, and against trees and the bound on the same rows.

Only runs that finished and learnt are judged, not those that learnt nothing, exploded, were pruned or are still open.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from specvit.analysis.records import TEST_R2, Case
from specvit.analysis.runs import by_test_set, finished_runs
from specvit.analysis.scaling_command import ceilings_of
from specvit.utils.errors import FolderError

STRONG, MILD = 0.20, 0.08
"""Training less validation R² of the tested epoch from which a setting is strongly, or mildly, overfit."""
SHARE_OF_BOUND = 0.5
"""A test R² below this share of what any estimator could reach is underfit."""


def gap_of(cases: Sequence[Case]) -> float | None:
    """Return training less validation R² in the tested epoch, mean over the finished runs; None where none has both."""
    gaps = []
    for case in cases:
        train, val = (case.outcome.best_row.get(f"{split}_r2") for split in ("train", "val"))
        if case.finished and isinstance(train, float) and isinstance(val, float):
            gaps.append(train - val)
    return statistics.fmean(gaps) if gaps else None


def fit_verdict(cases: Sequence[Case], trees: Mapping[str, float], bounds: Mapping[str, float]) -> str:
    """Return the verdict on runs that differ by their seed alone, "" where none learnt or nothing is known.

    `trees` is test R² of trees by `rows_of`, `bounds` the greatest possible test R² by run id; where neither is known
    nothing is called underfit.
    """
    gap = gap_of(cases)
    if gap is not None and gap >= MILD:
        return "strongly overfit" if gap >= STRONG else "mildly overfit"
    scores = [(case, score) for case in cases if case.finished and (score := case.value(TEST_R2)) is not None]
    if scores:
        score, first = statistics.fmean(score for _, score in scores), scores[0][0]
        least = [SHARE_OF_BOUND * bounds[first.run_id]] if first.run_id in bounds else []
        least += [trees[rows_of(first)]] if rows_of(first) in trees else []
        if any(score < limit for limit in least):
            return "underfit"
    return "" if gap is None else "balanced"


def trees_of(cases: Sequence[Case]) -> dict[str, float]:
    """Return the best test R² of finished LightGBM runs, by the rows that they were trained and tested on."""
    found: dict[str, float] = {}
    for case in cases:
        if case.config.model.kind == "lightgbm" and case.finished and (score := case.value(TEST_R2)) is not None:
            found[rows_of(case)] = max(score, found.get(rows_of(case), score))
    return found


def bounds_of(folders: Sequence[Path], cases: Sequence[Case]) -> dict[str, float]:
    """Return the van Trees bound on test R² by run id, for test sets whose `ceiling.json` is in one of the folders."""
    if not any(path for folder in folders for path in (folder / "ceiling").rglob("ceiling.json")):
        return {}
    found: dict[str, float] = {}
    for label in dict.fromkeys(case.config.data.param[0] for case in cases):
        try:
            runs, _ = finished_runs(folders, label)
        except FolderError:
            continue
        for test_set in by_test_set(runs):
            if bound := ceilings_of(test_set, label, folders).get("van_trees"):
                of_label = [run for run in test_set.runs if run.config.data.param[0] == label]
                found |= {run.run_id: bound for run in of_label}
    return found


def rows_of(case: Case) -> str:
    """Return a text that is the same for runs on the same rows, label and noise."""
    data = case.config.data
    where = (data.kind, data.root, data.file_path, data.val_path, data.test_path, data.builtin_seed, data.max_redshift)
    which = (data.num_samples, data.val_samples, data.test_samples, data.subset, data.subset_seed, data.endless)
    return repr((where, which, data.param[0], case.config.noise))
