"""Cross-validation over stars: a hash of a star's id chooses its fold, so that all its spectra are in one.

Legend: N rows of all files, n rows of a split.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specvit.config.schema import DataConfig
from specvit.data.shards import find_files
from specvit.data.views import Spectra, open_spectra, select_rows
from specvit.utils import seeding
from specvit.utils.errors import DataError
from specvit.utils.quantities import STAR_ID
from specvit.utils.text import safe_cell


def open_fold(files: Sequence[Path], data: DataConfig, split: str, wanted: int, where: str) -> Spectra:
    """Open a split of `data.fold`: that fold is tested, the next one validates, the others train.

    `wanted` rows of the split are taken (-1: all), as `data.subset` says; raises `DataError`.
    """
    whole = open_spectra(files, -1, observed=data.observed)
    ahead_N = _ahead(whole, data)
    inside_N = {"test": ahead_N == 0, "val": ahead_N == 1, "train": ahead_N > 1}[split]
    rows_n = whole.rows_N[inside_N]
    if not len(rows_n):
        what = f"leaves no star for the {split} set of fold {data.fold}"
        raise DataError(what, where="data.folds", remedy="take fewer folds, or files with more stars")
    subset = data.subset if split == "train" else "first"
    chosen = select_rows(len(rows_n), wanted, subset=subset, seed=data.subset_seed, where=where)
    return Spectra(whole.shards, rows_n[chosen])


def open_stars_named(data: DataConfig, names: Sequence[str]) -> Spectra:
    """Open the one spectrum of each star named as in tables of predictions, of all folds and in that order.

    Raises `DataError` if a star has several spectra, or none.
    """
    files = find_files(data.file_path or (), root=data.root, where="data.file_path")
    whole = open_spectra(files, -1, observed=data.observed)
    rows_of: dict[str, list[int]] = {}
    for row, name in zip(whole.rows_N.tolist(), star_names(whole.labels()), strict=True):
        rows_of.setdefault(safe_cell(name), []).append(row)
    for name in names:
        if (count := len(rows_of.get(name, []))) != 1:
            what = f"has {count or 'no'} spectra of star {name}"
            remedy = "a cross-validation scores the mean prediction of a star, and a bound is that of one spectrum"
            remedy = remedy if count else "put the file back that the runs were tested on"
            raise DataError(what, where=str(whole.shards[0].path), remedy=remedy)
    return Spectra(whole.shards, np.array([rows_of[name][0] for name in names]))


def of_known_stars(spectra: Spectra, data: DataConfig) -> int:
    """Return how many spectra are of stars on which `data.fold` trains or validates; 0 where stars have no ids."""
    return int((_ahead(spectra, data) > 0).sum()) if data.folds and STAR_ID in spectra.labels() else 0


def of_changed_files(data: DataConfig, manifests: Sequence[dict[str, Any]]) -> bool:
    """Return whether runs of all folds, in their order, are of different spectra or labels, by their manifests.

    What validates a fold is tested in the next one; with fewer rows of one split than of the other nothing is known.
    """
    following = [*manifests[1:], manifests[0]]
    pairs = zip(manifests, following, strict=True)
    return data.val_samples == data.test_samples and any(one["val"] != after["test"] for one, after in pairs)


def _ahead(spectra: Spectra, data: DataConfig) -> np.ndarray:
    """Return the distance (N,) of each row's fold from `data.fold`: 0 is tested, 1 validates."""
    return (folds_of(spectra, data.folds) - data.fold) % data.folds


def folds_of(spectra: Spectra, folds: int) -> np.ndarray:
    """Return each row's fold (N,), from 0: a function of the star's id and the number of folds, whatever the file.

    Raises `DataError` where the files do not say which star a spectrum is of.
    """
    labels = spectra.labels()
    if STAR_ID not in labels:
        what = f"has no column {STAR_ID}, by which data.folds keeps the spectra of a star together"
        remedy = f"add one to every file, or rename one: `specvit data convert FILE NEW --columns {STAR_ID}=NAME`"
        raise DataError(what, where=str(spectra.shards[0].path), remedy=remedy)
    names = star_names(labels)
    if "" in names:
        where = spectra.describe_row(names.index(""))
        raise DataError(f"has no {STAR_ID}", where=where, remedy="give the star a number or a name")
    return np.array([seeding.key(folds, "fold", name) % folds for name in names])


def star_names(labels: Any) -> list[str]:
    """Return the ids of a label table's rows as text, the same for 12, 12.0 and "12"; "" for a missing one."""
    return [_name_of(value) for value in labels[STAR_ID].tolist()]


def _name_of(value: Any) -> str:
    if isinstance(value, float):
        return "" if not np.isfinite(value) else f"{value:.0f}" if value.is_integer() else repr(value)
    return "" if value is None else str(value).strip()
