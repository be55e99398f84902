"""How fast, small and like the reference set the built-in spectra are: python benchmarks/generator.py [PART...].

Parts: synthesis (seconds a spectrum from the physics), simulator (spectra a second by batch size, on every device),
shards (files of 20k rows), memory (anonymous memory while 200k rows are made), size (of the package's tables), noise
(S/N by magnitude), snr (its quantiles), ridge (linear R2 of log g by rows, also without the sodium lines). Without
any: all. `--sky 1.3` asks what a brighter sky would make of them. The result is printed as JSON; `--json FILE` saves
it, too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from memory import anonymous_bytes

import specvit.physics
from specvit.data.synthetic import SHARD_ROWS, make_shards
from specvit.physics.grid import packaged_grid
from specvit.physics.instrument import wavelength
from specvit.physics.population import RANGES, STAR_COLUMNS, draw_stars
from specvit.physics.simulator import Simulator, host_simulator

BATCHES = (32, 128, 256, 512, 1024)
MAGNITUDES = {18.0: 87.0, 20.0: 24.0, 21.5: 7.1, 22.0: 4.6, 22.5: 3.0, 23.0: 1.9}
"""AB magnitude and the median pixel's S/N by the exposure time calculator, at a throughput of 1."""
SNR = {"min": (0.0, 2.8), "5 %": (0.05, 3.7), "25 %": (0.25, 5.3), "median": (0.5, 8.2)}
SNR |= {"75 %": (0.75, 12.5), "95 %": (0.95, 17.2), "max": (1.0, 27.7)}
"""Quantiles of the reference test set's column."""
RIDGE = {5_000: None, 10_000: None, 20_000: 0.380, 50_000: 0.442}
"""Rows, and R2 on the reference set where it is known."""
SODIUM = (8175.0, 8210.0)
"""Angstrom: the doublet that the synthesis makes too strong in cool dwarfs."""
ALPHAS = np.logspace(-1, 7, 33)
VAL_ROWS, TEST_ROWS = 1000, 4000
CHUNK = 1000


def main() -> None:
    """Measure the parts that are asked for, print and perhaps save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument(
        "--memory-rows", type=int, nargs="+", default=[200_000], help="rows of the part memory (1000000: 2 minutes)"
    )
    parser.add_argument(
        "--ridge-rows", type=int, nargs="+", default=list(RIDGE), help=f"for the part ridge, multiples of {CHUNK}"
    )
    parser.add_argument(
        "--sky", type=float, default=1.0, help="factor on the variance without a star, for noise to ridge"
    )
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="save the result there, too")
    parser.add_argument("--make", type=int, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make is not None:
        return make_and_remove(options.make)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    if any(rows % CHUNK for rows in options.ridge_rows):
        parser.error(f"--ridge-rows takes multiples of {CHUNK}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: dict[str, Any] = machine.facts(device, ("torch", "numpy", "scipy"))
    result["grid"], result["sky"] = packaged_grid().fingerprint, options.sky
    host_simulator(False).noise.background_P.mul_(options.sky)
    for part in options.parts or PARTS:
        print(f"measuring {part}", file=sys.stderr, flush=True)
        result[part] = PARTS[part](options)
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def synthesis(_: argparse.Namespace) -> dict[str, float]:
    """Return seconds a synthesised spectrum takes one process."""
    from tools.spectral_grid.synthesis import padded_flux

    names = STAR_COLUMNS[:5]
    stars_NS = draw_stars(0, "test", np.arange(21))[:, : len(names)].tolist()
    seconds = [timed(lambda row=row: padded_flux(dict(zip(names, row, strict=True)))) for row in stars_NS]
    return {"first_s": round(seconds[0], 4), "median_s": round(float(np.median(seconds[1:])), 4)}


def simulator(_: argparse.Namespace) -> list[dict[str, Any]]:
    """Return spectra a second by device, batch size, and whether there are redshifts."""
    found = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for redshifted in (False, True):
            model = Simulator(redshifted).to(device)
            for batch in BATCHES:
                rate = spectra_a_second(model, batch, torch.device(device))
                found.append({"device": device, "redshifted": redshifted, "batch": batch, "spectra_per_s": round(rate)})
    return found


def spectra_a_second(model: Simulator, batch: int, device: torch.device) -> float:
    """Return the best of some rounds of half a second."""
    stars_BS = torch.from_numpy(draw_stars(0, "train", np.arange(batch), max_redshift=0.001)).to(device)
    best = 0.0
    with torch.inference_mode():
        model(stars_BS)
        for _ in range(5):
            machine.synchronize(device)
            started, calls = machine.now(), 0
            while machine.now() - started < 0.5:
                model(stars_BS)
                calls += 1
                machine.synchronize(device)
            best = max(best, calls * batch / (machine.now() - started))
    return best


def shards(_: argparse.Namespace) -> dict[str, float]:
    """Return the time of four files of 5k rows, written to a temporary folder; the simulator is there already."""
    rows = 4 * SHARD_ROWS
    with tempfile.TemporaryDirectory() as name:
        paths = {Path(name) / f"{i}.h5": range(i * SHARD_ROWS, (i + 1) * SHARD_ROWS) for i in range(4)}
        make_shards({Path(name) / "first.h5": range(1)}, seed=0, split="train", report=silent)
        seconds = timed(lambda: make_shards(paths, seed=0, split="train", report=silent))
    return {"rows": rows, "seconds": round(seconds, 2), "spectra_per_s": round(rows / seconds)}


def memory(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return time and peak of anonymous memory, by rows, of processes that make rows; of one row first."""
    return {str(rows): peak_of_making(rows) for rows in (1, *options.memory_rows)}


