"""What a study will cost, before and while it runs: hours from runs that were timed, disk from the networks' sizes."""

import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specvit.cluster.slurm_settings import SlurmConfig
from specvit.run_folder.folder import ALIVE, DONE, RunFolder
from specvit.study.cost import NETWORKS, parameters, work
from specvit.study.job_log import jobs_in_queue, jobs_of_trials
from specvit.study.results import outcome_of
from specvit.study.store import StudyFolder, Trial
from specvit.study.trial_queue import failed_states
from specvit.utils.errors import ConfigError, FolderError
from specvit.utils.files import read_json
from specvit.utils.yaml_files import read_yaml

if TYPE_CHECKING:
    from specvit.study.request import StudyRequest  # it composes, which watching a study does not

TIMED_RUNS = 200
"""So many finished runs of the run folder are looked at, the latest first."""
ORDER = ("running", "queued", "requeued", "waiting", *DONE, "pruned")


def disk_bytes(config: dict[str, Any]) -> int:
    """Return about what a run leaves on disk: two checkpoints with the optimizer's state, the best, predictions."""
    copies = 7 if config["model"].get("kind", "vit") in NETWORKS else 1
    return 4 * copies * parameters(config["model"]) + 100 * max(config["data"]["test_samples"], 0) + 2**19


