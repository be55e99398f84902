"""Ridge, trees, templates and a CNN on the same rows and noise: python benchmarks/baselines.py [MODEL...].

Models: ridge (10k to 200k training rows), lightgbm (10k to 50k), template (20k to 200k), cnn (20k); without any:
all. Each is one run of the usual command at noise level 1 with 2,000 test rows, in a process of its own, whose
seconds, peak of anonymous memory and scores are printed as JSON; `--json FILE` saves them, too. Spectra are made
beforehand, 7 GB in the cache for 200k, and are not in the seconds. Runs stay in `--folder`, so that `specvit analysis
ceiling` can be asked about them; finished ones are taken from there, with what was measured then. An hour on two cores
for one seed.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from memory import anonymous_bytes

ROWS = {
    "ridge": ("10k", "20k", "50k", "200k"),
    "lightgbm": ("10k", "20k", "50k"),
    "template": ("20k", "50k", "200k"),
    "cnn": ("20k",),
}
REFERENCE = {
    ("ridge", "10k"): 0.381,
    ("ridge", "20k"): 0.380,
    ("ridge", "50k"): 0.442,
    ("ridge", "200k"): 0.474,
    ("lightgbm", "10k"): 0.413,
    ("lightgbm", "20k"): 0.459,
    ("lightgbm", "50k"): 0.488,
}
"""R2 on the reference set."""
COMMON = ("data=builtin", "noise.noise_level=1.0", "tracking.live=false")
WORDS = {"cnn": ("experiment=demo_c1d", "tracking.name=null", "train.epochs=20", "model=cnn")}
"""Overrides of a model beside its name; the CNN takes the rates of that experiment and 20 epochs of batches of 128."""


def main() -> None:
    """Run what is asked for, print and perhaps save what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="of training noise and networks")
    parser.add_argument("--folder", type=Path, default=Path("outputs/baselines"), help="where the runs are")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="save the result there, too")
    options = parser.parse_args()
    if unknown := set(options.models) - set(ROWS):
        parser.error(f"no such model: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    wanted = [(model, rows) for model in options.models or ROWS for rows in ROWS[model]]
    prepare(options.folder, {rows for _, rows in wanted})
    found: dict[str, Any] = {**machine.facts(torch.device("cpu"), ("torch", "numpy", "lightgbm")), "runs": []}
    for model, rows in wanted:
        for seed in options.seeds[: 1 if model == "template" else None]:
            made = {**measured(options.folder, model, rows, seed), "reference_r2": REFERENCE.get((model, rows))}
            print(json.dumps(made), file=sys.stderr, flush=True)
            found["runs"].append(made)
    text = json.dumps(found, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


def prepare(folder: Path, sizes: set[str]) -> None:
    """Make the spectra of the largest set, by the cheapest run that reads them."""
    largest = max(sizes, key=lambda size: int(size.removesuffix("k")))
    words = ["model=ridge", f"data/size={largest}", "model.num_alphas=2", f"tracking.folder={folder / 'prepare'}"]
    subprocess.run([sys.executable, "-m", "specvit.train", *COMMON, *words], check=True, stdout=subprocess.DEVNULL)


def measured(folder: Path, model: str, rows: str, seed: int) -> dict[str, Any]:
    """Make one run, or take it as it is, and return its scores, seconds and memory."""
    name = f"{model}-{rows}-s{seed}"
    path = folder / f"{name}.json"
    cost = json.loads(path.read_text()) if path.exists() else {}
    words = [*COMMON, *WORDS.get(model, (f"model={model}",)), f"data/size={rows}", f"train.seed={seed}"]
    words += [f"tracking.folder={folder / name}"]
    seconds, peak, last = watched([sys.executable, "-m", "specvit.train", *words])
    if not cost:
        cost = {"seconds": round(seconds, 1), "peak_anonymous_GB": round(peak / 1e9, 2), "words": words}
        path.write_text(json.dumps(cost))
    (summary,) = (folder / name).glob("*/summary.json")
    scores = json.loads(summary.read_text())
    kept = ("test_r2", "test_r2_low", "test_r2_high", "test_mae", "best_epoch", "epochs")
    quartiles = r2_by_quartile(summary.parent / "predictions.csv")
    about = {"model": model, "rows": rows, "seed": seed, "run": summary.parent.name, "said": last}
    return {**about, **{key: scores.get(key) for key in kept}, "r2_by_snr_quartile": quartiles, **cost}


def watched(words: list[str]) -> tuple[float, int, str]:
    """Run a command; return its seconds, its peak of anonymous memory in bytes and its last line."""
    started, peak = time.perf_counter(), 0
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.1)
        assert process.stdout is not None
        last = process.stdout.read().splitlines()[-1:]
    if process.returncode:
        sys.exit(f"{' '.join(words)} ended with {process.returncode}: {last}")
    return time.perf_counter() - started, peak, " ".join(last)


def r2_by_quartile(path: Path) -> list[float]:
    """Return R2 of log g in the quarters of the test rows by S/N, faintest first."""
    with path.open() as file:
        rows = [(float(row["snr"]), float(row["true_log_g"]), float(row["pred_log_g"])) for row in csv.DictReader(file)]
    table_N3 = np.array(sorted(rows))
    return [
        round(float(1 - np.mean((part[:, 1] - part[:, 2]) ** 2) / np.var(part[:, 1])), 4)
        for part in np.array_split(table_N3, 4)
    ]


if __name__ == "__main__":
    main()
