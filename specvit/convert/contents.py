"""Files of any format as named arrays, the form in which the rest of the conversion reads them.

Shape suffixes: B rows asked for.
"""

import bz2
import gzip
import lzma
import math
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from specvit.convert.wavelengths import medium_of
from specvit.utils.errors import DataError
from specvit.utils.text import nearest

KINDS = {
    "text": (".txt", ".csv", ".dat", ".asc", ".tsv"),
    "table": (".ecsv", ".ipac", ".tbl"),
    "FITS": (".fits", ".fit", ".fts"),
    "NPZ": (".npz",),
    "HDF5": (".h5", ".hdf5", ".hdf"),
}
PACKED: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
UNPACKING = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
"""What Python raises for a packed file that is damaged, beside `OSError`."""
UNIT = re.compile(r"[\[(]([^\])]+)[\])]\s*$|_(nm|um|micron|angstrom|AA?)$")
"""The unit in a column's name: wavelength [nm], wave(um), wave_nm."""
VAGUE = ("value", "values", "data", "array")
"""Last parts of a path that say less than the one before."""
MOST_LISTED = 20
MAYBE_PLANES = "which may be planes of one star or spectra of a star each"
PIECE_BYTES = 4 * 2**20
"""Most that is read at once of an array that is gone through from its first row to its last."""


