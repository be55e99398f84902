"""The three views of a run, what identifies them, and whether their files have changed. Needs no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specvit.config.schema import Config, DataConfig, NetworkConfig, effective_level
from specvit.config.validate import smaller_step
from specvit.data.folds import open_fold
from specvit.data.labels import ClassCoder, TargetCoder, fit_classes, fit_scaler
from specvit.data.shards import find_files, same_wavelengths
from specvit.data.synthetic import SyntheticSpectra, builtin_files, builtin_manifest
from specvit.data.views import Spectra, SpectraView, open_spectra
from specvit.utils.errors import ConfigError, DataError
from specvit.utils.memory import free_memory

SPLITS = {
    "train": ("file_path", "num_samples"),
    "val": ("val_path", "val_samples"),
    "test": ("test_path", "test_samples"),
}


STAR_BYTES = 150
"""Memory that drawing a star takes."""


@dataclass(frozen=True)
class Splits:
    """Training, validation and test rows, and how their labels become targets."""

    train: SpectraView
    val: SpectraView
    test: SpectraView
    coder: TargetCoder

    @property
    def masked(self) -> bool:
        """Whether any pixel is masked."""
        return any(view.masked_N is not None for view in (self.train, self.val, self.test))


def is_synthetic(data: DataConfig, split: str) -> bool:
    """Return whether a split is synthetic; a path given for it takes precedence."""
    return data.makes and getattr(data, SPLITS[split][0]) is None


def _synthetic_key(data: DataConfig, split: str) -> dict[str, Any]:
    """Return what identifies the stars of a synthetic split, besides their number."""
    star = {"max_redshift": data.max_redshift, "label_prior": data.label_prior}
    return {"seed": data.builtin_seed, "split": split, **star}


def open_split(data: DataConfig, split: str, report: Callable[[str, int, int], None]) -> SpectraView:
    """Open one split, computing built-in spectra that are not in the cache; raises `DataError`."""
    path_key, count_key = SPLITS[split]
    rows, where = getattr(data, count_key), f"data.{count_key}"
    if is_synthetic(data, split) and data.kind == "synth":
        _check_memory(rows, where, endless=data.endless)
        return SyntheticSpectra(np.arange(rows), **_synthetic_key(data, split), keep=split != "train")
    if data.folds:
        files = find_files(data.file_path or (), root=data.root, where="data.file_path")
        return open_fold(files, data, split, rows, where)
    if is_synthetic(data, split):
        files = builtin_files(rows, **_synthetic_key(data, split), report=report)
    else:
        files = find_files(getattr(data, path_key), root=data.root, where=f"data.{path_key}")
        rows = -1 if data.makes else rows  # counts are of specvit's own spectra
    observed = None if is_synthetic(data, split) else data.observed
    if split == "train":
        subset, seed = data.subset, data.subset_seed
        return open_spectra(files, rows, subset=subset, seed=seed, where=where, observed=observed)
    return open_spectra(files, rows, where=where, observed=observed)


def _check_memory(stars: int, where: str, *, endless: bool) -> None:
    """Raise `DataError` for more stars than memory has room for; an endless set holds two epochs for a moment."""
    needed = STAR_BYTES * stars * (1 + endless)
    if needed > free_memory():
        what = f"is {stars:,}, and drawing so many stars takes {needed / 1e9:.0f} GB of memory"
        remedy = f"set a smaller {where}, such as 1000000, and data.endless=true for new ones each epoch"
        raise DataError(what, where=where, remedy=remedy)


def open_splits(config: Config, report: Callable[[str, int, int], None]) -> Splits:
    """Open all three splits and fit the label coder on the training rows; raises `DataError`."""
    data = config.data
    train, val, test = (open_split(data, split, report) for split in SPLITS)
    for name, view in (("val", val), ("test", test)):
        if view.num_pixels != train.num_pixels:
            what = f"has {view.num_pixels} pixels a spectrum but the training set {train.num_pixels}"
            raise DataError(
                what, where=view.origins()[0][0], remedy=f"set data.{name}_path to a file like the training set's"
            )
        if not same_wavelengths(view.wave_P, train.wave_P):
            what = f"has other wavelengths than the training set, {view.wave_P[0]:.2f}-{view.wave_P[-1]:.2f} Å"
            raise DataError(what, where=view.origins()[0][0], remedy="resample it to the training set's pixels")
    for view in (train, val, test):
        check_masked(view, data.max_masked)
    _check_noise(config, (train, val, test))
    is_network = isinstance(config.model, NetworkConfig)
    step_rows = config.train.batch_size * config.train.accumulate
    if is_network and len(train) < step_rows:
        what = f"one step takes {step_rows} spectra but the training set has {len(train)}"
        raise DataError(what, where="train.batch_size", remedy=smaller_step(len(train), config.train.accumulate))
    labels_NK = train.label_values(data.param)
    if config.model.task_type == "cls":
        coder: TargetCoder = fit_classes(labels_NK, data.param, data.class_edges)
    else:
        coder = fit_scaler(labels_NK, data.param, data.label_norm)
    for view in (val, test):
        coder.encode(view.label_values(data.param))
    if is_network:
        _check_monitor_is_defined(config, val)
    if not data.folds:
        _check_no_overlap(train, val, test)
    return Splits(train, val, test, coder)


def check_masked(spectra: SpectraView, share: float) -> None:
    """Raise `DataError` for rows of which more than a `share` of the pixels is masked."""
    if spectra.masked_N is None:
        return
    rows = np.flatnonzero(spectra.masked_N > share * spectra.num_pixels)
    if len(rows):
        part = spectra.masked_N[rows[0]] / spectra.num_pixels
        what = f"has {100 * part:.3g} % of its pixels masked, more than data.max_masked={share:g}"
        if len(rows) > 1:
            more = ", ".join(spectra.describe_row(int(row)).rsplit(" ", 1)[1] for row in rows[1:6])
            what += f", and so have {len(rows) - 1:,} more rows ({more}{', …' if len(rows) > 6 else ''})"
        remedy = "leave these rows out, or set data.max_masked higher"
        raise DataError(what, where=spectra.describe_row(int(rows[0])), remedy=remedy)


def _check_noise(config: Config, views: Sequence[SpectraView]) -> None:
    """Refuse a choice for observed flux where there is none, and a noise level where all flux is observed."""
    observed, noise = [view.observed for view in views], config.noise
    if noise.on_observed != "none" and not any(observed):
        what = f"is {noise.on_observed}, but no flux is marked as observed"
        raise ConfigError(what, where="noise.on_observed", remedy="leave it out, or set data.observed=true")
    if noise.on_observed == "none" and all(observed) and effective_level(noise) not in (0.0, 1.0):
        what = f"is {noise.noise_level:g}, but all flux is observed, which gets no further noise"
        raise ConfigError(what, where="noise.noise_level", remedy="leave it out, or set noise.on_observed=add")


def note_of_observed(config: Config, splits: Splits) -> str:
    """Return a note on splits whose flux is marked as observed, or ""."""
    views = {"training": splits.train, "validation": splits.val, "test": splits.test}
    names = ", ".join(name for name, view in views.items() if view.observed)
    added = "no noise is added" if config.noise.on_observed == "none" else "the noise is added to its own"
    return f"note: observed flux ({names} set): {added}, and it is not clipped at 0" if names else ""


def note_of_masked(config: Config, splits: Splits) -> str:
    """Return a note on masked pixels, or ""."""
    views = {"training": splits.train, "validation": splits.val, "test": splits.test}
    parts = [f"{words} {name} rows" for name, view in views.items() if (words := masked_words(view))]
    return f"note: masked pixels, in which the model sees the mean spectrum: {'; '.join(parts)}" if parts else ""


def masked_words(view: SpectraView) -> str:
    """Return how many pixels of a view are masked, such as "1,234 pixels of 56 of 5,000", or ""."""
    if view.masked_N is None:
        return ""
    return f"{view.masked_N.sum():,} pixels of {np.count_nonzero(view.masked_N):,} of {len(view):,}"


def note_of_classes(config: Config, splits: Splits) -> str:
    """Return a note on classes without validation or test rows, whose accuracy stays unknown, or ""."""
    if not isinstance(splits.coder, ClassCoder):
        return ""
    without = []
    for name, view in (("validation", splits.val), ("test", splits.test)):
        known = set(splits.coder.encode(view.label_values(config.data.param)).tolist())
        if empty := [word for number, word in enumerate(splits.coder.class_names) if number not in known]:
            without.append(f"without {name} rows: {', '.join(empty)}")
    return f"note: classes of {config.data.param[0]} {'; '.join(without)}" if without else ""


def missing_labels(view: SpectraView, names: Sequence[str]) -> str:
    """Return how many rows of a view lack which labels, such as "M_H in 12 of 5,000", or ""."""
    missing_K = np.isnan(view.label_values(names)).sum(axis=0)
    counts = [f"{name} in {count:,}" for name, count in zip(names, missing_K.tolist(), strict=True) if count]
    return f"{', '.join(counts)} of {len(view):,}" if counts else ""


def note_of_missing_labels(config: Config, splits: Splits) -> str:
    """Return a note on rows without one of several labels, or ""."""
    views = {"training": splits.train, "validation": splits.val, "test": splits.test}
    parts = [
        f"{words} {name} rows" for name, view in views.items() if (words := missing_labels(view, config.data.param))
    ]
    return f"note: missing labels (NaN) are left out of loss and scores: {'; '.join(parts)}" if parts else ""


def _check_monitor_is_defined(config: Config, val: SpectraView) -> None:
    """Raise `DataError` if the best epoch is chosen by a score that is undefined for these validation labels."""
    monitor = config.train.early_stopping.monitor
    values_N = val.label_values(config.data.param)[:, 0]
    known_n = values_N[~np.isnan(values_N)]
    if not len(known_n) and monitor != "val_loss":
        what = f"no validation row has the label {config.data.param[0]}, so {monitor} is undefined"
        remedy = "take more rows, or set train.early_stopping.monitor=val_loss train.early_stopping.mode=min"
        raise DataError(what, where="data.val_samples", remedy=remedy)
    if monitor == "val_r2" and np.ptp(known_n) == 0:
        what = f"label {config.data.param[0]} is the same in every validation row, so val_r2 is undefined"
        remedy = "take more rows, or set train.early_stopping.monitor=val_mae train.early_stopping.mode=min"
        raise DataError(what, where="data.val_samples", remedy=remedy)


def _check_no_overlap(train: SpectraView, val: SpectraView, test: SpectraView) -> None:
    """Raise `DataError` for a file in two splits: its spectra would be trained on and scored."""
    used: dict[tuple[Path, str], str] = {}
    for name, view in (("training", train), ("validation", val), ("test", test)):
        for shard in view.shards:
            other = used.setdefault(shard.source, name)
            if other != name:
                what = f"serves as {other} and as {name} set"
                raise DataError(what, where=str(shard.path), remedy="give each split files of its own")


def manifest(data: DataConfig, splits: Splits | None) -> dict[str, Any]:
    """Return what identifies the data of a run. `splits` may be None if `needs_files` is False."""
    return {split: split_manifest(data, split, getattr(splits, split, None)) for split in SPLITS}


def split_manifest(data: DataConfig, split: str, view: SpectraView | None) -> dict[str, Any]:
    """Return what identifies one split. `view` may be None for a synthetic split."""
    if is_synthetic(data, split):
        return builtin_manifest(getattr(data, SPLITS[split][1]), **_synthetic_key(data, split))
    assert isinstance(view, Spectra)
    return view.manifest(data.param)


def needs_files(data: DataConfig) -> bool:
    """Return whether the manifest has to be computed from files."""
    return not all(is_synthetic(data, split) for split in SPLITS)


def file_mtimes(data: DataConfig, splits: Splits) -> dict[str, list[int]]:
    """Return [size in bytes, time of change in ns] of every data file that specvit has not written itself."""
    views = [getattr(splits, split) for split in SPLITS if not is_synthetic(data, split)]
    shards = [shard for view in views for shard in view.shards]
    paths = {path.resolve() for shard in shards for path in (shard.path, shard.flux.path, shard.error.path)}
    stats = {path: path.stat() for path in sorted(paths)}
    return {str(path): [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()}


def note_of_changes(attempts: list[dict[str, Any]], mtimes: dict[str, list[int]]) -> str:
    """Return a note about data files that have changed since the latest of `attempts` recorded them, or ""."""
    latest = next((attempt for attempt in reversed(attempts) if "files" in attempt), None)
    if latest is None:
        return ""
    changed = [path for path, stamp in mtimes.items() if latest["files"].get(path, stamp) != stamp]
    if not changed:
        return ""
    more = f" and {len(changed) - 1} more were" if len(changed) > 1 else " was"
    return (
        f"note: {changed[0]}{more} changed or touched since {latest['time']}; labels and sampled spectra are the same. "
        "If spectra were changed, train.rerun=true"
    )
