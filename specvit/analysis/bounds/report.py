"""What `specvit analysis ceiling` reports, and the reader of that file."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from specvit.analysis.grouping import Setting, TestSet
from specvit.analysis.records import Run, r2_inside
from specvit.analysis.report import Row, bullets, table, with_spread, write_report
from specvit.metrics.format import bin_name
from specvit.utils.errors import DataError
from specvit.utils.files import read_json
from specvit.utils.quantities import LABELS, unit_of
from specvit.utils.text import counted

if TYPE_CHECKING:
    from specvit.analysis.bounds.r2_bounds import Bounds  # imports torch

SNR = "median over pixels of flux / error, divided by the noise level"
CEILINGS = {"van_trees": "van Trees", "crlb_median": "Cramér-Rao, median", "crlb_mean": "Cramér-Rao, mean"}
DEFINITIONS = {
    "r2": "1 - (mean squared error or variance bound) / variance of the label over the stars of the bin",
    "van_trees": "least mean squared error of any estimator over stars spread uniformly in the labels' box, "
    "which may know magnitude, throughput, the flux's amplitude and (unless it is the label) C_M",
    "crlb_median": "median over stars of the least variance of an unbiased estimator, which knows neither the other "
    "labels nor the amplitude",
    "crlb_mean": "mean over stars of the same; a biased estimator may be above it",
    "snr": SNR,
    "fixed mag": "the same stars all at one magnitude, over the variance of the population that they are drawn from",
}
SPREAD = {"model": "standard deviation over seeds", "ceiling": "sampling error of the bound"}
COLUMNS = ("kind", "name", "by", "low", "high", "rows", "snr", "r2", "spread", "bound", "label_variance", "seeds")
COLUMNS += ("run_ids", "label", "noise_level", "noise_type", "test_set", "snr_definition")
PLACE = ("by", "low", "high", "rows", "snr", "label_variance")
LOWEST_SHOWN = 0.0
"""Smaller bounds are not drawn: a Cramér-Rao mean far below 0 would stretch a figure and says nothing."""


@dataclass(frozen=True)
class BoundsReport:
    """Runs on one test set with its bounds."""

    label: str
    test_set: TestSet
    bounds: "Bounds"
    models: list[tuple[Setting, list[Row]]]
    """Each setting's R² in the bins of the bounds: `r2` seed by seed, `mean` and `sd`."""
    reference: list[Row]

    @property
    def rows(self) -> list[Row]:
        """The bounds by bin; all stars first."""
        return self.bounds.rows

    def of(self, by: str) -> list[Row]:
        """Return the bounds by `snr`, by `mag` or of `all`."""
        return [row for row in self.rows if row["by"] == by]


def model_rows(setting: Setting, bins: Sequence[Row], stars: int) -> list[Row]:
    """Return R² of a setting's runs in each bin, over the test set's first `stars` rows, those of the bounds."""
    rows = []
    for row in bins:
        values = [r2_inside(run, _inside(run, row, stars)) for run in setting.runs]
        known = [value for value in values if value is not None]
        mean = statistics.fmean(known) if known else None
        spread = statistics.stdev(known) if len(known) > 1 else None
        rows.append({**{name: row[name] for name in ("by", "low", "high")}, "r2": values, "mean": mean, "sd": spread})
    return rows


def _inside(run: Run, row: Row, stars: int) -> np.ndarray:
    """Return which of a run's test rows (N,) are in a bin."""
    early_N = np.arange(len(run.true_N)) < stars
    if row["by"] == "all":
        return early_N
    value_N = run.snr_N if row["by"] == "snr" else run.mag_N
    return early_N & (value_N >= row["low"]) & (value_N < row["high"])


def read_bounds(test_set: TestSet, label: str, folders: Iterable[Path], file: Path | None = None) -> dict[str, float]:
    """Return R² of each kind of bound over all stars, by `read_bins`; empty if nothing is written."""
    of_all = next(iter(read_bins(test_set, label, folders, file)), {})
    values = {name: of_all.get(f"{name}_r2") for name in CEILINGS}
    return {name: value for name, value in values.items() if value is not None and value > LOWEST_SHOWN}


def read_bins(test_set: TestSet, label: str, folders: Iterable[Path], file: Path | None = None) -> list[Row]:
    """Return the bounds by bin as `analysis ceiling` wrote them to `file`, or into one of the folders, all stars first.

    Open ends of bins are None. Empty if nothing is written; raises `DataError` for a `file` without bounds.
    """
    names = ("ceiling.json", f"{test_set.short}/ceiling.json")
    for path in [file] if file else [folder / "ceiling" / name for folder in folders for name in names]:
        written = read_json(path)
        if not isinstance(written, dict) or "ceilings" not in written:
            if file:
                remedy = "--ceilings takes the ceiling.json that `specvit analysis ceiling` writes"
                raise DataError("holds no ceilings", where=str(path), remedy=remedy)
            continue
        if (written["test_set"], written["label"]) == (test_set.description, label):
            return written["ceilings"]
    return []


