"""Figures of a finished run: training curves, predictions, residuals, scores by S/N and magnitude, confusion matrix.

matplotlib is imported when the first figure is drawn: most commands draw none.
Legend: N rows, C classes. Rows of bins are those of `metrics.scores`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from specvit.metrics.format import bin_name
from specvit.metrics.intervals import LEVEL
from specvit.metrics.metrics import title_of
from specvit.utils.files import write_atomic
from specvit.utils.quantities import LABELS

Columns = dict[str, tuple[np.ndarray, np.ndarray]]
"""Label -> true and predicted values, (N,) each, label units."""

BLUE, GRAY = "tab:blue", "tab:gray"
DPI = 130
MAX_COLUMNS = 3
"""Most panels side by side."""
BAND_BINS = 12
BAND_ROWS = 20
"""Fewest rows a bin of the running median."""
LOWEST = -1.0
"""A score below this is drawn here, as a triangle: an R² of -40 would press all others into one line."""
EXPLODED = 100.0
"""A loss that reaches this many times its smallest value is drawn on a logarithmic axis."""
WRITTEN_CLASSES = 15
"""With more classes the counts do not fit into their cells, and only the colours show them."""


def attempt(path: Path, draw: Callable[[Path], None], say: Callable[[str], None]) -> None:
    """Draw the figure `path`; an error is reported to `say` instead of raised, and an older figure is removed.

    A broken font cache, a full disk or numbers that cannot be drawn must not cost the scores.
    """
    try:
        path.unlink(missing_ok=True)
        draw(path)
    except Exception as problem:
        reason = str(problem).splitlines()[0] if str(problem) else "no message"
        say(f"note: {path.parent.name}/{path.name} could not be drawn ({type(problem).__name__}: {reason})")


def draw_curves(
    path: Path, rows: list[dict[str, Any]], *, score: str, steps: str = "epoch", between: Sequence[dict[str, Any]] = ()
) -> None:
    """Draw loss and `score` by epoch (or the unit that `steps` names), training and validation.

    The running loss of the lines `between` validations is drawn beside them.
    """
    figure, axes = canvas(1, 2, (8.0, 3.2))
    if between:
        running = [_number(row.get("running_loss")) for row in between]
        axes[0, 0].plot([row["epoch"] for row in between], running, color=GRAY, alpha=0.5, lw=0.8, label="running")
    epochs = [row["epoch"] for row in rows]
    for name, axis in zip(("loss", score), axes[0], strict=True):
        for split, style in (("train", "--"), ("val", "-")):
            values = [_number(row.get(f"{split}_{name}")) for row in rows]
            colour = BLUE if split == "val" else GRAY
            draw_curve(axis, epochs, values, loss=name == "loss", ls=style, label=split, color=colour)
        finish_curves(axis, steps, title_of(name), loss=name == "loss")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    save(figure, path)


def draw_rates(path: Path, curves: Mapping[float, Sequence[float]]) -> None:
    """Draw the loss of each step by learning rate; each point is the mean of a tenth of the steps."""
    figure, axes = canvas(1, 1, (5.0, 3.4))
    for rate, losses in curves.items():
        parts = np.array_split(np.asarray(losses), 10)
        axes[0, 0].plot(
            np.cumsum([len(part) for part in parts]), [part.mean() for part in parts], ".-", label=f"{rate:g}"
        )
    axes[0, 0].legend(title="opt.lr", frameon=False)
    finish_curves(axes[0, 0], "step", "loss", loss=True)
    save(figure, path)


def draw_curve(axis: Any, x: Sequence[float], values: Sequence[float], *, loss: bool, **style: Any) -> None:
    """Draw a curve of a loss, which may be negative, or of a score, of which `LOWEST` stands for all that is lower."""
    y = np.array(values, np.float64)
    low = np.zeros(len(y), bool) if loss else y < LOWEST
    axis.plot(x, np.where(low, LOWEST, y), **style)
    axis.plot(np.array(x)[low], y[low] * 0 + LOWEST, "v", ms=4, color=style["color"])


def finish_curves(axis: Any, steps: str, title: str, *, loss: bool) -> None:
    """Name the axes of curves and choose the scale: logarithmic for a loss that exploded."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), np.float64) for line in axis.lines])
    drawn = drawn[np.isfinite(drawn)]
    if loss and drawn.size and 0 < EXPLODED * drawn.min() < drawn.max():
        set_log(axis)
    lower = ", ▼ below -1" if any(line.get_marker() == "v" and len(line.get_xdata()) for line in axis.lines) else ""
    axis.set(xlabel=steps, ylabel=title + lower)
    axis.grid(alpha=0.3)


