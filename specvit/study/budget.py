"""What a study costs on a cluster, said before its jobs are submitted, and asked about where that is much."""

import sys
import time

from specvit.cluster.slurm_settings import SlurmConfig
from specvit.run_folder.folder import ALIVE, DONE
from specvit.study.forecast import hours_of
from specvit.study.job_log import jobs_in_queue, jobs_of_trials
from specvit.study.store import StudyFolder, Trial
from specvit.study.trial_queue import failed_states
from specvit.utils.errors import ConfigError


def open_trials(study: StudyFolder, trials: list[Trial], *, retry: bool = False) -> list[Trial]:
    """Return those of the trials for which jobs are still to be submitted; with `retry` also those that failed."""
    settled = (*DONE, *ALIVE, "pruned", *(() if retry else failed_states()))
    about = study.about() if study.file("study.json").exists() else None
    there = jobs_of_trials(study, about, jobs_in_queue(study, about)) if about else {}
    at_work = {number for number, job in there.items() if job.alive}
    return [trial for trial in trials if study.state(trial) not in settled and trial.number not in at_work]


def gpu_hours(trials: list[Trial], config: SlurmConfig) -> tuple[float, str]:
    """Return the GPU-hours of trials, and the line that says them.

    Where nothing is timed yet, what the first job of each may take stands for them.
    """
    if not trials:
        return 0.0, "GPU-hours: none"
    gpus, hours = config.gpus, hours_of(trials)
    if isinstance(hours, str):
        total = len(trials) * gpus * config.minutes / 60
        jobs = f"{len(trials)} job{'s' if len(trials) > 1 else ''} of {config.time}"
        each = f"{jobs} with {gpus} GPU{'s' if gpus != 1 else ''}"
        return total, f"GPU-hours: {hours}; up to {total:.1f} ({each}) before a job is queued again"
    at_once = min(config.jobs or len(trials), len(trials))
    span = max(sum(hours) / at_once, max(hours))
    end = time.strftime("%a %H:%M", time.localtime(time.time() + 3600 * span))
    through = f"through about {end} if {at_once} job{'s' if at_once > 1 else ''} can run at once from now on"
    return gpus * sum(hours), f"GPU-hours: about {gpus * sum(hours):.1f} by runs timed here; {through}"


def confirm(config: SlurmConfig, trials: list[Trial]) -> None:
    """Say what open trials cost; raises `ConfigError` where that is above the budget and nobody agrees."""
    total, line = gpu_hours(trials, config)
    if config.gpus and trials:
        print(line, flush=True)
    limit = config.max_gpu_hours
    if limit is None or total <= limit:
        return
    if sys.stdin.isatty():
        print(f"that is above hydra.launcher.max_gpu_hours={limit:g}; submit? [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
    what = f"would be about {total:.1f}, above {limit:g}, so nothing was submitted"
    raise ConfigError(what, where="hydra.launcher.max_gpu_hours", remedy=f"raise it to {total:.0f} or more, or null")
