"""Texts: columns with or without names between spaces, commas, tabs or semicolons; and wide tables, a spectrum a line.

Shape suffixes: X lines, B lines of a piece, P wavelengths of a wide table.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from specvit.convert.contents import PIECE_BYTES, UNIT, UNPACKING, Array, Contents, damaged, unpacking
from specvit.utils.errors import DataError

COMMENTS = ("#", "%", "!")
MOST_COMMENTS = 10_000
WIDE = 16
"""A header with so many numbers in it names the wavelengths of a table with a spectrum a line."""
FORTRAN = re.compile(rb"\d[dD][+-]?\d")
"""An exponent as double precision is written by Fortran, which no reader of numbers takes."""


@dataclass(frozen=True)
class Head:
    """How a text begins: `skip` lines before the first numbers, and the names of the columns."""

    names: tuple[str, ...]
    skip: int
    separator: str
    numbered: bool
    """Whether the names are only the columns' numbers."""
    fortran: bool


@contextmanager
def opened(path: Path, wanted: tuple[str, ...] | None = None) -> Iterator[Contents]:
    """Give the columns of a text as arrays, those `wanted` only if that is not None; raises `DataError`."""
    with _faults(path):
        head = read_head(path)
        if not head.numbered and sum(word_and_number(name) is not None for name in head.names) >= WIDE:
            yield _wide(path, head)
            return
        unknown = [] if wanted is None else [name for name in wanted if name not in head.names]
        if unknown:
            what = f"has no column {unknown[0]!r}; it has {', '.join(head.names)}"
            raise DataError(what, where=str(path), remedy="all files need the same columns")
        contents = Contents(path, numbered=head.numbered)
        for name, values_X in _columns(path, head, list(head.names if wanted is None else wanted)).items():
            contents.add(Array.held(name, values_X, unit=_unit(name)))
    yield contents


def word_and_number(name: str) -> tuple[str, float] | None:
    """Return what a column's name such as 7100.2 or flux_7100.2 is made of; None if no number ends it."""
    found = re.fullmatch(r"((?:[A-Za-z][A-Za-z_ ]*)?)(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)", name.strip())
    return (found[1].strip("_ ") or "flux", float(found[2])) if found else None


def read_head(path: Path) -> Head:
    """Return how a text begins; raises `DataError` where no line of numbers comes."""
    comment = ""
    with unpacking(path) as stream:
        for skip, raw in enumerate(islice(stream, MOST_COMMENTS)):
            line = raw.decode("utf-8", errors="replace").lstrip("\ufeff").strip()
            if not line or line.startswith(COMMENTS):
                comment = line.lstrip("".join(COMMENTS)).strip() or comment
                continue
            separator = separator_of(line)
            words = _words(line, separator)
            fortran = bool(FORTRAN.search(raw))
            if all(_is_number(word) for word in words):
                given = _words(comment, separator)
                numbered = len(given) != len(words) or len(set(given)) < len(given) or _is_number(given[0])
                names = tuple(str(i + 1) for i in range(len(words))) if numbered else tuple(given)
                return Head(names, skip, separator, numbered, fortran)
            following = next((raw for raw in stream if raw.strip() and not raw.lstrip().startswith(b"#")), b"")
            _check_first(path, words, following, separator)
            return Head(tuple(words), skip + 1, separator, False, bool(FORTRAN.search(following)))
    raise DataError("has no line of numbers", where=str(path), remedy="check the file")


def _check_first(path: Path, names: list[str], raw: bytes, separator: str) -> None:
    """Raise `DataError` for a first line that has more values than there are names; empty ones may end it."""
    values = _words(raw.partition(b"#")[0].decode("utf-8", errors="replace").strip(), separator)
    if len(values) > len(names) or (raw and separator == r"\s+" and len(values) < len(names)):
        what = f"has {len(values)} values in its first line for {len(names)} names of columns"
        raise DataError(what, where=str(path), remedy="give each column one name, without spaces in it")


def separator_of(line: str) -> str:
    """Return what stands between the values of a line: comma, semicolon, tab, or a pattern of white space."""
    return next((sign for sign in ",;\t" if sign in line), r"\s+")


