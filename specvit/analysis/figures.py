"""The figures of `specvit analysis`, but for those of attention: bounds, scaling, ablation, training curves."""

import functools
import itertools
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specvit.analysis.ablation import Combination, best_first, combinations
from specvit.analysis.ablation_report import Ablation
from specvit.analysis.bounds.report import CEILINGS, SNR, BoundsReport
from specvit.analysis.records import TEST_R2, Runs, r2_inside
from specvit.analysis.report import Row
from specvit.analysis.scaling import Line, Scaling, pair_sentence
from specvit.metrics.intervals import percentile_interval
from specvit.study.results import is_r2
from specvit.study.schema import ESCAPED
from specvit.study.table import setting_text
from specvit.tracking.figures import LOWEST as FLOOR
from specvit.tracking.figures import attempt, canvas, draw_curve, finish_curves, set_log
from specvit.utils.files import write_atomic
from specvit.utils.quantities import unit_of
from specvit.utils.text import short_count

DPI = 300
LOWEST = -0.3
"""Lower R² is drawn as a triangle at this height: the mean of a few faint stars can be -10."""
NAMED = 10
"""Most settings with a colour and a name; the others are thin and grey."""
MOST_BARS = 40
MOST_LETTERS = 60
"""Of a bar's name."""
CURVE_POINTS = 100
STYLES: dict[str, dict[str, Any]] = {
    "van_trees": {"ls": "-", "color": "black", "lw": 1.8},
    "crlb_median": {"ls": "-.", "color": "black", "lw": 1.2},
    "crlb_mean": {"ls": "--", "color": "black", "lw": 1.2},
}
MARKERS = "os^vPX*<>p"
PUBLISHED = "os^v<>"
"""Hollow and grey; no diamonds, which mark where a line overtakes another."""
STROKES = ("-", (0, (5, 4)), (0, (2, 3)), (0, (7, 3, 1, 3)))
"""Later curves have gaps, so that curves on top of each other are all visible."""
OUTLIER = 5.0
"""Of bars, one more than this many times the median does not set the axis: its value is written."""
BOUNDS_NOTE = (
    "R² = 1 - (mean squared error, or bound on it) / variance of the label in the bin, at the bin's median S/N. "
    "Van Trees: no estimator is better on average over stars spread uniformly in the labels' box (magnitude, "
    "throughput, amplitude and C_M known). Cramér-Rao: variance of an unbiased estimator, other labels and amplitude "
    "unknown, its mean or median over the bin's stars; biased estimators may be above it. Bars: standard deviation "
    "over seeds; of van Trees, sampling error. "
    f"S/N: {SNR}."
)
SCALING_NOTE = (
    "Points: mean over seeds; bars: 95 % of resamples of test rows and seeds; small dots: single runs. Lines: R²(N) = "
    "limit - scale N^-exponent through the means, with 95 % of resamples; straight where there are too few sizes. "
    "Diamonds on a line: where it overtakes another, with its interval. Crosses: runs that have not finished."
)
CURVES = (("val_r2", "validation R²"), ("train_loss", "training loss"))
CLASS_CURVES = (("val_accuracy", "validation accuracy"), ("train_loss", "training loss"))


