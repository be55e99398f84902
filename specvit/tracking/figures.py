"""Figures of a finished run: its training curves, and predicted against true labels; more in `score_figures`.

matplotlib is imported when the first figure is drawn: most of what specvit does needs none.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from specvit.metrics.metrics import title_of
from specvit.utils.files import write_atomic
from specvit.utils.quantities import LABELS

Columns = dict[str, tuple[np.ndarray, np.ndarray]]
"""Label -> true and predicted values, (N,) each, label units."""

BLUE, GRAY = "tab:blue", "tab:gray"
DPI = 130
COLUMNS = 3
"""Most panels side by side."""


def attempt(path: Path, draw: Callable[[Path], None], say: Callable[[str], None]) -> None:
    """Draw the figure `path`. A failure costs the figure alone: `say` hears of it, and no older one stays in its place.

    A broken font cache, a full disk or numbers that cannot be drawn must not cost the scores.
    """
    try:
        path.unlink(missing_ok=True)
        draw(path)
    except Exception as problem:
        reason = str(problem).splitlines()[0] if str(problem) else "no message"
        say(f"note: {path.parent.name}/{path.name} could not be drawn ({type(problem).__name__}: {reason})")


def draw_curves(path: Path, rows: list[dict[str, Any]], *, score: str, steps: str = "epoch") -> None:
    """Draw loss and `score` by epoch (or what else `steps` are), training and validation."""
    figure, axes = canvas(1, 2, (8.0, 3.2))
    epochs = [row["epoch"] for row in rows]
    for name, axis in zip(("loss", score), axes[0], strict=True):
        for split, style in (("train", "--"), ("val", "-")):
            values = [_number(row.get(f"{split}_{name}")) for row in rows]
            axis.plot(epochs, values, style, label=split, color=BLUE if split == "val" else GRAY)
        axis.set(xlabel=steps, ylabel=title_of(name))
        axis.grid(alpha=0.3)
    axes[0, 0].legend(frameon=False)
    save(figure, path)


def draw_predictions(path: Path, columns: Columns, snr_N: np.ndarray, *, titles: Sequence[str]) -> None:
    """Draw predicted against true values of each label, coloured by S/N (N,), over the line of equality."""
    across = min(len(columns), COLUMNS)
    down = -(-len(columns) // across)
    figure, axes = canvas(down, across, (4.2 * across + 0.6, 4.2 * down))
    style: dict[str, Any] = {"s": 6, "alpha": 0.7, "lw": 0, "color": BLUE}
    if coloured := bool(np.isfinite(snr_N).all()):  # clean flux has no finite S/N
        low, high = np.percentile(snr_N, (2, 98))
        style = {**style, "color": None, "c": snr_N, "vmin": low, "vmax": high, "cmap": "viridis"}
    points = None
    for axis, title, (label, (true_N, predicted_N)) in zip(axes.flat, titles, columns.items(), strict=False):
        points = axis.scatter(true_N, predicted_N, **style)
        ends = [float(np.min(true_N)), float(np.max(true_N))]
        axis.plot(ends, ends, color="black", lw=1)
        axis.set(xlabel=f"true {axis_label(label)}", ylabel=f"predicted {axis_label(label)}", title=title)
    for axis in axes.flat[len(columns) :]:
        axis.remove()
    if coloured:
        figure.colorbar(points, ax=list(axes.flat[: len(columns)]), label="S/N per pixel", extend="both")
    save(figure, path)


def axis_label(label: str) -> str:
    """Return a label with its unit, if specvit knows it."""
    return LABELS[label].axis_label if label in LABELS else label


def canvas(down: int, across: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Return a figure of `size` inches and its axes (down, across); independent of any display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(down, across, squeeze=False)


def save(figure: Any, path: Path) -> None:
    """Write a PNG, atomically. `Figure.savefig` would lay out and draw everything twice, which is most of the time."""
    from matplotlib.image import imsave

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.set_dpi(DPI)
    figure.canvas.draw()
    pixels = figure.canvas.buffer_rgba()
    write_atomic(path, lambda stream: imsave(cast(Any, stream), pixels, format="png", dpi=DPI))


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
