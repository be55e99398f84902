"""Copies, in the work folder, of files whose rows cannot be read one by one (packed, streamed, large chunks)."""

import os
import shutil
from pathlib import Path

import h5py

from specvit.convert.choose import Choice, open_source
from specvit.convert.contents import Contents, suffixes, unpacking


def is_needed(contents: Contents, choice: Choice, together: int) -> bool:
    """Say whether a file with many spectra has to be unpacked before its rows are taken, so many `together`."""
    arrays = [contents.arrays[name] for name in choice.arrays]
    packed = bool(suffixes(contents.path)[1])
    slow = (not array.mapped and (together == 1 or array.row_step > together) for array in arrays)
    return packed or any(array.stream is not None for array in arrays) or any(slow)


def bytes_of(contents: Contents, choice: Choice) -> int:
    """Return the bytes of a copy; that of a FITS file has all that is in it."""
    whole = unpacked_name(contents.path, 0).endswith(".fits")
    return sum(array.num_bytes for name, array in contents.arrays.items() if whole or name in choice.arrays)


def unpacked_name(path: Path, number: int) -> str:
    """Return the name of the copy of source `number`."""
    return f"{number}.fits" if suffixes(path)[1] and suffixes(path)[0] in (".fits", ".fit", ".fts") else f"{number}.h5"


def unpack(path: Path, choice: Choice, copy: Path) -> None:
    """Write the chosen arrays of a file to `copy`, whole or not at all, some rows at a time; raises `DataError`."""
    scratch = copy.with_name(f".{copy.name}.{os.getpid()}.tmp")
    try:
        if copy.suffix == ".fits":
            with unpacking(path) as packed, open(scratch, "wb") as plain:
                shutil.copyfileobj(packed, plain, 2**20)
        else:
            _copy_arrays(path, choice, scratch)
        os.replace(scratch, copy)
    finally:
        scratch.unlink(missing_ok=True)


def _copy_arrays(path: Path, choice: Choice, scratch: Path) -> None:
    with open_source(path, choice.options) as contents, h5py.File(scratch, "w") as file:
        for name in choice.arrays:
            array = contents.arrays[name]
            made = file.create_dataset(name, array.shape, array.dtype.newbyteorder("="))
            made.attrs["unit"] = array.unit
            start = 0
            for values in array.pieces():
                made[start : start + len(values)] = values
                start += len(values)
