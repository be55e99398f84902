"""Built-in spectra as shards, for machines without the reference set. Chosen by name, never a fall-back.

A row is a function of (seed, split, row) alone: the first 5k rows are the same in every set, whatever the shard size
and however many processes made them.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from specvit.data.shards import write_shard
from specvit.files import cache_dir, locked, remove_leftovers
from specvit.quantities import FLUX, LABELS

GENERATOR_VERSION = 1
"""Part of a run's identity and of the cache's path; raised when any made row changes."""
SHARD_ROWS = 5000
ROUND_UP = 1000
"""A short shard is rounded up to this many rows, so that asking for a few more finds them there."""
PIECE_ROWS = 100

Report = Callable[[str, int, int], None]
"""Called with (split, rows made, rows to make) while spectra are made."""


def builtin_manifest(rows: int, *, seed: int, split: str) -> dict[str, Any]:
    """Return what identifies a built-in set; needs no file."""
    return {"builtin": GENERATOR_VERSION, "seed": seed, "split": split, "rows": rows}


def builtin_files(rows: int, *, seed: int, split: str, report: Report) -> list[Path]:
    """Return cached shards that hold at least rows 0..rows-1 of a split, making those that are missing.

    A short last shard has its row count in its name: a file that another run may have open is never replaced by a
    longer one. The cache is locked meanwhile, so several runs that start at once make each shard once.
    """
    folder = cache_dir() / f"builtin-v{GENERATOR_VERSION}-seed{seed}"
    wanted = {}
    for first in range(0, rows, SHARD_ROWS):
        count = min(SHARD_ROWS, -(-(rows - first) // ROUND_UP) * ROUND_UP)
        short = "" if count == SHARD_ROWS else f"_{count}"
        wanted[folder / f"{split}_{first // SHARD_ROWS:04d}{short}" / "dataset.h5"] = range(first, first + count)
    if not all(_holds(path, rows_of) for path, rows_of in wanted.items()):
        with locked(folder / ".lock"):
            missing = {path: rows_of for path, rows_of in wanted.items() if not _holds(path, rows_of)}
            make_shards(missing, seed=seed, split=split, report=report)
    return list(wanted)


def make_shards(shards: dict[Path, range], *, seed: int, split: str, report: Report) -> None:
    """Write each path with its rows, on every CPU this process may use; each file is whole or absent."""
    from specvit.physics.synthesis import wavelength  # here: scipy is 0.2 s, which a run on files need not wait for

    total, made = sum(map(len, shards.values())), 0
    context = multiprocessing.get_context("spawn")
    workers = max(1, min(len(os.sched_getaffinity(0)), -(-total // PIECE_ROWS)))
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        for path, rows in shards.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent)
            pieces = [rows[start : start + PIECE_ROWS] for start in range(0, len(rows), PIECE_ROWS)]
            flux_NP = np.empty((len(rows), len(wavelength())), dtype=np.float32)
            error_NP, labels = np.empty_like(flux_NP), []
            results = pool.map(_make_piece, *zip(*((seed, split, piece) for piece in pieces), strict=True))
            for piece, (flux_BP, error_BP, piece_labels) in zip(pieces, results, strict=True):
                here = slice(piece.start - rows.start, piece.stop - rows.start)
                flux_NP[here], error_NP[here] = flux_BP, error_BP
                labels += piece_labels
                made += len(piece)
                report(split, made, total)
            write_shard(path, wave_P=wavelength(), flux_NP=flux_NP, error_NP=error_NP, labels=_table(labels))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _make_piece(seed: int, split: str, rows: Iterable[int]) -> tuple[np.ndarray, np.ndarray, list[dict[str, float]]]:
    from specvit.physics.population import make_row

    flux, error, labels = zip(*(make_row(seed, split, row) for row in rows), strict=True)
    return np.stack(flux), np.stack(error), list(labels)


def _table(labels: list[dict[str, float]]) -> Any:
    import pandas as pd

    return pd.DataFrame(labels, columns=list(LABELS), dtype=np.float64)


def _holds(path: Path, rows: range) -> bool:
    """Say whether a cached shard is there with at least these rows."""
    try:
        with h5py.File(path, "r") as file:
            flux = file[FLUX]
            return isinstance(flux, h5py.Dataset) and flux.shape[0] >= len(rows)
    except (OSError, KeyError):
        return False


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, which ends the pool, and end with it if it is killed; else it would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
