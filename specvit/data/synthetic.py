"""Synthetic spectra of the forward model: as cached shards (`builtin`), or in memory, made on demand (`synth`).

For machines without the reference set; chosen by name, never a fall-back. A row is a function of (seed, split, row,
max_redshift, label_prior) alone: the first 5k rows are the same in every set, whatever the shard size and the number of
threads.
The bits of a matrix product depend on its shape and on the threads that share it, so rows are always computed in the
same pieces, each by one thread. torch is imported only where spectra are made.

Shape suffixes: N rows of a shard or view, B rows gathered or of a piece, b a selection of them, P pixels, K labels,
S columns of the star table.
"""

import contextlib
import hashlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from specvit.data.shards import Shard, fill_shard
from specvit.utils.files import cache_dir, locked, read_json, remove_leftovers, write_json
from specvit.utils.quantities import ERROR, FLUX, LABELS

GENERATOR_VERSION = 4
"""Part of a run's identity and of the cache's path; raised when any synthetic row changes."""
SHARD_ROWS = 5000
ROUND_UP = 1000
"""A short shard is rounded up to this many rows, so that a slightly larger request needs no new one."""
PIECE_ROWS = 250
"""Rows computed together, starting at a multiple of this number; the last bits of a row depend on it."""
KEPT_BYTES = 512 * 2**20
"""A view that is read repeatedly (validation, test) keeps its spectra in memory up to this size."""

