"""Rewrite shards as contiguous float32, which a run can map into memory.

A converted file holds the very numbers that a run reads from its source, so a run on it has the same name and result.
Legend: b rows of a piece, p pixels of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from specvit.data.hdf5 import open_file, unreadable
from specvit.data.shards import Array2D, Shard, as_float32, fill_shard, masked_pixels, open_shard, read_labels
from specvit.data.tables import find_tables
from specvit.utils.errors import DataError
from specvit.utils.files import check_space
from specvit.utils.quantities import ERROR, FLUX, MASKED, OBSERVED, WAVE

PIECE_BYTES = 64 * 2**20
"""Most that is held in memory of an array, unless a single row of its chunks is larger."""
SPARE_BYTES = 2**20
"""Room for what a file holds beside arrays and labels."""

Report = Callable[[Path, int, int], None]
"""Called with (target, bytes written, bytes to write) about ten times a file."""


@dataclass(frozen=True)
class Conversion:
    """One file to convert, checked, and where it goes."""

    source: Shard
    target: Path
    num_bytes: int
    """Size that the target will have, roughly."""
    left_out: tuple[str, ...]
    """Datasets of the source that the layout does not know."""


def plan(sources: Sequence[Path], target: Path) -> list[Conversion]:
    """Return what is to be done, after checking all of it; raises `DataError` before anything is written.

    One source becomes the file `target`. Several, or one where `target` is a folder, go into that folder under their
    own names, those called dataset.h5 or like another source each in a folder named as its own one.
    """
    for source in sources:
        if not source.exists():
            raise DataError("is not there", where=str(source), remedy="check the path")
    targets = [target]
    if len(sources) > 1 or target.is_dir():
        names = [source.name for source in sources]
        own = [name == "dataset.h5" or names.count(name) > 1 for name in names]
        folders = [source.absolute().parent.name if keep else "" for source, keep in zip(sources, own, strict=True)]
        targets = [target / folder / name for folder, name in zip(folders, names, strict=True)]
    for source, path in zip(sources, targets, strict=True):
        _check_target(source, path, targets)
    conversions = [_look_at(source, path) for source, path in zip(sources, targets, strict=True)]
    check_space(target, sum(conversion.num_bytes for conversion in conversions))
    return conversions


def convert(conversion: Conversion, report: Report) -> int:
    """Write one target, whole or not at all, holding one piece of an array in memory; raises `DataError`.

    Returns how many pixels are masked, which the target then says of each row: those that a run would refuse, and with
    them errors of 0. Where there are errors of 0 alone nothing is masked, as in a run on the source.
    """
    source, target = conversion.source, conversion.target
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):  # of a conversion that was killed
        leftover.unlink(missing_ok=True)
    total, done, masked, refused = 8 * source.flux.rows * source.flux.pixels, 0, 0, False

    def fill(file: h5py.File) -> None:
        nonlocal done, masked, refused
        for name, array in ((FLUX, source.flux), (ERROR, source.error)):
            written = file.create_dataset(name, (array.rows, array.pixels), np.float32)
            if name == FLUX and source.observed:
                written.attrs[OBSERVED] = True
            for rows, pixels, values_bp in _pieces(array):
                written[rows, pixels] = values_bp
                refused |= not np.isfinite(values_bp).all() or (name == ERROR and bool((values_bp < 0).any()))
                before, done = done, done + values_bp.nbytes
                if 10 * done // total > 10 * before // total:
                    report(target, done, total)
        if refused or source.masked_N is not None:
            file[MASKED] = counts = _count_masked(file)
            masked = sum(counts)

    fill_shard(target, fill, wave_P=source.wave_P, labels=read_labels(source))
    return masked


def _count_masked(file: h5py.File) -> list[int]:
    """Return how many pixels of each row are masked."""
    flux, error = file[FLUX], file[ERROR]
    assert isinstance(flux, h5py.Dataset)
    assert isinstance(error, h5py.Dataset)
    step, counts = max(PIECE_BYTES // (8 * flux.shape[1]), 1), []
    for start in range(0, flux.shape[0], step):
        counts += masked_pixels(flux[start : start + step], error[start : start + step]).sum(axis=1).tolist()
    return counts


def _check_target(source: Path, target: Path, targets: list[Path]) -> None:
    """Raise `DataError` unless `target` is a new file that no other source becomes, too."""
    if target.resolve() == source.resolve():
        raise DataError("is source and target at once", where=str(source), remedy="name another target")
    if target.exists():
        raise DataError("already exists", where=str(target), remedy="remove it first, or leave its source out")
    if targets.count(target) > 1:
        raise DataError("is the target of two sources", where=str(target), remedy="convert them one by one")


def _look_at(source: Path, target: Path) -> Conversion:
    shard = open_shard(source)
    size = 8 * shard.rows * shard.flux.pixels + int(read_labels(shard).memory_usage(deep=True).sum()) + SPARE_BYTES
    with open_file(source) as file:
        return Conversion(shard, target, size, _further(file))


def _further(file: h5py.File) -> tuple[str, ...]:
    """Return the datasets of a file that are neither arrays of the layout nor in a table of pandas."""
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    known = (WAVE, FLUX, ERROR, MASKED, *(f"{table}/" for table in find_tables(file)))
    return tuple(name for name in names if not name.startswith(known))


def _pieces(array: Array2D) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yield an array piece by piece: its rows, its pixels, and its values in float32, as a run would read them.

    Pieces are made of whole chunks, so that each is unpacked once; raises `DataError` for one that cannot be read.
    """
    opened = array.open()
    high, wide = getattr(opened, "chunks", None) or (1, array.pixels)
    rows = max(PIECE_BYTES // (array.pixels * array.dtype.itemsize) // high, 1) * high
    columns = max(PIECE_BYTES // (min(rows, array.rows) * array.dtype.itemsize) // wide, 1) * wide
    for row in range(0, array.rows, rows):
        for pixel in range(0, array.pixels, columns):
            here = slice(row, min(row + rows, array.rows)), slice(pixel, min(pixel + columns, array.pixels))
            try:
                values_bp = opened[here]
            except OSError as problem:
                raise unreadable(problem, array.path) from problem
            yield *here, as_float32(values_bp, f"{array.path}:{array.name}")  # as a run would read and refuse it
