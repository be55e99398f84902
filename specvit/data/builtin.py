"""Built-in spectra as shards, for machines without the reference set. Chosen by name, never a fall-back.

A row is a function of (seed, split, row) alone: the first 5k rows are the same in every set, whatever the shard size
and however many threads made them. Bits of a matrix product depend on its shape and on the threads that share it, so
rows are always computed in the same pieces, each by one thread.

Shape suffixes: N rows of a shard, B rows of a piece, S columns of a star, P pixels.
"""

import contextlib
import hashlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from specvit.data.shards import fill_shard
from specvit.utils.files import cache_dir, locked, read_json, remove_leftovers, write_json
from specvit.utils.quantities import ERROR, FLUX, LABELS

GENERATOR_VERSION = 3
"""Part of a run's identity and of the cache's path; raised when any made row changes."""
SHARD_ROWS = 5000
ROUND_UP = 1000
"""A short shard is rounded up to this many rows, so that asking for a few more finds them there."""
PIECE_ROWS = 250
"""Rows that are computed together, from a multiple of this number on; made rows depend on it in their last bits."""

Report = Callable[[str, int, int], None]
"""Called with (split, rows made, rows to make) while spectra are made."""
Piece = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Flux (B, P), error (B, P) and median S/N (B,)."""


def builtin_manifest(rows: int, *, seed: int, split: str, max_redshift: float = 0.0) -> dict[str, Any]:
    """Return what identifies a built-in set; needs no file."""
    moved = {"max_redshift": max_redshift} if max_redshift else {}
    return {"builtin": GENERATOR_VERSION, "seed": seed, "split": split, "rows": rows, **moved}


def builtin_files(rows: int, *, seed: int, split: str, report: Report, max_redshift: float = 0.0) -> list[Path]:
    """Return cached shards that hold at least rows 0..rows-1 of a split, making those that are missing.

    A short last shard has its row count in its name: a file that another run may have open is never replaced by a
    longer one. The cache is locked meanwhile, so several runs that start at once make each shard once.
    """
    moved = f"-z{max_redshift!r}" if max_redshift else ""
    folder = cache_dir() / f"builtin-v{GENERATOR_VERSION}-seed{seed}{moved}"
    wanted = {}
    for first in range(0, rows, SHARD_ROWS):
        count = min(SHARD_ROWS, -(-(rows - first) // ROUND_UP) * ROUND_UP)
        short = "" if count == SHARD_ROWS else f"_{count}"
        wanted[folder / f"{split}_{first // SHARD_ROWS:04d}{short}" / "dataset.h5"] = range(first, first + count)
    if not all(_holds(path, rows_of) for path, rows_of in wanted.items()):
        with locked(folder / ".lock"):
            missing = {path: rows_of for path, rows_of in wanted.items() if not _holds(path, rows_of)}
            for path in filter(Path.exists, missing):
                print(f"note: {path} is not as it was made and is made again", file=sys.stderr, flush=True)
            make_shards(missing, seed=seed, split=split, report=report, max_redshift=max_redshift)
            for path in missing:
                write_json(path.with_name("made.json"), _stamp(path) | {"digest": _digest(path)})
    return list(wanted)


def make_shards(shards: dict[Path, range], *, seed: int, split: str, report: Report, max_redshift: float = 0.0) -> None:
    """Write each path with its rows, on every CPU this process may use; each file is whole or absent.

    Pieces go to the file as they come: memory does not grow with the rows.
    """
    from specvit.physics.instrument import wavelength
    from specvit.physics.population import draw_stars

    total, made = sum(map(len, shards.values())), 0
    with _one_thread_each(len(os.sched_getaffinity(0))) as submit:
        for path, rows in shards.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent)
            labels = _table(draw_stars(seed, split, np.asarray(rows), max_redshift=max_redshift))

            def fill(file: h5py.File, rows: range = rows, labels: Any = labels) -> None:
                nonlocal made
                shape = (len(rows), len(wavelength()))
                flux, error = (file.create_dataset(name, shape, np.float32) for name in (FLUX, ERROR))
                numbers = range(rows.start // PIECE_ROWS, -(-rows.stop // PIECE_ROWS))
                for number, piece in zip(numbers, submit(seed, split, numbers, max_redshift), strict=True):
                    cut, here = _overlap(number, rows)
                    flux[here], error[here] = piece[0][cut], piece[1][cut]
                    labels.iloc[here, labels.columns.get_loc("snr")] = piece[2][cut]
                    made += cut.stop - cut.start
                    report(split, made, total)

            fill_shard(path, fill, wave_P=wavelength(), labels=labels)


def make_piece(seed: int, split: str, number: int, max_redshift: float) -> Piece:
    """Return the spectra of a whole piece."""
    import torch

    from specvit.physics.population import draw_stars
    from specvit.physics.simulator import host_simulator

    rows = np.arange(number * PIECE_ROWS, (number + 1) * PIECE_ROWS)
    stars_BS = draw_stars(seed, split, rows, max_redshift=max_redshift)
    with torch.inference_mode():
        flux_BP, error_BP = (x.numpy() for x in host_simulator(max_redshift > 0)(torch.from_numpy(stars_BS)))
    return flux_BP, error_BP, np.median(flux_BP / error_BP, axis=1)


def _overlap(number: int, rows: range) -> tuple[slice, slice]:
    """Return which rows of a piece are in a shard, counted in the piece and in the shard."""
    first = number * PIECE_ROWS
    start, stop = max(rows.start, first), min(rows.stop, first + PIECE_ROWS)
    return slice(start - first, stop - first), slice(start - rows.start, stop - rows.start)


@contextlib.contextmanager
def _one_thread_each(workers: int) -> Iterator[Callable[[int, str, range, float], Iterator[Piece]]]:
    """Give a function that makes pieces in order on threads in which torch computes alone, some of them ahead.

    Threads and not processes: a process would spend 2 s on importing torch, in which 40,000 spectra are made.
    Afterwards torch has as many threads as before.
    """
    import torch

    threads, pool = torch.get_num_threads(), ThreadPoolExecutor(workers, "builtin")

    def submit(seed: int, split: str, numbers: range, max_redshift: float) -> Iterator[Piece]:
        ahead: deque[Future[Piece]] = deque()
        for number in numbers:
            ahead.append(pool.submit(make_piece, seed, split, number, max_redshift))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    torch.set_num_threads(1)
    try:
        yield submit
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


def _table(stars_NS: np.ndarray) -> Any:
    """Return the label columns of stars, their S/N still unknown."""
    import pandas as pd

    from specvit.physics.population import STAR_COLUMNS

    return pd.DataFrame(stars_NS, columns=list(STAR_COLUMNS)).reindex(columns=list(LABELS))


def _holds(path: Path, rows: range) -> bool:
    """Say whether a cached shard is there with at least these rows, and as it was made.

    A file that was touched or copied since is digested once more; those of older versions have no digest.
    """
    record = path.with_name("made.json")
    try:
        with h5py.File(path, "r") as file:
            flux = file[FLUX]
            whole = isinstance(flux, h5py.Dataset) and flux.shape[0] >= len(rows)
        made = read_json(record) or _stamp(path)
        if whole and made != made | _stamp(path):
            if made.get("digest") != _digest(path):
                return False
            with contextlib.suppress(OSError):  # a cache that cannot be written is digested each time
                write_json(record, made | _stamp(path))
        return whole
    except (OSError, KeyError):
        return False


def _stamp(path: Path) -> dict[str, Any]:
    """Return size in bytes and time of change in ns."""
    facts = path.stat()
    return {"size": facts.st_size, "mtime": facts.st_mtime_ns}


def _digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()