def set_log(axis: Any, side: str = "y") -> None:
    """Make the x or y axis logarithmic, with its ticks written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set(**{f"{side}scale": "log"})
    ticks = getattr(axis, f"{side}axis")
    low, high = ticks.get_view_interval()
    subs = (1.0,) if high > 1000 * low else (1.0, 2.0, 5.0) if high > 4 * low else tuple(np.arange(1.0, 10.0, 0.5))
    ticks.set_major_locator(LogLocator(subs=subs))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))
    ticks.set_minor_formatter(NullFormatter())


def draw_predictions(path: Path, columns: Columns, snr_N: np.ndarray, *, titles: Sequence[str]) -> None:
    """Draw predicted against true values of each label, coloured by S/N (N,), over the line of equality."""
    across = min(len(columns), MAX_COLUMNS)
    down = -(-len(columns) // across)
    figure, axes = canvas(down, across, (4.2 * across + 0.6, 4.2 * down))
    style: dict[str, Any] = {"s": 6, "alpha": 0.7, "lw": 0, "color": BLUE}
    if coloured := bool(np.isfinite(snr_N).all()):  # clean flux has no finite S/N
        low, high = np.percentile(snr_N, (2, 98))
        style = {**style, "color": None, "c": snr_N, "vmin": low, "vmax": high, "cmap": "viridis"}
    points = None
    for axis, title, (label, (true_N, predicted_N)) in zip(axes.flat, titles, columns.items(), strict=False):
        points = axis.scatter(true_N, predicted_N, **style)
        ends = [float(np.nanmin(true_N)), float(np.nanmax(true_N))]
        axis.plot(ends, ends, color="black", lw=1)
        axis.set(xlabel=f"true {axis_label(label)}", ylabel=f"predicted {axis_label(label)}", title=title)
    for axis in axes.flat[len(columns) :]:
        axis.remove()
    if coloured:
        figure.colorbar(points, ax=list(axes.flat[: len(columns)]), label="S/N per pixel", extend="both")
    save(figure, path)


def draw_residuals(path: Path, columns: Columns, snr_N: np.ndarray) -> None:
    """Draw predicted - true of each label against its true value and, if finite, against S/N (N,)."""
    noisy = bool(np.isfinite(snr_N).all())
    figure, axes = canvas(len(columns), 2 if noisy else 1, (9.0 if noisy else 4.8, 3.3 * len(columns)))
    for row, (label, (true_N, predicted_N)) in zip(axes, columns.items(), strict=True):
        known_N = np.isfinite(true_N)
        true_N, error_N = true_N[known_N], (predicted_N - true_N)[known_N]
        _cloud(row[0], true_N, error_N)
        row[0].set(xlabel=f"true {axis_label(label)}", ylabel=f"predicted - true {axis_label(label)}")
        if noisy:
            _cloud(row[1], snr_N[known_N], error_N)
            row[1].set(xlabel="S/N per pixel")
            row[1].sharey(row[0])
    if axes[0, 0].get_legend_handles_labels()[0]:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    save(figure, path)


def draw_bins(path: Path, by_snr: Sequence[dict[str, Any]], by_mag: Sequence[dict[str, Any]]) -> None:
    """Draw R² (or accuracy) of each label by S/N and by magnitude, with its interval; a side without bins is left out.

    Draws nothing if there are no bins at all.
    """
    sides = [(rows, name) for rows, name in ((by_snr, "S/N per pixel"), (by_mag, axis_label("mag"))) if rows]
    if not sides:
        return
    metric = "accuracy" if "accuracy" in sides[0][0][0] else "r2"
    labels = list(dict.fromkeys(row["label"] for rows, _ in sides for row in rows))
    figure, axes = canvas(1, len(sides), (5.6 * len(sides), 3.8))
    if len(sides) > 1:
        axes[0, 1].sharey(axes[0, 0])  # before drawing: afterwards it would reset the limits of both
    for axis, (rows, name) in zip(axes[0], sides, strict=True):
        _binned(axis, rows, labels, metric)
        lower = ", ▼ below -1" if any(row[metric] < LOWEST for row in rows) else ""
        axis.set(xlabel=f"{name} (number of spectra)", ylabel=f"{title_of(metric)} with {LEVEL} % interval{lower}")
    if any(row[f"{metric}_low"] < LOWEST for rows, _ in sides for row in rows):
        axes[0, 0].set_ylim(LOWEST - 0.06, 1.05)
    if len(labels) > 1:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    save(figure, path)


def draw_confusion(path: Path, counts_CC: np.ndarray, names: Sequence[str], *, label: str, title: str) -> None:
    """Draw the shares of each true class (row, sums to 1) that were taken for each class, with the counts."""
    total_C1 = counts_CC.sum(axis=1, keepdims=True)
    share_CC = np.divide(counts_CC, total_C1, out=np.zeros(counts_CC.shape), where=total_C1 > 0)
    side = 3.0 + 0.5 * min(len(names), WRITTEN_CLASSES)
    figure, axes = canvas(1, 1, (side + 0.8, side))
    axis = axes[0, 0]
    image = axis.imshow(share_CC, vmin=0.0, vmax=1.0, cmap="Blues")
    figure.colorbar(image, ax=axis, label="share of the true class", shrink=0.8)
    shown = range(0, len(names), -(-len(names) // WRITTEN_CLASSES))
    axis.set_xticks(shown, [names[k] for k in shown], rotation=30 if max(map(len, names)) > 4 else 0)
    axis.set_yticks(shown, [names[k] for k in shown])
    if len(names) <= WRITTEN_CLASSES:
        for (row, column), count in np.ndenumerate(counts_CC):
            color = "white" if share_CC[row, column] > 0.5 else "black"
            axis.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=9)
    axis.set(xlabel=f"predicted {axis_label(label)}", ylabel=f"true {axis_label(label)}", title=title)
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


def _cloud(axis: Any, x_N: np.ndarray, error_N: np.ndarray) -> None:
    """Draw points, the line of no error, and a running median with the band that holds 68 % of the rows."""
    axis.scatter(x_N, error_N, s=5, alpha=0.35, lw=0, color=BLUE)
    axis.axhline(0.0, color="black", lw=0.8)
    bins = min(BAND_BINS, len(x_N) // BAND_ROWS)
    if bins >= 2:
        parts = np.array_split(np.argsort(x_N, kind="stable"), bins)
        middle = [np.median(x_N[part]) for part in parts]
        low, median, high = np.array([np.percentile(error_N[part], (16, 50, 84)) for part in parts]).T
        axis.fill_between(middle, low, high, color="tab:orange", alpha=0.3, lw=0, label="68 % of the rows")
        axis.plot(middle, median, color="tab:orange", lw=1.8, label="median")
    axis.grid(alpha=0.3)


def _binned(axis: Any, rows: Sequence[dict[str, Any]], labels: Sequence[str], metric: str) -> None:
    """Draw one point and interval a bin and label. Not with `errorbar`, which refuses a value outside its interval."""
    bins: dict[tuple[float, float], int] = {}
    for row in rows:  # of labels that some rows lack, the most
        bins[row["low"], row["high"]] = max(row["rows"], bins.get((row["low"], row["high"]), 0))
    for number, label in enumerate(labels):
        color, beside = f"C{number}", 0.12 * (number - (len(labels) - 1) / 2)
        label_rows = [row for row in rows if row["label"] == label]
        x = np.array([list(bins).index((row["low"], row["high"])) for row in label_rows]) + beside
        value, low, high = (
            np.array([row[f"{metric}{end}"] for row in label_rows], np.float64) for end in ("", "_low", "_high")
        )
        axis.vlines(x, low, high, color=color, lw=1.6)
        axis.plot(np.concatenate((x, x)), np.concatenate((low, high)), "_", ms=7, mew=1.6, color=color)
        axis.plot(x[value >= LOWEST], value[value >= LOWEST], "o", ms=5, color=color, label=label)
        axis.plot(x[value < LOWEST], np.full((value < LOWEST).sum(), LOWEST), "v", ms=7, color=color)
    axis.set_xticks(
        range(len(bins)), [f"{bin_name(low, high)}\n{count:,}" for (low, high), count in bins.items()], fontsize=8
    )
    axis.set_xlim(-0.6, len(bins) - 0.4)
    axis.grid(alpha=0.3, axis="y")


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