@dataclass(frozen=True)
class Array:
    """One array of a file, not read yet. `take(rows)` reads rows, or all of it for None."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    take: Callable[[Any], np.ndarray]
    unit: str = ""
    """As the file spells it, "" where it says nothing."""
    medium: str = ""
    """`air` or `vacuum` where the file says of wavelengths which they are."""
    derived: bool = False
    """Made from a header, so that an array that is written out goes first."""
    mapped: bool = True
    """Whether rows in any order cost no more than rows in order."""
    row_step: int = 1
    """Rows that are unpacked together."""
    planes: str = ""
    """Why its rows may not be spectra of a star each, "" where they are."""
    stream: Callable[[], Iterator[np.ndarray]] | None = None
    """Gives all rows in order, for a file in which nothing can be looked up."""

    @classmethod
    def held(cls, name: str, values: np.ndarray, **facts: Any) -> "Array":
        """Return values in memory as an array."""
        return cls(name, values.shape, values.dtype, partial(_rows_of, values), **facts)

    @property
    def numeric(self) -> bool:
        """Whether it holds real numbers."""
        return self.dtype.kind in "fiu"

    @property
    def num_bytes(self) -> int:
        """Bytes of all its rows, unpacked."""
        return self.dtype.itemsize * math.prod(self.shape)

    def pieces(self) -> Iterator[np.ndarray]:
        """Yield all rows in order, some at a time."""
        if self.stream is not None:
            yield from self.stream()
            return
        rows = max(1, PIECE_BYTES // max(1, self.dtype.itemsize * math.prod(self.shape[1:])))
        rows = -(-rows // self.row_step) * self.row_step
        for start in range(0, self.shape[0], rows):
            yield self.take(slice(start, start + rows))

    def __str__(self) -> str:
        """Return name, shape, type and unit."""
        return f"{self.name} {self.shape} {self.dtype}" + (f" [{self.unit}]" if self.unit else "")


@dataclass
class Contents:
    """The arrays of one open file, by name."""

    path: Path
    arrays: dict[str, Array] = field(default_factory=dict)
    numbered: bool = False
    """Whether they are the columns of a text without names, and called 1, 2, 3 and so on."""
    objects: tuple[str, ...] = ()
    """Names of arrays of Python objects, which are not read."""

    def add(self, array: Array) -> None:
        """Put an array in, under its name, which may say that it is wavelengths of air."""
        self.arrays[array.name] = replace(array, medium=array.medium or medium_of(plain(array.name)))

    def single(self) -> "Contents":
        """Return the same with arrays of one row (1, X) as (X,): a table with one spectrum read as that spectrum."""
        rows = [a for a in self.arrays.values() if len(a.shape) == 2 and a.shape[0] == 1]
        flat = {a.name: replace(a, shape=a.shape[1:], take=partial(_first, a), stream=None, mapped=True) for a in rows}
        return replace(self, arrays=self.arrays | flat)

    def listing(self) -> str:
        """Return what is there, for a message."""
        named = [str(array) for array in self.arrays.values()]
        more = f", and {len(named) - MOST_LISTED} more" if len(named) > MOST_LISTED else ""
        unread = f"; of Python objects, which are not read: {', '.join(self.objects)}" if self.objects else ""
        return "it holds " + (", ".join(named[:MOST_LISTED]) + more if named else "no array") + unread

    def find(self, name: str, option: str) -> Array:
        """Return the array of that name, its case and the folders before it left out if that is clear.

        Raises `DataError`, which lists what is there and names the option that gave the name.
        """
        if name in self.arrays:
            return self.arrays[name]
        low = name.lower()
        alike = [key for key in self.arrays if f"/{key.lower()}".endswith(f"/{low}")]
        if len(alike) == 1:
            return self.arrays[alike[0]]
        what = f"has {'several arrays' if alike else 'no array'} called {name!r} ({option}); {self.listing()}"
        raise DataError(what, where=str(self.path), remedy=f"{nearest(name, list(self.arrays))}name one of them")


def _rows_of(values: np.ndarray, rows: Any) -> np.ndarray:
    return values if rows is None else values[rows]


def _first(array: Array, rows: Any) -> np.ndarray:
    """Return the only row of an array, or values of it."""
    row_X = next(array.pieces())[0]
    return row_X if rows is None else row_X[rows]


def plain(name: str) -> str:
    """Return a name without folders, unit, case and signs: "spectrum/Wavelength [nm]" is "wavelength"."""
    parts = UNIT.sub("", name).split("/")
    while len(parts) > 1 and parts[-1].lower() in VAGUE:
        parts.pop()
    return re.sub(r"[^a-z0-9]", "", parts[-1].lower())


def last_part(name: str) -> str:
    """Return a name without the folders before it; a slash in brackets, as in "[Fe/H]", is part of the name."""
    return re.split(r"/(?![^\[(]*[\])])", name)[-1]


def suffixes(path: Path) -> tuple[str, str]:
    """Return the suffix that says the format, in lower case, and the one of its packing, "" if it is not packed."""
    packing = path.suffix.lower() if path.suffix.lower() in PACKED else ""
    inner = Path(path.name[: -len(packing)]) if packing else path
    return inner.suffix.lower(), packing


def kind_of(path: Path) -> str:
    """Return the kind of a file by its name, a key of `KINDS`; "" for an unknown one."""
    suffix, packing = suffixes(path)
    kind = next((kind for kind, known in KINDS.items() if suffix in known), "")
    return "" if packing and kind in ("NPZ", "HDF5") else kind


def unpacking(path: Path) -> IO[bytes]:
    """Open a file for reading, through its packing."""
    return PACKED.get(suffixes(path)[1], open)(path) if suffixes(path)[1] else open(path, "rb")


@contextmanager
def open_contents(path: Path, wanted: tuple[str, ...] | None = None, planes: str | None = None) -> Iterator[Contents]:
    """Open a file of any known kind; of texts and tables of pandas only what is `wanted` is read. Raises `DataError`.

    `planes` are names for the rows of FITS images, see `Options`.

    Whatever a library says of a file that it cannot read, also while the file is open, becomes one sentence.
    """
    from specvit.convert import fits_file, hdf5_file, npz_file, table_file, text_file

    openers: dict[str, Callable[[Path], Any]] = {
        "text": lambda path: text_file.opened(path, wanted),
        "table": table_file.opened,
        "FITS": lambda path: fits_file.opened(path, planes),
        "NPZ": npz_file.opened,
        "HDF5": lambda path: hdf5_file.opened(path, wanted),
    }
    kind = kind_of(path)
    if not path.exists():
        raise DataError("is not there", where=str(path), remedy="check the path")
    if not kind:
        known = " ".join(suffix for group in KINDS.values() for suffix in group)
        raise DataError("is of no known kind", where=str(path), remedy=f"known are {known}; texts and FITS also packed")
    try:
        with openers[kind](path) as contents:
            yield contents
    except UNPACKING as problem:
        raise damaged(path, problem) from problem


class DamagedFile(DataError):
    """A file that a library cannot read."""


def damaged(path: Path, problem: Exception) -> DamagedFile:
    """Return what a library could not do with a file as one sentence."""
    said = str(problem).splitlines()[0][:120] if str(problem) else type(problem).__name__
    if isinstance(problem, EOFError):
        return DamagedFile("is truncated", where=str(path), remedy="copy it again")
    return DamagedFile(f"cannot be read ({said})", where=str(path), remedy="copy or make it again")
