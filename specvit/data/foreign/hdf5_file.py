"""HDF5: datasets by their paths, fields of compound ones, and columns of tables that pandas wrote.

Shape suffixes: B rows asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from specvit.data.foreign.contents import Array, Contents
from specvit.data.shards import open_file, unreadable

MOST_SPAN_BYTES = 256 * 2**20
"""Most that is read in one go of a chunked array to pick rows from it."""


@contextmanager
def opened(path: Path, wanted: tuple[str, ...] | None = None) -> Iterator[Contents]:
    """Give the arrays of an HDF5 file, of tables of pandas those `wanted` only if that is not None; raises `DataError`.

    pandas reads a table whole.
    """
    contents = Contents(path)
    tables: list[str] = []
    with open_file(path) as file:  # closed again before pandas reads it: the two share no file well
        for array in _walk(path, file, tables):
            contents.add(array)
    for name in tables:
        if wanted is not None and not any(each.startswith(f"{name}/") for each in wanted):
            continue
        for array in _table(path, name):
            contents.add(array)
    yield contents


def _walk(path: Path, group: h5py.Group, tables: list[str]) -> Iterator[Array]:
    """Yield the arrays of a group and of those in it; tables of pandas go into `tables` by name."""
    for key in group:
        item = group.get(key)
        if isinstance(item, h5py.Group):
            if "pandas_type" in item.attrs:
                tables.append(str(item.name).lstrip("/"))
            else:
                yield from _walk(path, item, tables)
        elif isinstance(item, h5py.Dataset) and item.shape is not None:
            yield from _datasets(path, item)


def _datasets(path: Path, item: h5py.Dataset) -> Iterator[Array]:
    name, unit = str(item.name).lstrip("/"), _text(item.attrs.get("unit", item.attrs.get("units", "")))
    chunks: dict[str, Any] = {"mapped": item.chunks is None, "row_step": item.chunks[0] if item.chunks else 1}
    if item.dtype.fields:
        for field, (inner, *_) in item.dtype.fields.items():
            base, more = inner.subdtype or (inner, ())
            yield Array(f"{name}/{field}", (*item.shape, *more), base, partial(_take, path, name, field), **chunks)
        return
    yield Array(name, item.shape, item.dtype, partial(_take, path, name, ""), unit=unit, **chunks)


def _table(path: Path, name: str) -> Iterator[Array]:
    """Yield the columns of a table of pandas; nothing for what pandas cannot read."""
    import pandas as pd

    try:
        table: Any = pd.read_hdf(path, name)
    except (ValueError, KeyError, OSError, AttributeError, TypeError, RuntimeError):
        return
    if isinstance(table, pd.DataFrame):
        for column in table.columns:
            yield Array.held(f"{name}/{column}", table[column].to_numpy())


def _take(path: Path, name: str, field: str, rows: Any) -> np.ndarray:
    """Return rows of a dataset, a slice or numbers in any order; raises `DataError`."""
    with open_file(path) as file:
        item: Any = file[name]
        item = item.fields(field) if field else item
        try:
            if rows is None or isinstance(rows, slice):
                return np.asarray(item[()] if rows is None else item[rows])
            return _rows(item, file[name], np.asarray(rows))
        except OSError as problem:
            raise unreadable(problem, path) from problem


def _rows(item: Any, dataset: Any, rows_B: np.ndarray) -> np.ndarray:
    """Return rows by their numbers: by one slice around them if that is no waste, else one by one."""
    unique_u, inverse_B = np.unique(rows_B, return_inverse=True)
    first, last = int(unique_u[0]), int(unique_u[-1])
    row_bytes = dataset.dtype.itemsize * int(np.prod(dataset.shape[1:]))
    near = (last + 1 - first) * row_bytes <= MOST_SPAN_BYTES and (dataset.chunks or last - first < 4 * len(unique_u))
    values = item[first : last + 1][unique_u - first] if near else np.stack([item[int(row)] for row in unique_u])
    return values[inverse_B]


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
