"""Reads rows before they are needed, so that a set larger than memory is read at the speed of the disk.

Only for mapped files. A thread reads the next rows of the epoch's order through a small buffer and throws the bytes
away: they are then in the page cache, from which rows are gathered as without it, so no batch can change. Nothing is
dropped from the page cache: other runs on the host may be reading the same rows.
"""

import itertools
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from specvit.data.hdf5 import unreadable
from specvit.data.views import BLOCK_ROWS, WINDOW_BLOCKS, Spectra, epoch_order
from specvit.utils.errors import DataError

STRETCH_ROWS = {"block": WINDOW_BLOCKS * BLOCK_ROWS, "global": 2048}
"""Rows read at once: the window within which `block` shuffles; in `global` any number that keeps a disk busy."""
BUFFER_BYTES = 4 * 2**20
ANNOUNCED_BYTES = 128 * 2**10
"""What Linux reads ahead at once by default; it may read no more of a longer request."""


class Prefetcher:
    """Keeps the current rows and the next stretch of the epoch's order in the page cache."""

    def __init__(self, spectra: Spectra, *, order: str, seed: int) -> None:
        """`spectra` must be contiguous in their files; `order` and `seed` are those of their epochs."""
        self.spectra, self.order, self.seed = spectra, order, seed
        if order == "global":
            spectra.expect_random_reads()  # in block order the rows around a missing page are needed, too
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._stopped = threading.Event()
        self._orders: dict[int, np.ndarray] = {}
        self._reading: dict[tuple[int, int], Future[None]] = {}

    def close(self) -> None:
        """Stop reading; returns when the current piece is read."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)

    def reach(self, epoch: int, first: int, end: int) -> None:
        """Wait until places `first` to `end` (exclusive) of an epoch's order are read, and start reading what follows.

        Raises `DataError` for a file that cannot be read or is shorter than it was.
        """
        rows = STRETCH_ROWS[self.order]
        current = [(epoch, stretch) for stretch in range(first // rows, (end - 1) // rows + 1)]
        following = current[-1][1] + 1
        follows = (epoch, following) if following * rows < len(self.spectra) else (epoch + 1, 0)
        if not {*current, follows} <= self._reading.keys():
            self._reading = {key: self._reading.get(key) or self._start(*key) for key in (*current, follows)}
        for key in current:
            self._reading[key].result()

    def _start(self, epoch: int, stretch: int) -> Future[None]:
        if epoch not in self._orders:
            order_N = epoch_order(len(self.spectra), seed=self.seed, epoch=epoch, order=self.order)
            self._orders = {known: self._orders[known] for known in self._orders if known == epoch - 1}
            self._orders[epoch] = order_N
        rows = STRETCH_ROWS[self.order]
        stretch_N = np.sort(self._orders[epoch][stretch * rows : (stretch + 1) * rows])
        return self._pool.submit(_read, self.spectra, stretch_N, self._stopped)


def byte_ranges(spectra: Spectra, index_B: np.ndarray) -> dict[Path, list[tuple[int, int]]]:
    """Return where flux and error of rising view rows are: each file's (offset, length) in bytes, one a run of rows."""
    rows_B = spectra.rows_N[index_B]
    shard_B = np.searchsorted(spectra.starts, rows_B, side="right") - 1
    breaks = np.flatnonzero((np.diff(rows_B) != 1) | (np.diff(shard_B) != 0)) + 1
    ranges: dict[Path, list[tuple[int, int]]] = {}
    for name in ("flux", "error"):
        for start, stop in itertools.pairwise([0, *breaks.tolist(), len(rows_B)]):
            array = getattr(spectra.shards[shard_B[start]], name)
            assert array.offset is not None
            row, row_bytes = int(rows_B[start] - spectra.starts[shard_B[start]]), array.pixels * array.dtype.itemsize
            ranges.setdefault(array.path, []).append((array.offset + row * row_bytes, (stop - start) * row_bytes))
    return ranges


def _read(spectra: Spectra, index_B: np.ndarray, stopped: threading.Event) -> None:
    """Read rows until `stopped`; all calls release Python's lock, so the training loop does not wait for them."""
    buffer = memoryview(bytearray(BUFFER_BYTES))
    for path, ranges in byte_ranges(spectra, index_B).items():
        try:
            with open(path, "rb", buffering=0) as stream:
                # Otherwise Linux would read ahead beyond each range.
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                for offset, length in ranges if not stopped.is_set() else ():
                    _announce(stream.fileno(), offset, length)
                for offset, length in itertools.takewhile(lambda _: not stopped.is_set(), ranges):
                    _read_range(stream.fileno(), path, offset, length, buffer)
        except OSError as problem:
            raise unreadable(problem, path) from problem


def _announce(descriptor: int, offset: int, length: int) -> None:
    """Ask the kernel for a range, so that the disk has many requests at once."""
    for start in range(offset, offset + length, ANNOUNCED_BYTES):
        os.posix_fadvise(descriptor, start, min(ANNOUNCED_BYTES, offset + length - start), os.POSIX_FADV_WILLNEED)


def _read_range(descriptor: int, path: Path, offset: int, length: int, buffer: memoryview) -> None:
    """Wait for a range; raises `DataError` if the file ends before it."""
    while length:
        count = os.preadv(descriptor, [buffer[:length]], offset)
        if not count:
            raise DataError("is truncated", where=str(path), remedy="copy or make it again")
        offset, length = offset + count, length - count
