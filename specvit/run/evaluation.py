"""Scores a trained model on a split: predictions, summary, figures; for the final test and for `evaluate`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specvit.data.batches import eval_data, norm_of, signal_to_noise
from specvit.data.folds import star_names
from specvit.data.labels import LabelScaler
from specvit.data.training_range import flux_snr
from specvit.data.views import SpectraView
from specvit.metrics.conformal import Residuals, calibrated
from specvit.metrics.distributions import Uncertainty
from specvit.metrics.scores import Row, class_rows, confusion_matrix, flat_scores, label_rows, rows_by
from specvit.run.predictor import Predictor
from specvit.tracking.figures import attempt, draw_bins, draw_confusion, draw_predictions, draw_residuals
from specvit.training.loop import predict
from specvit.utils.files import finite, write_atomic, write_json
from specvit.utils.quantities import MAG_BIN_EDGES, SNR_BIN_EDGES, STAR_ID, unit_of
from specvit.utils.text import safe_cell

CONFUSION_CLASSES = 100
"""With more classes the summary omits the matrix, of 10,000 lines; it can be computed from predictions.csv."""


@dataclass(frozen=True)
class Classes:
    """The label of the classes, their names, and the confusion matrix: rows true, columns predicted."""

    label: str
    names: tuple[str, ...]
    confusion_CC: np.ndarray


@dataclass(frozen=True)
class Scored:
    """A split's scores, in total and by bin (rows as in `metrics.scores`), and the predictions."""

    loss: float
    rows: list[Row]
    by_snr: list[Row]
    by_mag: list[Row]
    predictions: Any
    classes: Classes | None = None

    @property
    def scores(self) -> dict[str, float]:
        """Return loss, scores and ends of intervals under flat names."""
        return {"loss": self.loss, **flat_scores(self.rows)}

    @property
    def label(self) -> str:
        """Return the primary label, or `class`: the suffix of its columns in the table."""
        return self.rows[0]["label"]

    def columns(self, label: str) -> tuple[np.ndarray, np.ndarray]:
        """Return true and predicted values (N,) of a label."""
        return self.predictions[f"true_{label}"].to_numpy(), self.predictions[f"pred_{label}"].to_numpy()


@dataclass(frozen=True)
class Predicted:
    """A split's outputs, targets, true and predicted labels (N, K), and the table of them, a row a spectrum."""

    output_NX: np.ndarray
    target: np.ndarray
    true_NK: np.ndarray
    predicted_NK: np.ndarray
    uncertainty: Uncertainty | None
    table: Any


def predict_split(trained: Predictor, spectra: SpectraView, split: str, device: Any) -> Predicted:
    """Predict every row of `spectra` with its fixed noise."""
    config, coder = trained.config, trained.coder
    view = eval_data(spectra, split, config, coder, trained.flux_norm, device)
    task = trained.task
    output_NX, target = predict(trained.model, view)
    predicted_NK, table = task.decode(output_NX), _table(spectra, config.noise)
    uncertainty = task.uncertainty(output_NX)
    true_NK, names = target[:, None], ("class",)
    if isinstance(coder, LabelScaler):
        names, true_NK = coder.names, spectra.label_values(coder.names)  # the targets are rounded to float32
    for k, name in enumerate(names):
        table[f"true_{name}"], table[f"pred_{name}"] = true_NK[:, k], predicted_NK[:, k]
        if uncertainty is not None:
            table[f"std_{name}"] = uncertainty.std[:, k]
    return Predicted(output_NX, target, true_NK, predicted_NK, uncertainty, table)


def snr_of(trained: Predictor, spectra: SpectraView, split: str) -> np.ndarray:
    """Return the S/N (N,) that a prediction of each row's noisy flux would have as `flux_snr`."""
    norm = norm_of(spectra, trained.config, trained.flux_norm)
    return flux_snr(spectra, norm, trained.config.noise, split)