def peak_of_making(rows: int) -> dict[str, float]:
    """Return seconds and the peak of anonymous memory of a process that makes rows."""
    process, peak, started = subprocess.Popen([sys.executable, __file__, "--make", str(rows)]), 0, machine.now()
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(0.02)
    assert process.returncode == 0
    return {"seconds": round(machine.now() - started, 1), "peak_MB": round(peak / 1e6)}


def make_and_remove(rows: int) -> None:
    """Make rows shard by shard, and remove each file as soon as the next one has been begun, to spare the disk."""
    with tempfile.TemporaryDirectory() as name:
        starts = range(0, rows, SHARD_ROWS)
        paths = {Path(name) / f"{first}.h5": range(first, min(first + SHARD_ROWS, rows)) for first in starts}

        def remove_finished(*_: object) -> None:
            for path in Path(name).glob("*.h5"):
                path.unlink()

        make_shards(paths, seed=0, split="train", report=remove_finished)


def size(_: argparse.Namespace) -> dict[str, float]:
    """Return MB of the package's data files on physics."""
    tables = (
        path for path in sorted(Path(specvit.physics.__file__).parent.iterdir()) if path.suffix in (".npz", ".csv")
    )
    return {path.name: round(path.stat().st_size / 1e6, 3) for path in tables}


