"""What a study costs besides its runs: python benchmarks/sweep.py [--runs N] [--json FILE].

A plain grid of tiny runs through the local queue, two slots: wall time, failures, what a run takes from a worker's
second one on beyond its training, how long a slot is empty between two runs, and how long the commands that watch it
take.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
import pandas as pd
import torch

from specvit.data.shards import write_shard
from specvit.study.results import outcome_of
from specvit.study.store import StudyFolder
from specvit.utils.files import read_json_lines
from specvit.utils.quantities import LABELS

TINY = ["model.patch_size=32", "model.hidden_size=16", "model.num_hidden_layers=1", "model.num_attention_heads=2"]
TINY += ["model.intermediate_size=32", "train.epochs=1", "train.batch_size=16", "train.precision=32"]
SETS = {"train": 192, "val": 48, "test": 64}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--live", action="store_true", help="with MLflow")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    record = machine.facts(torch.device("cpu"), ("torch", "numpy", "hydra-core", "optuna"))
    record |= {"slots": options.slots, "mlflow": options.live}
    with tempfile.TemporaryDirectory() as folder:
        record |= measure(Path(folder), options.runs, options.slots, live=options.live)
    print(json.dumps(record, indent=2))
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def measure(place: Path, runs: int, slots: int, *, live: bool) -> dict[str, Any]:
    """Make the runs in `place` and return the figures."""
    words = ["-m", "data=hdf5", *TINY, f"train.seed=range({runs})", f"tracking.live={str(live).lower()}"]
    words += [f"data.{key}={write_set(place, name)}" for key, name in (("file_path", "train"), ("val_path", "val"))]
    words += [f"data.test_path={write_set(place, 'test')}", "hydra/launcher=local", f"hydra.launcher.slots={slots}"]
    started = time.monotonic()
    code = specvit(place, "train", *words).returncode
    wall = time.monotonic() - started
    (path,) = (place / "multirun").iterdir()
    study = StudyFolder(path)
    ends = [event for event in read_json_lines(study.file("events.jsonl")) if event["event"] == "ends"]
    training = {trial.number: outcome_of(trial.run).train_seconds for trial in study.trials()}
    later = [event for n, event in enumerate(ends) if any(e["slot"] == event["slot"] for e in ends[:n])]
    states = [study.state(trial) for trial in study.trials()]
    return {
        "runs": len(ends),
        "exit_code": code,
        "failed": sum(state not in ("completed", "plateau") for state in states),
        "wall_seconds": round(wall, 1),
        "seconds_a_later_run": spread([event["seconds"] for event in later]),
        "of_it_beside_training": spread([event["seconds"] - training[event["trial"]] for event in later]),
        "empty_slot_seconds": spread(gaps(read_json_lines(study.file("events.jsonl")))),
        "command_seconds": {name: timed(place, "sweep", name, path.name) for name in ("status", "table")},
    }


def write_set(place: Path, name: str) -> Path:
    """Write a set of random spectra of 256 pixels and return its file."""
    rng, rows = np.random.default_rng(len(name)), SETS[name]
    labels = pd.DataFrame({label: rng.uniform(1.0, 5.0, rows) for label in LABELS})
    flux_NP = 1.0 - 0.1 * labels[["log_g"]].to_numpy() * np.exp(-(np.linspace(-3.0, 3.0, 256) ** 2))
    write_shard(
        place / name / "dataset.h5",
        wave_P=7100.0 + np.arange(256.0),
        flux_NP=flux_NP,
        error_NP=np.full((rows, 256), 0.02),
        labels=labels,
    )
    return place / name / "dataset.h5"


def gaps(events: list[dict[str, Any]]) -> list[float]:
    """Return how long each slot stood between the end of a run and the beginning of the next."""
    last: dict[int, float] = {}
    found = []
    for event in events:
        if event["event"] == "ends":
            last[event["slot"]] = event["time"]
        elif event["event"] == "begins" and event["slot"] in last:
            found.append(event["time"] - last[event["slot"]])
    return found


def timed(place: Path, *words: str) -> float:
    """Return the seconds of a command, the median of five."""
    found = []
    for _ in range(5):
        started = time.monotonic()
        specvit(place, *words)
        found.append(time.monotonic() - started)
    return round(statistics.median(found), 3)


def specvit(place: Path, *words: str) -> "subprocess.CompletedProcess[bytes]":
    """Give a command in `place`."""
    code = "from specvit.cli import main; import sys; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *words], cwd=place, check=False, stdout=subprocess.DEVNULL)


def spread(values: list[float]) -> dict[str, float]:
    """Return median, least and greatest."""
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 3) for name, value in figures.items()}


if __name__ == "__main__":
    main()
