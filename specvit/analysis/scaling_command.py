"""`specvit analysis scaling`: scores by training rows, one folder of results for each test set."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from specvit.analysis.bounds.report import CEILINGS
from specvit.analysis.published_points import Point, read_reference
from specvit.analysis.runs import TestSet, by_test_set, finished_runs
from specvit.analysis.scaling import said, scaling_of
from specvit.analysis.scaling_figure import draw_scaling
from specvit.analysis.scaling_report import write_scaling
from specvit.analysis.series import Series, add_missing, series_of
from specvit.tracking.figures import attempt
from specvit.utils.errors import DataError
from specvit.utils.files import read_json

LOWEST_SHOWN = 0.0
"""A Cramér-Rao mean far below 0 says nothing here and would stretch the figure."""


def scaling(options: argparse.Namespace) -> int:
    """Score, compare, write and draw the runs of each test set."""
    reference = read_reference(options.reference, "rows") if options.reference else []
    runs, notes = finished_runs(options.folder, options.label, noiseless=True)
    sets = by_test_set(runs)
    out = options.out or (options.folder[0] / "scaling" if len(options.folder) == 1 else Path("scaling"))
    print("\n".join(notes + [f"test set: {found.said}, {len(found.runs)} run(s)" for found in sets]), flush=True)
    if len(sets) > 1:
        print(f"scores on different test sets are not compared: each of the {len(sets)} has its own folder in {out}")
    for found in sets:
        series = series_of(found)
        if len(sets) == 1:
            add_missing(series, options.folder)
        _one_set(found, series, options, reference, out / found.short if len(sets) > 1 else out)
    return 0


def _one_set(
    found: TestSet, series: list[Series], options: argparse.Namespace, reference: list[Point], out: Path
) -> None:
    allowed = ceilings_of(found, options.label, options.folder, options.ceilings)
    if not allowed:
        print(f"note: no ceilings for {found.said}; `specvit analysis ceiling` computes them", flush=True)
    grown = scaling_of(options.label, found, series, allowed.get("van_trees", 1.0))
    out.mkdir(parents=True, exist_ok=True)
    write_scaling(grown, reference, out)
    for name in ("scaling.png", "scaling.pdf"):
        attempt(out / name, lambda path: draw_scaling(grown, reference, allowed, path), print)
    print("\n".join(said(pair) for pair in grown.pairs))
    print(f"written: {out}", flush=True)


def ceilings_of(found: TestSet, label: str, folders: Iterable[Path], named: Path | None = None) -> dict[str, float]:
    """Return R² of each kind of ceiling, where `analysis ceiling` has computed them; raises `DataError`."""
    for path in [named] if named else _written_for(folders, found):
        written = read_json(path)
        if not isinstance(written, dict) or "ceilings" not in written:
            if named:
                remedy = "--ceilings takes the ceiling.json that `specvit analysis ceiling` writes"
                raise DataError("holds no ceilings", where=str(path), remedy=remedy)
            continue
        if (written["test_set"], written["label"]) == (found.said, label):
            whole = written["ceilings"][0]
            values = {name: whole.get(f"{name}_r2") for name in CEILINGS}
            return {name: value for name, value in values.items() if value is not None and value > LOWEST_SHOWN}
    return {}


def _written_for(folders: Iterable[Path], found: TestSet) -> Iterable[Path]:
    for folder in folders:
        yield folder / "ceiling" / "ceiling.json"
        yield folder / "ceiling" / found.short / "ceiling.json"
