"""HDF5 shards in the simulator's layout: opened and checked cheaply, never loaded whole, and written.

Contiguous arrays are memory-mapped, so several runs on a host share the page cache and hold
no copy; chunked or compressed ones are read through HDF5. The label table is written by pandas (PyTables), and never
while h5py has the same file open: the two libraries do not share a file handle well.
"""

import contextlib
import glob
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from specvit.data.hdf5 import open_dataset, open_file
from specvit.data.tables import label_table, read_table
from specvit.utils.errors import DataError, explain, os_fault
from specvit.utils.quantities import ERROR, FLUX, MASKED, OBSERVED, PARAMS, WAVE

PAGE_BYTES = 4096
SAME = 0.01
"""Angstrom to which wavelengths count as the same: a fortieth of the reference instrument's pixel."""


@dataclass(frozen=True)
class Array2D:
    """A float array (rows, pixels) inside an HDF5 file; `offset` in bytes if it is contiguous."""

    path: Path
    """The file that holds its values: the shard, or the target of a link in it."""
    name: str
    """Its path in that file."""
    rows: int
    pixels: int
    dtype: np.dtype[Any]
    offset: int | None

    def open(self) -> Any:
        """Return something to index by rows: a read-only memory map, or an HDF5 dataset of a file kept open.

        Raises `DataError` if the file has changed.
        """
        if self.offset is not None:
            shape = (self.rows, self.pixels)
            try:
                return np.memmap(self.path, dtype=self.dtype, mode="r", offset=self.offset, shape=shape)
            except ValueError as problem:  # truncated since it was opened
                raise DataError("is truncated", where=str(self.path), remedy="copy or make it again") from problem
        return h5py.File(self.path, "r")[self.name]


@dataclass(frozen=True)
class Shard:
    """One file: its two arrays and its wavelengths (P,) in vacuum Angstrom."""

    path: Path
    flux: Array2D
    error: Array2D
    wave_P: np.ndarray
    observed: bool = False
    """Whether the flux has the noise of its errors already, as an observed one has."""
    masked_N: np.ndarray | None = None
    """How many pixels of each row are masked, int64; None for a file that does not say so, which may have none."""

    @property
    def rows(self) -> int:
        """Number of spectra."""
        return self.flux.rows

    @property
    def source(self) -> tuple[Path, str]:
        """The file that holds the flux and the path in it: two shards that link to one source are the same spectra."""
        return self.flux.path.resolve(), self.flux.name


def find_files(patterns: Sequence[str], *, root: str | None, where: str) -> list[Path]:
    """Return the files of paths and globs under `root` (None: the working directory), each pattern's in natural order.

    Raises `DataError` naming the config key `where` if the root or any pattern gives nothing.
    """
    base = Path(root).expanduser() if root else Path()
    if root and not base.is_dir():
        raise DataError(
            f"{base} is not a folder",
            where="data.root",
            remedy="set data.root=FOLDER or SPECVIT_DATA, make it (`specvit data fetch miles`), or use data=builtin",
        )
    files: list[Path] = []
    for pattern in patterns:
        full = str(base / Path(pattern).expanduser())
        search = str(Path(glob.escape(str(base))) / Path(pattern).expanduser())
        found = [full] if os.path.exists(full) else sorted(glob.glob(search), key=_natural)
        if not found:
            remedy = (
                f"set {where}=FILE, or data.root=FOLDER (or SPECVIT_DATA) to the folder of the set, or use data=builtin"
            )
            raise DataError(f"there is no file at {full}", where=where, remedy=remedy)
        files += [Path(name) for name in found]
    return files


def open_shard(path: Path) -> Shard:
    """Return a file as a shard after checking layout, shapes and length; raises `DataError`."""
    with open_file(path) as file:
        flux, error = open_array(file, path, FLUX), open_array(file, path, ERROR)
        wave_P, observed = read_wave(file, path), read_mark(file, path)
        masked_N = read_masked(file, path, flux) if MASKED in file else None
    if (flux.rows, flux.pixels) != (error.rows, error.pixels):
        what = f"has shape {error.rows, error.pixels} but the flux has {flux.rows, flux.pixels}"
        raise DataError(what, where=f"{path}:{ERROR}", remedy="both need one value a pixel")
    check_wave(wave_P, flux.pixels, path)
    return Shard(path=path, flux=flux, error=error, wave_P=wave_P, observed=observed, masked_N=masked_N)


