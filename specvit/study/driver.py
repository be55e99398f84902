"""The command that starts or resumes a study: checks all of it, starts workers, and prints what happens.

Studies survive crashes of this process: workers continue, and the same command resumes the study.
"""

import contextlib
import itertools
import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

from specvit.cluster import queue
from specvit.cluster.slots import LauncherConfig, plan_slots
from specvit.cluster.slurm_settings import SlurmConfig
from specvit.config.compose import Composer
from specvit.config.precedence import replaced_lines
from specvit.run_folder.folder import DONE
from specvit.study import forecast
from specvit.study.grid import replaced_axes
from specvit.study.local_slots import LocalSlots
from specvit.study.options import IN_BACKGROUND
from specvit.study.plan import plan_grid, relative, take_code, take_snapshot, try_space
from specvit.study.request import StudyRequest
from specvit.study.schema import Definition
from specvit.study.status import refused_lines
from specvit.study.store import StudyFolder, Trial, living_pid
from specvit.study.table import render, table_rows
from specvit.study.trial_queue import FAILED_STATES, group_counts, has_open_trials, state_counts, stop_reason
from specvit.utils.errors import ConfigError, FolderError
from specvit.utils.files import locked
from specvit.utils.processes import python_command, python_environment, start, start_ticks

DETACHED = "detached"
"""Event of a study: its command was started in the background, as process `pid`."""


def drive(request: StudyRequest) -> int:
    """Start or resume a study and run it until no trial is open; return the exit code."""
    study = StudyFolder(folder_of(request))
    planned = prepare(study, request)
    if request.options.dry_run:
        return _print_plan(study, request, planned)
    check_start(study, request, planned)
    study.path.mkdir(parents=True, exist_ok=True)
    with locked(study.file("driver.lock"), seconds=1.0) as mine:
        if not mine and request.detaches and (pid := living_pid(study.events(DETACHED))):
            print(f"study {study.name} is already running in the background: {_background(study, pid)}")
            return 0
        if not mine:
            remedy = f"watch it with `specvit sweep status {study.name} --watch`"
            raise FolderError("another command drives this study", where=relative(study.path), remedy=remedy)
        _refuse_older_workers(study, request, planned)
        write(study, request, planned)
        if not request.detaches:
            return _drive(study, request, planned)
    return _detach(study, request)


def plan(request: StudyRequest) -> forecast.Plan:
    """Return what a study would run and what it costs; starts nothing. Raises `SpecvitError` as `drive` does."""
    study = StudyFolder(folder_of(request))
    found, left = forecast.plan_of(study, request, prepare(study, request))
    if isinstance(request.launcher, SlurmConfig):
        found = replace(found, gpu_hours=forecast.gpu_hours(left, request.launcher)[0])
    return found


def folder_of(request: StudyRequest) -> Path:
    """Return the folder of the study that a request is for."""
    return Path(request.options.folder).absolute() / (request.options.name or request.definition.name)


def _drive(study: StudyFolder, request: StudyRequest, planned: list[Trial]) -> int:
    _print_status(study, request.definition)
    code = 0
    if has_open_trials(study):
        _start_mlflow_sync(study, planned)
        code = _run_trials(study, request, _devices(planned))
        print(state_counts(study))
    return _conclude(study, code)


def _print_plan(study: StudyFolder, request: StudyRequest, planned: list[Trial]) -> int:
    """Print what would run and what it costs; start nothing."""
    left = forecast.print_plan(study, request, planned)
    if isinstance(request.launcher, SlurmConfig):
        print(forecast.gpu_hours(left, request.launcher)[1])
    return 0


def _run_trials(study: StudyFolder, request: StudyRequest, devices: set[str]) -> int:
    """Run the trials with the launcher; return the exit code. `devices` are those that the runs ask for."""
    if isinstance(request.launcher, SlurmConfig):
        from specvit.study.slurm_slots import SlurmSlots

        return SlurmSlots(study, request).run()
    return _inprocess(study) if request.launcher.kind == "inprocess" else LocalSlots(study, request, devices).run()


