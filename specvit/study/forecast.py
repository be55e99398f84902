"""The cost of a study before and while it runs: hours from timed runs, disk space from the models' sizes."""

import json
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specvit.cluster.slurm_settings import SlurmConfig
from specvit.config.model_kinds import kind_of
from specvit.run_folder.folder import ALIVE, DONE, RunFolder
from specvit.study.job_log import jobs_in_queue, jobs_of_trials
from specvit.study.results import outcome_of
from specvit.study.store import StudyFolder, Trial
from specvit.study.trial_queue import CLOSED_STATES, FAILED_STATES
from specvit.utils.errors import ConfigError, FolderError
from specvit.utils.files import read_yaml
from specvit.utils.text import counted

if TYPE_CHECKING:
    from specvit.study.request import StudyRequest  # imports Hydra, which status commands do not need

TIMED_RUNS = 200
"""At most this many finished runs are read, the latest first."""


def disk_bytes(config: dict[str, Any]) -> int:
    """Return about the size of a run folder: two checkpoints with the optimizer's state, the best one, predictions."""
    kind = kind_of(config["model"])
    weights = 4 * (7 if kind.is_network else 1) * kind.parameters(config["model"])
    return weights + 100 * max(config["data"]["test_samples"], 0) + 2**19


def work_of(config: dict[str, Any]) -> float:
    """Return the operations of a run's training, comparable among runs of one kind; 0 for `data.num_samples=-1`."""
    return kind_of(config["model"]).work(config)