def noise(_: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the median over stars of their median pixel's S/N, by magnitude."""
    stars_BS = draw_stars(0, "test", np.arange(500))
    stars_BS[:, STAR_COLUMNS.index("throughput")] = 1.0
    found = {}
    for mag, reference in MAGNITUDES.items():
        stars_BS[:, STAR_COLUMNS.index("mag")] = mag
        found[f"{mag:g}"] = {"found": round(float(np.median(snr_of(stars_BS))), 2), "reference": reference}
    return found


def snr(_: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return quantiles of the S/N column of 20k test rows."""
    values = np.concatenate([snr_of(draw_stars(0, "test", rows)) for rows in chunks(20_000)])
    return {
        name: {"found": round(float(np.quantile(values, share)), 2), "reference": reference}
        for name, (share, reference) in SNR.items()
    }


def snr_of(stars_BS: np.ndarray) -> np.ndarray:
    """Return the median over pixels of flux / error, shape (B,)."""
    with torch.inference_mode():
        flux_BP, error_BP = host_simulator(False)(torch.from_numpy(stars_BS))
    return np.median(flux_BP / error_BP, axis=1)


def ridge(options: argparse.Namespace) -> dict[str, dict[str, float | None]]:
    """Return R2 of log g on test rows, by training rows; the penalty is the best on validation rows."""
    val, test = (list(noisy(split, rows)) for split, rows in (("val", VAL_ROWS), ("test", TEST_ROWS)))
    sums: Any = None
    done, found = 0, {}
    for flux_BP, target_B in noisy("train", max(options.ridge_rows)):
        flux_BP = np.concatenate((flux_BP, target_B[:, None], np.ones_like(target_B)[:, None]), axis=1)
        part = (flux_BP.T @ flux_BP).astype(np.float64)
        sums, done = part if sums is None else sums + part, done + len(flux_BP)
        if done in options.ridge_rows:
            scores = solved(sums / done, done, val, test, np.ones(len(sums) - 2, dtype=bool))
            less = solved(sums / done, done, val, test, (wavelength() < SODIUM[0]) | (wavelength() > SODIUM[1]))
            found[str(done)] = {**scores, "r2_without_sodium": less["r2"], "reference": RIDGE.get(done)}
            print(done, found[str(done)], file=sys.stderr, flush=True)
    return found


def noisy(split: str, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield flux with noise, less 0.5, (B, P), and scaled log g, (B,), both float32."""
    model, generator = host_simulator(False), torch.Generator().manual_seed(len(split))
    low, high = RANGES["log_g"]
    for part in chunks(rows):
        stars_BS = draw_stars(0, split, part)
        with torch.inference_mode():
            flux_BP, error_BP = model(torch.from_numpy(stars_BS))
            flux_BP += error_BP * torch.randn(flux_BP.shape, generator=generator) - 0.5
        target_B = (stars_BS[:, STAR_COLUMNS.index("log_g")] - (low + high) / 2) / (high - low)
        yield flux_BP.numpy(), target_B.astype(np.float32)


def solved(
    moments: np.ndarray, rows: int, val: list[Any], test: list[Any], kept_P: np.ndarray
) -> dict[str, float | None]:
    """Return R2 and penalty of a ridge on standardised pixels, from the mean products of pixels, target and 1."""
    mean = moments[-1, :-1]
    covariance = moments[:-1, :-1] - np.outer(mean, mean)
    spread_P = np.sqrt(np.diag(covariance)[:-1])[kept_P]
    along_P = covariance[:-1, -1][kept_P] / spread_P
    values_P, vectors_PP = np.linalg.eigh(covariance[:-1, :-1][np.ix_(kept_P, kept_P)] / np.outer(spread_P, spread_P))
    weights_PA = np.zeros((len(kept_P), len(ALPHAS)))
    weights_PA[kept_P] = vectors_PP @ ((vectors_PP.T @ along_P)[:, None] / (values_P[:, None] + ALPHAS / rows))
    weights_PA[kept_P] /= spread_P[:, None]
    best = int(r2(val, mean, weights_PA).argmax())
    return {"r2": round(float(r2(test, mean, weights_PA[:, [best]])[0]), 4), "alpha": round(float(ALPHAS[best]), 1)}


def r2(parts: list[Any], mean: np.ndarray, weights_PA: np.ndarray) -> np.ndarray:
    """Return R2 by column of the weights."""
    target_N1 = np.concatenate([target for _, target in parts])[:, None].astype(np.float64)
    guess_NA = np.concatenate([(flux - mean[:-1]) @ weights_PA for flux, _ in parts]) + mean[-1]
    return 1 - np.square(guess_NA - target_N1).sum(axis=0) / np.square(target_N1 - target_N1.mean()).sum()


def chunks(rows: int) -> Iterator[np.ndarray]:
    """Yield row numbers, some at a time."""
    for start in range(0, rows, CHUNK):
        yield np.arange(start, min(start + CHUNK, rows))


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    started = machine.now()
    work()
    return machine.now() - started


def silent(*_: object) -> None:
    """Report nothing."""


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    part.__name__: part for part in (synthesis, simulator, shards, memory, size, noise, snr, ridge)
}

if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