def write_bounds(report: BoundsReport, out: Path) -> None:
    """Write ceiling.csv, ceiling.md and ceiling.json into `out`; open ends of bins are null in JSON."""
    models = []
    for setting, rows in report.models:
        runs = [{"run_id": run.run_id, "seed": run.seed, "folder": str(run.folder)} for run in setting.trained]
        models.append({"name": setting.name, "runs": runs, "bins": rows})
    facts = {
        **report.test_set.facts(report.label),
        "definitions": DEFINITIONS,
        "spread": SPREAD,
        "ceilings": report.rows,
        "fixed_magnitudes": report.bounds.fixed,
        "stars_without_crlb": report.bounds.without_bound,
        "models": models,
        "reference": report.reference,
        "seconds": round(report.bounds.seconds, 1),
    }
    rows = list(_csv_rows(report))
    write_report(out, "ceiling", rows=rows, columns=COLUMNS, facts=facts, blocks=_blocks(report))


def _csv_rows(report: BoundsReport) -> Iterator[Row]:
    """Yield a row for each bin and bound, each bin and setting, and each published point."""
    general = {**report.test_set.facts(report.label), "snr_definition": SNR}
    for row in [*report.rows, *report.bounds.fixed]:
        for name in CEILINGS:
            if row.get(name) is not None:
                facts = {"kind": "ceiling", "name": name, "r2": row[f"{name}_r2"], "bound": row[name]}
                yield {**general, **_place(row), **facts, "spread": row.get(f"{name}_r2_se")}
    for setting, rows in report.models:
        about = {**general, "kind": "model", "name": setting.name, **setting.seeds_and_ids}
        for bounds, row in zip(report.rows, rows, strict=True):
            yield {**about, **_place(bounds), "r2": row["mean"], "spread": row["sd"]}
    for point in report.reference:
        yield {"kind": "reference", "by": "snr", **{name: point[name] for name in ("name", "snr", "r2")}}


def _place(row: Row) -> Row:
    return {name: row[name] for name in PLACE}


def _blocks(report: BoundsReport) -> Iterator[str]:
    """Yield the markdown."""
    unit = f" in {unit_of(report.label)}" if unit_of(report.label) else ""
    meaning = LABELS[report.label].meaning if report.label in LABELS else report.label
    yield f"# How well {report.label} can be read"
    yield f"{meaning.capitalize()}{unit}; {report.test_set.description}; {report.rows[0]['rows']:,} stars."
    for by, title in (("all", "all stars"), ("snr", "S/N"), ("mag", "magnitude")):
        if report.of(by):
            yield table(_bound_cells(report.of(by), title))
    if report.bounds.fixed:
        yield table(_bound_cells(report.bounds.fixed, "magnitude, all stars at"))
    for by, title in (("snr", "R² by S/N"), ("mag", "R² by magnitude")):
        if report.of(by):
            yield table(_model_cells(report, by, title))
    yield table([["runs", "seeds", "run ids"], *([s.name, *s.seeds_and_ids.values()] for s, _ in report.models)])
    names = {**CEILINGS, "r2": "R²", "snr": "S/N"}
    notes = [f"{names.get(name, name)}: {meaning}" for name, meaning in DEFINITIONS.items()]
    notes.append("±: of runs the standard deviation over seeds, of the van Trees bound its sampling error")
    if report.bounds.no_van_trees:
        notes.append(f"no van Trees bound: {report.bounds.no_van_trees}")
    if report.bounds.without_bound:
        notes.append(
            f"{counted(report.bounds.without_bound, 'star')} with a singular Fisher matrix, and so an infinite "
            "Cramér-Rao variance"
        )
    yield bullets(notes)


def _bound_cells(rows: list[Row], title: str) -> list[list[str]]:
    cells = [[title, "stars", "median S/N", *(f"R² {name}" for name in CEILINGS.values()), "sigma by median"]]
    for row in rows:
        bounds = [with_spread(row.get(f"{name}_r2"), row.get(f"{name}_r2_se")) for name in CEILINGS]
        sigma = f"{row['crlb_median'] ** 0.5:.3g}"
        cells.append([_bin_title(row), f"{row['rows']:,}", f"{row['snr']:.1f}", *bounds, sigma])
    return cells


def _model_cells(report: BoundsReport, by: str, title: str) -> list[list[str]]:
    bins = [number for number, row in enumerate(report.rows) if row["by"] in (by, "all")]
    cells = [[title, *(_bin_title(report.rows[number]) for number in bins)]]
    for name, shown in CEILINGS.items():
        cells.append([shown, *(with_spread(report.rows[number].get(f"{name}_r2"), None) for number in bins)])
    for setting, rows in report.models:
        cells.append([setting.name, *(with_spread(rows[number]["mean"], rows[number]["sd"]) for number in bins)])
    return cells


def _bin_title(row: Row) -> str:
    if row["by"] == "all":
        return "all"
    return f"{row['low']:g}" if row["low"] == row["high"] else bin_name(row["low"], row["high"])
