"""What a run costs besides its steps: python benchmarks/startup.py [--json FILE].

Process start to the end of the first step, of whole `specvit train` commands in fresh processes (`experiment=demo_c1d`,
on spectra that are made already), with and without MLflow. Then, at the reference size: how long a checkpoint
holds up the training, for which steps are timed with one being copied and written behind them; and how long it takes to
go on from one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import torch
from cases import REFERENCE, SMALL, Case, make_learner, train_data

from specvit.training import checkpoint
from specvit.training.checkpoint import CheckpointManager
from specvit.training.state import TrainState
from specvit.training.step import Learner
from specvit.utils.memory import keep_memory
from specvit.utils.quantities import NUM_PIXELS

CPU = torch.device("cpu")
CHILD = "--child"


def main() -> None:
    """Measure and print one JSON line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    record = machine.facts(CPU)
    record["seconds_to_first_step"] = {
        name: spread([first_step(live) for _ in range(options.runs + 1)][1:])  # the first one warms the page cache
        for name, live in (("without MLflow", "false"), ("with MLflow", "true"))
    }
    record["checkpoint"] = checkpoints(options.runs)
    print(json.dumps(record, indent=2))
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def spread(values: list[float]) -> dict[str, float]:
    """Return median, least and greatest."""
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 4) for name, value in figures.items()}


def first_step(live: str) -> float:
    """Return seconds from the start of a process to the end of its first step."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            "experiment=demo_c1d",
            f"tracking.live={live}",
            f"tracking.folder={folder}",
            "tracking.progress=none",
        ]
        begun = time.monotonic()
        words = [sys.executable, __file__, CHILD, *settings]
        found = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        subprocess.run(["pkill", "-9", "-f", f"specvit.track follow {folder}"], check=False)  # not beside the next one
        return json.loads(found.stdout.splitlines()[-1]) - begun


def child(settings: list[str]) -> None:
    """Train until the first step is through, print the time, and leave."""
    from specvit.commands.train import main as train
    from specvit.training.step import Learner

    step = Learner.step

    def watched(*arguments: Any) -> None:
        step(*arguments)
        print(time.monotonic(), flush=True)
        os._exit(0)

    Learner.step = watched
    train(settings)


def checkpoints(runs: int) -> dict[str, Any]:
    """Return milliseconds: of the call that saves, of steps alone and beside the writing, and of resuming."""
    keep_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found: dict[str, Any] = {"call_ms": spread(calls(REFERENCE, 32, folder, runs))}
        found["file_MB"] = round((folder / "last.ckpt").stat().st_size / 1e6, 1)
        found["restore_ms"] = spread([1e3 * restore(folder) for _ in range(runs)])
        found["small_network_steps_ms"] = steps_beside(folder, runs)
    return found


def calls(model: Any, batch_size: int, folder: Path, runs: int) -> list[float]:
    """Return milliseconds for which a save holds up a loop of real steps."""
    data = train_data(folder / "speed.h5", batch_size, CPU)
    learner, state = make_learner(Case("checkpoint", model, batch_size), data, CPU)
    checkpoints = keeper_in(folder)
    found = []
    for _ in range(runs + 1):
        learner.step(data.batch(state.step), state)
        state.step += 1
        started = time.perf_counter()
        assert checkpoints.save_last(learner, state)
        found.append(1e3 * (time.perf_counter() - started))
    checkpoints.writer.finish()
    return found[1:]  # the first one gets its memory from the system


def keeper_in(folder: Path) -> CheckpointManager:
    """Return what writes checkpoints of about the usual content."""
    return CheckpointManager(
        folder / "last.ckpt", folder / "best.ckpt", {"run_id": "x", "flux_mean_P": torch.zeros(NUM_PIXELS)}
    )


def restore(folder: Path) -> float:
    """Return seconds to read, check and take over a checkpoint."""
    data = train_data(folder / "speed.h5", 32, CPU)
    learner, _ = make_learner(Case("checkpoint", REFERENCE, 32), data, CPU)
    started = time.perf_counter()
    saved = checkpoint.load(folder / "last.ckpt")
    state = TrainState.from_plain(saved["state"])
    learner.module.load_state_dict(saved["model"])
    learner.optimizer.load_state_dict(saved["optimizer"])
    assert state.step > 0
    return time.perf_counter() - started


def steps_beside(folder: Path, runs: int) -> dict[str, float]:
    """Return the median step of a small network alone, and the median excess that a save of the large one adds in all.

    The small network's steps are short, so that what the writing takes from them can be seen.
    """
    data = train_data(folder / "small.h5", 16, CPU)
    small, state = make_learner(Case("small", SMALL, 16, "32"), data, CPU)
    large_data = train_data(folder / "speed.h5", 32, CPU)
    large, large_state = make_learner(Case("large", REFERENCE, 32), large_data, CPU)
    checkpoints = keeper_in(folder)

    def step(learner: Learner = small) -> float:
        started = time.perf_counter()
        learner.step(data.batch(state.step), state)
        state.step += 1
        return 1e3 * (time.perf_counter() - started)

    for _ in range(20):
        step()
    alone = statistics.median(step() for _ in range(200))
    excess, slowest = [], 0.0
    for _ in range(runs):
        assert checkpoints.save_last(large, large_state)
        times = [step() for _ in range(round(400 / alone))]
        excess.append(sum(times) - len(times) * alone)
        slowest = max(slowest, *times)
    checkpoints.writer.finish()
    return {
        "alone": round(alone, 2),
        "excess_of_a_write": round(statistics.median(excess), 1),
        "slowest": round(slowest, 1),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        child(sys.argv[2:])
    main()
