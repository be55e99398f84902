"""What `specvit analysis ceiling` found, as CSV, markdown and JSON; numbers with their runs, seeds and definitions."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specvit import __version__
from specvit.analysis.runs import Setting, TestSet
from specvit.metrics.format import bin_name
from specvit.tracking.metric_files import finite_or_none
from specvit.utils.files import write_json, write_text
from specvit.utils.provenance import commit
from specvit.utils.quantities import LABELS, unit_of
from specvit.utils.text import csv_text, markdown_table

Row = dict[str, Any]

SNR = "median over pixels of flux / error, divided by the noise level"
CEILINGS = {
    "van_trees": "van Trees",
    "crlb_median": "Cramér-Rao, median",
    "crlb_mean": "Cramér-Rao, mean",
}
DEFINITIONS = {
    "r2": "1 - (mean squared error or variance bound) / variance of the label over the stars of the bin",
    "van_trees": "least mean squared error of any estimator over stars spread uniformly in the labels' box, "
    "which may know magnitude, throughput, the flux's amplitude and (unless it is the label) C_M",
    "crlb_median": "median over stars of the least variance of an unbiased estimator, which knows neither the other "
    "labels nor the amplitude",
    "crlb_mean": "mean over stars of the same; a biased estimator may be above it",
    "snr": SNR,
    "fixed mag": "the same stars all at one magnitude, over the variance of a uniform box",
}
NO_VAN_TREES = "no van Trees bound: how a file's stars were drawn, and how their noise follows the labels, is not in it"
SPREAD = {"model": "standard deviation over seeds", "ceiling": "sampling error of the bound"}
COLUMNS: tuple[str, ...] = (
    "kind",
    "name",
    "by",
    "low",
    "high",
    "rows",
    "snr",
    "r2",
    "spread",
    "bound",
    "label_variance",
    "seeds",
)
COLUMNS += ("run_ids", "label", "noise_level", "noise_type", "test_set", "snr_definition")


@dataclass(frozen=True)
class Findings:
    """Runs on one test set with its ceilings."""

    label: str
    test_set: TestSet
    rows: list[Row]
    """Ceilings by bin, see `ceilings.Ceilings`; all stars first."""
    fixed: list[Row]
    models: list[tuple[Setting, list[Row]]]
    """Each setting's R² in the bins of `rows`: `r2` seed by seed, `mean` and `sd`."""
    reference: list[Row]
    without_bound: int
    seconds: float

    def of(self, by: str) -> list[Row]:
        """Return the ceilings by `snr`, by `mag` or of `all`."""
        return [row for row in self.rows if row["by"] == by]


def model_rows(setting: Setting, bins: Sequence[Row], stars: int) -> list[Row]:
    """Return R² of a setting's runs in each bin, over the test set's first `stars` rows, those of the ceilings."""
    found = []
    for place in bins:
        values = [run.r2(_inside(run, place, stars)) for run in setting.runs]
        known = [value for value in values if value is not None]
        mean = statistics.fmean(known) if known else None
        spread = statistics.stdev(known) if len(known) > 1 else None
        found.append(
            {**{name: place[name] for name in ("by", "low", "high")}, "r2": values, "mean": mean, "sd": spread}
        )
    return found


def _inside(run: Any, place: Row, stars: int) -> np.ndarray:
    early_N = np.arange(len(run.true_N)) < stars
    if place["by"] == "all":
        return early_N
    value_N = run.snr_N if place["by"] == "snr" else run.mag_N
    return early_N & (value_N >= place["low"]) & (value_N < place["high"])


def write_findings(found: Findings, out: Path) -> None:
    """Write ceiling.csv, ceiling.md and ceiling.json into `out`."""
    write_text(out / "ceiling.csv", csv_text(list(_lines(found)), COLUMNS))
    write_text(out / "ceiling.md", "\n".join(_markdown(found)) + "\n")
    write_json(out / "ceiling.json", _plain(found))


def _lines(found: Findings) -> Iterator[Row]:
    """Yield the lines of the CSV: one a bin and ceiling, one a bin and setting, one a published point."""
    general = {**about(found.label, found.test_set), "snr_definition": SNR}
    for row in [*found.rows, *found.fixed]:
        place = {name: row[name] for name in ("by", "low", "high", "rows", "snr", "label_variance")}
        for name in CEILINGS:
            if row.get(name) is not None:
                facts = {"kind": "ceiling", "name": name, "r2": row[f"{name}_r2"], "bound": row[name]}
                yield {**general, **place, **facts, "spread": row.get(f"{name}_r2_se")}
    for setting, rows in found.models:
        who = {"kind": "model", "name": setting.name, **seeds_and_ids(setting)}
        for place, row in zip(found.rows, rows, strict=True):
            facts = {name: place[name] for name in ("by", "low", "high", "rows", "snr", "label_variance")}
            yield {**general, **who, **facts, "r2": row["mean"], "spread": row["sd"]}
    for point in found.reference:
        yield {"kind": "reference", "by": "snr", **{name: point[name] for name in ("name", "snr", "r2")}}


