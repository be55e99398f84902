"""Tables of labels that pandas wrote into HDF5, in its `table` or its `fixed` format, read with h5py alone.

pandas reads them through PyTables, which unpickles any attribute of any group that it opens, and arrays of objects: a
file would run its author's code. Here only the names of columns are unpickled, and nothing but text and numbers comes
out of that; what else is pickled is refused.
"""

import io
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from specvit.data.hdf5 import at, open_dataset, short
from specvit.utils.errors import DataError
from specvit.utils.memory import refuse_beyond_memory
from specvit.utils.quantities import PARAMS

REWRITE = f"write it again with DataFrame.to_hdf(FILE, key='{PARAMS}', format='table')"
Parts = tuple[list[Any], dict[Any, np.ndarray]]
"""Names of columns in their order, and values (N,) by name."""


def find_tables(file: h5py.File) -> list[str]:
    """Return the paths of the pandas tables in a file; links to other files are not followed."""
    found: list[str] = []

    def visit(name: str, item: Any) -> None:
        inside = any(name.startswith(f"{table}/") for table in found)  # categories of a column are a table of their own
        if isinstance(item, h5py.Group) and "pandas_type" in item.attrs and not inside:
            found.append(name)

    file.visititems(visit)
    return found


def label_table(file: h5py.File, path: Path) -> h5py.Group:
    """Return the group of a file's label table: that of the layout, else the only table; raises `DataError`."""
    group = file.get(PARAMS)
    if isinstance(group, h5py.Group) and "pandas_type" in group.attrs:
        return group
    found = find_tables(file)
    if len(found) == 1:
        group = file[found[0]]
        assert isinstance(group, h5py.Group)
        return group
    what = f"has {len(found)} tables ({', '.join(found)}), none of them at {PARAMS}" if found else "has no label table"
    raise DataError(what, where=str(path), remedy=f"write one with DataFrame.to_hdf(FILE, key='{PARAMS}')")


def read_table(group: h5py.Group, path: Path, rows: int | None = None) -> Any:
    """Return a table as a DataFrame without its index, columns named by text; `rows` is the required number of rows.

    Raises `DataError` for what is pickled, for a table that is not numbers, truth values, dates and text in columns
    of one name each, and for one that does not fit into memory.
    """
    import pandas as pd

    where = at(path, str(group.name))
    try:
        kind = _text(group.attrs.get("pandas_type"))
        if kind not in ("frame", "frame_table"):
            what = f"holds a {'Series' if kind.startswith('series') else kind}, not a table of labels"
            raise DataError(what, where=where, remedy="write a DataFrame with one column a label")
        order, columns = (_of_table if kind == "frame_table" else _of_fixed)(group, path, where, rows)
        names = list(map(str, order))
        if not len(set(names)) == len(order) == len(columns):
            what = f"has {len(set(names))} names for {len(columns)} columns"
            raise DataError(what, where=where, remedy="give each column a name of its own")
        return pd.DataFrame({name: columns[key] for name, key in zip(names, order, strict=True)})
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as problem:
        what = f"is not as pandas writes a table ({type(problem).__name__}: {short(problem)})"
        raise DataError(what, where=where, remedy=REWRITE) from problem


def _of_table(group: h5py.Group, path: Path, where: str, rows: int | None) -> Parts:
    """Read the `table` format: one compound dataset, whose fields are blocks of columns."""
    if _text(group.attrs.get("table_type")) != "appendable_frame":
        what = "has an index of several levels"
        raise DataError(what, where=where, remedy="write it again after DataFrame.reset_index()")
    table = _checked(group, "table", path, rows)
    [(_, order)] = _unpickle(group.attrs["non_index_axes"], f"{where}, attribute non_index_axes")
    encoding = _text(group.attrs.get("encoding")) or "utf-8"
    columns: dict[Any, np.ndarray] = {}
    values: Any = table[()]
    for field in values.dtype.names:
        if field == "index":
            continue
        names = _unpickle(table.attrs[f"{field}_kind"], f"{where}/table, attribute {field}_kind")
        kind = _text(table.attrs.get(f"{field}_dtype"))
        if _text(table.attrs.get(f"{field}_meta")) == "category":
            what = f"column {_names_only(names, where)[0]} holds categories"
            raise DataError(what, where=where, remedy="write their names or numbers instead")
        block = values[field].reshape(len(values), len(names))
        own_gap = group.attrs.get("data_col_nan_rep")  # since pandas 3; older versions store one value for all columns
        gap = _text(table.attrs.get(f"{field}_nan_rep")) if own_gap else _text(group.attrs.get("nan_rep")) or "nan"
        columns |= {name: _values(block[:, i], kind, encoding, gap) for i, name in _numbered(names, where)}
    return _names_only(order, where), columns