def score(
    trained: Predictor, spectra: SpectraView, split: str, device: Any, residuals: Sequence[Residuals] = ()
) -> Scored:
    """Predict every row of `spectra` with its fixed noise and score it; training statistics only.

    With the run's `residuals`, one a label, scores of calibrated intervals are among the scores.
    """
    coder, found = trained.coder, predict_split(trained, spectra, split, device)
    target, true_NK, predicted_NK, table = found.target, found.true_NK, found.predicted_NK, found.table
    uncertainty = found.uncertainty
    if residuals:
        uncertainty = calibrated(uncertainty, residuals, snr_of(trained, spectra, split))
    names, classes = ("class",), None
    if isinstance(coder, LabelScaler):
        names = coder.names
    else:
        counts_CC = confusion_matrix(target, predicted_NK[:, 0], coder.num_classes)
        classes = Classes(coder.names[0], coder.class_names, counts_CC)

    def rows_of(index_n: np.ndarray) -> list[Row]:
        if isinstance(coder, LabelScaler):
            of_rows = None if uncertainty is None else uncertainty[index_n]
            return label_rows(true_NK[index_n], predicted_NK[index_n], names, coder.scale, of_rows)
        return class_rows(target[index_n], predicted_NK[index_n, 0], names[0])

    return Scored(
        loss=trained.task.scores(found.output_NX, target)["loss"],
        rows=rows_of(np.arange(len(target))),
        by_snr=rows_by(table["snr"].to_numpy(), SNR_BIN_EDGES, rows_of),
        by_mag=rows_by(table["mag"].to_numpy(), MAG_BIN_EDGES, rows_of),
        predictions=table,
        classes=classes,
    )


def write_scored(scored: Scored, folder: Path, *, split: str, summary: dict[str, Any]) -> dict[str, Any]:
    """Write `predictions.csv` and `summary.json` into `folder` and return the summary.

    What JSON cannot hold (NaN, open bins) is null.
    """
    write_table(scored.predictions, folder / "predictions.csv")
    facts = {**summary, "label": scored.label, "unit": unit_of(scored.label)}
    facts |= finite({f"{split}_{name}": value for name, value in scored.scores.items()})
    for name, rows in (("by_snr", scored.by_snr), ("by_mag", scored.by_mag)):
        facts[f"{split}_{name}"] = finite(rows)
    if scored.classes and len(scored.classes.names) <= CONFUSION_CLASSES:
        facts |= {"classes": list(scored.classes.names), f"{split}_confusion": scored.classes.confusion_CC.tolist()}
    write_json(folder / "summary.json", facts)
    return facts


def write_table(table: Any, path: Path) -> None:
    """Write a table of predictions."""
    write_atomic(path, lambda stream: table.to_csv(stream, index=False))


def draw_scored(scored: Scored, folder: Path, say: Callable[[str], None]) -> None:
    """Draw the figures of a scored split into `folder`; errors are passed to `say`, and that figure is missing."""
    snr_N = scored.predictions["snr"].to_numpy()
    if scored.classes:
        classes = scored.classes
        title = f"accuracy {scored.rows[0]['accuracy']:.3f}, balanced {scored.rows[0]['balanced_accuracy']:.3f}"
        figures = {
            "confusion.png": lambda path: draw_confusion(
                path, classes.confusion_CC, classes.names, label=classes.label, title=title
            )
        }
    else:
        columns = {row["label"]: scored.columns(row["label"]) for row in scored.rows}
        titles = [f"R² = {row['r2']:.3f}, {row['rows']:,} spectra" for row in scored.rows]
        figures = {
            "predictions.png": lambda path: draw_predictions(path, columns, snr_N, titles=titles),
            "residuals.png": lambda path: draw_residuals(path, columns, snr_N),
        }
    figures["by_snr.png"] = lambda path: draw_bins(path, scored.by_snr, scored.by_mag)
    for name, draw in figures.items():
        attempt(folder / name, draw, say)


def _table(spectra: SpectraView, noise: Any) -> Any:
    import pandas as pd

    files, rows_N = spectra.origins()
    table = pd.DataFrame(
        {"file": [safe_cell(f"{Path(name).parent.name}/{Path(name).name}") for name in files], "row": rows_N}
    )
    table["snr"] = signal_to_noise(spectra, noise)
    labels = spectra.labels()
    table["mag"] = pd.to_numeric(labels["mag"], errors="coerce") if "mag" in labels else np.nan
    if STAR_ID in labels:
        table[STAR_ID] = [safe_cell(name) for name in star_names(labels)]
    return table