def open_shards(paths: Sequence[Path], observed: bool | None = None) -> list[Shard]:
    """Open several files as one index, their flux marked as `observed` says unless that is None.

    Raises `DataError` if one is named twice or their wavelengths or marks differ.
    """
    shards = [open_shard(path) for path in paths]
    shards = shards if observed is None else [replace(shard, observed=observed) for shard in shards]
    sources = [shard.source for shard in shards]
    if len(set(sources)) < len(sources):
        twice = next(p for i, p in enumerate(paths) if sources[i] in sources[:i])
        raise DataError("is named twice", where=str(twice), remedy="name each shard once")
    first = shards[0]
    for shard in shards[1:]:
        if not same_wavelengths(shard.wave_P, first.wave_P):
            what = f"has other wavelengths than {first.path}"
            raise DataError(what, where=f"{shard.path}:{WAVE}", remedy="shards of one set need one wavelength grid")
        if shard.observed != first.observed:
            one, other = (first, shard) if first.observed else (shard, first)
            what = f"is marked as observed, and {other.path} is not"
            raise DataError(what, where=str(one.path), remedy="use them in separate sets, or set data.observed")
    return shards


def same_wavelengths(one_P: np.ndarray, other_P: np.ndarray) -> bool:
    """Return True if two grids agree to `SAME`."""
    return len(one_P) == len(other_P) and np.allclose(one_P, other_P, rtol=0, atol=SAME)


def grid_difference(wave_P: np.ndarray, run_P: np.ndarray) -> str:
    """Return in which way wavelengths are not those that a run was trained on, vacuum Angstrom, for a message."""

    def shown(wave: np.ndarray) -> str:
        step = f", {np.median(np.diff(wave)):.4g} Å apart" if len(wave) > 1 else ""
        return f"{len(wave)} pixels, {wave[0]:.2f}-{wave[-1]:.2f} Å{step}" if len(wave) else "no pixels"

    apart = ""
    if len(wave_P) == len(run_P) and shown(wave_P) == shown(run_P):
        apart = f" (up to {np.nanmax(np.abs(wave_P - run_P)):.2g} Å apart)"
    return f"has {shown(wave_P)} in vacuum; the run was trained on {shown(run_P)}{apart}"


def read_labels(shard: Shard) -> Any:
    """Return the label table of a shard as a pandas DataFrame with one row a spectrum; raises `DataError`."""
    with open_file(shard.path) as file:
        return read_table(label_table(file, shard.path), shard.path, shard.rows)


def write_shard(path: Path, *, wave_P: np.ndarray, flux_NP: np.ndarray, error_NP: np.ndarray, labels: Any) -> None:
    """Write one shard, contiguous float32 arrays and a pandas table, atomically; raises `DataError` on a full disk."""

    def fill(file: h5py.File) -> None:
        file[FLUX] = np.asarray(flux_NP, dtype=np.float32)
        file[ERROR] = np.asarray(error_NP, dtype=np.float32)

    fill_shard(path, fill, wave_P=wave_P, labels=labels)


