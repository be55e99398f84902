"""The figures of `specvit analysis errors`: error bars by rank and by S/N, a panel a setting; bias by true label."""

import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np

from specvit.analysis.bounds.report import SNR
from specvit.analysis.error_report import ErrorBars, ErrorReport
from specvit.analysis.figures import MARKERS, NAMED
from specvit.analysis.report import Row
from specvit.tracking.figures import axis_label, canvas
from specvit.utils.quantities import unit_of
from specvit.utils.text import counted

ACROSS, MOST_PANELS = 3, 12
BINS, MANY_ROWS = (10, 20), 400
"""Bins of a histogram below and from so many rows."""
SIGMAS = 1.96
PIT_NOTE = (
    "Histograms over test rows, mean over seeds; flat if error bars are right. Blue: by the predicted distribution, "
    "not calibrated. Orange, of models that predict none: the rank of the row's error among the validation errors in "
    "the same bin of S/N. High at both ends: error bars too narrow; high in the middle: too wide; higher on the right: "
    "predictions too low. Grey: 95 % of the bins of one seed if test rows are like the validation rows."
)
SNR_NOTE = (
    "Root mean squares in windows of S/N, at the median S/N of the rows. Bars of errors: 95 % of resamples of rows "
    "and seeds. Calibrated: half-width of error bars of level 0.68. Predicted: standard deviation as predicted, not "
    f"calibrated. Van Trees: no estimator has a smaller error on average over the test stars. S/N: {SNR}."
)
BIAS_NOTE = (
    "Mean of predicted less true label in bins of as many test rows each, at the mean label of the bin; bars: 95 % of "
    "resamples of test rows and seeds. A slope down: predictions shrink towards the mean of the training labels, as "
    "those of a good estimator of noisy spectra do."
)


def figures_of(report: ErrorReport) -> dict[str, Callable[[], Any]]:
    """Return the figures by name; those by S/N and by label need a finite S/N and bins by label."""
    figures = {"pit": lambda: draw_pit(report)}
    if any(np.isfinite(row["snr"]) for one in report.settings for row in one.of("snr")):
        figures["sigma_by_snr"] = lambda: draw_sigma(report)
    if report.settings[0].of("true"):
        figures["bias"] = lambda: draw_bias(report)
    return figures


def draw_pit(report: ErrorReport) -> Any:
    """Return histograms of the probability integral transform."""
    figure, panels = _panels(report, "probability of labels below the true one", "density")
    for axis, one in panels:
        first = one.seeds[0]
        rows = len(first.table)
        bins = BINS[rows >= MANY_ROWS]
        height_SB = np.array([np.histogram(seed["pit"], bins, (0, 1))[0] * bins / rows for seed in one.seeds])
        calibration = np.inf if first.predicts_std else first.calibration_rows(np.full(rows, True))
        chance = SIGMAS * float(np.sqrt((bins - 1) * (1 / rows + 1 / calibration)))
        axis.axhspan(1 - chance, 1 + chance, color="0.88", lw=0, zorder=0)
        axis.axhline(1.0, color="black", lw=0.8)
        color = "tab:blue" if first.predicts_std else "tab:orange"
        steps = height_SB.mean(0), np.linspace(0, 1, bins + 1)
        axis.stairs(*steps, fill=True, color=color, alpha=0.3)
        axis.stairs(*steps, color=color, lw=1.4)
        axis.set(xlim=(0, 1), ylim=(0, max(axis.get_ylim()[1], 1.15 * (1 + chance))))
    return _finished(figure, report, PIT_NOTE, MOST_PANELS)