def _columns(path: Path, head: Head, names: list[str]) -> dict[str, np.ndarray]:
    """Return columns by name, float64 where all of it are numbers; raises `DataError` for a line of another length."""
    import pandas as pd

    if len(set(head.names)) < len(head.names):
        twice = next(name for i, name in enumerate(head.names) if name in head.names[:i])
        raise DataError(f"has two columns called {twice!r}", where=str(path), remedy="rename one")
    with unpacking(path) as stream:
        for _ in range(head.skip):
            stream.readline()
        source: Any = stream
        if head.fortran:
            source = io.BytesIO(stream.read().translate(bytes.maketrans(b"dD", b"eE")))
        # All columns: of those that are not asked for, pandas would not see that a line has too many.
        given = {"header": None, "names": list(head.names), "comment": "#", "engine": "c"}
        try:
            table = pd.read_csv(source, sep=head.separator, index_col=False, **given)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as problem:
            raise damaged(path, problem) from problem
    return {name: table[name].to_numpy() for name in names}


def _wide(path: Path, head: Head) -> Contents:
    """Return a table with a spectrum a line: labels, `wave`, and for each word before wavelengths an array."""
    import pandas as pd

    groups: dict[str, list[int]] = {}
    parts = [word_and_number(name) for name in head.names]
    for place, part in enumerate(parts):
        if part is not None:
            groups.setdefault(part[0], []).append(place)
    groups = {word: places for word, places in groups.items() if len(places) >= WIDE}
    spread = {place for places in groups.values() for place in places}
    others = [place for place in range(len(head.names)) if place not in spread]
    with unpacking(path) as stream:
        rows = sum(1 for line in islice(stream, head.skip, None) if line.strip())
    contents = Contents(path)
    if others:
        with unpacking(path) as stream:
            labels = pd.read_csv(stream, sep=head.separator, skiprows=head.skip, header=None, usecols=others)
        for place in others:
            contents.add(Array.held(head.names[place], labels[place].to_numpy()))
    float64 = np.dtype(np.float64)
    for word, places in groups.items():
        shape = (rows, len(places))
        stream_rows = partial(_stream, path, head, places)
        none = partial(_cannot_look_up, path)
        contents.add(Array(word, shape, float64, none, mapped=False, stream=stream_rows))
    wave_P = np.array([part[1] for place in next(iter(groups.values())) if (part := parts[place])])
    contents.add(Array.held("wave", wave_P, derived=True))
    return contents


def _stream(path: Path, head: Head, places: list[int]) -> Iterator[np.ndarray]:
    """Yield the spectra of a wide table, (B, P) float64; raises `DataError`."""
    import pandas as pd

    lines = max(1, PIECE_BYTES // (8 * len(head.names)))
    with _faults(path), unpacking(path) as stream:
        given = {"sep": head.separator, "skiprows": head.skip, "header": None, "chunksize": lines}
        try:
            for table in pd.read_csv(stream, dtype=dict.fromkeys(places, np.float64), **given):
                yield table[places].to_numpy()
        except ValueError as problem:
            raise damaged(path, problem) from problem


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    try:
        yield
    except UNPACKING as problem:
        raise damaged(path, problem) from problem


def _cannot_look_up(path: Path, rows: Any) -> np.ndarray:
    raise DataError("is a text of many spectra", where=str(path), remedy="write it as NPZ, HDF5 or FITS")


def _words(line: str, separator: str) -> list[str]:
    words = line.split() if separator == r"\s+" else line.split(separator)
    words = [word.strip().strip('"') for word in words]
    return words[:-1] if len(words) > 1 and not words[-1] else words


def _is_number(word: str) -> bool:
    try:
        float(re.sub("(?<=[0-9.])[dD](?=[+-]?[0-9])", "e", word))
    except ValueError:
        return False
    return True


def _unit(name: str) -> str:
    """Return the unit in a column's name, "" if there is none."""
    found = UNIT.search(name)
    return (found[1] or found[2]) if found else ""
