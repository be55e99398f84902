"""Whether a setting overfits, underfits, or neither: by its gap, and against trees and the bound on the same rows.

Only runs that finished and learnt are judged, not those that learnt nothing, diverged, were pruned or are still open.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from specvit.analysis.bounds.report import read_bounds
from specvit.analysis.grouping import by_test_set
from specvit.analysis.records import TEST_R2, Runs, mean_or_none, scored, with_predictions
from specvit.config.schema import Config
from specvit.utils.errors import FolderError

STRONG, MILD = 0.20, 0.08
"""Training less validation R² of the tested epoch from which a setting is strongly, or mildly, overfit."""
SHARE_OF_BOUND = 0.5
"""A test R² below this share of what any estimator could reach is underfit."""


def fit_verdict(runs: Runs, trees: Mapping[str, float], bounds: Mapping[str, float]) -> str:
    """Return the verdict on runs that differ by seed and fold alone, "" where none learnt or nothing is known.

    `trees` is test R² of trees by `data_key`, `bounds` the greatest possible test R² by run id; where neither is known
    nothing is called underfit.
    """
    gap = mean_or_none(runs.gap.dropna())
    if gap is not None and gap >= MILD:
        return "strongly overfit" if gap >= STRONG else "mildly overfit"
    known = scored(runs[runs.finished], TEST_R2).dropna(subset="value")
    if len(known):
        first = known.iloc[0]
        limits = [SHARE_OF_BOUND * bounds[first.run_id]] if first.run_id in bounds else []
        limits += [trees[data_key(first.config)]] if data_key(first.config) in trees else []
        if any(statistics.fmean(known.value) < limit for limit in limits):
            return "underfit"
    return "" if gap is None else "balanced"


def trees_of(runs: Runs) -> dict[str, float]:
    """Return the best test R² of finished LightGBM runs, by the rows that they were trained and tested on.

    In a cross-validation it is the mean over folds.
    """
    trees = scored(runs[runs.finished & runs.config.map(lambda config: config.model.kind == "lightgbm")], TEST_R2)
    places = [trees.config.map(data_key), trees.config.map(lambda config: config.data.fold)]
    return trees.dropna(subset="value").groupby(places).value.max().groupby(level=0).mean().to_dict()


def bounds_of(folders: Sequence[Path], runs: Runs) -> dict[str, float]:
    """Return the van Trees bound on test R² by run id, for test sets whose `ceiling.json` is in one of the folders."""
    if not any(path for folder in folders for path in (folder / "ceiling").rglob("ceiling.json")):
        return {}
    bounds: dict[str, float] = {}
    for label, of_label in runs.groupby(runs.config.map(lambda config: config.data.param[0]), sort=False):
        try:
            test_sets = by_test_set(with_predictions(of_label, label)[0])
        except FolderError:
            continue
        for test_set in test_sets:
            if bound := read_bounds(test_set, label, folders).get("van_trees"):
                bounds |= {run.run_id: bound for run in test_set.runs}
    return bounds


def data_key(config: Config) -> str:
    """Return a text that is the same for runs on the same rows, label and noise."""
    data = config.data
    where = (data.kind, data.root, data.file_path, data.val_path, data.test_path)
    stars = (data.builtin_seed, data.max_redshift, data.label_prior)
    which = (data.num_samples, data.val_samples, data.test_samples, data.subset, data.subset_seed, data.endless)
    which += (data.folds,)
    return repr((where, stars, which, data.param[0], config.noise))