def save_figures(out: Path, figures: Mapping[str, Callable[[], Any]]) -> dict[str, Path]:
    """Draw each figure and save it as PNG and PDF into `out`; return the PNG files by name.

    A figure that cannot be drawn is noted, and missing from the result.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in figures.items():
        drawn = functools.cache(draw)
        for kind in ("png", "pdf"):
            attempt(out / f"{name}.{kind}", functools.partial(_save, drawn, kind), print)
    return {name: path for name in figures if (path := out / f"{name}.png").exists()}


def _save(draw: Callable[[], Any], kind: str, path: Path) -> None:
    figure = draw()
    write_atomic(path, lambda stream: figure.savefig(stream, format=kind, dpi=DPI))


def draw_bounds(report: BoundsReport) -> Any:
    """Return R² against S/N of runs and published points, under their bounds."""
    figure, axes = canvas(1, 1, (7.4, 5.2))
    axis = axes[0, 0]
    for (name, x, y), marker in zip(_published(report), itertools.cycle(PUBLISHED), strict=False):
        axis.plot(x, y, "-", marker=marker, ms=5, color="0.55", lw=0.8, mfc="white", label=name, zorder=1.5)
    bins = report.of("snr")
    x = np.array([row["snr"] for row in bins])
    for name, shown in CEILINGS.items():
        y = np.array([np.nan if row[name] is None else row[f"{name}_r2"] for row in bins], np.float64)
        if np.isfinite(y).any():
            _line(axis, x, y, label=shown, zorder=3, **STYLES[name])
        if name == "van_trees":
            error = np.array([_or_nan(row["van_trees_r2_se"], 0.0) for row in bins])
            axis.vlines(x, y - error, y + error, color="black", lw=1.2, zorder=3)
            axis.fill_between(x, y, 1.0, color="0.93", lw=0, zorder=0)
    _models(axis, report, x)
    axis.set_ylim(min(0.0, float(axis.dataLim.y0)) - 0.03, 1.03)
    axis.set(xlabel="S/N per pixel", ylabel=f"R² of {report.label}")
    axis.set_title(textwrap.fill(report.test_set.description, 72), fontsize=9)
    axis.grid(alpha=0.25)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=7.5, frameon=False)
    figure.supxlabel(textwrap.fill(BOUNDS_NOTE, 165), fontsize=6.2, x=0.01, ha="left", color="0.25")
    return figure


def _models(axis: Any, report: BoundsReport, x: np.ndarray) -> None:
    """Draw the settings, the best in all named."""
    bins = [number for number, row in enumerate(report.rows) if row["by"] == "snr"]
    ranked = sorted(report.models, key=lambda model: -_or_nan(model[1][0]["mean"], -np.inf))
    for rank, (setting, rows) in enumerate(ranked):
        y = np.array([_or_nan(rows[number]["mean"]) for number in bins])
        spread = np.array([_or_nan(rows[number]["sd"], 0.0) for number in bins])
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
    """Draw a line; points below the figure are triangles at its lower edge."""
    low = y < LOWEST
    axis.plot(x, np.maximum(y, LOWEST), **style)
    axis.plot(x[low], np.full(low.sum(), LOWEST), "v", color=style["color"], ms=5, zorder=style["zorder"])


def _published(report: BoundsReport) -> list[tuple[str, list[float], list[float]]]:
    """Return the published points by name, each with rising S/N."""
    names = list(dict.fromkeys(point["name"] for point in report.reference))
    series = []
    for name in names:
        points = sorted((point["snr"], point["r2"]) for point in report.reference if point["name"] == name)
        series.append((name, [snr for snr, _ in points], [max(r2, LOWEST) for _, r2 in points]))
    return series


def _or_nan(value: float | None, otherwise: float = np.nan) -> float:
    return otherwise if value is None else value


def draw_scaling(scaling: Scaling, reference: list[Row], bounds: Mapping[str, float]) -> Any:
    """Return R² and MAE against the number of training rows; `bounds` are R² of each kind over all test stars."""
    figure, axes = canvas(1, 2, (10.0, 4.6))
    axis, errors = axes[0]
    for name, value in bounds.items():
        axis.axhline(value, label=CEILINGS[name], **STYLES[name])
    names = dict.fromkeys(point["name"] for point in reference)
    for name, marker in zip(names, itertools.cycle(PUBLISHED), strict=False):
        points = sorted((point["rows"], point["r2"]) for point in reference if point["name"] == name)
        axis.plot(*zip(*points, strict=True), "-", marker=marker, ms=5, color="0.6", lw=0.8, mfc="white", label=name)
    for number, line in enumerate(scaling.lines):
        style = {"color": f"C{number % 10}", "marker": MARKERS[number % len(MARKERS)]}
        _scores(axis, line, "r2", style, label=line.series.name)
        _scores(errors, line, "mae", style, label=None)
        _law(axis, line, style["color"])
        _missing(axis, line, style["color"])
    _crossovers(axis, scaling)
    lower = ", ▼ below -1" if axis.get_ylim()[0] < FLOOR else ""
    axis.set_ylim(bottom=max(axis.get_ylim()[0], FLOOR - 0.05))
    unit = unit_of(scaling.label)
    axis.set_ylabel(f"test R² of {scaling.label}{lower}")
    errors.set_ylabel(f"test MAE of {scaling.label}" + (f", {unit}" if unit else ""))
    for one in (axis, errors):
        one.set(xscale="log", xlabel="training spectra")
        _sizes(one, scaling, reference if one is axis else [])
        one.grid(alpha=0.25)
    figure.suptitle(textwrap.fill(scaling.test_set.description, 110), fontsize=9)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=7.5, frameon=False)
    pairs = "; ".join(pair_sentence(pair) for pair in scaling.pairs[:6])
    note = f"{pairs}. {SCALING_NOTE}" if pairs else SCALING_NOTE
    figure.supxlabel(textwrap.fill(note, 210), fontsize=6.2, x=0.01, ha="left", color="0.25")
    return figure


def _scores(axis: Any, line: Line, name: str, style: dict[str, str], label: str | None) -> None:
    if not line.points:
        return
    mean_K = np.array([point.scores[name].mean for point in line.points])
    ends_2K = np.array([[point.scores[name].low, point.scores[name].high] for point in line.points]).T
    axis.errorbar(line.rows_K, mean_K, np.abs(ends_2K - mean_K), ls="", ms=5, lw=1.2, label=label, zorder=3, **style)
    if name == "r2":
        low_K = mean_K < FLOOR
        axis.plot(line.rows_K[low_K], np.full(low_K.sum(), FLOOR), "v", ms=6, color=style["color"])
    if line.law is None or name != "r2":
        axis.plot(line.rows_K, mean_K, "-", color=style["color"], lw=1.1)
    for point in line.points:
        if name == "r2" and len(point.runs) > 1:
            inside_N = np.ones(len(point.runs[0].true_N), bool)
            values = [r2_inside(run, inside_N) for run in point.runs]
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


def _crossovers(axis: Any, scaling: Scaling) -> None:
    """Mark where a line overtakes another, at the height that it has there."""
    for pair in scaling.pairs:
        if not 0 < pair.crossover.rows < np.inf:
            continue
        sizes, mean_K = pair.ahead.rows_K, [point.scores["r2"].mean for point in pair.ahead.points]
        height = float(np.interp(np.log(pair.crossover.rows), np.log(sizes), mean_K))
        ends = np.clip([pair.crossover.low, pair.crossover.high], pair.sizes[0], pair.sizes[-1])
        color = f"C{scaling.lines.index(pair.ahead) % 10}"
        axis.plot(ends, [height, height], "-", color=color, lw=2.5, alpha=0.5, solid_capstyle="butt")
        axis.plot([pair.crossover.rows], [height], "D", mfc="white", mec=color, ms=6, zorder=4)


def _sizes(axis: Any, scaling: Scaling, reference: list[Row]) -> None:
    """Name the sizes on the axis."""
    own = {size for line in scaling.lines for size in line.sizes}
    sizes = sorted(own | {int(point["rows"]) for point in reference})
    axis.set_xticks(sizes, [short_count(size) for size in sizes], fontsize=8 if len(sizes) < 7 else 6.5)
    axis.set_xticks([], minor=True)


def draw_ablation(ablation: Ablation) -> Any:
    """Return each setting's metric as a bar, best first, each seed as a dot (R² 0 if it failed); and how runs ended."""
    scored = best_first(ablation.combinations, ablation.metric, ablation.asked)[MOST_BARS - 1 :: -1]
    rates = [tally for tally in ablation.tallies if tally.factor != "all"] or ablation.tallies
    height = 1.2 + 0.24 * max(len(scored), min(len(rates), MOST_BARS))
    figure, axes = canvas(1, 2, (11.0, min(height, 11.0)))
    bars, shares = axes[0]
    for place, one in enumerate(scored):
        spread = None if one.unlearnt else one.sd
        bars.barh(place, one.score, xerr=spread, color="tab:blue", alpha=0.5, ecolor="0.2", height=0.7)
        bars.plot(one.ranked, [place] * len(one.ranked), ".", color="0.2", ms=4)
    bars.set_yticks(range(len(scored)), [_bar_label(one) for one in scored], fontsize=7)
    if ablation.metric == ESCAPED:
        set_log(bars, "x")
    else:
        _limit_bars(bars, [one.score or 0.0 for one in scored], lowest=FLOOR if is_r2(ablation.metric) else -np.inf)
    bars.set_xlabel(f"{ablation.metric}: mean and standard deviation over seeds, each seed a dot", fontsize=8)
    for place, tally in enumerate(reversed(rates[:MOST_BARS])):
        shares.barh(place, tally.finished, color="tab:green", alpha=0.6, height=0.7)
        shares.barh(place, tally.unlearnt, left=tally.finished, color="tab:orange", alpha=0.6, height=0.7)
        ends = tally.finished + tally.unlearnt
        shares.barh(place, tally.failed, left=ends, color="tab:red", alpha=0.6, height=0.7)
    shares.xaxis.get_major_locator().set_params(integer=True)
    names = [textwrap.shorten(f"{tally.factor}={tally.value}", 44) for tally in reversed(rates[:MOST_BARS])]
    shares.set_yticks(range(len(names)), names, fontsize=7)
    shares.set_xlabel("runs that finished (green),\nlearnt nothing (orange), failed (red)", fontsize=8)
    for axis in (bars, shares):
        axis.grid(alpha=0.25, axis="x")
    return figure


