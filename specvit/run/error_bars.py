"""Error bars of runs that predict together: which of their predictions calibrate them, and the columns they fill.

Legend: R runs, B rows of a batch, K labels, F folds, n calibration rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from specvit.config.schema import Config
from specvit.data.folds import of_changed_files
from specvit.data.labels import LabelScaler, TargetCoder
from specvit.metrics.conformal import HalfWidths, Residuals, by_label, cross_interval, errors, rows_needed, together
from specvit.run.calibration import Predictions, joined, no_predictions, read_predictions
from specvit.run_folder.folder import RunFolder
from specvit.run_folder.identity import without_repeated

DEFAULT_LEVEL, STD_LEVEL = 0.9, 0.68
Ends = Callable[[np.ndarray, np.ndarray | None, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Predictions and, if all runs predict one, their std (R, B, K), and S/N (B,) -> low and high ends (B, K)."""
CHANGED = "the files of the folds have changed between their runs, which are of different spectra or labels"


class Uncalibrated(Exception):
    """Why runs have no error bars, in words."""


@dataclass(frozen=True)
class SplitBars:
    """Of the mean of one or more runs, by its errors on the validation rows that all of them have."""

    residuals: tuple[Residuals, ...]
    """One a label."""

    @property
    def rows(self) -> list[int]:
        """The number of calibration rows of each label."""
        return [len(of_label.error_n) for of_label in self.residuals]

    def at(self, level: float) -> Ends:
        """Return the intervals at a level."""
        return partial(_split_ends, [of_label.at(level) for of_label in self.residuals])


@dataclass(frozen=True)
class CrossBars:
    """Of the runs of all folds of a cross-validation (CV+), by their errors on the rows that each fold tests."""

    fold_R: np.ndarray
    """Each run's fold."""
    errors: tuple[tuple[np.ndarray, np.ndarray], ...]
    """Of each label: errors (n,), and the fold (n,) that tests the row."""

    @property
    def rows(self) -> list[int]:
        """The number of calibration rows of each label."""
        return [len(error_n) for error_n, _ in self.errors]

    def at(self, level: float) -> Ends:
        """Return the intervals at a level."""
        return partial(_cross_ends, self, level)


ErrorBars = SplitBars | CrossBars


def find_error_bars(folders: Sequence[RunFolder], configs: Sequence[Config], coder: TargetCoder) -> ErrorBars:
    """Return the error bars of runs that predict together; raises `Uncalibrated`."""
    if not isinstance(coder, LabelScaler):
        raise Uncalibrated("classes have probabilities")
    names = coder.names
    if damaged := [folder.path for folder in folders if "identity" not in folder.about()]:
        raise Uncalibrated(f"{damaged[0]} has a damaged run.json, which says what it was validated on")
    identities = [folder.about()["identity"] for folder in folders]
    if len({config.data.fold for config in configs}) > 1:
        return _of_folds(folders, configs, identities, names)
    found = [_read(folder, "val", names) for folder in folders]
    sets = [(identity["data"]["val"], identity["config"].get("noise")) for identity in identities]
    together_n = joined(found)
    if together_n is None or any(one != sets[0] for one in sets):
        raise Uncalibrated("the runs have different validation rows, or different noise in them")
    return SplitBars(together_n.residuals())


def columns(
    names: Sequence[str], inner: Ends, outer: Ends, label_RBK: np.ndarray, std_RBK: np.ndarray | None, snr_B: np.ndarray
) -> dict[str, np.ndarray]:
    """Return of each label `<label>_std`, half of the interval `inner`, and the ends of `outer`, `_low` and `_high`."""
    low_BK, high_BK = inner(label_RBK, std_RBK, snr_B)
    std_BK = (high_BK - low_BK) / 2
    low_BK, high_BK = outer(label_RBK, std_RBK, snr_B)
    each = {"std": std_BK, "low": low_BK, "high": high_BK}
    return {f"{name}_{kind}": values_BK[:, k] for k, name in enumerate(names) for kind, values_BK in each.items()}


