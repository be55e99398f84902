"""HDF5: datasets by their paths, fields of compound ones, and columns of tables that pandas wrote.

Shape suffixes: B rows asked for.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from specvit.convert.contents import Array, Contents
from specvit.data.hdf5 import open_dataset, open_file
from specvit.data.tables import read_table

MOST_SPAN_BYTES = 256 * 2**20
"""Most that is read in one go of a chunked array to pick rows from it."""


@contextlib.contextmanager
def opened(path: Path, wanted: tuple[str, ...] | None = None) -> Iterator[Contents]:
    """Give the arrays of an HDF5 file, of tables of pandas those `wanted` only if that is not None; raises `DataError`.

    A table of pandas is read whole.
    """
    contents = Contents(path)
    with open_file(path) as file:
        for array in _walk(path, file, "", wanted, set()):
            contents.add(array)
    yield contents


def _walk(
    path: Path, group: h5py.Group, prefix: str, wanted: tuple[str, ...] | None, seen: set[Any]
) -> Iterator[Array]:
    """Yield the arrays of a group and of those in it, named from `prefix`; each group once, though links circle."""
    for key in group:
        item, name = group.get(key), f"{prefix}{key}"
        if isinstance(item, h5py.Group) and item.id not in seen:
            seen.add(item.id)
            if "pandas_type" not in item.attrs:
                yield from _walk(path, item, f"{name}/", wanted, seen)
            elif wanted is None or any(each.startswith(f"{name}/") for each in wanted):
                table = read_table(item, path)
                yield from (Array.held(f"{name}/{column}", table[column].to_numpy()) for column in table)
        elif isinstance(item, h5py.Dataset) and item.shape is not None:
            with contextlib.suppress(TypeError):  # a type that numpy lacks
                yield from _datasets(path, name, item)


def _datasets(path: Path, name: str, item: h5py.Dataset) -> Iterator[Array]:
    unit = _text(item.attrs.get("unit", item.attrs.get("units", "")))
    chunks: dict[str, Any] = {"mapped": item.chunks is None, "row_step": item.chunks[0] if item.chunks else 1}
    if item.dtype.fields:
        for field, (inner, *_) in item.dtype.fields.items():
            base, more = inner.subdtype or (inner, ())
            yield Array(f"{name}/{field}", (*item.shape, *more), base, partial(_take, path, name, field), **chunks)
        return
    yield Array(name, item.shape, item.dtype, partial(_take, path, name, ""), unit=unit, **chunks)


def _take(path: Path, name: str, field: str, rows: Any) -> np.ndarray:
    """Return rows of a dataset, a slice or numbers in any order; raises `DataError`."""
    with open_file(path) as file:
        dataset = open_dataset(file, path, name)
        item: Any = dataset.fields(field) if field else dataset
        if rows is None or isinstance(rows, slice):
            return np.asarray(item[()] if rows is None else item[rows])
        return _rows(item, dataset, np.asarray(rows))


def _rows(item: Any, dataset: Any, rows_B: np.ndarray) -> np.ndarray:
    """Return rows by their numbers: by one slice around them if that wastes little, else one by one."""
    unique_u, inverse_B = np.unique(rows_B, return_inverse=True)
    first, last = int(unique_u[0]), int(unique_u[-1])
    row_bytes = dataset.dtype.itemsize * int(np.prod(dataset.shape[1:]))
    near = (last + 1 - first) * row_bytes <= MOST_SPAN_BYTES and (dataset.chunks or last - first < 4 * len(unique_u))
    values = item[first : last + 1][unique_u - first] if near else np.stack([item[int(row)] for row in unique_u])
    return values[inverse_B]


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
