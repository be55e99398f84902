"""The cost of reading a set from its files as they are, and what would be cheaper, in one sentence each."""

import contextlib
import shlex
import time
from pathlib import Path

import numpy as np

from specvit.data.views import SpectraView, epoch_order, open_spectra
from specvit.utils.errors import DataError

PROBE_ROWS = 4
PATIENCE_S = 1.0
"""If the first few rows take longer, the time of the others is extrapolated from them."""
BATCH_ROWS = 128


def seconds_to_read(spectra: SpectraView, index_B: np.ndarray) -> float:
    """Return how long it takes to gather view rows `index_B`; raises `DataError` for what cannot be read."""
    few = _timed(spectra, index_B[:PROBE_ROWS])
    if few > PATIENCE_S:
        return few * len(index_B) / min(PROBE_ROWS, len(index_B))
    return _timed(spectra, index_B)


def chunked_note(spectra: SpectraView, index_B: np.ndarray) -> str:
    """Return what a step that gathers `index_B` waits for chunked files, and the command that avoids it."""
    seconds = _in_words(seconds_to_read(spectra, index_B))
    return f"note: reading the {len(index_B)} spectra of a step takes {seconds}; {_offer(spectra)}"


def beyond_memory(spectra: SpectraView, free_bytes: int, order: str) -> list[str]:
    """Return a note if mapped spectra do not fit into free memory and are read in random order."""
    if order != "global" or spectra.num_bytes <= free_bytes:
        return []
    sizes = f"{spectra.num_bytes / 1e9:.1f} GB of spectra do not fit into {free_bytes / 1e9:.1f} GB of free memory"
    remedy = "data.order=block (another run) reads long pieces"
    return [f"note: {sizes}, so every epoch reads them from disk in random order; {remedy}"]


def layout_line(path: Path) -> str:
    """Return how a file's arrays are read and what that costs; "" if it cannot be read, which is a fault."""
    with contextlib.suppress(DataError):
        spectra = open_spectra([path], -1)
        if spectra.contiguous:
            return "arrays are contiguous: they are memory-mapped"
        rows = epoch_order(len(spectra), seed=0, epoch=0, order="global")[:BATCH_ROWS]
        seconds = _in_words(seconds_to_read(spectra, rows))
        return f"arrays are chunked: reading {len(rows)} random rows takes {seconds}; {_offer(spectra)}"
    return ""


def _timed(spectra: SpectraView, index_B: np.ndarray) -> float:
    started = time.perf_counter()
    spectra.gather(index_B)
    return time.perf_counter() - started


def _offer(spectra: SpectraView) -> str:
    files = [shard.path for shard in spectra.shards if None in (shard.flux.offset, shard.error.offset)]
    first = shlex.quote(str(files[0]))
    if len(files) == 1:
        return f"`specvit data convert {first} TARGET` makes it contiguous"
    return f"`specvit data convert {first} ... FOLDER` makes it and the other {len(files) - 1} chunked files contiguous"


def _in_words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
