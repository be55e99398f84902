"""How fast a set comes from disk, and what memory that takes: python benchmarks/streaming.py [--rows 250000 --leave 4].

Writes a contiguous HDF5 file of ROWS x 4096 spectra (8.2 GB at 250k) into a temporary folder and gathers one epoch of
it in a process of its own, in global and in block order, each without and with reading ahead, in rounds, beside
reading the file from its beginning to its end. The file is dropped from the page cache before each. `--leave GB` fills
the host's memory but for so much, so that the file does not fit: what a set beyond memory meets; only on a machine
where nothing else runs, which would be starved. Prints JSON: spectra a second, bytes that came from the disk, peak of
anonymous memory (RssAnon; mapped pages are the page cache's).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from memory import anonymous_bytes, write_large

from specvit.config.schema import DataConfig
from specvit.data.batches import SpectraStore
from specvit.data.prefetch import Prefetcher
from specvit.data.shards import open_shard
from specvit.data.views import epoch_order, open_spectra
from specvit.utils.memory import free_memory

WAYS = [("sequential", False), *((order, ahead) for order in ("global", "block") for ahead in (False, True))]
STEP_ROWS = 256
BUFFER_BYTES = 4 * 2**20


def main() -> None:
    """Write the file, measure every way in turn, print and perhaps save the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=250_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=40.0, help="most time that one measurement may take")
    parser.add_argument("--leave", type=float, default=None, metavar="GB", help="memory that is left free")
    parser.add_argument("--file", type=Path, default=None, help="measure on this file instead of writing one")
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: a temporary folder)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="save the result there, too")
    parser.add_argument("--way", nargs=2, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        order, ahead = options.way
        facts = read_through if order == "sequential" else gather
        print(json.dumps(facts(options.file, order, ahead == "ahead", options.seconds)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        file = options.file or Path(name) / "set.h5"
        if options.file is None:
            write_large(file, options.rows)
        with memory_taken(options.leave):
            result = {
                **machine.facts(torch.device("cpu"), ("torch", "numpy", "h5py")),
                "file_GB": round(file.stat().st_size / 1e9, 2),
                "free_memory_GB": round(free_memory() / 1e9, 1),
                "ways": [measure(file, *way, options.seconds) for _ in range(options.rounds) for way in WAYS],
            }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


@contextmanager
def memory_taken(leave: float | None) -> Iterator[None]:
    """Have another process hold all free memory but `leave` GB; the first to go if memory runs out."""
    if leave is None:
        yield
        return
    size = max(0, free_memory() - int(leave * 1e9))
    program = "import sys; from pathlib import Path; Path('/proc/self/oom_score_adj').write_text('1000'); "
    program += f"taken = bytearray({size}); print('ready', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "ready\n"
        yield
    finally:
        holder.kill()
        holder.communicate()


def measure(file: Path, order: str, ahead: bool, seconds: float) -> dict[str, Any]:
    """Gather in a process of its own and watch its memory."""
    drop_from_cache(file)
    words = [sys.executable, __file__, "--file", str(file), "--seconds", str(seconds)]
    process = subprocess.Popen(
        [*words, "--way", order, "ahead" if ahead else "plain"], stdout=subprocess.PIPE, text=True
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(0.05)
    assert process.stdout is not None and process.returncode == 0
    facts = json.loads(process.stdout.read())
    return {"order": order, "ahead": ahead, **facts, "peak_anonymous_GB": round(peak / 1e9, 3)}


def gather(file: Path, order: str, ahead: bool, seconds: float) -> dict[str, float]:
    """Gather an epoch, or as much of it as comes in time."""
    spectra = open_spectra([file], -1)
    store = SpectraStore(spectra, DataConfig(resident="never"), torch.device("cpu"))
    reader = Prefetcher(spectra, order=order, seed=0) if ahead else None
    order_N = epoch_order(len(spectra), seed=0, epoch=0, order=order)
    before, started, rows = bytes_from_disk(), time.perf_counter(), 0
    while rows + STEP_ROWS <= len(order_N) and time.perf_counter() - started < seconds:
        if reader:
            reader.reach(0, rows, rows + STEP_ROWS)
        store.gather(np.ascontiguousarray(order_N[rows : rows + STEP_ROWS]))
        rows += STEP_ROWS
    return facts_of(rows, started, before)


def read_through(file: Path, order: str, ahead: bool, seconds: float) -> dict[str, float]:
    """Read the file as it lies: what the disk gives at best to one reader."""
    shard, done, buffer = open_shard(file), 0, bytearray(BUFFER_BYTES)
    before, started = bytes_from_disk(), time.perf_counter()
    with open(file, "rb", buffering=0) as stream:
        while time.perf_counter() - started < seconds and (count := stream.readinto(buffer)):
            done += count
    return facts_of(done // (8 * shard.flux.pixels), started, before)


def facts_of(rows: int, started: float, disk_before: int) -> dict[str, float]:
    """Return a measurement in numbers."""
    elapsed = time.perf_counter() - started
    return {
        "rows": rows,
        "seconds": round(elapsed, 1),
        "rows_per_s": round(rows / elapsed),
        "from_disk_GB": round((bytes_from_disk() - disk_before) / 1e9, 2),
    }


def drop_from_cache(file: Path) -> None:
    """Let the page cache forget a file that no process has mapped."""
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_from_disk() -> int:
    """Return what this process has had fetched from disks."""
    lines = [line.split() for line in Path("/proc/self/io").read_text().splitlines()]
    return next(int(value) for name, value in lines if name == "read_bytes:")


if __name__ == "__main__":
    main()