def prepare(study: StudyFolder, request: StudyRequest) -> list[Trial]:
    """Check and return the trials of a grid, or one example of a search; writes nothing. Raises `ConfigError`."""
    definition, options = request.definition, request.options
    _refuse_change(study, request)
    compose, notes = Composer(), replaced_axes(definition, request.typed)
    if definition.search is None:
        trials = plan_grid(definition, request.typed, study, compose, notes)
    else:
        trials = [try_space(definition, request.typed, study, compose, notes)]
        if options.extend and study.file("study.json").exists():
            from specvit.study.optuna_study import check_same_space

            check_same_space(study, definition)
    if isinstance(request.launcher, LauncherConfig) and request.launcher.kind == "local":
        plan_slots(request.launcher, _devices(trials), limit=options.max_parallel)
    for line in dict.fromkeys([*replaced_lines(compose.replaced), *notes]):
        print(line, flush=True)
    return trials


def _devices(planned: list[Trial]) -> set[str]:
    return {trial.config["train"]["device"] for trial in planned}


def check_start(study: StudyFolder, request: StudyRequest, planned: list[Trial]) -> None:
    """Raise `ConfigError` for a study that could not start, before anything is written."""
    search, options, launcher = request.definition.search, request.options, request.launcher
    if isinstance(launcher, SlurmConfig):
        if not queue.has_slurm():
            what = "needs SLURM's commands, and squeue is not on this machine"
            raise ConfigError(what, where="hydra/launcher", remedy="log in to the cluster, or use local")
        if not request.in_background:
            trials = study.trials() if search else [_as_recorded(study, trial) for trial in planned]
            missing = request.count_trials(planned) - len(trials)
            left = forecast.open_trials(study, trials, retry=options.retry)
            forecast.confirm(launcher, left + planned * max(0, missing))
    if search:
        from specvit.study.optuna_study import check_storage

        check_storage(study, search, options.storage)


def _as_recorded(study: StudyFolder, planned: Trial) -> Trial:
    """Return a planned trial with its recorded end, if the recorded run is the same."""
    recorded = study.trial(planned.number)
    if recorded is None or recorded.run_id != planned.run_id:
        return planned
    return recorded if recorded.config == planned.config else replace(planned, end=recorded.end)


def write(study: StudyFolder, request: StudyRequest, planned: list[Trial]) -> None:
    """Write or update the study. Existing trials keep their ends; `sweep.retry` requests retries of failed ones.

    `study.json` is written after the trials: a study killed before that does not exist yet, and is written again.
    """
    definition, options = request.definition, request.options
    search = definition.search
    study.make_folders()
    if options.extend or not (study.file("study.json").exists() and study.file("conf").exists()):
        take_snapshot(study)
    if isinstance(request.launcher, SlurmConfig) and request.launcher.snapshot_code:
        take_code(study)
    for trial in [] if search else planned:
        if (current := _as_recorded(study, trial)) != study.trial(trial.number):
            study.write_trial(current)
    hours = options.hours or definition.budget.hours
    failures = options.failures or definition.budget.failures
    study.create(
        kind="search" if search else "grid",
        digest=_digest(request),
        definition=definition.source,
        typed=request.typed,
        question=definition.question,
        table=asdict(definition.table),
        metrics=search.metrics if search else None,
        trials=request.count_trials(planned),
        deadline=time.time() + 3600 * hours if hours else None,
        failures=failures,
        health_minutes=options.health_minutes or definition.health_minutes,
        storage=options.storage,
        launcher=asdict(request.launcher),
        cwd=str(Path.cwd()),
        command=["specvit", "train", *request.words],
    )
    study.file("cancelled").unlink(missing_ok=True)
    if search:
        from specvit.study.optuna_study import create
        from specvit.study.optuna_trials import OptunaTrials

        create(study, study.about(), definition)
        trials_in_optuna = OptunaTrials(study, study.about())
        for line in trials_in_optuna.restore_records():
            print(line, flush=True)
        if options.extend:
            trials_in_optuna.renew_settings()
    else:
        study.remove_trials_from(len(planned))
    if options.retry:
        for trial in study.trials():
            if study.state(trial) in FAILED_STATES:
                study.request_retry(trial)


