"""What a run's error bars are calibrated by: its predictions of its validation rows, kept in its folder.

Legend: N rows, K labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specvit.data.labels import LabelScaler
from specvit.data.views import SpectraView
from specvit.metrics.conformal import Residuals, by_label, of_all, residuals, together
from specvit.run.evaluation import predict_split, snr_of, write_table
from specvit.run.predictor import Predictor
from specvit.run_folder.folder import TABLES, RunFolder
from specvit.run_folder.identity import num_rows

FLUX_SNR = "flux_snr"


@dataclass(frozen=True)
class Predictions:
    """True and predicted labels (N, K), label units; S/N (N,), NaN where the table has none; predicted std, if any."""

    true_NK: np.ndarray
    predicted_NK: np.ndarray
    snr_N: np.ndarray
    std_NK: np.ndarray | None = None

    def residuals(self) -> tuple[Residuals, ...]:
        """Return each label's errors, by S/N."""
        columns = zip(self.true_NK.T, self.predicted_NK.T, by_label(self.std_NK, self.true_NK.shape[1]), strict=True)
        return tuple(residuals(true_N, predicted_N, self.snr_N, std_N) for true_N, predicted_N, std_N in columns)


def write_val_predictions(trained: Predictor, spectra: SpectraView, folder: Path, device: Any) -> None:
    """Predict the validation rows, with their noise, and write the table beside that of the test; not for classes."""
    if not isinstance(trained.coder, LabelScaler):
        return
    table = predict_split(trained, spectra, "val", device).table
    table[FLUX_SNR] = snr_of(trained, spectra, "val")
    write_table(table, folder / TABLES["val"])


def read_residuals(trained: Predictor, folder: RunFolder) -> tuple[Residuals, ...]:
    """Return each label's errors on the validation rows of a run; none where its folder has no such table."""
    found = read_predictions(folder, "val", trained.coder.names)
    return found.residuals() if found else ()


def read_predictions(folder: RunFolder, split: str, labels: Sequence[str]) -> Predictions | None:
    """Return a run's predictions of its rows of a split; None where it has no table of them, or a damaged one."""
    import pandas as pd

    try:
        table = pd.read_csv(folder.file(TABLES[split]))
        true_NK, predicted_NK = (_columns(table, kind, labels) for kind in ("true", "pred"))
        std_NK = _columns(table, "std", labels) if f"std_{labels[0]}" in table else None
        snr_N = table[FLUX_SNR].to_numpy(np.float64) if split == "val" else np.full(len(table), np.nan)
        rows = num_rows(folder.about()["identity"]["data"][split])
    except (FileNotFoundError, IsADirectoryError, ValueError, KeyError):
        return None
    if len(table) != rows or not np.isfinite(predicted_NK).all():
        return None
    return Predictions(true_NK, predicted_NK, snr_N, std_NK)


def no_predictions(folder: RunFolder, split: str) -> str:
    """Return in words what `read_predictions` misses, and what writes it."""
    remedy = "run its training command again to finish it"
    if split == "val":
        remedy = f"`specvit evaluate {folder.path} --split val` writes it for a finished run"
    return f"{folder.path} has no {TABLES[split]}, or a damaged one; {remedy}"


def _columns(table: Any, kind: str, labels: Sequence[str]) -> np.ndarray:
    return table[[f"{kind}_{name}" for name in labels]].to_numpy(np.float64)


def joined(found: Sequence[Predictions]) -> Predictions | None:
    """Return the predictions of runs together; None if their rows differ. S/N is that of the first."""
    first = found[0]
    if not all(np.array_equal(one.true_NK, first.true_NK, equal_nan=True) for one in found):
        return None
    mean_NK, std_NK = together(np.stack([one.predicted_NK for one in found]), of_all([one.std_NK for one in found]))
    return Predictions(first.true_NK, mean_NK, first.snr_N, std_NK)
