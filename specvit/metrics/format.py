"""Scores as text for the terminal: the same line at the end of a run, when it is requested again, and in `evaluate`.

Rows are those of `metrics.scores`; runs recorded before there were intervals have none, and are printed without.
"""

from collections.abc import Sequence
from typing import Any

from specvit.metrics.metrics import CLASSIFICATION, REGRESSION
from specvit.utils.quantities import unit_of
from specvit.utils.text import text_table

Row = dict[str, Any]
MAIN_METRICS = ("r2", "mae", "mae_norm", "accuracy")
"""On a row's first line; `mae_norm` is `mae` in another unit."""


def summary_line(summary: dict[str, Any]) -> str:
    """Return the test scores of a run's `summary.json`, of each label, in one line."""
    if "test_rows" not in summary:
        return "no test scores on file"
    row = {name.removeprefix("test_"): value for name, value in summary.items() if name.startswith("test_")}
    first = row_line({**row, "label": summary.get("label", "")})
    names = [
        name.removeprefix("r2_") for name in row if name.startswith("r2_") and not name.endswith(("_low", "_high"))
    ]
    others = [row_line({**_of_label(row, name), "label": name}) for name in names if name != summary.get("label")]
    return "; ".join([f"test {first}", *others])


def _of_label(row: Row, label: str) -> Row:
    """Return the main scores of one of several labels, from flat names as in `metrics.scores.flat_scores`."""
    names = {"r2": f"r2_{label}", "mae": f"mae_{label}", "r2_low": f"r2_{label}_low", "r2_high": f"r2_{label}_high"}
    return {metric: row.get(name) for metric, name in names.items()}


def row_line(row: Row) -> str:
    """Return the main scores of one label, or of classes, with the interval of the first."""
    spectra = f"{row['rows']:,} spectr{'um' if row['rows'] == 1 else 'a'}" if "rows" in row else ""
    if "accuracy" in row:
        return f"accuracy {with_interval(row, 'accuracy', '.4f', '.3f')} ({spectra})"
    unit = f" {unit_of(row['label'])}".rstrip()
    small = not _missing(row["mae"]) and row["mae"] < 0.01  # redshifts
    mae = with_interval({"mae": row["mae"]}, "mae", ".4g" if small else ".4f", "")
    about = f"{row['label']}, {spectra}" if spectra else row["label"]
    return f"R² {with_interval(row, 'r2', '.4f', '.3f')}, MAE {mae}{unit} ({about})"


def rest_line(row: Row) -> str:
    """Return the further scores of one label, or of classes, with their intervals."""
    further = [metric for name, metric in (REGRESSION | CLASSIFICATION).items() if name not in MAIN_METRICS]
    shown = [metric for metric in further if metric.name in row]
    return ", ".join(f"{metric.title} {with_interval(row, metric.name, '.4g', '.3g')}" for metric in shown)


def with_interval(row: Row, metric: str, style: str, ends: str) -> str:
    """Return "value [low, high]"; "undefined" where there is no value, and no brackets where there is no interval."""
    value, low, high = (row.get(name) for name in (metric, f"{metric}_low", f"{metric}_high"))
    if _missing(value):
        return "undefined"
    return f"{value:{style}}" if _missing(low) else f"{value:{style}} [{low:{ends}}, {high:{ends}}]"


def bin_lines(rows: Sequence[Row], quantity: str) -> list[str]:
    """Return a table of bins in `quantity` ("S/N", "mag"), aligned; no line where there is no bin."""
    if not rows:
        return []
    metrics = list(CLASSIFICATION.values()) if "accuracy" in rows[0] else [REGRESSION["r2"], REGRESSION["mae"]]
    cells = [[quantity, "label", "spectra", *(metric.title for metric in metrics)]]
    for row in rows:
        label = f"{row['label']} [{unit_of(row['label'])}]" if unit_of(row["label"]) else row["label"]
        shown = [with_interval(row, metric.name, *metric.formats) for metric in metrics]
        cells.append([bin_name(row["low"], row["high"]), label, f"{row['rows']:,}", *shown])
    return [f"  {line}" for line in text_table(cells)]


def bin_name(low: float, high: float) -> str:
    """Return "4 to 6", or "< 20.5" and "≥ 18" where a side is open."""
    if high == float("inf"):
        return f"≥ {low:g}"
    return f"< {high:g}" if low == float("-inf") else f"{low:g} to {high:g}"


def _missing(value: float | None) -> bool:
    return value is None or value != value
