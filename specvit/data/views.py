"""A chosen set of rows over several shards: which they are, their labels, their manifest, and how to gather them.

Legend: N rows of the view, B rows gathered, P pixels, K labels.
"""

import hashlib
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from specvit.data.hdf5 import unreadable
from specvit.data.shards import Shard, as_float32, masked_pixels, open_shards, read_labels
from specvit.utils import seeding
from specvit.utils.errors import DataError
from specvit.utils.quantities import LABELS, MASKED

MANIFEST_ROWS = 16
"""Evenly spaced spectra in the manifest's digest: enough to tell files apart, cheap at every start."""
MAX_SLICE_BYTES = 64 * 2**20
"""Largest slice that is read at once from a chunked array of which only some rows are needed."""
COUNT_COMMAND = "specvit data convert FILE NEW"
"""Counts the masked pixels of a file in the layout."""
BLOCK_ROWS = 1024
WINDOW_BLOCKS = 16
"""`data.order=block` shuffles blocks of neighbouring rows, and the rows within windows of this many blocks."""


class SpectraView(Protocol):
    """Spectra with their labels, from files or synthetic. `rows_N` key a row's noise in evaluation."""

    rows_N: np.ndarray

    @property
    def shards(self) -> Sequence[Shard]:
        """The files that hold them; none for spectra that are computed when gathered."""
        ...

    def __len__(self) -> int:
        """Number of spectra."""
        ...

    @property
    def observed(self) -> bool:
        """Whether the flux has the noise of its errors already."""
        ...

    @property
    def masked_N(self) -> np.ndarray | None:
        """How many pixels of each row are masked (N,), int64; None where none of any row is."""
        ...

    @property
    def num_pixels(self) -> int:
        """Pixels a spectrum."""
        ...

    @property
    def wave_P(self) -> np.ndarray:
        """Wavelengths (P,), vacuum Angstrom."""
        ...

    @property
    def num_bytes(self) -> int:
        """Bytes of flux and error of all rows."""
        ...

    @property
    def contiguous(self) -> bool:
        """Whether single rows cost no more than their share, so that nothing is gained by a copy in memory."""
        ...

    def labels(self) -> Any:
        """Return the label table as a DataFrame (N rows)."""
        ...

    def label_values(self, names: Sequence[str], /) -> np.ndarray:
        """Return labels (N, K) in float64, NaN where a row lacks one of several; raises `DataError`."""
        ...

    def gather(self, index_B: np.ndarray, /) -> tuple[np.ndarray, np.ndarray]:
        """Return flux and error (B, P), float32, of view rows `index_B` in that order; raises `DataError`.

        Both are NaN in masked pixels, whatever is stored there.
        """
        ...

    def describe_row(self, index: int, /) -> str:
        """Return where a view row comes from, for messages."""
        ...

    def origins(self) -> tuple[list[str], np.ndarray]:
        """Return each row's file, or a name in its place, and its row number there."""
        ...


