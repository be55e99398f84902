"""Tables of labels, from a CSV file or from a file with many spectra, and their checks.

Shape suffixes: N spectra.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from specvit.convert.choose import Choice, label_of
from specvit.convert.contents import UNPACKING, Contents, unpacking
from specvit.convert.options import Options
from specvit.convert.text_file import separator_of
from specvit.utils.errors import DataError
from specvit.utils.quantities import LABELS
from specvit.utils.text import counted

FILE = "file"
"""Column of a label file that names the file of a spectrum."""
MOST_NAMED = 12
"""Labels beyond the layout's that are named in a note."""


def labels_from_file(sources: list[Path], base: Path, options: Options) -> tuple[Any, list[str]]:
    """Return the labels of files as `--labels` has them, one row a file, and notes for the user; raises `DataError`.

    A file is named as it lies under `base`, or by its name alone.
    """
    assert options.labels is not None
    path = Path(options.labels)
    table = _read(path)
    if FILE not in table:
        what = f"has no column {FILE!r}; it has {', '.join(table.columns)}"
        raise DataError(what, where=str(path), remedy="name each spectrum's file in one")
    rows_of: dict[str, int] = {}
    for row, name in enumerate(table[FILE].astype(str).str.strip()):
        if name in rows_of:
            what = f"names {name} in row {rows_of[name]} and again in row {row}"
            raise DataError(what, where=str(path), remedy="remove one")
        rows_of[name] = row
    chosen: list[int] = []
    for source in sources:
        row = next(
            (rows_of[n] for n in (source.relative_to(base).as_posix(), source.name, str(source)) if n in rows_of), None
        )
        if row is None:
            raise DataError(f"has no row for {source}", where=str(path), remedy="add one, or leave the file out")
        chosen.append(row)
    if len(set(chosen)) < len(chosen):
        twice = next(s for i, s in enumerate(sources) if chosen[i] in chosen[:i])
        raise DataError(f"has one row for two files, {twice} the second", where=str(path), remedy="name folder/file")
    labels = _renamed(path, table.drop(columns=FILE), options)
    spare = len(table) - len(chosen)
    notes = [f"note: {path}: no file that is converted is named by {counted(spare, 'row')}"] if spare else []
    return labels.iloc[chosen].reset_index(drop=True), notes


def labels_from_contents(contents: Contents, choice: Choice) -> Any:
    """Return the label columns of a file with many spectra (N rows), integers as they are: they may be identifiers."""
    import pandas as pd

    columns = {}
    for label, name in choice.labels.items():
        array = contents.arrays[name]
        if array.shape != (choice.spectra,):
            what = f"has shape {array.shape} for {choice.spectra} spectra"
            raise DataError(what, where=f"{contents.path}:{name}", remedy="a label has one value a spectrum")
        columns[label] = _numbers(array.take(None), f"{contents.path}:{name}")
    return pd.DataFrame(columns, index=pd.RangeIndex(choice.spectra or 0))


def read_table(path: Path, rows: int, options: Options) -> Any:
    """Return the labels of a table of spectra as `--labels` has them, a line a spectrum; raises `DataError`."""
    table = _read(path)
    if FILE in table:
        what = f"names files in its column {FILE!r}, but the spectra are rows of a table"
        raise DataError(what, where=str(path), remedy="drop that column, and give the spectra's order")
    if len(table) != rows:
        what = f"has {len(table)} rows for {rows} spectra"
        raise DataError(what, where=str(path), remedy="give one line a spectrum, in the order of the spectra")
    return _renamed(path, table, options)


def ordered(labels: Any, fill: dict[str, float], columns: dict[str, str]) -> Any:
    """Return labels with what is the same in all rows filled in, those of the layout first and in its order.

    Those of the layout and those of `--columns` become float64.
    """
    filled = in_order(labels.assign(**fill))
    return filled.astype({name: np.float64 for name in filled if name in LABELS or name in columns})


def in_order(labels: Any) -> Any:
    """Return labels with the columns of the layout first and in its order."""
    known = [name for name in LABELS if name in labels]
    return labels[[*known, *(name for name in labels if name not in LABELS)]]


def faults(
    labels: Any, needed: list[str], options: Options, where: Callable[[int], str], *, any_unit: bool = False
) -> dict[int, DataError]:
    """Return what is wrong with rows, which `where(row)` names: labels infinite, missing, or of another unit.

    A row may lack some labels (NaN) of those that differ from row to row, unless bad rows are left out.
    """
    found: dict[int, DataError] = {}
    own = [name for name in needed if name not in options.fill]
    none_N = labels[own].isna().all(axis=1).to_numpy()
    for name in needed:
        values_N = labels[name].to_numpy(dtype=np.float64)
        low, high = (-np.inf, np.inf) if any_unit else _possible(name)
        lacked_N = np.isnan(values_N) & ~(none_N | options.skip_bad)
        good_N = (values_N >= low) & (values_N <= high) & np.isfinite(values_N)
        for row in np.flatnonzero(~(good_N | lacked_N)).tolist():
            what = f"label {name} is {values_N[row]:g}"
            if none_N[row] and len(own) > 1:
                what = f"has none of the labels {', '.join(own)}"
            if np.isfinite(values_N[row]):
                what = f"{what} {LABELS[name].unit}".rstrip() + ", which no star has"
            remedy = "correct it, or leave bad spectra out by --skip-bad"
            found.setdefault(row, DataError(what, where=where(row), remedy=remedy))
    return found


