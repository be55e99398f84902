"""The scaling figure in the form of the published study: R² in one panel, each kind of model in its own colour."""

import itertools
import textwrap
from collections import Counter
from typing import Any

import numpy as np

from specvit.analysis.report import Row
from specvit.analysis.scaling import Line, Pair, Scaling, pair_sentence
from specvit.tracking.figures import LOWEST as FLOOR
from specvit.tracking.figures import canvas
from specvit.utils.text import counted

TITLE = "ViT vs Traditional ML Scaling Curve"
RANGE = (0.3, 0.75)
"""Of the axis of R²; it grows where points or bars are outside."""
MARGIN = 0.02
KINDS = {
    "vit": ("ViT", "ViT", "#FFA500", "o"),
    "lightgbm": ("LightGBM", "LGBM", "#2E8B57", "s"),
    "ridge": ("Ridge", "Ridge", "#4169E1", "^"),
}
"""By `model.kind`: name, short name, colour and marker."""
OTHERS = (("#8B008B", "D"), ("#A0522D", "p"), ("#DC143C", "P"), ("#708090", "X"), ("#008B8B", "*"))
"""Colour and marker of other kinds, and of further lines of the same kind."""
LINE: dict[str, Any] = {"ls": "-", "lw": 1.6, "ms": 7, "zorder": 3}
PUBLISHED: dict[str, Any] = {"ls": "--", "lw": 1.0, "ms": 6, "mfc": "white", "zorder": 2}
NOTE = "Points: mean over seeds; bars: 95 % of resamples of test rows and seeds"


def draw_single(scaling: Scaling, reference: list[Row]) -> Any:
    """Return R² against training rows, marked where a ViT and LightGBM change places."""
    figure, axes = canvas(1, 1, (7.2, 5.4))
    axis = axes[0, 0]
    order = [*KINDS, *(_kind(line) for line in scaling.lines if line.points)]
    lines = sorted((line for line in scaling.lines if line.points), key=lambda line: order.index(_kind(line)))
    for line, label, (color, marker) in zip(lines, _labels(lines), _styles(lines), strict=True):
        scores = [point.scores["r2"] for point in line.points]
        mean_K = np.array([score.mean for score in scores])
        _draw(axis, line.rows_K, mean_K, color=color, marker=marker, label=label, **LINE)
        ends_2K = np.maximum([[score.low, score.high] for score in scores], FLOOR).T
        axis.vlines(line.rows_K, *ends_2K, color=color, lw=4, alpha=0.4)
    published = sorted(reference, key=lambda point: point["rows"])
    for name in dict.fromkeys(point["name"] for point in reference):
        rows, r2 = np.array([(point["rows"], point["r2"]) for point in published if point["name"] == name]).T
        kind = next((kind for kind, names in KINDS.items() if name.lower().startswith(names[0].lower())), "")
        color, marker = KINDS[kind][2:] if kind else ("0.5", "h")
        _draw(axis, rows, r2, color=color, marker=marker, label=name, **PUBLISHED)
    crossed = [pair for pair in scaling.pairs if _change_places(pair)]
    for number, pair in enumerate(crossed):
        _mark(axis, pair, number)
    low, high = axis.dataLim.intervaly
    axis.set_ylim(min(RANGE[0], low - MARGIN), max(RANGE[1], high + MARGIN))
    axis.set(title=TITLE, xscale="log", xlabel="Number of training spectra")
    axis.set_ylabel("Test R²" + (", ▼ below -1" if low <= FLOOR else ""))
    sizes = sorted({int(row) for line in lines for row in line.rows_K} | {int(point["rows"]) for point in reference})
    axis.set_xticks(sizes, [_size(size) for size in sizes], fontsize=9 if len(sizes) < 9 else 7.5)
    axis.set_xticks([], minor=True)
    axis.grid(alpha=0.3)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, fontsize=8.5, frameon=False)
    figure.supxlabel(textwrap.fill(_note(scaling, crossed), 150), fontsize=6.2, x=0.01, ha="left", color="0.25")
    return figure


def _draw(axis: Any, x: np.ndarray, y: np.ndarray, **style: Any) -> None:
    """Draw a line; what is below `FLOOR` is drawn there, as triangles."""
    low = y < FLOOR
    axis.plot(x, np.maximum(y, FLOOR), **style)
    axis.plot(x[low], np.full(low.sum(), FLOOR), "v", ms=8, color=style["color"], zorder=4)


def _kind(line: Line) -> str:
    return line.points[0].runs[0].config.model.kind


def _labels(lines: list[Line]) -> list[str]:
    """Return the names in the legend, such as ViT (p16_h256_L6); of several that are alike, those of the series."""
    labels = []
    for line in lines:
        model = line.points[0].runs[0].config.model
        name = KINDS[model.kind][0] if model.kind in KINDS else model.kind
        sizes = f" (p{model.patch_size}_h{model.hidden_size}_L{model.num_hidden_layers})" if model.kind == "vit" else ""
        labels.append(name + sizes)
    alike = Counter(labels)
    return [label if alike[label] == 1 else line.series.name for label, line in zip(labels, lines, strict=True)]


def _styles(lines: list[Line]) -> list[tuple[str, str]]:
    """Return colour and marker of each line."""
    free, seen = itertools.cycle(OTHERS), set[str]()
    styles = []
    for kind in map(_kind, lines):
        styles.append(KINDS[kind][2:] if kind in KINDS and kind not in seen else next(free))
        seen.add(kind)
    return styles


def _change_places(pair: Pair) -> bool:
    """Return whether the pair is a ViT and LightGBM of which one overtakes the other between two sizes."""
    return {_kind(pair.ahead), _kind(pair.behind)} == {"vit", "lightgbm"} and 0 < pair.crossover.rows < np.inf


def _mark(axis: Any, pair: Pair, number: int) -> None:
    """Point at where the lines cross, from the upper left, where a score that grows with the rows leaves room."""
    sizes, mean_K = pair.ahead.rows_K, [point.scores["r2"].mean for point in pair.ahead.points]
    height = float(np.interp(np.log(pair.crossover.rows), np.log(sizes), mean_K))
    ahead, behind = (KINDS[_kind(line)][1] for line in (pair.ahead, pair.behind))
    doubt = ", not certain" if np.isinf(pair.crossover.high) else ""
    axis.annotate(
        f"{ahead} > {behind} @{_size(float(f'{pair.crossover.rows:.2g}'))}{doubt}",
        (pair.crossover.rows, max(height, FLOOR)),
        (0.04, 0.93 - 0.09 * number),
        textcoords="axes fraction",
        arrowprops={"arrowstyle": "->", "color": "0.3"},
        bbox={"boxstyle": "round", "fc": "white", "ec": "0.7"},
        zorder=1,  # points and lines are above it
    )


def _size(rows: float) -> str:
    """Return 50k for 50,000, 1.2M for 1,200,000, 850 for 850."""
    for size, letter in ((1_000_000, "M"), (1000, "k")):
        if rows >= size:
            return f"{rows / size:g}{letter}"
    return f"{rows:g}"


def _note(scaling: Scaling, crossed: list[Pair]) -> str:
    missing = sum(count.total() for line in scaling.lines for count in line.series.missing.values())
    left = [f"not in the figure: {counted(missing, 'run')} without a test score"] if missing else []
    facts = [f"{scaling.label}: {scaling.test_set.description}", NOTE, *map(pair_sentence, crossed), *left]
    return ". ".join(facts) + "."
