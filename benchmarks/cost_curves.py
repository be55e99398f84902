"""Training speed as the work grows: python benchmarks/cost_curves.py [--json FILE] [--plot FILE].

Spectra/s of specvit's own step over rows of the training set (files on disk, in random order over all of them), over
tokens (patch size at one width) and over width (at one patch size), interleaved in rounds. A million rows take 33 GB on
disk: name a folder with space, or fewer rows.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import machine
import numpy as np
import torch
from cases import SMALL, Case, make_learner, train_data
from train_speed import OURS, step_rate, surroundings

from specvit.config.schema import DataConfig, NoiseConfig, ViTConfig
from specvit.data.batches import SpectraStore, TrainData
from specvit.data.noise import FluxNorm
from specvit.data.shards import open_shards
from specvit.data.views import Spectra
from specvit.models import build_model
from specvit.utils.quantities import ERROR, FLUX, NUM_PIXELS, WAVE

CPU = torch.device("cpu")
SHARD_ROWS = 200_000
PIECE = 4096
WIDTHS = (32, 64, 128, 256, 512)
PATCHES = (256, 128, 64, 32, 16)


def main() -> None:
    """Measure, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="5000,20000,50000,200000,1000000")
    parser.add_argument("--order", default="global", choices=("global", "block"))
    parser.add_argument("--folder", type=Path, help="where to write the spectra (default: a temporary folder)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    surroundings(OURS["specvit"])
    record = machine.facts(CPU)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        counts = [int(count) for count in options.rows.split(",")]
        shards = write_shards(Path(name), max(counts))
        small = train_data(Path(name) / "small.h5", 128, CPU)
        steps = {f"{count:,} rows": over_rows(shards, count, options.order) for count in counts}
        steps |= {f"{NUM_PIXELS // p} tokens": step_of(resized(patch=p), small) for p in PATCHES}
        steps |= {f"width {width}": step_of(resized(width=width), small) for width in WIDTHS}
        rates: dict[str, list[float]] = {label: [] for label in steps}
        for _ in range(options.rounds):
            for label, step in steps.items():
                rates[label].append(step_rate(step, 128, options.seconds, CPU))
    record["spectra_per_s"] = {label: round(statistics.median(values), 1) for label, values in rates.items()}
    record["spread"] = {label: [round(min(values), 1), round(max(values), 1)] for label, values in rates.items()}
    models = {f"{NUM_PIXELS // p} tokens": resized(patch=p) for p in PATCHES}
    models |= {f"width {width}": resized(width=width) for width in WIDTHS}
    record["training_mflops"] = {label: round(flops(model) / 1e6, 1) for label, model in models.items()}
    record["anonymous_MB"] = round(anonymous_bytes() / 1e6)
    print(json.dumps(record, indent=2))
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    if options.plot:
        plot(record, options.plot)


def resized(*, patch: int = 64, width: int = 64) -> ViTConfig:
    """Return the small network with another patch or width; heads stay 16 wide, the feed-forward 4 times the width."""
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 16}
    return replace(SMALL, patch_size=patch, stride_size=patch, **sizes)


def flops(model: ViTConfig) -> int:
    """Return the training FLOPs of a spectrum."""
    return build_model(model, num_pixels=NUM_PIXELS, num_outputs=1, seed=1).cost().training_flops


def step_of(model: ViTConfig, data: TrainData) -> Any:
    """Return a function that takes one step."""
    learner, state = make_learner(Case("curve", model, data.step_rows), data, CPU)

    def step() -> None:
        learner.step(data.batch(state.step), state)
        state.step += 1

    return step


def over_rows(shards: list[Path], count: int, order: str) -> Any:
    """Return a function that takes one step on `count` rows of the shards."""
    started = time.perf_counter()
    spectra = Spectra(open_shards(shards[: -(-count // SHARD_ROWS)]), np.arange(count))
    data = TrainData(
        store=SpectraStore(spectra, DataConfig(order=order), CPU),
        targets=torch.randn(count, 1),
        flux_norm=FluxNorm(torch.full((NUM_PIXELS,), 0.5), 0.07),
        noise=NoiseConfig(),
        order=order,
        seed=1,
        step_rows=128,
    )
    print(f"{count:,} rows open in {time.perf_counter() - started:.3f} s, {data.store.location}", flush=True)
    return step_of(SMALL, data)


def write_shards(folder: Path, rows: int) -> list[Path]:
    """Write files of random spectra, every row on disk; further shards are copies, since only their place matters."""
    shards: list[Path] = []
    rng = np.random.default_rng(0)
    piece = rng.normal(0.5, 0.05, (PIECE, NUM_PIXELS)).astype(np.float32)
    for start in range(0, rows, SHARD_ROWS):
        path, size = folder / f"shard_{start}.h5", min(SHARD_ROWS, rows - start)
        shards.append(path)
        if start and size == SHARD_ROWS:
            shutil.copyfile(shards[0], path)
            continue
        with h5py.File(path, "w") as file:
            file[WAVE] = np.linspace(7100.0, 8850.0, NUM_PIXELS)
            for name in (FLUX, ERROR):
                array = file.create_dataset(name, (size, NUM_PIXELS), dtype=np.float32)
                for first in range(0, size, PIECE):
                    array[first : first + PIECE] = piece[: min(PIECE, size - first)]
    return shards


def anonymous_bytes() -> int:
    """Return this process's anonymous memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw the three curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=False)
    titles = {"rows": "training rows", "tokens": "tokens (width 64)", "width": "width (64 tokens)"}
    for axis, what in zip(panels, titles, strict=True):
        labels = [label for label in record["spectra_per_s"] if what in label]
        x = [int(label.replace(",", "").replace(what, "")) for label in labels]
        y = [record["spectra_per_s"][label] for label in labels]
        low = [value - record["spread"][label][0] for value, label in zip(y, labels, strict=True)]
        high = [record["spread"][label][1] - value for value, label in zip(y, labels, strict=True)]
        axis.errorbar(x, y, yerr=[low, high], marker="o", capsize=3)
        axis.set(xscale="log", yscale="linear" if what == "rows" else "log", xlabel=titles[what])
        axis.set_xticks(x, [f"{value:,}" for value in x])
        axis.set_xticks([], minor=True)
        axis.yaxis.set_major_formatter("{x:,.0f}")
        axis.yaxis.set_minor_formatter("")
        axis.grid(alpha=0.3, which="both")
    panels[0].set_ylim(bottom=0)
    panels[0].tick_params(axis="x", rotation=20)
    panels[0].set_ylabel("spectra/s")
    figure.suptitle(f"specvit training speed, {record['device']}, {record['commit']}, {record['date']}")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