def _of_fixed(group: h5py.Group, path: Path, where: str, rows: int | None) -> Parts:
    """Read the `fixed` format: a dataset of all names, and for each block of columns one of names and one of values."""
    if _text(group.attrs["axis0_variety"]) != "regular":
        raise DataError("has names of several levels", where=where, remedy="write one with one name a column")
    columns: dict[Any, np.ndarray] = {}
    blocks: Any = group.attrs["nblocks"]
    for number in range(int(blocks)):
        block = _checked(group, f"block{number}_values", path, None)
        if "shape" in block.attrs:  # an array without values, which PyTables keeps as one value
            raise DataError("is empty", where=where, remedy="make the file again")
        kind = "bool" if block.id.get_type().get_class() == h5py.h5t.BITFIELD else _text(block.attrs.get("value_type"))
        values = block[()] if block.attrs.get("transposed") else block[()].T
        if rows not in (None, len(values)):
            _refuse_rows(len(values), rows, where)
        names = _names(group, f"block{number}_items", path)
        columns |= {name: _values(values[:, i], kind) for i, name in _numbered(names, where)}
    return _names(group, "axis0", path), columns


def _checked(group: h5py.Group, name: str, path: Path, rows: int | None) -> h5py.Dataset:
    """Return a dataset of a table that is not a pickle, has `rows` rows and fits into memory; raises `DataError`."""
    item = open_dataset(group, path, name)
    where = at(path, str(item.name))
    types = [inner for inner, *_ in item.dtype.fields.values()] if item.dtype.fields else [item.dtype]
    if any(each.base.hasobject for each in types):
        what = "holds Python objects (pickles), which are not read, since they could run code"
        raise DataError(what, where=where, remedy=f"drop columns that are not numbers, or {REWRITE}")
    if rows is not None and item.shape[:1] != (rows,):
        _refuse_rows(item.shape[0], rows, at(path, str(group.name)))
    refuse_beyond_memory(item.nbytes, where)
    return item


def _refuse_rows(found: int, rows: int | None, where: str) -> None:
    raise DataError(f"has {found} label rows but {rows} spectra", where=where, remedy="make the file again")


def _values(values_N: np.ndarray, kind: str, encoding: str = "utf-8", gap: str = "") -> np.ndarray:
    """Return a column with its pandas type: decoded text (`gap` is missing), truth values or dates from numbers."""
    if values_N.dtype.kind == "S":
        words = np.char.decode(values_N, encoding).astype(object)
        words[words == gap] = np.nan if gap else ""
        return words
    values_N = np.ascontiguousarray(values_N)
    if date := re.match(r"(datetime64|timedelta64)(?:\[(\w+))?", kind):  # of any zone, kept in UTC
        return values_N.view(f"{date[1]}[{date[2] or 'ns'}]")
    return values_N != 0 if kind == "bool" else values_N


def _text(value: Any) -> str:
    """Return an attribute of text, "" for one that is missing or a pickled None."""
    if value is None or isinstance(value, h5py.Empty):
        return ""
    text = value.decode() if isinstance(value, bytes) else str(value)
    return "" if text == "N." else text


def _names(group: h5py.Group, name: str, path: Path) -> list[Any]:
    """Return the names of columns that a dataset holds."""
    encoding = _text(group.attrs.get("encoding")) or "utf-8"
    names = _checked(group, name, path, None)[()].tolist()
    return [each.decode(encoding) if isinstance(each, bytes) else each for each in names]


def _names_only(names: list[Any], where: str) -> list[Any]:
    """Return names of columns; raises `DataError` for one that is neither text nor a number, such as a tuple."""
    strange = next((name for name in names if not isinstance(name, str | int | float)), "")
    if strange != "":
        what = f"names a column by a {type(strange).__name__}"
        raise DataError(what, where=where, remedy="name columns by text, one name each")
    return names


def _numbered(names: list[Any], where: str) -> list[tuple[int, Any]]:
    return list(enumerate(_names_only(names, where)))


class _Unpickler(pickle.Unpickler):
    """Unpickles text, numbers and containers of them; refuses every import."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse: no class or function is needed for names."""
        raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code")


def _unpickle(value: Any, where: str) -> list[Any]:
    """Return the list that an attribute pickles; raises `DataError` if it holds anything but text and numbers."""
    try:
        pickled = bytes(value)
        # A memo of 2**32 entries would take all memory; a valid one has fewer entries than the pickle has bytes.
        if any("PUT" in code.name and int(at or 0) > len(pickled) for code, at, _ in pickletools.genops(pickled)):
            raise pickle.UnpicklingError("its memo is longer than itself")
        names = _Unpickler(io.BytesIO(pickled), encoding="utf-8").load()
        if not isinstance(names, list):
            raise pickle.UnpicklingError(f"it is a {type(names).__name__}")
    except Exception as problem:  # a pickle can raise anything at all
        what = f"is not a plain list of names: {short(problem)}"
        raise DataError(what, where=where, remedy=f"do not trust this file, or {REWRITE}") from problem
    return names