def fill_shard(path: Path, fill: Callable[[h5py.File], None], *, wave_P: np.ndarray, labels: Any) -> None:
    """Write one shard as `write_shard` does; `fill` writes flux and error into the open file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        # Arrays that begin with a page of memory: a row of 4096 pixels is then four pages and not parts of five.
        with h5py.File(scratch, "w", alignment_threshold=PAGE_BYTES, alignment_interval=PAGE_BYTES) as file:
            file[WAVE] = np.asarray(wave_P, dtype=np.float64)
            fill(file)
        labels.to_hdf(scratch, key=PARAMS, mode="r+", format="table", index=False)
        with open(scratch, "rb+") as stream:
            os.fsync(stream.fileno())
        if not _can_be_read_back(scratch, labels):
            what, remedy = (
                "its labels did not reach the disk, which may be full",
                "free some space there, and try again",
            )
            raise DataError(what, where=str(path), remedy=remedy)
        os.replace(scratch, path)
    except (OSError, RuntimeError) as problem:  # HDF5 raises the latter where closing a file fails
        if (fault := os_fault(problem)) is None:
            raise
        cause, remedy = explain(fault, str(path.parent))
        raise DataError(cause, where=str(path), remedy=remedy) from problem
    finally:
        scratch.unlink(missing_ok=True)


def _can_be_read_back(path: Path, labels: Any) -> bool:
    """Return True if the labels are in the file: where the disk is full PyTables leaves zeros, and raises nothing."""
    with contextlib.suppress(DataError), open_file(path) as file:
        return read_table(label_table(file, path), path).equals(labels.reset_index(drop=True))
    return False


def open_array(file: h5py.File, path: Path, name: str) -> Array2D:
    """Return a float array (rows, pixels) after checking shape, type and that the file holds all of it."""
    dataset = open_dataset(file, path, name)
    where = f"{path}:{name}"
    if dataset.ndim != 2 or 0 in dataset.shape:
        raise DataError(f"has shape {dataset.shape}, not (spectra, pixels)", where=where, remedy="make the file again")
    if dataset.dtype.kind != "f":
        raise DataError(
            f"has type {dataset.dtype}, not a floating-point type", where=where, remedy="store it as float32"
        )
    rows, pixels = dataset.shape
    own = Path(dataset.file.filename)  # where a link leads: the offset counts from the start of that file
    offset = dataset.id.get_offset() if dataset.chunks is None else None
    if offset is not None and offset + dataset.nbytes > own.stat().st_size:
        where = f"{own}:{dataset.name}"
        raise DataError("reaches beyond the end of the file, which is truncated", where=where, remedy="copy it again")
    return Array2D(path=own, name=str(dataset.name), rows=rows, pixels=pixels, dtype=dataset.dtype, offset=offset)


def read_wave(file: h5py.File, path: Path) -> np.ndarray:
    """Return wavelengths, float64, not checked yet; raises `DataError` for what is not one row of numbers."""
    dataset = open_dataset(file, path, WAVE)
    if dataset.ndim != 1 or dataset.dtype.kind not in "fiu":
        what = f"has shape {dataset.shape} and type {dataset.dtype}"
        raise DataError(what, where=f"{path}:{WAVE}", remedy="store one wavelength a pixel as float64")
    return np.asarray(dataset[()], dtype=np.float64)


def read_mark(file: h5py.File, path: Path) -> bool:
    """Return whether the flux is marked as observed; raises `DataError` for a mark that is neither true nor false."""
    mark = open_dataset(file, path, FLUX).attrs.get(OBSERVED, False)
    if np.ndim(mark) or mark not in (True, False):
        raise DataError(f"is {mark!r}, neither true nor false", where=f"{path}:{FLUX}, attribute {OBSERVED}")
    return bool(mark)


def read_masked(file: h5py.File, path: Path, flux: Array2D) -> np.ndarray:
    """Return how many pixels of each row are masked (N,), int64; raises `DataError`."""
    dataset = open_dataset(file, path, MASKED)
    valid = dataset.shape == (flux.rows,) and dataset.dtype.kind in "iu"
    masked_N = np.asarray(dataset[()], dtype=np.int64) if valid else np.array([-1])
    if masked_N.min() < 0 or masked_N.max() > flux.pixels:
        what = f"does not hold a number of pixels for each of {flux.rows} rows"
        raise DataError(what, where=f"{path}:{MASKED}", remedy="write one whole number a row, or remove it")
    return masked_N


def masked_pixels(flux_BP: np.ndarray, error_BP: np.ndarray) -> np.ndarray:
    """Return which pixels (B, P) cannot be used: flux that is not finite, or an error that is not, or not above 0."""
    return ~(np.isfinite(flux_BP) & np.isfinite(error_BP) & (error_BP > 0))


def faint_rows(values_BP: np.ndarray, lowest: float) -> np.ndarray:
    """Return which rows (B,) have more values between 0 and `lowest`, either way, than beyond it."""
    size_BP = np.abs(values_BP)
    return np.asarray(((size_BP > 0) & (size_BP < lowest)).sum(axis=1) > (size_BP >= lowest).sum(axis=1))


def as_float32(values_BP: np.ndarray, where: str) -> np.ndarray:
    """Return values as float32, too large ones infinite; raises `DataError` for rows that it would turn into zeros."""
    if values_BP.dtype.itemsize > 4 and faint_rows(values_BP, float(np.finfo(np.float32).tiny)).any():
        what = "holds spectra that are too faint for float32, most of their values below 1.2e-38"
        raise DataError(what, where=where, remedy="multiply flux and error by one factor")
    with np.errstate(over="ignore"):
        return values_BP.astype(np.float32, copy=False)


def check_wave(wave_P: np.ndarray, pixels: int, path: Path) -> None:
    """Raise `DataError` unless the wavelengths are one a pixel, finite and rising."""
    where = f"{path}:{WAVE}"
    if wave_P.shape != (pixels,):
        raise DataError(f"has shape {wave_P.shape} for {pixels} pixels", where=where, remedy="one wavelength a pixel")
    if not np.isfinite(wave_P).all():
        bad = int(np.flatnonzero(~np.isfinite(wave_P))[0])
        raise DataError(f"is not finite at pixel {bad}", where=where, remedy="make the file again")
    falls = np.flatnonzero(np.diff(wave_P) <= 0)
    if len(falls):
        raise DataError(f"does not rise at pixel {int(falls[0]) + 1}", where=where, remedy="sort pixels by wavelength")


def _natural(name: str) -> list[Any]:
    """Sort key that puts train_200k_2 before train_200k_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
