"""Scores in words, for the terminal: the same line at the end of a run, when it is asked for again, and in `evaluate`.

Scores are rows as in `metrics.tables`; runs recorded before there were intervals have none, and are told without.
"""

from collections.abc import Sequence
from typing import Any

from specvit.utils.quantities import unit_of

Row = dict[str, Any]


def summary_line(summary: dict[str, Any]) -> str:
    """Return the test scores of a run's `summary.json` in one line."""
    if "test_rows" not in summary:
        return "no test scores on file"
    row = {name.removeprefix("test_"): value for name, value in summary.items() if name.startswith("test_")}
    return f"test {row_line({**row, 'label': summary.get('label', '')})}"


def row_line(row: Row) -> str:
    """Return the main scores of one label, or of classes, with the interval of the first."""
    if "accuracy" in row:
        return f"accuracy {with_interval(row, 'accuracy', '.4f', '.3f')} ({_spectra(row['rows'])})"
    unit = f" {unit_of(row['label'])}".rstrip()
    small = not _missing(row["mae"]) and row["mae"] < 0.01  # redshifts
    r2, mae = (
        with_interval(row, "r2", ".4f", ".3f"),
        with_interval({"mae": row["mae"]}, "mae", ".4g" if small else ".4f", ""),
    )
    return f"R² {r2}, MAE {mae}{unit} ({row['label']}, {_spectra(row['rows'])})"


def rest_line(row: Row) -> str:
    """Return the further scores of one label, or of classes, with their intervals."""
    names = {"rmse": "RMSE", "bias": "bias", "p90": "p90", "slope": "slope", "balanced_accuracy": "balanced accuracy"}
    return ", ".join(f"{said} {with_interval(row, name, '.4g', '.3g')}" for name, said in names.items() if name in row)


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
    metrics = ("accuracy", "balanced_accuracy") if "accuracy" in rows[0] else ("r2", "mae")
    head = [quantity, "label", "spectra", *({"r2": "R²", "mae": "MAE"}.get(name, name) for name in metrics)]
    cells = [head]
    for row in rows:
        label = f"{row['label']} [{unit_of(row['label'])}]" if unit_of(row["label"]) else row["label"]
        shown = [with_interval(row, name, *STYLES.get(name, (".4g", ".3g"))) for name in metrics]
        cells.append([bin_name(row["low"], row["high"]), label, f"{row['rows']:,}", *shown])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  " + "  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]


def bin_name(low: float, high: float) -> str:
    """Return "4 to 6", or "< 20.5" and "≥ 18" where a side is open."""
    if high == float("inf"):
        return f"≥ {low:g}"
    return f"< {high:g}" if low == float("-inf") else f"{low:g} to {high:g}"


STYLES = {name: (".3f", ".3f") for name in ("r2", "accuracy", "balanced_accuracy")}
"""How shares are shown; values in label units keep four significant digits, since a unit may be K or dex."""


def _spectra(rows: int) -> str:
    return f"{rows:,} spectr{'um' if rows == 1 else 'a'}"


def _missing(value: float | None) -> bool:
    return value is None or value != value
