"""What SLURM costs: python benchmarks/slurm.py [--jobs N] [--json FILE].

On a real SLURM of this machine alone (see docs/slurm.md for its packages): an array of tiny jobs, its wall time and
failures beside what the same jobs take without any (one worker after the other starts Python, torch and a run), and how
soon the command notices a job that was killed and submits another.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import torch
from sweep import TINY, write_set

from specvit.study.store import StudyFolder
from specvit.utils.files import read_json_lines

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import cluster as slurm

JOBS = ["hydra/launcher=slurm", "hydra.launcher.gpus_per_job=0", "hydra.launcher.cpus_per_job=1"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--deaths", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    record = machine.facts(torch.device("cpu"), ("torch", "hydra-core", "submitit"))
    with tempfile.TemporaryDirectory() as folder, slurm.running() as cluster:
        os.environ["SLURM_CONF"] = cluster.environment["SLURM_CONF"]
        record["slurm"] = cluster.run("sbatch", "--version").strip()
        words = [f"data.{key}_path={write_set(Path(folder), name)}" for key, name in SETS]
        record["array"] = array(Path(folder), words, options.jobs, options.at_once)
        record["death"] = [death(Path(folder), words, number) for number in range(options.deaths)]
    print(json.dumps(record, indent=2))
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


SETS = (("file", "train"), ("val", "val"), ("test", "test"))


def array(place: Path, words: list[str], jobs: int, at_once: int) -> dict[str, Any]:
    """Return wall time and failures of an array of tiny jobs, and what one of them takes where no SLURM is."""
    command = ["-m", "data=hdf5", *TINY, *words, "tracking.live=false", "sweep.name=array", f"train.seed=range({jobs})"]
    started = time.monotonic()
    done = specvit(place, *command, *JOBS, f"hydra.launcher.jobs={at_once}", "hydra.launcher.poll_seconds=1")
    wall = time.monotonic() - started
    study = StudyFolder(place / "multirun" / "array")
    submitted = read_json_lines(study.file("jobs.jsonl"))
    states = [study.state(trial) for trial in study.trials()]
    alone = []
    for seed in range(1000, 1005):
        started = time.monotonic()
        specvit(place, "data=hdf5", *TINY, *words, "tracking.live=false", "train.threads=1", f"train.seed={seed}")
        alone.append(time.monotonic() - started)
    return {
        "jobs": len(states),
        "at_once": at_once,
        "exit_code": done.returncode,
        "failed": sum(state not in ("completed", "plateau") for state in states),
        "submissions": len(submitted),
        "wall_seconds": round(wall, 1),
        "wall_seconds_a_job": round(wall / jobs, 2),
        "alone_seconds_a_run": round(statistics.median(alone), 2),
    }


def death(place: Path, words: list[str], number: int) -> float:
    """Return the seconds from a job's kill -9 to the submission of the next; the queue is asked as by default."""
    name = f"death{number}"
    long = [text for text in TINY if not text.startswith("train.epochs")]
    command = ["data=hdf5", *long, *words, "tracking.live=false", "train.epochs=100000", f"train.seed={number}"]
    code = "from specvit.cli import main; import sys; sys.exit(main())"
    started = [sys.executable, "-c", code, "train", *command, f"sweep.name={name}", *JOBS]
    driver = subprocess.Popen(started, cwd=place, stdout=subprocess.DEVNULL)
    study = StudyFolder(place / "multirun" / name)
    while not any(trial.run.state() == "running" for trial in study.trials()):
        assert driver.poll() is None, "the command ended before its run began"
        time.sleep(0.1)
    time.sleep(3 + number)  # at any moment between two looks at the queue
    os.kill(int(study.trials()[0].run.status()["pid"]), signal.SIGKILL)
    killed = time.time()
    while len(jobs := read_json_lines(study.file("jobs.jsonl"))) < 2:
        time.sleep(0.1)
    driver.kill()
    driver.wait()
    subprocess.run(["scancel", "--me"], check=True)
    return round(jobs[1]["time"] - killed, 2)


def specvit(place: Path, *words: str) -> "subprocess.CompletedProcess[bytes]":
    """Give a training command in `place`."""
    code = "from specvit.cli import main; import sys; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, "train", *words], cwd=place, check=False, stdout=subprocess.DEVNULL
    )


if __name__ == "__main__":
    main()