def training_rates(root: Path) -> dict[str, tuple[float, int]]:
    """Return the median training seconds per operation for each kind of model, and the number of runs that were timed.

    The run folders are those in `root`, at most the latest `TIMED_RUNS`.
    """
    rates: dict[str, list[float]] = {}
    folders = sorted(root.glob("*/summary.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in folders[:TIMED_RUNS]:
        try:
            outcome = outcome_of(RunFolder(path.parent, ""))
            config = read_yaml(path.parent / "config.yaml")
            kind = config["model"].get("kind", "vit")
            is_network = kind_of(config["model"]).is_network
            share = outcome.rows[-1]["epoch"] / config["train"]["epochs"] if is_network else 1.0
            if (seconds := outcome.train_seconds) and (work := work_of(config)):
                rates.setdefault(kind, []).append(seconds / (work * share))
        except (OSError, KeyError, IndexError, TypeError, FolderError):
            continue
    return {kind: (statistics.median(values), len(values)) for kind, values in rates.items()}


@dataclass(frozen=True)
class Cost:
    """Disk space and, by the runs timed here, hours of one worker; why the hours are unknown, or ""."""

    disk_bytes: int
    hours: float | None
    timed_runs: int
    unknown: str


@dataclass(frozen=True)
class PlannedRun:
    """A run of a plan; its state is None if it has not begun."""

    run: str
    run_id: str
    cell: str
    factors: dict[str, Any]
    state: str | None


@dataclass(frozen=True)
class Plan:
    """What a study would run: all runs of a grid, or one example of a search; `made` of `wanted` are there."""

    study: str
    launcher: str
    question: str
    sampler: str | None
    space: list[str]
    wanted: int
    made: int
    runs: list[PlannedRun]
    note: str
    """On runs that are the same map under another name."""
    left: int
    """Runs still to be made."""
    cost: Cost | None
    """Of those; None if nothing is left."""
    gpu_hours: float | None = None
    """On SLURM, up to the time limits where no run was timed."""


def plan_of(study: StudyFolder, order: "StudyRequest", trials: list[Trial]) -> tuple[Plan, list[Trial]]:
    """Return what a study would run, and the trials still to be run. `trials` of a search are one example."""
    search, count, name = order.definition.search, order.count_trials(trials), str(order.launcher.kind)
    states = [trial.run.state() for trial in trials]
    if search is not None:
        made = sum(study.state(trial) in CLOSED_STATES for trial in study.trials())
        left = trials[:1] * max(0, count - made)
    else:
        made, left = (
            sum(state in DONE for state in states),
            [t for t, s in zip(trials, states, strict=True) if s not in DONE],
        )
    planned = [
        PlannedRun(trial.name, trial.run_id, trial.cell, trial.factors, state or None)
        for trial, state in zip(trials, states, strict=True)
    ]
    plan = Plan(
        study=study.name,
        launcher=name,
        question=order.definition.question,
        sampler=search.sampler if search else None,
        space=[dimension.key for dimension in search.space] if search else [],
        wanted=count,
        made=made,
        runs=planned,
        note="" if search else twins_line(trials),
        left=len(left),
        cost=cost_of(left),
    )
    return plan, left


def print_plan(study: StudyFolder, order: "StudyRequest", trials: list[Trial]) -> list[Trial]:
    """Print what a study would run; return the trials still to be run. `trials` of a search are one example."""
    plan, left = plan_of(study, order, trials)
    print(f"study {plan.study}, {plan.launcher}: nothing is started (sweep.dry_run)")
    if plan.question:
        print(f"question: {plan.question}")
    shown = [trial.run.shown_state() or "to do" for trial in trials]
    if plan.sampler is not None:
        over = ", ".join(plan.space)
        print(f"{plan.wanted} trials, {plan.made} of them made, by {plan.sampler} over {over}; for example:")
        print(f"  {trials[0].name}  {_settings(trials[0])}")
    else:
        for trial, state in zip(trials, shown, strict=True):
            print(f"  {state:<14} {trial.name}  {_settings(trial)}")
        parts = ", ".join(f"{count} {state}" for state, count in Counter(shown).items())
        print(f"{counted(len(trials), 'run')}: {parts}")
    if plan.note:
        print(plan.note)
    for line in _cost_lines(plan.cost):
        print(line)
    if left and plan.sampler is not None:
        print("that is for trials that are all as large as this example")
    return left


def twins_line(trials: list[Trial]) -> str:
    """Return how many runs are the same as others under another name of their tokenizer, "" if there are none.

    Without overlap all tokenizers but the stem are one linear map with one initialisation, so that their runs agree to
    the last digit; of the old initialisations C1D has another than the rest.
    """
    names: dict[str, list[str]] = {}
    for trial in trials:
        model = trial.config["model"]
        if model.get("proj_fn", "stem") != "stem" and model["stride_size"] == model["patch_size"]:
            apart = model["proj_fn"] == "C1D" and model["init"] in ("legacy", "legacy_tokenizer")
            one_map = {**model, "proj_fn": "C1D" if apart else "linear"}
            rest = {name: part for name, part in trial.config.items() if name != "tracking"}
            names.setdefault(json.dumps({**rest, "model": one_map}, sort_keys=True), []).append(model["proj_fn"])
    groups = [group for group in names.values() if len(set(group)) > 1]
    if not groups:
        return ""
    tokenizers = " and ".join(sorted({name for group in groups for name in group}))
    twins = sum(len(group) - 1 for group in groups)
    alike = "is a twin of another" if twins == 1 else "are twins of others"
    return (
        f"{twins} of {len(trials)} runs {alike}: model.proj_fn {tokenizers} are the same map without "
        "overlap (model.stride_size = model.patch_size); a comparison counts them once"
    )


def cost_of(trials: list[Trial]) -> Cost | None:
    """Return the forecast of disk space and hours of trials; None without any."""
    if not trials:
        return None
    size, known = sum(disk_bytes(trial.config) for trial in trials), hours_of(trials)
    if isinstance(known, str):
        return Cost(size, None, 0, known)
    return Cost(size, sum(known[0]), known[1], "")


def cost_lines(trials: list[Trial]) -> list[str]:
    """Return the forecast of disk space and hours of trials as text."""
    return _cost_lines(cost_of(trials))


def _cost_lines(cost: Cost | None) -> list[str]:
    if cost is None:
        return ["nothing is left to do"]
    size = cost.disk_bytes
    lines = [f"disk: about {size / 1e9:.1f} GB" if size > 1e9 else f"disk: about {size / 1e6:.0f} MB"]
    if cost.hours is None:
        return [*lines, f"time: {cost.unknown}"]
    total = f"{cost.hours:.1f} hours" if cost.hours >= 1 else f"{60 * cost.hours:.0f} minutes"
    runs = counted(cost.timed_runs, "run")
    return [*lines, f"time: about {total} for one worker, by the operations and {runs} timed here"]


def hours_of(trials: list[Trial]) -> tuple[list[float], int] | str:
    """Return the training hours of each trial and how many runs were timed for them, or why they are unknown."""
    rates = training_rates(Path(trials[0].config["tracking"]["folder"]))
    kinds = [str(trial.config["model"].get("kind", "vit")) for trial in trials]
    if missing := sorted({*kinds} - rates.keys()):
        which = "" if missing == ["vit"] else f" of model={missing[0]}"
        return f"unknown until a run{which} has finished here"
    works = [work_of(trial.config) for trial in trials]
    if not all(works):
        return "unknown, for data.num_samples=-1 does not say how many spectra there are"
    hours = [rates[kind][0] * work / 3600 for kind, work in zip(kinds, works, strict=True)]
    return hours, sum(rates[kind][1] for kind in {*kinds})


def open_cost_lines(study: StudyFolder) -> list[str]:
    """Return the cost of a study's open trials, and how many failed before."""
    states = [(trial, study.state(trial)) for trial in study.trials()]
    pending = [trial for trial, state in states if state not in (*CLOSED_STATES, *ALIVE)]
    lines = cost_lines(pending) if pending else []
    if failed := sum(state in FAILED_STATES for _, state in states):
        lines.append(f"{failed} failed before and stay as they are; sweep.retry=true tries them again")
    return lines


def _settings(trial: Trial) -> str:
    parts = [trial.cell] * bool(trial.cell) + [f"{key}={value}" for key, value in trial.factors.items()]
    return ", ".join(parts)


def open_trials(study: StudyFolder, trials: list[Trial], *, retry: bool = False) -> list[Trial]:
    """Return the trials without a job that are not done; with `retry` also those that failed."""
    skipped = (*DONE, *ALIVE, "pruned", *(() if retry else FAILED_STATES))
    about = study.about() if study.file("study.json").exists() else None
    jobs = jobs_of_trials(study, about, jobs_in_queue(study, about)) if about else {}
    submitted = {number for number, job in jobs.items() if job.alive}
    return [trial for trial in trials if study.state(trial) not in skipped and trial.number not in submitted]


def gpu_hours(trials: list[Trial], config: SlurmConfig) -> tuple[float, str]:
    """Return the GPU-hours of trials and a line about them.

    Where no run is timed yet, the number is that of the time limit of one job for each trial.
    """
    if not trials:
        return 0.0, "GPU-hours: none"
    gpus, known = config.gpus, hours_of(trials)
    if isinstance(known, str):
        total = len(trials) * gpus * config.minutes / 60
        jobs = f"{counted(len(trials), 'job')} of {config.time}"
        each = f"{jobs} with {counted(gpus, 'GPU')}"
        return total, f"GPU-hours: {known}; up to {total:.1f} ({each}) before a job is queued again"
    hours, _ = known
    at_once = min(config.jobs or len(trials), len(trials))
    span = max(sum(hours) / at_once, max(hours))
    end = time.strftime("%a %H:%M", time.localtime(time.time() + 3600 * span))
    through = f"through about {end} if {counted(at_once, 'job')} can run at once from now on"
    return gpus * sum(hours), f"GPU-hours: about {gpus * sum(hours):.1f} by runs timed here; {through}"


def confirm(config: SlurmConfig, trials: list[Trial]) -> None:
    """Print the cost of open trials; raises `ConfigError` if it is above the budget and the user does not agree."""
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