def about(label: str, test_set: TestSet) -> Row:
    """Return what every number is about."""
    noise = test_set.runs[0].config.noise
    return {
        "label": label,
        "noise_level": noise.noise_level,
        "noise_type": noise.noise_type,
        "test_set": test_set.said,
    }


def seeds_and_ids(setting: Setting) -> Row:
    """Return the seeds and run ids of a setting."""
    return {
        "seeds": " ".join(str(run.seed) for run in setting.runs),
        "run_ids": " ".join(run.run_id for run in setting.runs),
    }


def _plain(found: Findings) -> Row:
    """Return all as JSON can hold it; open ends of bins, and what is not finite, are null."""
    settings = []
    for setting, rows in found.models:
        runs = [{"run_id": run.run_id, "seed": run.seed, "folder": str(run.folder)} for run in setting.runs]
        settings.append({"name": setting.name, "runs": runs, "bins": [finite_or_none(row) for row in rows]})
    return {
        **about(found.label, found.test_set),
        "definitions": DEFINITIONS,
        "spread": SPREAD,
        "ceilings": [finite_or_none(row) for row in found.rows],
        "fixed_magnitudes": [finite_or_none(row) for row in found.fixed],
        "stars_without_crlb": found.without_bound,
        "models": settings,
        "reference": found.reference,
        "seconds": round(found.seconds, 1),
        "specvit": __version__,
        "commit": commit(),
    }


def _markdown(found: Findings) -> Iterator[str]:
    unit = f" in {unit_of(found.label)}" if unit_of(found.label) else ""
    said = LABELS[found.label].meaning if found.label in LABELS else found.label
    yield f"# How well {found.label} can be read"
    yield f"\n{said.capitalize()}{unit}; {found.test_set.said}; {found.rows[0]['rows']:,} stars."
    for by, title in (("all", "all stars"), ("snr", "S/N"), ("mag", "magnitude")):
        if found.of(by):
            yield ""
            yield from markdown_table(_ceiling_table(found.of(by), title))
    if found.fixed:
        yield ""
        yield from markdown_table(_ceiling_table(found.fixed, "magnitude, all stars at"))
    for by, title in (("snr", "R² by S/N"), ("mag", "R² by magnitude")):
        if found.of(by):
            yield ""
            yield from markdown_table(_model_table(found, by, title))
    yield ""
    yield from markdown_table(
        [["runs", "seeds", "run ids"], *([s.name, *seeds_and_ids(s).values()] for s, _ in found.models)]
    )
    yield ""
    for name, meaning in DEFINITIONS.items():
        yield f"- {CEILINGS.get(name, {'r2': 'R²', 'snr': 'S/N'}.get(name, name))}: {meaning}."
    yield "- ±: of runs the standard deviation over seeds, of the van Trees bound its sampling error."
    if all(row["van_trees"] is None for row in found.rows):
        yield f"- {NO_VAN_TREES}."
    if found.without_bound:
        yield f"- {found.without_bound} stars have a singular Fisher matrix; their Cramér-Rao variance is infinite."


def _ceiling_table(rows: list[Row], title: str) -> list[list[str]]:
    head = [title, "stars", "median S/N", *(f"R² {said}" for said in CEILINGS.values()), "sigma by median"]
    cells = []
    for row in rows:
        bounds = [figure(row.get(f"{name}_r2"), row.get(f"{name}_r2_se")) for name in CEILINGS]
        sigma = f"{row['crlb_median'] ** 0.5:.3g}"
        cells.append([_place(row), f"{row['rows']:,}", f"{row['snr']:.1f}", *bounds, sigma])
    return [head, *cells]


def _model_table(found: Findings, by: str, title: str) -> list[list[str]]:
    places = [number for number, row in enumerate(found.rows) if row["by"] in (by, "all")]
    head = [title, *(_place(found.rows[number]) for number in places)]
    cells = [
        [said, *(figure(found.rows[number].get(f"{name}_r2"), None) for number in places)]
        for name, said in CEILINGS.items()
    ]
    for setting, rows in found.models:
        cells.append([setting.name, *(figure(rows[number]["mean"], rows[number]["sd"]) for number in places)])
    return [head, *cells]


def _place(row: Row) -> str:
    if row["by"] == "all":
        return "all"
    return f"{row['low']:g}" if row["low"] == row["high"] else bin_name(row["low"], row["high"])


def figure(value: float | None, spread: float | None, *, whole: bool = False) -> str:
    """Return a score, or a `whole` number such as one of steps, with its spread, if there is one."""
    if value is None or np.isnan(value):
        return ""
    digits = ",.0f" if whole else ".3f"
    return f"{value:{digits}}" + (f" ± {spread:{digits}}" if spread is not None else "")
