"""The figure of `specvit analysis ceiling`: R² against S/N of runs and published points, under their ceilings."""

import itertools
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from specvit.analysis.bounds.report import CEILINGS, SNR, Findings
from specvit.tracking.figures import canvas
from specvit.utils.files import write_atomic

DPI = 300
LOWEST = -0.3
"""Nothing is drawn below: a mean of a few hopeless stars may lie at -10. What is below stands here as a triangle."""
NAMED = 10
"""Most settings with a colour and a name, the best ones; the others are thin and grey."""
STYLES: dict[str, dict[str, Any]] = {
    "van_trees": {"ls": "-", "color": "black", "lw": 1.8},
    "crlb_median": {"ls": "-.", "color": "black", "lw": 1.2},
    "crlb_mean": {"ls": "--", "color": "black", "lw": 1.2},
}
MARKERS = "osD^vPX*<>"
PUBLISHED = "hdp8H"
NOTE = (
    "R² = 1 - (mean squared error, or bound on it) / variance of the label in the bin, at the bin's median S/N. "
    "Van Trees: no estimator is better on average over stars spread uniformly in the labels' box (magnitude, "
    "throughput, amplitude and C_M known). Cramér-Rao: variance of an unbiased estimator, other labels and amplitude "
    "unknown, its mean or median over the bin's stars; biased estimators may be above it. Bars: standard deviation "
    "over seeds; of van Trees, sampling error. "
    f"S/N: {SNR}."
)


def draw_ceiling(found: Findings, path: Path) -> None:
    """Draw the figure into `path`, a PNG of 300 dpi or a PDF by its ending."""
    figure, axes = canvas(1, 1, (7.4, 5.2))
    axis = axes[0, 0]
    for (name, x, y), marker in zip(_published(found), itertools.cycle(PUBLISHED), strict=False):
        axis.plot(x, y, "-", marker=marker, ms=5, color="0.55", lw=0.8, mfc="white", label=name, zorder=1.5)
    bins = found.of("snr")
    x = np.array([row["snr"] for row in bins])
    for name, said in CEILINGS.items():
        y = np.array([np.nan if row[name] is None else row[f"{name}_r2"] for row in bins], np.float64)
        if np.isfinite(y).any():
            _line(axis, x, y, label=said, zorder=3, **STYLES[name])
        if name == "van_trees":
            error = np.array([_or_nan(row["van_trees_r2_se"], 0.0) for row in bins])
            axis.vlines(x, y - error, y + error, color="black", lw=1.2, zorder=3)
            axis.fill_between(x, y, 1.0, color="0.93", lw=0, zorder=0)
    _models(axis, found, x)
    axis.set_ylim(min(0.0, float(axis.dataLim.y0)) - 0.03, 1.03)
    axis.set(xlabel="S/N per pixel", ylabel=f"R² of {found.label}")
    axis.set_title(textwrap.fill(found.test_set.said, 72), fontsize=9)
    axis.grid(alpha=0.25)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=7.5, frameon=False)
    figure.supxlabel(textwrap.fill(NOTE, 165), fontsize=6.2, x=0.01, ha="left", color="0.25")
    kind = path.suffix.removeprefix(".")
    write_atomic(path, lambda stream: figure.savefig(stream, format=kind, dpi=DPI))


def _models(axis: Any, found: Findings, x: np.ndarray) -> None:
    """Draw the settings, the best in all named."""
    places = [number for number, row in enumerate(found.rows) if row["by"] == "snr"]
    ranked = sorted(found.models, key=lambda model: -_or_nan(model[1][0]["mean"], -np.inf))
    for rank, (setting, rows) in enumerate(ranked):
        y = np.array([_or_nan(rows[number]["mean"]) for number in places])
        spread = np.array([_or_nan(rows[number]["sd"], 0.0) for number in places])
        if rank >= NAMED:
            label = f"{len(ranked) - NAMED} others" if rank == NAMED else None
            axis.plot(x, np.maximum(y, LOWEST), "-", color="0.75", lw=0.7, label=label, zorder=1)
            continue
        seeds = f"\n({len(setting.runs)} seeds)" if len(setting.runs) > 1 else ""
        label = textwrap.fill(setting.name, 34) + seeds
        style = {"color": f"C{rank}", "marker": MARKERS[rank], "ms": 4, "lw": 1.1}
        _line(axis, x, y, label=label, zorder=4, **style)
        if (spread > 0).any():
            axis.vlines(x, np.maximum(y - spread, LOWEST), np.maximum(y + spread, LOWEST), color=f"C{rank}", lw=1.2)


def _line(axis: Any, x: np.ndarray, y: np.ndarray, **style: Any) -> None:
    """Draw a line; what lies below the figure is a triangle at its lower edge."""
    low = y < LOWEST
    axis.plot(x, np.maximum(y, LOWEST), **style)
    axis.plot(x[low], np.full(low.sum(), LOWEST), "v", color=style["color"], ms=5, zorder=style["zorder"])


def _published(found: Findings) -> list[tuple[str, list[float], list[float]]]:
    """Return the published points by name, each with rising S/N."""
    names = list(dict.fromkeys(point["name"] for point in found.reference))
    series = []
    for name in names:
        points = sorted((point["snr"], point["r2"]) for point in found.reference if point["name"] == name)
        series.append((name, [snr for snr, _ in points], [max(r2, LOWEST) for _, r2 in points]))
    return series


def _or_nan(value: float | None, otherwise: float = np.nan) -> float:
    return otherwise if value is None else value