def missing(labels: Any, needed: list[str]) -> list[str]:
    """Return a note of labels that rows which are kept lack, if they do."""
    counts = {name: int(labels[name].isna().sum()) for name in needed}
    words = ", ".join(f"{name} in {count:,}" for name, count in counts.items() if count)
    what = (
        f"{words} of {counted(len(labels), 'spectrum', 'spectra')}, stored as NaN; --skip-bad leaves such spectra out"
    )
    return [f"note: missing labels: {what}"] if words else []


def ranges(labels: Any) -> list[str]:
    """Return notes for the user: ranges of the layout's labels, which leave what is usual, and names of the others."""
    notes, told = [], []
    for name in (name for name in LABELS if name in labels):
        values_N, known = labels[name].to_numpy(dtype=np.float64), LABELS[name]
        values_N = values_N[np.isfinite(values_N)]
        if not len(values_N):
            continue
        told.append(f"{name} {values_N.min():g} to {values_N.max():g} {known.unit}".rstrip())
        strange = int(((values_N < known.low) | (values_N > known.high)).sum())
        if strange:
            what = f"{name} is not within {known.low:g} to {known.high:g} {known.unit}".rstrip()
            notes.append(f"WARNING: in {strange} spectra {what}; is it what it is called, in that unit?")
    others = [str(name) for name in labels if name not in LABELS]
    if others:
        more = f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
        told.append(f"and by their own names {', '.join(others[:MOST_NAMED])}{more}")
    return [f"note: labels: {', '.join(told)}", *notes] if told else []


def _possible(name: str) -> tuple[float, float]:
    """Return between what a label of the layout may be, wide enough for any star and too narrow for another unit."""
    if name not in LABELS:
        return -np.inf, np.inf
    low, high = LABELS[name].low, LABELS[name].high
    return (low / 10, high * 10) if low > 0 else (low - (high - low), high + (high - low))


def _read(path: Path) -> Any:
    """Return a table of labels; raises `DataError`."""
    import pandas as pd

    try:
        with unpacking(path) as stream:
            lines = (raw.decode("utf-8", errors="replace").strip() for raw in stream)
            first = next((line for line in lines if line and not line.startswith("#")), "")
        table = pd.read_csv(path, sep=separator_of(first), comment="#", skipinitialspace=True)
    except FileNotFoundError as problem:
        raise DataError("is not there", where=str(path), remedy="check --labels") from problem
    except (ValueError, IsADirectoryError, *UNPACKING) as problem:
        said = str(problem).splitlines()[0][:120]
        raise DataError(f"is not a table of labels ({said})", where=str(path), remedy="write it as CSV") from problem
    if not isinstance(table.index, pd.RangeIndex):
        what = "has more values in its lines than names of columns in its first"
        raise DataError(what, where=str(path), remedy="give each column a name")
    return table.rename(columns=str)


def _renamed(path: Path, table: Any, options: Options) -> Any:
    """Return the columns that are labels under the labels' names; words are left out unless they were asked for."""
    import pandas as pd

    missing = [name for name in options.columns.values() if name not in table]
    if missing:
        what = f"has no column {missing[0]!r} (--columns); it has {', '.join(table.columns)}"
        raise DataError(what, where=str(path), remedy="name one of them")
    names = {name: label for label, name in options.columns.items()}
    for name in map(str, table.columns):
        label = label_of(name.replace("/", "_"))
        if name.startswith("Unnamed:"):  # the row numbers of a table that pandas wrote
            continue
        if name not in names and label not in names.values() and (label in LABELS or table[name].dtype.kind in "fiu"):
            names[name] = label
    values = {label: _numbers(table[name].to_numpy(), f"{path}:{name}") for name, label in names.items()}
    return pd.DataFrame(values, index=table.index)


def _numbers(values_N: np.ndarray, where: str) -> np.ndarray:
    """Return labels as float64, integers as they are; raises `DataError` naming the first that is not a number."""
    if values_N.dtype.kind in "iu":
        return values_N.astype(values_N.dtype.newbyteorder("="))
    try:
        return values_N.astype(np.float64)
    except (ValueError, TypeError):
        for row, value in enumerate(values_N.tolist()):
            try:
                float(value)
            except (ValueError, TypeError):
                what = f"is {str(value)[:40]!r} in row {row}"
                raise DataError(what, where=where, remedy="labels are numbers") from None
        raise