def _bar_label(one: Combination) -> str:
    """Return a setting's name; where it is long, the keys are without their sections."""
    if len(one.label) <= MOST_LETTERS:
        return one.label
    names = {factor: ", ".join(re.split(r"[./]", key)[-1] for key in factor.split(", ")) for factor in one.factors}
    return textwrap.shorten(setting_text({names[factor]: value for factor, value in one.factors.items()}), MOST_LETTERS)


def _limit_bars(axis: Any, scores: Sequence[float], *, lowest: float) -> None:
    """Let no outlier press the other bars into a line: the axis ends before it, with its value beside the edge."""
    size = OUTLIER * float(np.median(np.abs(scores))) if scores else 0.0
    usual = [score for score in scores if lowest <= score and abs(score) <= size]
    left, right = axis.get_xlim()
    if not usual or len(usual) == len(scores):
        axis.set_xlim(max(left, lowest), right)
        return
    room = 0.15 * (max(0.0, *usual) - min(0.0, *usual))
    axis.set_xlim(max(left, min(0.0, *usual) - room), min(right, max(0.0, *usual) + room))
    for place, score in enumerate(scores):
        if score not in usual:
            edge, side, text = (0.0, "left", f"◀ {score:.3g}") if score < 0 else (1.0, "right", f"{score:.3g} ▶")
            axis.text(edge, place, text, transform=axis.get_yaxis_transform(), ha=side, va="center", fontsize=7)