def seconds_per_work(root: Path, kind: str = "vit") -> tuple[float, int] | None:
    """Return the median training seconds per operation of the runs in `root` of a kind of model, and of how many."""
    found = []
    folders = sorted(root.glob("*/summary.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in folders[:TIMED_RUNS]:
        try:
            outcome = outcome_of(RunFolder(path.parent, ""))
            config = read_yaml(path.parent / "config.yaml")
            if config["model"].get("kind", "vit") != kind:
                continue
            share = outcome.rows[-1]["epoch"] / config["train"]["epochs"] if kind in NETWORKS else 1.0
            if (seconds := outcome.train_seconds) and work(config):
                found.append(seconds / (work(config) * share))
        except (OSError, KeyError, IndexError, TypeError, FolderError):
            continue
    return (statistics.median(found), len(found)) if found else None


def tell(study: StudyFolder, order: "StudyRequest", trials: list[Trial]) -> list[Trial]:
    """Print what a study would do, and return what is left to do; `trials` of a search are one example."""
    definition = order.definition
    print(f"study {study.name}, {order.launcher.kind}: nothing is started (sweep.dry_run)")
    if definition.question:
        print(f"question: {definition.question}")
    if definition.search is not None:
        one, search = trials[0], definition.search
        count = order.count_trials(trials)
        done = sum(study.state(trial) in (*DONE, "pruned", *failed_states()) for trial in study.trials())
        over = ", ".join(dimension.key for dimension in search.space)
        print(f"{count} trials, {done} of them made, by {search.sampler} over {over}; for example:")
        print(f"  {one.name}  {_settings(one)}")
        trials = [one] * max(0, count - done)
    else:
        for trial in trials:
            print(f"  {trial.run.state() or 'to do':<14} {trial.name}  {_settings(trial)}")
        states = Counter(trial.run.state() or "to do" for trial in trials)
        parts = ", ".join(f"{count} {state}" for state, count in states.items())
        print(f"{len(trials)} run{'s' if len(trials) != 1 else ''}: {parts}")
        if said := twins_line(trials):
            print(said)
        trials = [trial for trial in trials if trial.run.state() not in DONE]
    for line in cost_lines(trials):
        print(line)
    if trials and definition.search is not None:
        print("that is for trials that are all as large as this example")
    return trials


def twins_line(trials: list[Trial]) -> str:
    """Return how many runs are the same as others under another name of their tokenizer, "" if there are none.

    Without overlap all tokenizers are one linear map with one initialisation, so that their runs agree to the last
    digit; of the old initialisations C1D has another than the rest.
    """
    names: dict[str, list[str]] = {}
    for trial in trials:
        model = trial.config["model"]
        if model.get("kind", "vit") == "vit" and model["stride_size"] == model["patch_size"]:
            apart = model["proj_fn"] == "C1D" and model["init"] in ("legacy", "legacy_tokenizer")
            one_map = {**model, "proj_fn": "C1D" if apart else "linear"}
            rest = {name: part for name, part in trial.config.items() if name != "tracking"}
            names.setdefault(json.dumps({**rest, "model": one_map}, sort_keys=True), []).append(model["proj_fn"])
    groups = [group for group in names.values() if len(set(group)) > 1]
    if not groups:
        return ""
    tokenizers = " and ".join(sorted({name for group in groups for name in group}))
    twins = sum(len(group) - 1 for group in groups)
    return (
        f"{twins} of {len(trials)} runs are twins of others: model.proj_fn {tokenizers} are the same map without "
        "overlap (model.stride_size = model.patch_size); a comparison counts them once"
    )


def cost_lines(trials: list[Trial]) -> list[str]:
    """Return the forecast of hours and disk for trials that are to be made."""
    if not trials:
        return ["nothing is left to do"]
    size = sum(disk_bytes(trial.config) for trial in trials)
    lines = [f"disk: about {size / 1e9:.1f} GB" if size > 1e9 else f"disk: about {size / 1e6:.0f} MB"]
    hours = hours_of(trials)
    if isinstance(hours, str):
        return [*lines, f"time: {hours}"]
    said = f"{sum(hours):.1f} hours" if sum(hours) >= 1 else f"{60 * sum(hours):.0f} minutes"
    return [*lines, f"time: about {said} for one worker, by the operations and {_timed_runs(trials)} timed here"]


def hours_of(trials: list[Trial]) -> list[float] | str:
    """Return the hours that each trial will train, or why they are unknown."""
    root = Path(trials[0].config["tracking"]["folder"])
    rates = {kind: seconds_per_work(root, kind) for kind in {_kind(trial) for trial in trials}}
    if missing := sorted(kind for kind, rate in rates.items() if rate is None):
        which = "" if missing == ["vit"] else f" of model={missing[0]}"
        return f"unknown until a run{which} has finished here"
    if not all(work(trial.config) for trial in trials):
        return "unknown, for data.num_samples=-1 does not say how many spectra there are"
    return [rate[0] * work(trial.config) / 3600 for trial in trials if (rate := rates[_kind(trial)])]


def _kind(trial: Trial) -> str:
    return trial.config["model"].get("kind", "vit")


def _timed_runs(trials: list[Trial]) -> str:
    root = Path(trials[0].config["tracking"]["folder"])
    count = sum((seconds_per_work(root, kind) or (0.0, 0))[1] for kind in {_kind(trial) for trial in trials})
    return f"{count} run{'s' if count != 1 else ''}"


def counts_line(study: StudyFolder, states: dict[int, str] | None = None) -> str:
    """Return how many trials are in which state: `12 runs: 1 running, 3 waiting, 8 completed`.

    `states` of trials by number, where more is known than the study says itself.
    """
    trials = study.trials()
    counts = Counter((states or {}).get(trial.number) or study.state(trial) for trial in trials)
    counts["waiting"] += max(0, study.about()["trials"] - len(trials))
    known = [name for name in ORDER if counts[name]]
    rest = sorted(name for name in counts if name not in ORDER and counts[name])
    parts = ", ".join(f"{counts[name]} {name}" for name in known + rest)
    total = sum(counts.values())
    return f"{total} run{'s' if total != 1 else ''}: {parts}"


def is_work_left(study: StudyFolder) -> bool:
    """Say whether a trial is to be made, gone on with, or waited for."""
    trials = study.trials()
    at_rest = (*DONE, "pruned", *failed_states())
    return len(trials) < study.about()["trials"] or any(study.state(trial) not in at_rest for trial in trials)


def lines(study: StudyFolder) -> list[str]:
    """Return what is to be said of the cost of a study's open trials, and of those that failed before."""
    trials = study.trials()
    states = [study.state(trial) for trial in trials]
    pairs = list(zip(trials, states, strict=True))
    settled = (*DONE, *ALIVE, "pruned", *failed_states())
    open_trials = [trial for trial, state in pairs if state not in settled]
    said = cost_lines(open_trials) if open_trials else []
    failed = sum(state in failed_states() for state in states)
    return said + (
        [f"{failed} failed before and stay as they are; sweep.retry=true tries them again"] if failed else []
    )


def _settings(trial: Trial) -> str:
    parts = [trial.cell] * bool(trial.cell) + [f"{key}={value}" for key, value in trial.factors.items()]
    return ", ".join(parts)


def forecast_of(run: RunFolder) -> str | None:
    """Return when a running run will be through, as its status has it."""
    return (read_json(run.file("status.json"), {}) or {}).get("forecast")


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
