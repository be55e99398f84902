"""Anonymous memory of a run on a set far larger than what it may hold: python benchmarks/memory.py [--rows 200000].

Writes a contiguous HDF5 file of ROWS x 4096 spectra (6.6 GB at 200k) into a temporary folder, trains on it in a process
of its own, and prints that process's peak of anonymous memory (RssAnon; mapped file pages are the page cache's and
can be taken back at any time) beside the file's size.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from specvit.data.shards import write_shard
from specvit.physics.instrument import wavelength
from specvit.utils.quantities import ERROR, FLUX, LABELS, PARAMS, WAVE

CHUNK = 5000


def main() -> None:
    """Write, train, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: a temporary folder)")
    parser.add_argument("--order", default="global", choices=("global", "block"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_large(folder / "train.h5", options.rows)
        write_small(folder / "val.h5", 500, seed=1)
        write_small(folder / "test.h5", 500, seed=2)
        print(json.dumps(train(folder, options.rows, options.order)))


def spectra(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Return flux, error and labels of smooth random spectra; their content does not matter here."""
    rng = np.random.default_rng(seed)
    log_g = rng.uniform(1, 5, rows)
    flux = (0.5 + 0.05 * np.outer(log_g, np.sin(np.linspace(0, 9, len(wavelength()))))).astype(np.float32)
    error = np.full_like(flux, 0.05)
    labels = pd.DataFrame({name: np.zeros(rows) for name in LABELS})
    return flux, error, labels.assign(log_g=log_g, snr=10.0)


def write_small(path: Path, rows: int, seed: int) -> None:
    """Write a shard at once."""
    flux, error, labels = spectra(rows, seed)
    write_shard(path, wave_P=wavelength(), flux_NP=flux, error_NP=error, labels=labels)


def write_large(path: Path, rows: int) -> None:
    """Write a shard piece by piece, so that this process stays small, too."""
    tables = []
    with h5py.File(path, "w") as file:
        file[WAVE] = wavelength()
        flux = file.create_dataset(FLUX, (rows, len(wavelength())), np.float32)
        error = file.create_dataset(ERROR, (rows, len(wavelength())), np.float32)
        for start in range(0, rows, CHUNK):
            count = min(CHUNK, rows - start)
            flux[start : start + count], error[start : start + count], table = spectra(count, seed=start)
            tables.append(table)
    pd.concat(tables, ignore_index=True).to_hdf(path, key=PARAMS, mode="a", format="table", index=False)


def train(folder: Path, rows: int, order: str) -> dict[str, object]:
    """Train one epoch in a process of its own and watch its memory."""
    size = (folder / "train.h5").stat().st_size
    settings = [
        f"data.{split}_path={folder / name}.h5" for split, name in (("file", "train"), ("val", "val"), ("test", "test"))
    ]
    settings += [
        "data=hdf5",
        f"data.order={order}",
        "train.epochs=1",
        "train.batch_size=256",
        f"tracking.folder={folder / 'outputs'}",
    ]
    settings += [
        "model.hidden_size=16",
        "model.num_hidden_layers=1",
        "model.intermediate_size=32",
    ]  # the data path is the point
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, "-m", "specvit.train", *settings], stdout=subprocess.PIPE, text=True)
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(0.05)
    assert process.stdout is not None
    last = process.stdout.read().splitlines()[-1:]
    assert process.returncode == 0, last
    return {
        "rows": rows,
        "order": order,
        "file_GB": round(size / 1e9, 2),
        "peak_anonymous_GB": round(peak / 1e9, 3),
        "seconds": round(time.perf_counter() - started, 1),
        "last_line": last,
    }


def anonymous_bytes(pid: int) -> int:
    """Return RssAnon of a process, 0 when it has gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line.split() for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(lines[0][1]) * 1024 if lines else 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