Report = Callable[[str, int, int], None]
"""Called with (split, rows done, rows in total) while spectra are made."""
Piece = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Flux (B, P), error (B, P) and median S/N (B,)."""


def builtin_manifest(
    rows: int, *, seed: int, split: str, max_redshift: float = 0.0, label_prior: str = "uniform"
) -> dict[str, Any]:
    """Return what identifies a synthetic set; needs no file."""
    redshift = {"max_redshift": max_redshift} if max_redshift else {}
    prior = {"label_prior": label_prior} if label_prior != "uniform" else {}
    return {"builtin": GENERATOR_VERSION, "seed": seed, "split": split, "rows": rows, **redshift, **prior}


def builtin_files(
    rows: int, *, seed: int, split: str, report: Report, max_redshift: float = 0.0, label_prior: str = "uniform"
) -> list[Path]:
    """Return cached shards that hold at least rows 0..rows-1 of a split, making those that are missing.

    A short last shard has its row count in its name: a file that another run may have open is never replaced by a
    longer one. The cache is locked meanwhile, so several runs that start at once make each shard once.
    """
    redshift = f"-z{max_redshift!r}" if max_redshift else ""
    prior = f"-{label_prior}" if label_prior != "uniform" else ""
    folder = cache_dir() / f"builtin-v{GENERATOR_VERSION}-seed{seed}{redshift}{prior}"
    shards = {}
    for first in range(0, rows, SHARD_ROWS):
        count = min(SHARD_ROWS, -(-(rows - first) // ROUND_UP) * ROUND_UP)
        short = "" if count == SHARD_ROWS else f"_{count}"
        shards[folder / f"{split}_{first // SHARD_ROWS:04d}{short}" / "dataset.h5"] = range(first, first + count)
    if not all(_is_intact(path, rows_of) for path, rows_of in shards.items()):
        with locked(folder / ".lock"):
            missing = {path: rows_of for path, rows_of in shards.items() if not _is_intact(path, rows_of)}
            for path in filter(Path.exists, missing):
                print(f"note: {path} has changed since it was made and is made again", file=sys.stderr, flush=True)
            star: dict[str, Any] = {"max_redshift": max_redshift, "label_prior": label_prior}
            make_shards(missing, seed=seed, split=split, report=report, **star)
            for path in missing:
                write_json(path.with_name("made.json"), _size_and_mtime(path) | {"digest": _digest(path)})
    return list(shards)


def make_shards(
    shards: dict[Path, range],
    *,
    seed: int,
    split: str,
    report: Report,
    max_redshift: float = 0.0,
    label_prior: str = "uniform",
) -> None:
    """Write each path with its rows, on every CPU this process may use; each file is whole or absent.

    Pieces are written as they are computed: memory does not grow with the rows.
    """
    from specvit.physics.instrument import wavelength
    from specvit.physics.population import draw_stars

    total, done = sum(map(len, shards.values())), 0
    with _piece_threads() as pieces:
        for path, rows in shards.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent)
            star: dict[str, Any] = {"max_redshift": max_redshift, "label_prior": label_prior}
            labels = _label_table(draw_stars(seed, split, np.asarray(rows), **star))

            def fill(file: h5py.File, rows: range = rows, labels: Any = labels) -> None:
                nonlocal done
                shape = (len(rows), len(wavelength()))
                flux, error = (file.create_dataset(name, shape, np.float32) for name in (FLUX, ERROR))
                numbers = range(rows.start // PIECE_ROWS, -(-rows.stop // PIECE_ROWS))
                for number, piece in zip(numbers, pieces(seed, split, numbers, max_redshift, label_prior), strict=True):
                    in_piece, in_shard = _overlap(number, rows)
                    flux[in_shard], error[in_shard] = piece[0][in_piece], piece[1][in_piece]
                    labels.iloc[in_shard, labels.columns.get_loc("snr")] = piece[2][in_piece]
                    done += in_piece.stop - in_piece.start
                    report(split, done, total)

            fill_shard(path, fill, wave_P=wavelength(), labels=labels)


def make_piece(seed: int, split: str, number: int, max_redshift: float, label_prior: str = "uniform") -> Piece:
    """Return the spectra of a whole piece."""
    import torch

    from specvit.physics.population import draw_stars
    from specvit.physics.simulator import host_simulator

    rows = np.arange(number * PIECE_ROWS, (number + 1) * PIECE_ROWS)
    stars_BS = draw_stars(seed, split, rows, max_redshift=max_redshift, label_prior=label_prior)
    with torch.inference_mode():
        flux_BP, error_BP = (x.numpy() for x in host_simulator(max_redshift > 0)(torch.from_numpy(stars_BS)))
    return flux_BP, error_BP, np.median(flux_BP / error_BP, axis=1)


class SyntheticSpectra:
    """A `SpectraView` without files: stars are drawn at once, their spectra computed on the host when gathered."""

    def __init__(
        self,
        rows_N: np.ndarray,
        *,
        seed: int,
        split: str,
        max_redshift: float,
        label_prior: str = "uniform",
        keep: bool = False,
    ) -> None:
        """`rows_N` are int64 row numbers of the split; `keep` caches its spectra, up to `KEPT_BYTES`."""
        self.rows_N, self.seed, self.split = rows_N, seed, split
        self.max_redshift, self.label_prior = max_redshift, label_prior
        self.keep = keep and self.num_bytes <= KEPT_BYTES
        self._latest: tuple[int, tuple[np.ndarray, np.ndarray]] | None = None

    def __len__(self) -> int:
        """Number of spectra."""
        return len(self.rows_N)

    @property
    def shards(self) -> Sequence[Shard]:
        """No files."""
        return ()

    masked_N = None
    """No pixel is masked."""

    @property
    def observed(self) -> bool:
        """Whether the flux has the noise of its errors already: never."""
        return False

    @property
    def num_pixels(self) -> int:
        """Pixels a spectrum."""
        return len(self.wave_P)

    @property
    def wave_P(self) -> np.ndarray:
        """Wavelengths (P,), vacuum Angstrom."""
        from specvit.physics.instrument import wavelength

        return wavelength()

    @property
    def num_bytes(self) -> int:
        """Bytes of flux and error of these rows, if all were kept."""
        return 8 * len(self) * self.num_pixels

    @property
    def contiguous(self) -> bool:
        """Whether the spectra stay in memory once they are computed."""
        return self.keep

    @cached_property
    def stars_NS(self) -> np.ndarray:
        """The stars (N, S) in float64, columns as in `STAR_COLUMNS`."""
        from specvit.physics.population import draw_stars

        star: dict[str, Any] = {"max_redshift": self.max_redshift, "label_prior": self.label_prior}
        return draw_stars(self.seed, self.split, self.rows_N, **star)

    def labels(self) -> Any:
        """Return the label table as a DataFrame (N rows), without `snr`: that would need every spectrum."""
        import pandas as pd

        from specvit.physics.population import STAR_COLUMNS

        names = [name for name in STAR_COLUMNS if name != "throughput"]
        return pd.DataFrame(self.label_values(names), columns=names)

    def label_values(self, names: Sequence[str]) -> np.ndarray:
        """Return labels (N, K) in float64; the configuration's checks have refused names that no star has."""
        from specvit.physics.population import STAR_COLUMNS

        return self.stars_NS[:, [STAR_COLUMNS.index(name) for name in names]]

    def gather(self, index_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return flux and error (B, P), float32, of view rows `index_B` in that order."""
        if self.keep:
            flux_NP, error_NP = self._kept
            return flux_NP[index_B], error_NP[index_B]
        return self._simulate(self.rows_N[index_B])

    def offset_by(self, rows: int) -> "SyntheticSpectra":
        """Return the view of as many stars that begins `rows` rows later."""
        star: dict[str, Any] = {"max_redshift": self.max_redshift, "label_prior": self.label_prior}
        return SyntheticSpectra(self.rows_N + rows, seed=self.seed, split=self.split, **star)

    def describe_row(self, index: int) -> str:
        """Return which star a view row is, for messages."""
        return f"{self._origin} row {self.rows_N[index]}"

    def origins(self) -> tuple[list[str], np.ndarray]:
        """Return `synth/SPLIT` in place of each row's file, and its row number in the split."""
        return [self._origin] * len(self), self.rows_N

    @property
    def _origin(self) -> str:
        return f"synth/{self.split}"

    @cached_property
    def _kept(self) -> tuple[np.ndarray, np.ndarray]:
        return self._simulate(self.rows_N)

    def _simulate(self, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return flux and error (B, P), float32, of rows of the split, computed piece by piece."""
        flux_BP = np.empty((len(rows_B), self.num_pixels), dtype=np.float32)
        error_BP = np.empty_like(flux_BP)
        piece_B = rows_B // PIECE_ROWS
        with one_thread():
            for number in np.unique(piece_B).tolist():
                index_b = np.flatnonzero(piece_B == number)
                in_piece_b = rows_B[index_b] - number * PIECE_ROWS
                flux_BP[index_b], error_BP[index_b] = (values[in_piece_b] for values in self._piece(number))
        return flux_BP, error_BP

    def _piece(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a whole piece; the latest one is kept, since readers in row order need its other rows next."""
        if self._latest is None or self._latest[0] != number:
            flux_BP, error_BP, _ = make_piece(self.seed, self.split, number, self.max_redshift, self.label_prior)
            self._latest = number, (flux_BP, error_BP)
        return self._latest[1]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread within the block: the bits depend on the number of threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _piece_threads() -> Iterator[Callable[[int, str, range, float, str], Iterator[Piece]]]:
    """Give a function that yields pieces in order and computes the next ones on threads, one thread a piece.

    Threads and not processes: a process would spend 2 s on importing torch, in which 40,000 spectra are made.
    """
    workers = len(os.sched_getaffinity(0))
    pool = ThreadPoolExecutor(workers, "synthetic")

    def pieces(seed: int, split: str, numbers: range, max_redshift: float, label_prior: str) -> Iterator[Piece]:
        pending: deque[Future[Piece]] = deque()
        for number in numbers:
            pending.append(pool.submit(make_piece, seed, split, number, max_redshift, label_prior))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    with one_thread():
        try:
            yield pieces
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _overlap(number: int, rows: range) -> tuple[slice, slice]:
    """Return which rows of a piece are in a shard, counted in the piece and in the shard."""
    first = number * PIECE_ROWS
    start, stop = max(rows.start, first), min(rows.stop, first + PIECE_ROWS)
    return slice(start - first, stop - first), slice(start - rows.start, stop - rows.start)


def _label_table(stars_NS: np.ndarray) -> Any:
    """Return the label columns of stars, with S/N not yet known."""
    import pandas as pd

    from specvit.physics.population import STAR_COLUMNS

    return pd.DataFrame(stars_NS, columns=list(STAR_COLUMNS)).reindex(columns=list(LABELS))


def _is_intact(path: Path, rows: range) -> bool:
    """Return whether a cached shard exists, has at least these rows, and is unchanged since it was written.

    A file that was touched or copied since is digested once more; those of older versions have no digest.
    """
    record = path.with_name("made.json")
    try:
        with h5py.File(path, "r") as file:
            flux = file[FLUX]
            complete = isinstance(flux, h5py.Dataset) and flux.shape[0] >= len(rows)
        recorded = read_json(record) or _size_and_mtime(path)
        if complete and recorded != recorded | _size_and_mtime(path):
            if recorded.get("digest") != _digest(path):
                return False
            with contextlib.suppress(OSError):  # in a read-only cache the file is digested each time
                write_json(record, recorded | _size_and_mtime(path))
        return complete
    except (OSError, KeyError):
        return False


def _size_and_mtime(path: Path) -> dict[str, Any]:
    """Return size in bytes and time of change in ns."""
    stat = path.stat()
    return {"size": stat.st_size, "mtime": stat.st_mtime_ns}


def _digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()
