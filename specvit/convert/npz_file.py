"""NPZ: the arrays of a file of numpy, gone through without holding a whole one in memory."""

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from specvit.convert.contents import PIECE_BYTES, Array, Contents, damaged
from specvit.utils.errors import DataError
from specvit.utils.memory import refuse_beyond_memory

DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, ValueError, KeyError),
    *(RuntimeError, OverflowError, MemoryError, SyntaxError, tokenize.TokenError),  # a locked member; odd headers
)


@contextmanager
def opened(path: Path) -> Iterator[Contents]:
    """Give the arrays of an NPZ file; raises `DataError`."""
    contents = Contents(path)
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if member.endswith(".npy"):
                    for array in _arrays(path, archive, member):
                        if array.dtype.hasobject:
                            contents.objects += (array.name,)
                        else:
                            contents.add(array)
    except NotImplementedError as problem:
        what, remedy = f"is packed in a way that Python cannot unpack ({problem})", "write it by numpy.savez_compressed"
        raise DataError(what, where=str(path), remedy=remedy) from problem
    except DAMAGE as problem:
        raise damaged(path, problem) from problem
    yield contents


def _arrays(path: Path, archive: zipfile.ZipFile, member: str) -> Iterator[Array]:
    """Yield the array of a member, or those of its fields."""
    with archive.open(member) as stream:
        shape, _, dtype = _head(stream)
        whole = archive.getinfo(member).file_size - stream.tell()
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize != whole:
        raise ValueError(f"{member} claims shape {shape} and has {whole} bytes of values")
    name = member.removesuffix(".npy")
    for field, (inner, *_) in (dtype.fields or {"": (dtype,)}).items():
        base, more = inner.subdtype or (inner, ())
        whole, full = f"{name}/{field}" if field else name, (*shape, *more)
        stream_rows = partial(_stream, path, member, field) if len(full) > 1 else None
        taken = partial(_take, path, name, field)
        yield Array(whole, full, base, taken, mapped=stream_rows is None, stream=stream_rows)


def _take(path: Path, name: str, field: str, rows: Any) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            refuse_beyond_memory(arrays.zip.getinfo(f"{name}.npy").file_size, f"{path}:{name}")
            values = arrays[name][field] if field else arrays[name]
    except DAMAGE as problem:
        raise damaged(path, problem) from problem
    return values if rows is None else values[rows]


def _stream(path: Path, member: str, field: str) -> Iterator[np.ndarray]:
    """Yield the rows of an array, or of a field of it, in pieces; one that is stored column by column is held whole."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            shape, by_column, dtype = _head(stream)
            if by_column:
                yield _take(path, member.removesuffix(".npy"), field, None)
                return
            row_bytes = dtype.itemsize * int(np.prod(shape[1:]))
            rows = max(1, PIECE_BYTES // max(1, row_bytes))
            for start in range(0, shape[0], rows):
                count = min(rows, shape[0] - start)
                raw = stream.read(count * row_bytes)
                values = np.frombuffer(raw, dtype=dtype).reshape(count, *shape[1:])
                yield values[field] if field else values
    except DAMAGE as problem:
        raise damaged(path, problem) from problem


def _head(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether columns lie together, and type; leaves the stream at the first number."""
    version = npy.read_magic(stream)
    return npy.read_array_header_1_0(stream) if version == (1, 0) else npy.read_array_header_2_0(stream)