def _refuse_change(study: StudyFolder, request: StudyRequest) -> None:
    """Raise `ConfigError` where a study of this name was started with another definition or other settings."""
    before = study.about() if study.file("study.json").exists() else {}
    if not before or before.get("digest") == _digest(request) or request.options.extend:
        return
    old, new = before.get("typed", {}), request.typed
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    differences = f"{', '.join(changed[:3])}{more} differ" if changed else "its file differs"
    what = f"was started with other settings ({differences})"
    remedy = "give this one another name with sweep.name=NAME, or take it as it is now with sweep.extend=true"
    raise ConfigError(what, where=relative(study.path), remedy=remedy)


def _refuse_older_workers(study: StudyFolder, request: StudyRequest, planned: list[Trial]) -> None:
    """Raise `FolderError` where workers still run the study as it was before this command changed it."""
    before = {trial.number: trial.run_id for trial in study.trials()}
    changed = any(before.get(trial.number, trial.run_id) != trial.run_id for trial in planned)
    if study.busy_slots() and (request.options.extend if request.definition.search else changed):
        remedy = f"wait for them, or stop them first with `specvit sweep cancel {study.name}`"
        what = "workers of an earlier command are still running its earlier version"
        raise FolderError(what, where=relative(study.path), remedy=remedy)


def _digest(request: StudyRequest) -> str:
    return request.definition.digest() + json.dumps(request.typed, sort_keys=True)


def _print_status(study: StudyFolder, definition: Definition) -> None:
    print(f"study {study.name}: {relative(study.path)}", flush=True)
    if definition.question:
        print(f"question: {definition.question}", flush=True)
    print(state_counts(study), flush=True)
    for line in forecast.open_cost_lines(study):
        print(line, flush=True)


def _inprocess(study: StudyFolder) -> int:
    from specvit.study.worker import work

    busy = study.busy_slots()  # workers of an earlier command
    code = work(study, next(number for number in itertools.count() if number not in busy))
    return 0 if code == os.EX_TEMPFAIL else code  # `_conclude` prints what is not finished


def _start_mlflow_sync(study: StudyFolder, planned: list[Trial]) -> None:
    """Start one process that synchronises all runs of the study to MLflow, until the study rests."""
    if any(trial.config["tracking"]["live"] for trial in (*planned, *study.trials())):
        with contextlib.suppress(OSError):
            start(python_command("specvit.track", "study", str(study.path)), study.file("tracking.log"))


def _conclude(study: StudyFolder, code: int) -> int:
    """Print the table and the next steps; return the exit code: 1 if a run failed."""
    trials = study.trials()
    states = [study.state(trial) for trial in trials]
    failed = [trial for trial, state in zip(trials, states, strict=True) if state in FAILED_STATES]
    if any(state in DONE for state in states):
        with contextlib.suppress(ConfigError):
            print(render(*table_rows(study), "text"))
    for trial in failed[:3]:
        cause = (trial.end or {}).get("cause") or trial.run.status().get("cause", "cause unknown")
        print(f"failed: {trial.name}: {cause}")
    if failed or "plateau" in states:
        print(group_counts(states))
    if failed:
        print(f"`specvit sweep why {study.name}` says more; sweep.retry=true tries failed runs again")
    left = has_open_trials(study)
    if left and not code:
        why = (
            stop_reason(study, study.about())
            or next(refused_lines(study), "")
            or "its workers ended before all runs did"
        )
        print(f"not finished: {why}; run the same command again to resume")
    return code or (1 if failed or left else 0)


def _detach(study: StudyFolder, request: StudyRequest) -> int:
    """Run the command again in the background."""
    log = study.file("driver.log")
    words = python_command("specvit.train", *request.words)
    process = start(words, log, {**python_environment(), IN_BACKGROUND: "1"})
    study.log_event(DETACHED, pid=process.pid, born=start_ticks(process.pid))
    print(f"study {study.name} started in the background: {_background(study, process.pid)}")
    for line in forecast.open_cost_lines(study):
        print(line)
    return 0


def _background(study: StudyFolder, pid: int) -> str:
    return f"process {pid}, log {relative(study.file('driver.log'))}; watch it with `specvit sweep status {study.name}`"
