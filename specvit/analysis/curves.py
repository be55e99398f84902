"""Training curves of many runs in one figure: one colour a setting, one line a seed."""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specvit.analysis.ablation import combinations
from specvit.analysis.bounds.figure import DPI
from specvit.analysis.records import Case, cases_in
from specvit.tracking.figures import attempt, canvas
from specvit.utils.errors import FolderError
from specvit.utils.files import write_atomic

MOST_NAMED = 10
"""Most settings with a colour and a name, the first ones; the others are thin and grey."""
PANELS = (("val_r2", "validation R²"), ("train_loss", "training loss"))
CLASS_PANELS = (("val_accuracy", "validation accuracy"), ("train_loss", "training loss"))


def curves(options: argparse.Namespace) -> int:
    """Draw the curves of the runs that are named."""
    cases, notes = cases_in(options.folder)
    if not any(case.outcome.rows for case in cases):
        where = ", ".join(map(str, options.folder))
        raise FolderError("has no run with an epoch to draw", where=where, remedy="wait for the first epochs")
    out = options.out or (options.folder[0] / "curves" if len(options.folder) == 1 else Path("curves"))
    out.mkdir(parents=True, exist_ok=True)
    for name in ("curves.png", "curves.pdf"):
        attempt(out / name, lambda path: draw_many(cases, path), print)
    print("\n".join([*notes, f"written: {out}"]), flush=True)
    return 0


def draw_many(cases: Sequence[Case], path: Path) -> None:
    """Draw score and loss by step into `path`, a PNG of 300 dpi or a PDF by its ending."""
    figure, axes = canvas(1, 2, (10.0, 3.8))
    settings = [one for one in combinations(cases, "test_r2") if any(case.outcome.rows for case in one.cases)]
    classes = any("val_accuracy" in row for case in cases for row in case.outcome.rows[:1])
    for (name, said), axis in zip(CLASS_PANELS if classes else PANELS, axes[0], strict=True):
        for number, one in enumerate(settings):
            named = number < MOST_NAMED
            style: dict[str, Any] = {"color": f"C{number}" if named else "0.75", "lw": 1.0 if named else 0.6}
            label = ", ".join(map(str, one.factors.values())) or "all" if named else None
            for case, once in zip(one.cases, itertools.chain([label], itertools.repeat(None)), strict=False):
                points = [(row["step"], row[name]) for row in case.outcome.rows if isinstance(row.get(name), float)]
                if points:
                    axis.plot(*zip(*points, strict=True), label=once, **style)
        axis.set(xlabel="step", ylabel=said)
        axis.grid(alpha=0.25)
    axes[0, 0].set_ylim(bottom=-0.1)  # what is far below 0 says nothing more
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=7, frameon=False)
    kind = path.suffix.removeprefix(".")
    write_atomic(path, lambda stream: figure.savefig(stream, format=kind, dpi=DPI))