class Spectra:
    """Rows of one or more shards. `rows_N` are their numbers in shard order; nothing is read before it is needed."""

    def __init__(self, shards: Sequence[Shard], rows_N: np.ndarray) -> None:
        """`rows_N` are int64 row numbers counted over all shards."""
        self.shards = list(shards)
        self.rows_N = rows_N
        self.starts = np.cumsum([0, *(shard.rows for shard in shards)])
        masked_N = None
        if any(shard.masked_N is not None for shard in shards):
            none = (
                np.zeros(shard.rows, dtype=np.int64) if shard.masked_N is None else shard.masked_N for shard in shards
            )
            masked_N = np.concatenate(list(none))[rows_N]
        self.masked_N = masked_N if masked_N is not None and masked_N.any() else None
        self._arrays: dict[tuple[int, str], Any] = {}
        self._labels: Any = None

    def __len__(self) -> int:
        """Number of spectra."""
        return len(self.rows_N)

    @property
    def observed(self) -> bool:
        """Whether the flux has the noise of its errors already."""
        return self.shards[0].observed

    @property
    def num_pixels(self) -> int:
        """Pixels a spectrum."""
        return self.shards[0].flux.pixels

    @property
    def wave_P(self) -> np.ndarray:
        """Wavelengths (P,), vacuum Angstrom."""
        return self.shards[0].wave_P

    @property
    def num_bytes(self) -> int:
        """Bytes of flux and error of these rows, as stored in the files."""
        shard = self.shards[0]
        return len(self) * self.num_pixels * (shard.flux.dtype.itemsize + shard.error.dtype.itemsize)

    @property
    def contiguous(self) -> bool:
        """Whether every array can be memory-mapped."""
        return all(array.offset is not None for shard in self.shards for array in (shard.flux, shard.error))

    def labels(self) -> Any:
        """Return the label table of these rows as a DataFrame (N rows)."""
        if self._labels is None:
            import pandas as pd

            first, last = self._touched()
            tables = [read_labels(self.shards[index]) for index in range(first, last + 1)]
            whole = pd.concat(tables, ignore_index=True, join="inner") if len(tables) > 1 else tables[0]
            rows_N = self.rows_N - self.starts[first]
            if np.array_equal(rows_N, np.arange(len(rows_N))):  # the usual choice, and a million rows need no copy
                self._labels = whole.iloc[: len(rows_N)]
            else:
                self._labels = whole.iloc[rows_N].reset_index(drop=True)
        return self._labels

    def label_values(self, names: Sequence[str]) -> np.ndarray:
        """Return labels (N, K) in float64; one of several may be missing in a row, which is NaN.

        Raises `DataError` naming file and row for an infinite one, and for a row that has none.
        """
        table = self.labels()
        for name in names:
            if name not in table:
                raise self._missing_label(name)
        try:
            values_NK = table[list(names)].to_numpy(dtype=np.float64)
        except ValueError as problem:
            raise DataError(
                "is not a number", where=f"label {', '.join(names)}", remedy="choose a numeric label"
            ) from problem
        none_N = np.isnan(values_NK).all(axis=1)
        bad = np.argwhere(np.isinf(values_NK) | none_N[:, None])
        if len(bad):
            row, column = bad[0]
            what = f"label {names[column]} is {values_NK[row, column]}"
            if none_N[row] and len(names) > 1:
                what = f"has none of the labels {', '.join(names)}"
            what += f", as in {none_N.sum():,} rows" if none_N[row] and none_N.sum() > 1 else ""
            raise DataError(what, where=self.describe_row(int(row)), remedy="correct or remove that row")
        return values_NK

    def gather(self, index_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return flux and error (B, P), float32, of view rows `index_B` in that order; raises `DataError`.

        Both are NaN in masked pixels, whose number is checked.
        """
        rows_B = self.rows_N[index_B]
        shard_B = np.searchsorted(self.starts, rows_B, side="right") - 1
        flux_BP = np.empty((len(rows_B), self.num_pixels), dtype=np.float32)
        error_BP = np.empty_like(flux_BP)
        for shard in np.unique(shard_B):
            where_b = np.flatnonzero(shard_B == shard)
            local_b = rows_B[where_b] - self.starts[shard]
            for name, values_BP in (("flux", flux_BP), ("error", error_BP)):
                try:
                    taken_bP = _take(self._array(int(shard), name), local_b)
                except OSError as problem:
                    raise unreadable(problem, getattr(self.shards[shard], name).path) from problem
                values_BP[where_b] = as_float32(taken_bP, f"{self.shards[shard].path}, {name}")
        if self.masked_N is not None:
            masked_BP = masked_pixels(flux_BP, error_BP)
            wrong = np.flatnonzero(masked_BP.sum(axis=1) != self.masked_N[index_B])
            if len(wrong):
                row = int(wrong[0])
                what = f"has {masked_BP[row].sum()} masked pixels, and {MASKED} says {self.masked_N[index_B[row]]}"
                remedy = f"correct that number; `{COUNT_COMMAND}` into a new file"
                raise DataError(what, where=self.describe_row(int(index_B[row])), remedy=remedy)
            flux_BP[masked_BP] = error_BP[masked_BP] = np.nan
        return flux_BP, error_BP

    def expect_random_reads(self) -> None:
        """Have mapped files read page by page where a page is missing, instead of with megabytes around it."""
        for index in range(len(self.shards)):
            for name in ("flux", "error"):
                mapped = self._array(index, name).base
                if isinstance(mapped, mmap.mmap):
                    mapped.madvise(mmap.MADV_RANDOM)

    def describe_row(self, index: int) -> str:
        """Return "file row r" of a view row, for messages."""
        row = int(self.rows_N[index])
        shard = int(np.searchsorted(self.starts, row, side="right") - 1)
        return f"{self.shards[shard].path} row {row - int(self.starts[shard])}"

    def origins(self) -> tuple[list[str], np.ndarray]:
        """Return each row's file and its row number in that file."""
        shard_N = np.searchsorted(self.starts, self.rows_N, side="right") - 1
        return [str(self.shards[s].path) for s in shard_N], self.rows_N - self.starts[shard_N]

    def manifest(self, param: Sequence[str]) -> dict[str, Any]:
        """Return what identifies this data whatever file holds it: shape, digests of labels and sampled rows, marks.

        Labels of the layout and those of `param` count; other columns may be added without renaming a run.
        """
        table = self.labels()
        names = sorted(({*LABELS} & set(table.columns)) | set(param))
        digest = hashlib.sha256(" ".join(names).encode())
        digest.update(np.ascontiguousarray(table[names].to_numpy(np.float64)).data)
        sample_b = np.unique(np.linspace(0, len(self) - 1, MANIFEST_ROWS).astype(np.int64))
        flux_bP, error_bP = self.gather(sample_b)
        sampled = hashlib.sha256(flux_bP.tobytes() + error_bP.tobytes() + self.wave_P.tobytes())
        shape = [len(self), self.num_pixels]
        digests = {"labels": digest.hexdigest()[:16], "rows": sampled.hexdigest()[:16]}
        masked = {} if self.masked_N is None else {"masked": int(self.masked_N.sum())}
        return {"shape": shape, **digests, **({"observed": True} if self.observed else {}), **masked}

    def _touched(self) -> tuple[int, int]:
        """Return the first and the last shard that rows come from."""
        shard_N = np.searchsorted(self.starts, self.rows_N, side="right") - 1
        return int(shard_N.min()), int(shard_N.max())

    def _missing_label(self, name: str) -> DataError:
        """Return the error for a label that is not in every file; it names the first file without it."""
        first, last = self._touched()
        tables = {shard.path: read_labels(shard) for shard in self.shards[first : last + 1]}
        path = next(path for path, table in tables.items() if name not in table)
        what = f"has no label {name!r}; there are {', '.join(map(str, tables[path].columns))}"
        remedy = "set data.param to one of them"
        if any(name in table for table in tables.values()):
            remedy = f"add it to this file, too, or set data.param to labels that all {len(tables)} files have"
        return DataError(what, where=str(path), remedy=remedy)

    def _array(self, shard: int, name: str) -> Any:
        if (shard, name) not in self._arrays:
            self._arrays[shard, name] = getattr(self.shards[shard], name).open()
        return self._arrays[shard, name]


def first_masked(spectra: SpectraView) -> str:
    """Return where the first row with masked pixels comes from, or ""."""
    return "" if spectra.masked_N is None else spectra.describe_row(int(np.flatnonzero(spectra.masked_N)[0]))


def select_rows(total: int, wanted: int, *, subset: str, seed: int, where: str) -> np.ndarray:
    """Return int64 row numbers of a nested subset: N rows are the start of any longer choice; -1 takes every row.

    `first`: rows 0..N-1 in shard order. `random`: the first N of one seeded shuffle of all rows, sorted, so that N
    rows are contained in any larger choice. Raises `DataError` if there are fewer than `wanted`.
    """
    if wanted > total:
        raise DataError(
            f"is {wanted} but the files hold {total} spectra", where=where, remedy=f"set {where}={total} or -1"
        )
    if wanted < 0 or wanted == total:
        return np.arange(total)
    if subset == "first":
        return np.arange(wanted)
    return np.sort(seeding.numpy_rng(seed, "subset").permutation(total)[:wanted])


def epoch_order(num_rows: int, *, seed: int, epoch: int, order: str) -> np.ndarray:
    """Return the view rows (N,) of one epoch, each once: a function of (seed, epoch), whatever holds the data.

    `global` shuffles all rows. `block` shuffles blocks of neighbouring rows and then the rows within windows of
    several blocks, so that a set larger than memory is read from disk in long pieces.
    """
    rng = seeding.numpy_rng(seed, "order", epoch)
    if order == "global":
        return rng.permutation(num_rows)
    blocks = [np.arange(start, min(start + BLOCK_ROWS, num_rows)) for start in range(0, num_rows, BLOCK_ROWS)]
    shuffled = [blocks[index] for index in rng.permutation(len(blocks))]
    windows = [shuffled[start : start + WINDOW_BLOCKS] for start in range(0, len(shuffled), WINDOW_BLOCKS)]
    return np.concatenate([rng.permutation(np.concatenate(window)) for window in windows])


def open_spectra(
    paths: Sequence[Path],
    wanted: int,
    *,
    subset: str = "first",
    seed: int = 0,
    where: str = "data.num_samples",
    observed: bool | None = None,
) -> Spectra:
    """Open files as one view of `wanted` rows, marked as `observed` says unless that is None; raises `DataError`."""
    shards = open_shards(paths, observed)
    total = sum(shard.rows for shard in shards)
    return Spectra(shards, select_rows(total, wanted, subset=subset, seed=seed, where=where))


def _take(array: Any, rows_b: np.ndarray) -> np.ndarray:
    """Return rows of a memory map, or of an HDF5 dataset: each chunk unpacked once, by one slice a row of chunks.

    h5py takes a list of rows, too, but where a chunk is one row that takes eight times as long; where it is very tall
    the slice would be most of the file, and a list is taken.
    """
    if isinstance(array, np.ndarray):
        return array[rows_b]
    unique_u, inverse_b = np.unique(rows_b, return_inverse=True)
    chunk_u = unique_u // array.chunks[0] if array.chunks else unique_u
    values_uP = np.empty((len(unique_u), array.shape[1]), dtype=array.dtype)
    for of_chunk in np.split(np.arange(len(unique_u)), np.flatnonzero(np.diff(chunk_u)) + 1):
        rows = unique_u[of_chunk]
        if (rows[-1] + 1 - rows[0]) * array.shape[1] * array.dtype.itemsize > MAX_SLICE_BYTES:
            values_uP[of_chunk] = array[rows]
        else:
            values_uP[of_chunk] = array[rows[0] : rows[-1] + 1][rows - rows[0]]
    return values_uP[inverse_b]