def draw_sigma(report: ErrorReport) -> Any:
    """Return error, error bar and bound by S/N."""
    figure, panels = _panels(report, "S/N per pixel", f"std of {axis_label(report.label)}")
    for axis, _ in panels[1:]:
        axis.sharey(panels[0][0])
    bounds = [row for row in report.bounds if row["by"] == "snr" and row["van_trees"] is not None]
    for axis, one in panels:
        rows = [row for row in one.of("snr") if np.isfinite(row["snr"])]
        x = [row["snr"] for row in rows]
        low, high = ([row[f"rmse_{end}"] for row in rows] for end in ("low", "high"))
        axis.vlines(x, low, high, color="tab:blue", lw=1.4)
        _line(axis, x, rows, "rmse", color="tab:blue", marker="o", ls="-", label="error")
        _line(axis, x, rows, "half_width", color="tab:orange", marker="s", ls="--", label="calibrated")
        if one.seeds[0].predicts_std:
            _line(axis, x, rows, "predicted_std", color="tab:green", marker="^", ls=":", label="predicted")
        if bounds:
            y = [row["van_trees"] ** 0.5 for row in bounds]
            axis.plot([row["snr"] for row in bounds], y, "-", color="black", lw=1.8, label="van Trees", zorder=1)
        axis.grid(alpha=0.25)
    panels[0][0].set_ylim(bottom=0)
    named = {text: line for axis, _ in panels for line in axis.lines for text in [line.get_label()]}
    figure.legend(named.values(), named.keys(), loc="outside right upper", fontsize=7.5, frameon=False)
    return _finished(figure, report, SNR_NOTE, MOST_PANELS)


def _line(axis: Any, x: list[float], rows: list[Row], name: str, **style: Any) -> None:
    y = np.array([row[name] for row in rows], np.float64)
    axis.plot(x, np.where(np.isfinite(y), y, np.nan), ms=4, lw=1.2, **style)


def draw_bias(report: ErrorReport) -> Any:
    """Return the mean error by true label."""
    figure, axes = canvas(1, 1, (8.4, 4.6))
    axis, shown = axes[0, 0], report.settings[:NAMED]
    step = 0.004 * float(np.ptp([row["true"] for row in shown[0].of("true")]))
    for number, one in enumerate(shown):
        rows = one.of("true")
        x = np.array([row["true"] for row in rows]) + step * (number - (len(shown) - 1) / 2)
        y, low, high = (np.array([row[f"bias{end}"] for row in rows]) for end in ("", "_low", "_high"))
        axis.vlines(x, low, high, color=f"C{number}", lw=1.2)
        axis.plot(x, y, marker=MARKERS[number], ms=4, lw=1.1, color=f"C{number}", label=textwrap.fill(one.name, 34))
    axis.axhline(0.0, color="black", lw=0.8)
    axis.grid(alpha=0.25)
    figure.legend(loc="outside right upper", fontsize=7.5, frameon=False)
    unit = f" [{unit_of(report.label)}]" if unit_of(report.label) else ""
    axis.set(xlabel=f"true {axis_label(report.label)}", ylabel=f"predicted - true {report.label}{unit}")
    return _finished(figure, report, BIAS_NOTE, NAMED)


def _panels(report: ErrorReport, x: str, y: str) -> tuple[Any, list[tuple[Any, ErrorBars]]]:
    """Return a figure and its panels, each with its setting and the names of its axes."""
    shown = report.settings[:MOST_PANELS]
    across = 2 if len(shown) == 4 else min(ACROSS, len(shown))
    down = -(-len(shown) // across)
    figure, axes = canvas(down, across, (max(3.3 * across, 5.6), 2.6 * down + 1.1))
    for axis in axes.flat[len(shown) :]:
        axis.remove()
    panels = list(zip(axes.flat, shown, strict=False))
    for number, (axis, one) in enumerate(panels):
        axis.set_title(textwrap.fill(textwrap.shorten(one.name, 90), 40), fontsize=8)
        axis.set_xlabel(x, fontsize=8)
        if number % across == 0:
            axis.set_ylabel(y, fontsize=8)
        axis.tick_params(labelsize=8)
    return figure, panels


def _finished(figure: Any, report: ErrorReport, note: str, most: int) -> Any:
    """Return the figure with the test set above it, and below it the note and how many settings are not drawn."""
    if len(report.settings) > most:
        note += f" Not drawn: {counted(len(report.settings) - most, 'setting')} of larger RMSE."
    width = float(figure.get_size_inches()[0])
    figure.suptitle(textwrap.fill(report.test_set.description, int(9 * width)), fontsize=9)
    figure.supxlabel(textwrap.fill(note, int(21 * width)), fontsize=6.2, x=0.01, ha="left", color="0.25")
    return figure
