"""Published points to draw under a figure: a file of name, R² and the abscissa, S/N or training rows.

CSV with a header that has `name`, `r2` and `snr` or `rows`, one point a line; or JSON, a list of objects with these
keys. Points of one name are joined. A file may hold points of both kinds. Other columns are kept in the JSON of the
figure and ignored otherwise.
"""

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from specvit.utils.errors import DataError

FORM = "a CSV file with the columns name,{x},r2, or a JSON list of objects with these keys"

Point = dict[str, Any]


def read_reference(path: Path, x: str) -> list[Point]:
    """Return the points of a file that have `x`, with it and `r2` as numbers; raises `DataError` naming the line."""
    form = f"--reference takes {FORM.format(x=x)}"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as problem:
        raise DataError("no such file", where=str(path), remedy=form) from problem
    except UnicodeDecodeError as problem:
        raise DataError("is not a text file", where=str(path), remedy=form) from problem
    rows = list(_rows(path, text, form))
    if not rows:
        raise DataError("holds no point", where=str(path), remedy=form)
    others = {"snr", "rows"} - {x}
    points = [
        _point(row, x, f"{path} {where}", form)
        for where, row in rows
        if not (isinstance(row, dict) and not row.get(x) and any(row.get(other) for other in others))
    ]
    if not points:
        raise DataError(f"holds no point with {x}", where=str(path), remedy=form)
    return points


def _rows(path: Path, text: str, form: str) -> Iterable[tuple[str, Any]]:
    """Return each point with its place in the file."""
    if text.lstrip().startswith(("[", "{")):
        try:
            points = json.loads(text)
        except ValueError as problem:
            raise DataError(f"is not JSON ({problem})", where=str(path), remedy="correct it") from problem
        if not isinstance(points, list):
            raise DataError("is not a list", where=str(path), remedy=form)
        return ((f"point {number}", row) for number, row in enumerate(points, 1))
    reader = csv.DictReader(text.splitlines())
    return ((f"line {reader.line_num}", row) for row in reader)


def _point(row: Any, x: str, where: str, form: str) -> Point:
    if not isinstance(row, dict) or any(row.get(name) in (None, "") for name in ("name", x, "r2")):
        raise DataError(f"needs name, {x}, r2", where=where, remedy=form)
    try:
        value, r2 = float(row[x]), float(row["r2"])
    except (TypeError, ValueError) as problem:
        raise DataError(f"{x} or r2 is not a number", where=where, remedy="write them like 8.2 and 0.75") from problem
    if not (math.isfinite(value) and value > 0 and math.isfinite(r2) and r2 <= 1):
        what = f"{x} {value:g} with r2 {r2:g} is impossible"
        raise DataError(what, where=where, remedy=f"{x} is above 0, r2 1 at most")
    return {**{k: v for k, v in row.items() if k is not None}, "name": str(row["name"]), x: value, "r2": r2}
