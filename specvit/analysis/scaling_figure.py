"""The figure of `specvit analysis scaling`: R² and MAE against the number of training rows."""

import itertools
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from specvit.analysis.bounds.figure import DPI, MARKERS, PUBLISHED, STYLES
from specvit.analysis.bounds.report import CEILINGS
from specvit.analysis.scaling import Line, Scaling, said
from specvit.analysis.scaling_report import Row
from specvit.metrics.intervals import percentile_interval
from specvit.tracking.figures import canvas
from specvit.utils.files import write_atomic
from specvit.utils.quantities import unit_of
from specvit.utils.text import short_count

Ceilings = dict[str, float]
"""R² of each kind of ceiling (see `report.CEILINGS`), over all test stars."""
CURVE_POINTS = 100
NOTE = (
    "Points: mean over seeds; bars: 95 % of resamples of test rows and seeds; small dots: single runs. Lines: R²(N) = "
    "limit - scale N^-exponent through the means, with 95 % of resamples; straight where there are too few sizes. "
    "Diamonds on a line: where it overtakes another, with its interval. Crosses: runs that have not finished."
)


def draw_scaling(found: Scaling, reference: list[Row], ceilings: Ceilings, path: Path) -> None:
    """Draw the figure into `path`, a PNG of 300 dpi or a PDF by its ending."""
    figure, axes = canvas(1, 2, (10.0, 4.6))
    axis, errors = axes[0]
    for name, value in ceilings.items():
        axis.axhline(value, label=CEILINGS[name], **STYLES[name])
    names = dict.fromkeys(point["name"] for point in reference)
    for name, marker in zip(names, itertools.cycle(PUBLISHED), strict=False):
        points = sorted((point["rows"], point["r2"]) for point in reference if point["name"] == name)
        axis.plot(*zip(*points, strict=True), "-", marker=marker, ms=5, color="0.6", lw=0.8, mfc="white", label=name)
    for number, line in enumerate(found.lines):
        style = {"color": f"C{number % 10}", "marker": MARKERS[number % len(MARKERS)]}
        _scores(axis, line, "r2", style, label=line.series.name)
        _scores(errors, line, "mae", style, label=None)
        _law(axis, line, style["color"])
        _missing(axis, line, style["color"])
    _crossovers(axis, found)
    unit = unit_of(found.label)
    axis.set_ylabel(f"test R² of {found.label}")
    errors.set_ylabel(f"test MAE of {found.label}" + (f", {unit}" if unit else ""))
    for one in (axis, errors):
        one.set(xscale="log", xlabel="training spectra")
        _sizes(one, found, reference if one is axis else [])
        one.grid(alpha=0.25)
    figure.suptitle(textwrap.fill(found.test_set.said, 110), fontsize=9)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=7.5, frameon=False)
    pairs = "; ".join(said(pair) for pair in found.pairs[:6])
    figure.supxlabel(textwrap.fill(f"{pairs}. {NOTE}", 210), fontsize=6.2, x=0.01, ha="left", color="0.25")
    kind = path.suffix.removeprefix(".")
    write_atomic(path, lambda stream: figure.savefig(stream, format=kind, dpi=DPI))


def _scores(axis: Any, line: Line, name: str, style: dict[str, str], label: str | None) -> None:
    if not line.points:
        return
    mean_K = np.array([point.scores[name].mean for point in line.points])
    ends_2K = np.array([[point.scores[name].low, point.scores[name].high] for point in line.points]).T
    axis.errorbar(line.rows_K, mean_K, np.abs(ends_2K - mean_K), ls="", ms=5, lw=1.2, label=label, zorder=3, **style)
    if line.law is None or name != "r2":
        axis.plot(line.rows_K, mean_K, "-", color=style["color"], lw=1.1)
    for point in line.points:
        if name == "r2" and len(point.runs) > 1:
            inside_N = np.ones(len(point.runs[0].true_N), bool)
            values = [run.r2(inside_N) for run in point.runs]
            axis.plot([point.rows] * len(values), values, ".", ms=3, color=style["color"], zorder=2)


def _law(axis: Any, line: Line, color: str) -> None:
    if line.law is None or line.laws is None:
        return
    rows_K = np.geomspace(line.rows_K[0], line.rows_K[-1] * 2, CURVE_POINTS)
    axis.plot(rows_K, line.law.at(rows_K)[0], "-", color=color, lw=1.1)
    ends_K2 = np.array([percentile_interval(value_R) for value_R in line.laws.at(rows_K).T])
    axis.fill_between(rows_K, *ends_K2.T, color=color, alpha=0.12, lw=0)


def _missing(axis: Any, line: Line, color: str) -> None:
    for size in set(line.series.missing) - set(line.series.points):
        axis.plot([size], [0.02], "x", color=color, ms=6, transform=axis.get_xaxis_transform())


def _crossovers(axis: Any, found: Scaling) -> None:
    """Mark where a line overtakes another, at the height that it has there."""
    for pair in found.pairs:
        if not 0 < pair.found.rows < np.inf:
            continue
        sizes, mean_K = pair.ahead.rows_K, [point.scores["r2"].mean for point in pair.ahead.points]
        height = float(np.interp(np.log(pair.found.rows), np.log(sizes), mean_K))
        ends = np.clip([pair.found.low, pair.found.high], pair.sizes[0], pair.sizes[-1])
        color = f"C{found.lines.index(pair.ahead) % 10}"
        axis.plot(ends, [height, height], "-", color=color, lw=2.5, alpha=0.5, solid_capstyle="butt")
        axis.plot([pair.found.rows], [height], "D", mfc="white", mec=color, ms=6, zorder=4)


def _sizes(axis: Any, found: Scaling, reference: list[Row]) -> None:
    """Name the sizes on the axis."""
    own = {size for line in found.lines for size in (*line.series.points, *line.series.missing)}
    sizes = sorted(own | {int(point["rows"]) for point in reference})
    axis.set_xticks(sizes, [short_count(size) for size in sizes], fontsize=8 if len(sizes) < 7 else 6.5)
    axis.set_xticks([], minor=True)