def note_of_level(bars: ErrorBars, names: Sequence[str], level: float) -> str:
    """Return a note if calibration rows are too few for finite intervals at `level`, or ""."""
    least = rows_needed(max(level, STD_LEVEL))
    short = [f"{rows} of {name}" for name, rows in zip(names, bars.rows, strict=True) if rows < least]
    what = f"level {level:g} takes {least} rows with known labels, and there are {', '.join(short)}"
    return f"note: some error bars are infinite: {what}" if short else ""


def _split_ends(
    widths: Sequence[HalfWidths], label_RBK: np.ndarray, std_RBK: np.ndarray | None, snr_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    centre_BK, std_BK = together(label_RBK, std_RBK)
    pairs = zip(widths, by_label(std_BK, len(widths)), strict=True)
    half_BK = np.stack([of_label.of(snr_B, std_B) for of_label, std_B in pairs], axis=1)
    return centre_BK - half_BK, centre_BK + half_BK


def _cross_ends(
    bars: CrossBars, level: float, label_RBK: np.ndarray, std_RBK: np.ndarray | None, snr_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    members = [bars.fold_R == fold for fold in range(int(bars.fold_R.max()) + 1)]
    of_folds = [together(label_RBK[one], None if std_RBK is None else std_RBK[one]) for one in members]
    centre_BKF = np.stack([centre_BK for centre_BK, _ in of_folds], axis=2)
    stds = [std_BK for _, std_BK in of_folds if std_BK is not None]
    std_BKF = np.stack(stds, axis=2) if stds else None
    ends = [
        cross_interval(centre_BKF[:, k], fold_n, error_n, level, None if std_BKF is None else std_BKF[:, k])
        for k, (error_n, fold_n) in enumerate(bars.errors)
    ]
    return np.stack([low_B for low_B, _ in ends], axis=1), np.stack([high_B for _, high_B in ends], axis=1)


def _of_folds(
    folders: Sequence[RunFolder], configs: Sequence[Config], identities: Sequence[Any], names: Sequence[str]
) -> CrossBars:
    """Return the error bars of runs of several folds; the seeds of a fold are averaged."""
    settings = [without_repeated(identity["config"]) for identity in identities]
    keys = {key for one in settings for key in one if any(other.get(key) != one[key] for other in settings)}
    if keys:
        raise Uncalibrated(f"the runs differ in their fold and in {', '.join(sorted(keys))}")
    folds, fold_R = range(configs[0].data.folds), np.array([config.data.fold for config in configs])
    if missing := [str(fold) for fold in folds if fold not in fold_R]:
        what = f"of {len(folds)} folds {', '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing"
        raise Uncalibrated(f"{what}; name runs of all folds, or of one")
    members = [np.flatnonzero(fold_R == fold).tolist() for fold in folds]
    found = [joined([_read(folders[run], "test", names) for run in runs]) for runs in members]
    sets = [identities[runs[0]]["data"] for runs in members]
    alike = all(identities[run]["data"] == sets[fold] for fold in folds for run in members[fold])
    parts = [part for part in found if part is not None]
    if len(parts) < len(folds) or not alike or of_changed_files(configs[0].data, sets):
        raise Uncalibrated(CHANGED)
    return CrossBars(fold_R, tuple(_out_of_fold(parts, k) for k in range(len(names))))


def _out_of_fold(parts: Sequence[Predictions], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the errors (n,) of a label on the rows that have it, by the fold (n,) that tests each."""
    of_folds = [
        errors(part.true_NK[:, k], part.predicted_NK[:, k], None if part.std_NK is None else part.std_NK[:, k])
        for part in parts
    ]
    known = [error_n[~np.isnan(error_n)] for error_n in of_folds]
    return np.concatenate(known), np.repeat(np.arange(len(known)), [len(error_n) for error_n in known])


def _read(folder: RunFolder, split: str, labels: Sequence[str]) -> Predictions:
    found = read_predictions(folder, split, labels)
    if found is None:
        raise Uncalibrated(no_predictions(folder, split))
    return found
