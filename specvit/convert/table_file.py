"""Text tables whose header has units, ECSV and IPAC; astropy does the reading."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from specvit.convert.contents import Array, Contents, damaged, suffixes
from specvit.utils.errors import DataError


@contextmanager
def opened(path: Path) -> Iterator[Contents]:
    """Give the columns of a table as arrays; missing numbers are NaN. Raises `DataError`."""
    try:
        from astropy.table import Table
    except ImportError as problem:
        remedy = "pip install 'specvit[fits]', or write it as CSV"
        raise DataError("is a table that astropy reads", where=str(path), remedy=remedy) from problem
    try:
        table = Table.read(path, format="ascii.ecsv" if suffixes(path)[0] == ".ecsv" else "ascii.ipac")
    except Exception as problem:  # astropy has many errors of its own for odd headers
        raise damaged(path, problem) from problem
    contents = Contents(path)
    for name in table.colnames:
        column = table[name]
        values = np.ma.filled(column.astype(float), np.nan) if np.ma.is_masked(column) else np.asarray(column)
        contents.add(Array.held(name, values, unit=str(column.unit or "")))
    yield contents
