"""How fast `specvit predict` is, and what memory it takes: python benchmarks/predict_rows.py [--rows 200000].

Trains the ViT of `experiment=demo_c1d` (or takes `--run`) and writes ROWS noisy spectra of 4096 pixels into a temporary
folder: as shards of 20,000, whose errors are links to one array, and then as NPZ files of 20,000 without errors; either
form takes 3.3 GB at 200,000 rows. The spectra are the training rows, again and again, with other noise in each file.
`specvit predict` runs on each form in a process of its own. Printed are rows a second and the seconds of the clock and
of the processor, start and Parquet included, and the peak of anonymous memory (RssAnon, read every 50 ms; mapped pages
are the page cache's). Files are in the page cache as far as that holds them.

Shape suffixes: N spectra, P pixels.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import machine
import numpy as np
import torch
from memory import anonymous_bytes

import specvit
from specvit.data.shards import fill_shard
from specvit.data.synthetic import builtin_files
from specvit.data.views import Spectra, open_spectra
from specvit.utils.quantities import ERROR, FLUX, OBSERVED

SHARD_ROWS, MADE_ROWS, NOISE = 20_000, 5000, 0.2


def main() -> None:
    """Train, write and predict each form of source, print the table and perhaps save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--run", default=None, help="predict by this run (default: train experiment=demo_c1d)")
    parser.add_argument("--sources", nargs="+", default=list(WRITERS), choices=list(WRITERS))
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: a temporary folder)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="save the result there, too")
    options = parser.parse_args()
    result: dict[str, Any] = {**machine.facts(torch.device("cpu"), ("torch", "numpy", "h5py")), "rows": options.rows}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        run = options.run or str(
            specvit.run_training(["experiment=demo_c1d", "tracking.live=false", f"tracking.folder={name}/runs"]).folder
        )
        spectra = open_spectra(builtin_files(MADE_ROWS, seed=0, split="train", report=lambda *_: None), MADE_ROWS)
        result["sources"] = {}
        for source in options.sources:
            folder = Path(name) / source
            folder.mkdir()
            WRITERS[source](spectra, folder, options.rows)
            result["sources"][source] = predict(run, folder, Path(name) / f"{source}.parquet", options.rows)
            for path in folder.iterdir():
                path.unlink()
    print(f"{'source':<8} {'rows/s':>7} {'clock s':>8} {'processor s':>12} {'anonymous GB':>13}")
    for source, found in result["sources"].items():
        seconds = f"{found['seconds']:8.1f} {found['processor_seconds']:12.1f}"
        print(f"{source:<8} {found['rows_per_s']:7.0f} {seconds} {found['peak_anonymous_GB']:13.2f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def noisy(spectra: Spectra, number: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return flux with a noise that is this file's own, and error (N, P)."""
    index_N = np.arange(rows) % len(spectra)
    flux_NP, error_NP = spectra.gather(index_N)
    noise_NP = np.random.default_rng(number).standard_normal(flux_NP.shape, dtype=np.float32)
    return np.float32(NOISE) * error_NP * noise_NP + flux_NP, np.float32(NOISE) * error_NP


def sizes(rows: int) -> list[int]:
    """Return the number of rows of each file."""
    return [min(SHARD_ROWS, rows - start) for start in range(0, rows, SHARD_ROWS)]


def write_shards(spectra: Spectra, folder: Path, rows: int) -> None:
    """Write shards that are marked as observed; the errors of each number of rows are written once."""
    for number, count in enumerate(sizes(rows)):
        flux_NP, error_NP = noisy(spectra, number, count)
        errors = folder / f".errors-{count}"
        if not errors.exists():
            with h5py.File(errors, "w") as file:
                file["error"] = error_NP

        def fill(file: h5py.File, flux_NP: np.ndarray = flux_NP, errors: Path = errors) -> None:
            file[FLUX] = flux_NP
            file[FLUX].attrs[OBSERVED] = True
            file[ERROR] = h5py.ExternalLink(errors.name, "error")

        labels = spectra.labels().iloc[np.arange(count) % len(spectra)].reset_index(drop=True)
        fill_shard(folder / f"stars_{number}.h5", fill, wave_P=spectra.wave_P, labels=labels)


def write_npz(spectra: Spectra, folder: Path, rows: int) -> None:
    """Write NPZ files, not compressed, without errors."""
    for number, count in enumerate(sizes(rows)):
        np.savez(folder / f"stars_{number}.npz", wave=spectra.wave_P, flux=noisy(spectra, number, count)[0])


WRITERS: dict[str, Callable[[Spectra, Path, int], None]] = {"shards": write_shards, "npz": write_npz}


def predict(run: str, source: Path, out: Path, rows: int) -> dict[str, float]:
    """Run the command and return its seconds and its peak of anonymous memory."""
    options = [] if source.name == "shards" else ["--vacuum", "--unit", "A", "--no-normalise"]
    words = [sys.executable, "-m", "specvit", "predict", run, str(source), "--out", str(out), *options]
    started, before, peak = time.perf_counter(), os.times(), 0
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.05)
        assert process.stdout is not None
        said = process.stdout.read()
    seconds, after = time.perf_counter() - started, os.times()
    assert process.returncode == 0 and f"predicted {rows:,} spectra" in said, said
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "seconds": round(seconds, 1),
        "processor_seconds": round(used, 1),
        "rows_per_s": round(rows / seconds),
        "peak_anonymous_GB": round(peak / 1e9, 3),
    }


if __name__ == "__main__":
    main()
