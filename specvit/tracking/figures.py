"""The two figures of a finished run: its training curves, and predicted against true labels."""

from pathlib import Path
from typing import Any

import numpy as np

from specvit.quantities import LABELS


def draw_curves(path: Path, rows: list[dict[str, Any]], *, score: str) -> None:
    """Draw loss and `score` by epoch, training and validation."""
    figure, (left, right) = _canvas(1, 2, (8.0, 3.2))
    epochs = [row["epoch"] for row in rows]
    for name, axis in (("loss", left), (score, right)):
        for split, style in (("train", "--"), ("val", "-")):
            values = [_number(row.get(f"{split}_{name}")) for row in rows]
            axis.plot(epochs, values, style, label=split, color="tab:blue" if split == "val" else "tab:gray")
        axis.set(xlabel="epoch", ylabel={"r2": "R²"}.get(name, name))
        axis.grid(alpha=0.3)
    left.legend(frameon=False)
    _save(figure, path)


def draw_predictions(
    path: Path, true_N: np.ndarray, predicted_N: np.ndarray, snr_N: np.ndarray, *, label: str, title: str
) -> None:
    """Draw predicted against true label, coloured by S/N, over the line of equality."""
    figure, axis = _canvas(1, 1, (4.8, 4.2))
    axis_label = LABELS[label].axis_label if label in LABELS else label
    style: dict[str, Any] = {"s": 6, "alpha": 0.7, "lw": 0}
    if np.isfinite(snr_N).all():
        low, high = np.percentile(snr_N, (2, 98))
        points = axis.scatter(true_N, predicted_N, c=snr_N, vmin=low, vmax=high, cmap="viridis", **style)
        figure.colorbar(points, ax=axis, label="S/N per pixel", extend="both")
    else:  # clean flux
        axis.scatter(true_N, predicted_N, color="tab:blue", **style)
    ends = [float(np.min(true_N)), float(np.max(true_N))]
    axis.plot(ends, ends, color="black", lw=1)
    axis.set(xlabel=f"true {axis_label}", ylabel=f"predicted {axis_label}", title=title)
    _save(figure, path)


def _canvas(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
