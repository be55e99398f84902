"""The three views of a run, and what identifies them. Opens and checks files; needs neither torch nor a device."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specvit.config.rules import smaller_step
from specvit.config.schema import Config, DataConfig
from specvit.data.builtin import builtin_files, builtin_manifest
from specvit.data.labels import TargetCoder, fit_classes, fit_scaler
from specvit.data.shards import find_files, same_wavelengths
from specvit.data.views import Spectra, open_spectra
from specvit.errors import DataError

SPLITS = {
    "train": ("file_path", "num_samples"),
    "val": ("val_path", "val_samples"),
    "test": ("test_path", "test_samples"),
}


@dataclass(frozen=True)
class Splits:
    """Training, validation and test rows, and how their labels become targets."""

    train: Spectra
    val: Spectra
    test: Spectra
    coder: TargetCoder


def is_builtin(data: DataConfig, split: str) -> bool:
    """Say whether a split is made by specvit; a path given for it takes precedence."""
    return data.kind == "builtin" and getattr(data, SPLITS[split][0]) is None


def open_split(data: DataConfig, split: str, report: Callable[[str, int, int], None]) -> Spectra:
    """Open one split, making built-in spectra that are missing; raises `DataError`."""
    path_key, count_key = SPLITS[split]
    wanted, where = getattr(data, count_key), f"data.{count_key}"
    if is_builtin(data, split):
        files = builtin_files(wanted, seed=data.builtin_seed, split=split, report=report)
    else:
        files = find_files(getattr(data, path_key), root=data.root, where=f"data.{path_key}")
        wanted = -1 if data.kind == "builtin" else wanted  # counts under data=builtin are of its own spectra
    if split == "train":
        return open_spectra(files, wanted, subset=data.subset, seed=data.subset_seed, where=where)
    return open_spectra(files, wanted, where=where)


def open_splits(config: Config, report: Callable[[str, int, int], None]) -> Splits:
    """Open all three splits and fit the label coder on the training rows; raises `DataError`."""
    data = config.data
    train, val, test = (open_split(data, split, report) for split in SPLITS)
    for name, view in (("val", val), ("test", test)):
        if view.num_pixels != train.num_pixels:
            what = f"has {view.num_pixels} pixels a spectrum but the training set {train.num_pixels}"
            raise DataError(
                what, where=str(view.shards[0].path), remedy=f"set data.{name}_path to a file like the training set's"
            )
        if not same_wavelengths(view.wave_P, train.wave_P):
            what = f"has other wavelengths than the training set, {view.wave_P[0]:.2f}-{view.wave_P[-1]:.2f} Å"
            raise DataError(what, where=str(view.shards[0].path), remedy="resample it to the training set's pixels")
    step_rows = config.train.batch_size * config.train.accumulate
    if len(train) < step_rows:
        what = f"one step takes {step_rows} spectra but the training set has {len(train)}"
        raise DataError(what, where="train.batch_size", remedy=smaller_step(len(train), config.train.accumulate))
    labels_NK = train.label_values(data.param)
    if config.model.task_type == "cls":
        coder: TargetCoder = fit_classes(labels_NK, data.param, data.class_edges)
    else:
        coder = fit_scaler(labels_NK, data.param, data.label_norm)
    for view in (val, test):
        coder.encode(view.label_values(data.param))
    _check_monitor_is_defined(config, val)
    _check_no_overlap(train, val, test)
    return Splits(train, val, test, coder)


def _check_monitor_is_defined(config: Config, val: Spectra) -> None:
    """Refuse to choose the best epoch by a score that these validation labels leave undefined."""
    monitor = config.train.early_stopping.monitor
    if monitor == "val_r2" and np.ptp(val.label_values(config.data.param[:1])) == 0:
        what = f"label {config.data.param[0]} is the same in every validation row, so val_r2 is undefined"
        remedy = "take more rows, or set train.early_stopping.monitor=val_mae train.early_stopping.mode=min"
        raise DataError(what, where="data.val_samples", remedy=remedy)


def _check_no_overlap(train: Spectra, val: Spectra, test: Spectra) -> None:
    """Refuse a file that serves two splits: its spectra would be trained on and scored."""
    used: dict[Path, str] = {}
    for name, view in (("training", train), ("validation", val), ("test", test)):
        for shard in view.shards:
            other = used.setdefault(shard.path.resolve(), name)
            if other != name:
                what = f"serves as {other} and as {name} set"
                raise DataError(what, where=str(shard.path), remedy="give each split files of its own")


def manifest(data: DataConfig, splits: Splits | None) -> dict[str, Any]:
    """Return what identifies the data of a run. `splits` may be None where `needs_files` says no."""
    found = {}
    for split, (_, count_key) in SPLITS.items():
        if is_builtin(data, split):
            found[split] = builtin_manifest(getattr(data, count_key), seed=data.builtin_seed, split=split)
        else:
            assert splits is not None
            found[split] = getattr(splits, split).manifest(data.param)
    return found


def needs_files(data: DataConfig) -> bool:
    """Say whether the manifest can only be made from files."""
    return not all(is_builtin(data, split) for split in SPLITS)
