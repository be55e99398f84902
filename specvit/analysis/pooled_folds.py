"""The folds of a cross-validation as one run: each star is tested in one fold, so that a seed has one test set.

All views that score runs of a cross-validation take them from here. Several spectra of a star count once, by the mean
of their predictions, and stars are in the order of their ids.

Shape suffixes: N test spectra of all folds; of a pooled run, its stars.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from specvit.analysis.fit_verdict import data_key
from specvit.analysis.grouping import key_of
from specvit.analysis.records import Run, Runs, rows_of, run_table
from specvit.data.folds import of_changed_files
from specvit.run_folder.identity import without_repeated
from specvit.study.table import setting_text
from specvit.utils.errors import FolderError
from specvit.utils.quantities import STAR_ID

PREDICTED = ("true_N", "predicted_N", "snr_N", "mag_N")
NAME_RUNS = "name the folders of the runs to score in place of the folder that holds them"


def pool_folds(tested: Runs, label: str) -> tuple[Runs, list[str]]:
    """Return tested runs with those that differ in their fold alone as one, and a note on each seed left out.

    A pooled run is its first fold with the stars of all: `parts` are the runs of its folds in order, `rows` is the
    mean number of their training rows, `identity` lists the data of each. Runs without folds remain as they are.
    Raises `FolderError` if no seed has all folds and nothing else is left.
    """
    runs, notes = [], list[str]()
    keys = [pool_key(run) if run.config.data.folds else run.run_id for run in rows_of(tested)]
    for _, group in tested.groupby([keys, tested.seed.astype(str)], sort=False):
        folds = sorted(rows_of(group), key=lambda run: run.config.data.fold)
        if not folds[0].config.data.folds:
            runs += [run._asdict() for run in folds]
            continue
        name = f"note: {setting_text(folds[0].factors) or 'all'}, seed {folds[0].seed}"
        if fault := _fault(folds):
            notes.append(f"{name}: left out, {fault}")
            continue
        spectra = _spectra(folds)
        notes += _notes_on_labels(spectra, label)
        runs.append(_pooled(folds, spectra))
    if not runs:
        remedy = "run the same training command again to complete the folds"
        where = ", ".join(dict.fromkeys(str(folder.parent) for folder in tested.folder))
        raise FolderError(
            f"has no setting with all folds: {'; '.join(note.removeprefix('note: ') for note in notes)}",
            where=where,
            remedy=remedy,
        )
    return run_table(runs), list(dict.fromkeys(notes))


def pool_key(run: Run) -> str:
    """Return a text that is the same for runs of one cross-validation, which differ in seed and fold alone."""
    return key_of([run.setting, data_key(run.config), without_repeated(run.identity["config"])])


def _fault(folds: Sequence[Run]) -> str:
    """Return why the runs of a seed are not one test of each star, or ""."""
    data = folds[0].config.data
    counts = Counter(run.config.data.fold for run in folds)
    if len(counts) < data.folds:
        return f"{len(counts)} of {data.folds} folds are tested"
    if several := [str(fold) for fold, count in counts.items() if count > 1]:
        many = f"folds {', '.join(several)} are" if len(several) > 1 else f"fold {several[0]} is"
        return f"{many} tested by several runs; {NAME_RUNS}"
    if of_changed_files(data, [run.identity["data"] for run in folds]):
        return "its folds are of different spectra or labels: the files have changed between its runs"
    return ""


def _spectra(folds: Sequence[Run]) -> Any:
    """Return the test spectra of all folds as a table of N rows, by star."""
    parts = [{name: getattr(run, name) for name in ("star_N", *PREDICTED)} for run in folds]
    return pd.concat(map(pd.DataFrame, parts)).groupby("star_N")


def _notes_on_labels(by_star: Any, label: str) -> Iterator[str]:
    if several := int((by_star.true_N.nunique() > 1).sum()):
        what = f"{several} of {len(by_star)} stars {'have' if several > 1 else 'has'} spectra of different {label}"
        yield f"note: {what}: their mean is taken; give every star a {STAR_ID} of its own"


def _pooled(folds: Sequence[Run], by_star: Any) -> dict[str, Any]:
    first, stars = folds[0], by_star.mean()
    identity = {
        **first.identity,
        "config": without_repeated(first.identity["config"]),
        "data": {split: [run.identity["data"][split] for run in folds] for split in first.identity["data"]},
    }
    return first._asdict() | {
        **{name: stars[name].to_numpy(np.float64) for name in PREDICTED},
        **{"star_N": stars.index.to_numpy(), "spectra": int(by_star.size().sum()), "parts": tuple(folds)},
        **{"identity": identity, "rows": round(float(np.mean([run.rows for run in folds])))},
    }