def draw_curves(runs: Runs) -> Any:
    """Return score and loss by step: one colour and stroke for each setting, one line for each seed."""
    figure, axes = canvas(1, 2, (10.0, 3.8))
    settings = [one for one in combinations(runs, TEST_R2) if any(run.outcome.rows for run in one.records)]
    classes = any("val_accuracy" in row for outcome in runs.outcome for row in outcome.rows[:1])
    for (name, title), axis in zip(CLASS_CURVES if classes else CURVES, axes[0], strict=True):
        for number, one in enumerate(settings):
            named = number < NAMED
            style: dict[str, Any] = {"color": "0.75", "lw": 0.6}
            if named:
                place = number % len(STROKES)
                style = {"color": f"C{number}", "lw": 1.7 - 0.2 * place, "ls": STROKES[place]}
            label = textwrap.fill(one.label, 44) if named else None
            for run, once in zip(one.records, itertools.chain([label], itertools.repeat(None)), strict=False):
                points = [(row["step"], row[name]) for row in run.outcome.rows if isinstance(row.get(name), float)]
                if points:
                    draw_curve(axis, *zip(*points, strict=True), loss=name == "train_loss", label=once, **style)
        if axis.lines:
            finish_curves(axis, "step", title, loss=name == "train_loss")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=7, handlelength=3, frameon=False
    )
    return figure
