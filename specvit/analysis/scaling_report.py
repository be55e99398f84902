"""What `specvit analysis scaling` found, as CSV, markdown and JSON; numbers with their runs, seeds and definitions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specvit import __version__
from specvit.analysis.bounds.report import SNR, about, figure
from specvit.analysis.scaling import SCORES, Line, Point, Scaling, plain_law, said
from specvit.metrics.metrics import REGRESSION
from specvit.tracking.metric_files import finite_or_none
from specvit.utils.files import write_json, write_text
from specvit.utils.provenance import commit
from specvit.utils.quantities import unit_of
from specvit.utils.text import csv_text, markdown_table, short_count

Row = dict[str, Any]
DEFINITIONS = {
    "r2": "1 - mean squared error / variance of the label over the test rows, mean over seeds",
    "sd": "standard deviation over seeds",
    "interval": "95 % of 1,000 resamples of test rows (the same for all runs) and of seeds",
    "law": "R²(N) = limit - scale * N^-exponent, least squares through the means",
    "overtakes": "from this N on the mean R² is higher at all sizes in common; linear in log N between sizes",
}
COLUMNS = ("series", "rows", *(f"{name}{end}" for name in SCORES for end in ("", "_sd", "_low", "_high")))
COLUMNS += ("best_epochs", "seeds", "run_ids", "missing", "label", "unit", "noise_level", "noise_type", "test_set")


def write_scaling(found: Scaling, reference: list[Row], out: Path) -> None:
    """Write scaling.csv, .md and .json into `out`, and a scaling_SERIES.json of sizes for each series."""
    write_text(out / "scaling.csv", csv_text(list(_lines(found)), COLUMNS))
    write_text(out / "scaling.md", "\n".join(_markdown(found, reference)) + "\n")
    write_json(out / "scaling.json", _plain(found, reference))
    for line in found.lines:
        name = "".join(letter if letter.isalnum() else "_" for letter in line.series.name)
        write_json(out / f"scaling_{name}.json", by_size(line))


def by_size(line: Line) -> dict[str, Row]:
    """Return a series' scores by size: {"50k": {"test_r2": ..., "test_mae": ..., "best_epoch": ...}}."""
    return {short_count(point.rows): _scores(point) for point in line.points}


def _scores(point: Point) -> Row:
    scores: Row = {}
    for name in SCORES:
        score = point.scores[name]
        scores |= {f"test_{name}": score.mean, f"test_{name}_sd": score.sd}
        scores |= {f"test_{name}_low": score.low, f"test_{name}_high": score.high}
    epochs = point.best_epochs[0] if len(point.best_epochs) == 1 else list(point.best_epochs)
    who = {"seeds": [run.seed for run in point.runs], "run_ids": [run.run_id for run in point.runs]}
    return finite_or_none({**scores, "best_epoch": epochs}) | who


def _lines(found: Scaling) -> Iterator[Row]:
    general = {**about(found.label, found.test_set), "unit": unit_of(found.label)}
    for line in found.lines:
        sizes = sorted({*line.series.points, *line.series.missing})
        points = {point.rows: point for point in line.points}
        for size in sizes:
            row: Row = {**general, "series": line.series.name, "rows": size, "missing": _missing(line, size)}
            if point := points.get(size):
                for name in SCORES:
                    score = point.scores[name]
                    row |= {name: score.mean, f"{name}_sd": score.sd}
                    row |= {f"{name}_low": score.low, f"{name}_high": score.high}
                row["best_epochs"] = " ".join(str(epoch) for epoch in point.best_epochs)
                row["seeds"] = " ".join(str(run.seed) for run in point.runs)
                row["run_ids"] = " ".join(run.run_id for run in point.runs)
            yield row


def _missing(line: Line, size: int) -> str:
    return ", ".join(f"{count} {state}" for state, count in line.series.missing.get(size, {}).items())


def _plain(found: Scaling, reference: list[Row]) -> Row:
    """Return all as JSON can hold it; 0 and null of an interval of sizes are below the first and above the last."""
    models = []
    for line in found.lines:
        missing = {short_count(size): dict(states) for size, states in line.series.missing.items()}
        models.append({"name": line.series.name, "sizes": by_size(line), "missing": missing, "law": plain_law(line)})
    pairs = [
        finite_or_none({"rows": pair.found.rows, "low": pair.found.low, "high": pair.found.high})
        | {"ahead": pair.ahead.series.name, "behind": pair.behind.series.name, "sizes": list(pair.sizes)}
        | {"said": said(pair)}
        for pair in found.pairs
    ]
    return {
        **about(found.label, found.test_set),
        "unit": unit_of(found.label),
        "definitions": DEFINITIONS | {"snr": SNR},
        "limit_at_most": found.limit,
        "models": models,
        "overtaking": pairs,
        "reference": reference,
        "specvit": __version__,
        "commit": commit(),
    }


def _markdown(found: Scaling, reference: list[Row]) -> Iterator[str]:
    unit = unit_of(found.label)
    yield f"# {found.label} by training rows"
    yield f"\n{found.test_set.said}; {len(found.test_set.runs[0].true_N):,} rows."
    for metric in (REGRESSION[name] for name in SCORES):
        yield ""
        title = metric.title + (f", {unit}" if unit and metric.unit else "")
        yield from markdown_table(_table(found, metric.name, title))
    if laws := [line for line in found.lines if line.law]:
        yield ""
        head = ["law", "limit", "exponent"]
        yield from markdown_table([head, *([line.series.name, *_law(line)] for line in laws)])
    yield ""
    yield from (f"- {said(pair)}." for pair in found.pairs)
    if reference:
        yield ""
        head = ["published", "rows", "R²"]
        yield from markdown_table([head, *([p["name"], f"{p['rows']:,.0f}", f"{p['r2']:g}"] for p in reference)])
    yield ""
    head = ["series", "rows", "seeds", "best epochs", "run ids"]
    cells = [
        [line.series.name, f"{p.rows:,}", *_words([r.seed for r in p.runs], p.best_epochs, [r.run_id for r in p.runs])]
        for line in found.lines
        for p in line.points
    ]
    yield from markdown_table([head, *cells])
    yield ""
    yield f"- R²: {DEFINITIONS['r2']}; ±: {DEFINITIONS['sd']}; [ ]: {DEFINITIONS['interval']}."
    yield f"- Law: {DEFINITIONS['law']}; the limit is {found.limit:.3f} at most."
    yield f"- Overtakes: {DEFINITIONS['overtakes']}."


def _words(*lists: Any) -> list[str]:
    return [" ".join(str(item) for item in items) for items in lists]


def _table(found: Scaling, name: str, title: str) -> list[list[str]]:
    sizes = sorted({size for line in found.lines for size in (*line.series.points, *line.series.missing)})
    cells = []
    for line in found.lines:
        points = {point.rows: point for point in line.points}
        row = [line.series.name]
        for size in sizes:
            score = points[size].scores[name] if size in points else None
            text = f"{figure(score.mean, score.sd)} [{score.low:.3f}, {score.high:.3f}]" if score else ""
            row.append(", ".join(part for part in (text, _missing(line, size)) if part))
        cells.append(row)
    return [[title, *(short_count(size) for size in sizes)], *cells]


def _law(line: Line) -> list[str]:
    law = plain_law(line) or {}
    return [
        f"{law[name]['value']:.3f} [{law[name]['interval'][0]:.3f}, {law[name]['interval'][1]:.3f}]"
        for name in ("limit", "exponent")
    ]
