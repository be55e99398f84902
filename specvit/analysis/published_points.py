"""Published points to draw under a figure: a file of name, R² and the abscissa, S/N or training rows.

CSV with a header that has `name`, `r2` and `snr` or `rows`, one point a line, after any lines of remarks that begin
with #; or JSON, a list of objects with these keys. JSON may also hold scores by training rows, as `analysis scaling`
writes them, `{"50k": {"test_r2": 0.43, ...}}`, named by the file, or these by model, `{"ViT": {"50k": {...}}}`. Rows
are a number, or 50k or 1M. Points of one name are joined. A file may hold points of both kinds. Other columns are kept
in the JSON of the figure and ignored otherwise.
"""

import argparse
import csv
import functools
import json
import math
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from specvit.utils.errors import DataError
from specvit.utils.text import read_count

FORM = "a CSV file with the columns name,{x},r2, a JSON list of objects with these keys, or 'published'"
PUBLISHED = "published"
"""The name of the packaged file; one of that name in the working folder is ./published."""

Point = dict[str, Any]


def read_reference(name: str, x: str) -> list[Point]:
    """Return the points of a file that have `x`, with it and `r2` as numbers; raises `DataError` naming the line."""
    form = f"--reference takes {FORM.format(x=x)}"
    place = files("specvit.analysis").joinpath("published.csv") if name == PUBLISHED else Path(name)
    try:
        text = place.read_text(encoding="utf-8-sig")
    except FileNotFoundError as problem:
        raise DataError("no such file", where=name, remedy=form) from problem
    except UnicodeDecodeError as problem:
        raise DataError("is not a text file", where=name, remedy=form) from problem
    rows = list(_rows(name, text, form))
    if not rows:
        raise DataError("holds no point", where=name, remedy=form)
    others = {"snr", "rows"} - {x}
    points = [
        _point(row, x, f"{name} {where}", form)
        for where, row in rows
        if not (isinstance(row, dict) and not row.get(x) and any(row.get(other) for other in others))
    ]
    if not points:
        raise DataError(f"holds no point with {x}", where=name, remedy=form)
    return points


def _rows(name: str, text: str, form: str) -> Iterator[tuple[str, Any]]:
    """Yield each point with its place in the file."""
    if text.lstrip().startswith(("[", "{")):
        try:
            content = json.loads(text, object_pairs_hook=functools.partial(_unique, name))
        except (ValueError, RecursionError) as problem:
            raise DataError(f"is not JSON ({problem})", where=name, remedy="correct it") from problem
        if isinstance(content, dict):
            yield from _by_rows(content, name)
        else:
            yield from ((f"point {number}", row) for number, row in enumerate(content, 1))
        return
    lines = text.splitlines()
    remarks = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    reader = csv.DictReader(lines[remarks:], skipinitialspace=True)
    try:
        _unique(name, [(column, None) for column in reader.fieldnames or ()])
        for row in reader:
            where = f"line {remarks + reader.line_num}"
            if None in row:  # 0,43 would be 0
                what = f"has more cells than the {len(row) - 1} columns of the header"
                raise DataError(
                    what, where=f"{name} {where}", remedy="write decimals with a point, cells with a comma in quotes"
                )
            yield where, row
    except csv.Error as problem:
        raise DataError(f"is not CSV ({problem})", where=name, remedy="correct it") from problem


def _unique(name: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of pairs; raises `DataError` for a key that it has twice, of which Python takes the last."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"has {twice!r} twice", where=name, remedy="keep one of them")
    return content


def _by_rows(content: dict[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    """Yield the points of scores by training rows, or of these by model."""
    one = {key: value for key, value in content.items() if _is_count(key)}
    models = {Path(name).stem: one} | {key: value for key, value in content.items() if key not in one}
    form = 'write {"50k": {"test_r2": 0.43}}, or this for each model by its name'
    for model, sizes in models.items():
        if not isinstance(sizes, dict):
            raise DataError("is neither a number of rows such as 50k nor a model", where=f"{name} {model}", remedy=form)
        if "test_r2" in sizes:
            raise DataError("is not a number of rows such as 50k or 1M", where=f"{name} {model}", remedy=form)
        for size, scores in sizes.items():
            where = size if sizes is one else f"{model}, {size}"
            if not _is_count(size):
                raise DataError("is not a number of rows such as 50k or 1M", where=f"{name} {where}", remedy=form)
            if not isinstance(scores, dict) or "test_r2" not in scores:
                raise DataError("has no test_r2", where=f"{name} {where}", remedy=form)
            yield where, {**scores, "name": model, "rows": size, "r2": scores["test_r2"]}


def _is_count(text: str) -> bool:
    try:
        return read_count(text) > 0
    except argparse.ArgumentTypeError:
        return False


def _number(value: Any) -> float:
    """Return a number, or a count such as 50k; raises `ValueError`."""
    if isinstance(value, str) and _is_count(value):
        return float(read_count(value))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(value)
    return float(value)


def _point(row: Any, x: str, where: str, form: str) -> Point:
    if not isinstance(row, dict) or any(row.get(name) in (None, "") for name in ("name", x, "r2")):
        raise DataError(f"needs name, {x}, r2", where=where, remedy=form)
    try:
        value, r2 = _number(row[x]), _number(row["r2"])
    except (TypeError, ValueError, OverflowError) as problem:
        remedy = "write them like 8.2 and 0.75; rows also like 50k and 1M"
        raise DataError(f"{x} or r2 is not a number", where=where, remedy=remedy) from problem
    if not (math.isfinite(value) and value > 0 and math.isfinite(r2) and r2 <= 1):
        what = f"{x} {value:g} with r2 {r2:g} is impossible"
        raise DataError(what, where=where, remedy=f"{x} is above 0, r2 1 at most")
    return {**row, "name": str(row["name"]), x: value, "r2": r2}
