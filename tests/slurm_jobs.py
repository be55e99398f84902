"""What the tests on a real SLURM share: which jobs a study's launcher asks for, and how far its runs are."""

from typing import Any

from studies import Study

from specvit.run_folder.folder import RunFolder
from specvit.study.results import outcome_of

JOBS = ["hydra/launcher=slurm", "hydra.launcher.gpus_per_job=0", "hydra.launcher.cpus_per_job=1"]
JOBS += ["hydra.launcher.poll_seconds=1", "hydra.launcher.signal_seconds=60"]
LONG = {"train.epochs": 300}


def jobs_of(study: Study) -> list[str]:
    return [line["job"] for line in study.jobs()]


def epochs_of(study: Study) -> list[int]:
    return [len(outcome_of(trial.run).rows) for trial in study.folder.trials()]


def process_of(trial: Any) -> int:
    return int(trial.run.status()["pid"])


def all_at_work(study: Study, epochs: int = 2) -> bool:
    """Say whether all runs train just now and have come so far."""
    return study.is_at_work(max(1, len(study.folder.trials()))) and min(epochs_of(study)) >= epochs


def ready_of(run: RunFolder) -> int:
    """Return how often a run came to its first step."""
    return sum(attempt["event"] == "ready" for attempt in run.attempts())
