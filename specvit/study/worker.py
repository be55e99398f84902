"""A worker claims, runs and reports trials until none is open. Any number share a study; each may die at any moment.

Imports are paid once: from the second trial on, the overhead of a run is a second at most.
"""

import contextlib
import gc
import os
import sys
import time
import traceback
from dataclasses import dataclass, field, replace
from signal import SIGUSR2
from typing import Any

from specvit.config.build import build_config
from specvit.config.tracking_uri import STUDY_TAG
from specvit.run.run import Result, run
from specvit.run_folder.folder import ALIVE, DONE, RunFolder, job_here
from specvit.study.store import (
    BROKEN_GPU,
    CANCELLED,
    REFUSED,
    SETTLED,
    StudyFolder,
    Trial,
    deaths_without_progress,
    now,
    stops_without_progress,
)
from specvit.study.trial_queue import TrialQueue, TrialSource, stop_reason
from specvit.training.gpus import given_by
from specvit.utils.errors import DeviceError, FolderError, Interrupted, SpecvitError, explain, passing_fault
from specvit.utils.files import locked
from specvit.utils.processes import start_ticks

LOOK_SECONDS = 1.0
"""How long to wait for a slot's lock: a process that checks whether the slot is busy holds it for a moment."""
BUSY_SECONDS = 2.0
"""Between two checks of trials that another process is running."""
STOPS = 5
"""A run is given up after this many jobs in a row that reached their time limit without a step."""
DEATHS = 3
"""A run is given up after this many processes in a row that died, or lost their GPU, without a step."""


def work(study: StudyFolder, slot: int, *, trial: int | None = None, patience: float = LOOK_SECONDS) -> int:
    """Run trials until none is open; return the exit code, 128 + n after signal n, or `BROKEN_GPU`.

    A full disk or a failing file server does not fail a trial: trials wait, and this worker ends with `os.EX_TEMPFAIL`.

    `trial`: only this one. `patience`: seconds to wait for an older worker to leave the slot; one on a node that SLURM
    has given up may still be ending.
    """
    with locked(study.file("slots") / f"{slot}.lock", seconds=patience) as mine:
        if not mine:
            return 0  # a worker of an earlier command still has this slot
        try:
            pid = os.getpid()
            study.log_event("worker starts", slot=slot, job=job_here(), pid=pid, born=start_ticks(pid))
            note_missing_ends(study)
            source = open_source(study, study.about(), trial)
            code = _work(study, slot, source)
            study.log_event("worker ends", slot=slot, code=code)
        except Exception as problem:
            if (disk_fault := passing_fault(problem)) is None:
                raise
            cause, remedy = explain(disk_fault, str(disk_fault.filename or study.path))
            print(f"specvit: {cause}; {remedy}.", file=sys.stderr, flush=True)
            with contextlib.suppress(OSError):
                study.log_event("worker ends", slot=slot, code=os.EX_TEMPFAIL, cause=cause)
            return os.EX_TEMPFAIL
        return code


def note_missing_ends(study: StudyFolder) -> None:
    """Log the ends of trials whose worker died between writing an end and logging it."""
    for number in study.running_trials():
        with study.claim(number) as mine:  # a worker that still has the trial logs the end itself
            begun, trial = study.running_trials().get(number), study.trial(number)
            if mine and begun and trial and (end := trial.end):
                slot, job = begun["slot"], begun.get("job")
                study.log_event(
                    "ends", slot=slot, trial=number, state=end["state"], seconds=end.get("seconds"), job=job
                )


def open_source(study: StudyFolder, about: dict[str, Any], trial: int | None = None) -> TrialSource:
    """Return where this study's trials come from; `trial` restricts a grid to one."""
    if about["kind"] == "grid":
        return TrialQueue(study, trial)
    from specvit.study.optuna_trials import OptunaTrials

    return OptunaTrials(study, about)


def _work(study: StudyFolder, slot: int, source: TrialSource) -> int:
    while not stop_reason(study, study.about()):
        with source.claimed() as trial:
            if trial is not None:
                fault = _gpu_fault(trial)
                code = _leave_gpu(study, slot, fault) if fault else _run_trial(study, slot, source, trial)
                if code:
                    return code
                _free_memory()
                continue
        if not source.skipped_trials():
            break
        time.sleep(BUSY_SECONDS)
    return 0


def _gpu_fault(trial: Trial) -> str:
    """Return why the GPU of this process cannot be used; "" where it can, or the trial needs none."""
    if not given_by() or trial.config["train"]["device"] == "cpu":
        return ""
    from specvit.training.device import resolve_device

    try:
        resolve_device("cuda")
    except DeviceError as problem:
        return str(problem)
    return ""


def _leave_gpu(study: StudyFolder, slot: int, fault: str) -> int:
    """Leave all trials to workers with a working GPU; in this process each would fail within a second."""
    print(f"specvit: {fault}", file=sys.stderr, flush=True)
    study.log_event("GPU fails", slot=slot, cause=fault, job=job_here())
    return BROKEN_GPU


def _free_memory() -> None:
    """Release a trial's GPU memory: a compiled model is a reference cycle, and torch caches freed memory."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial ended: state, facts for its record, and the run's result if any. Not settled: it stays open."""

    state: str
    facts: dict[str, Any] = field(default_factory=dict)
    settled: bool = True
    result: Result | None = None


def _run_trial(study: StudyFolder, slot: int, source: TrialSource, trial: Trial) -> int:
    """Run one trial and report its end; return the exit code if no other is to follow, else 0."""
    study.clear_cancel(trial.number)  # a request that came too late for an earlier attempt
    study.write_trial(replace(trial, end=None))
    study.log_event("begins", slot=slot, trial=trial.number, run=trial.name, job=job_here())
    started = time.monotonic()
    try:
        outcome = _compute(study, source, trial)
        signal = (outcome.result.signal if outcome.result else None) or 0
    except Interrupted as stop:  # before the run had a folder
        outcome, signal = TrialOutcome("preempted", settled=False), stop.signal_number
    if study.clear_cancel(trial.number) and signal:  # the signal was for this run, not for the worker
        signal = 0
        if trial.run.state() not in DONE:  # it may have completed in the meantime
            _cancel(trial.run)
            outcome = TrialOutcome("cancelled", {"cause": CANCELLED})
    elif signal == SIGUSR2 and (timeout := _out_of_time(trial.run)):
        outcome = timeout
    seconds = round(time.monotonic() - started, 3)
    _record(study, slot, source, _with_run_folder(trial, outcome.result), outcome, seconds)
    if outcome.state == "lost" and not outcome.settled:  # no end is recorded, as if the process had died
        return _leave_gpu(
            study, slot, outcome.facts.get("cause", "this GPU does not work")
        )  # none where the disk is full
    study.log_event("ends", slot=slot, trial=trial.number, state=outcome.state, seconds=seconds, job=job_here())
    return 128 + signal if signal else 0


def _with_run_folder(trial: Trial, result: Result | None) -> Trial:
    """Return the trial with the folder of its run, another one where the data changed since the study was planned."""
    if result is None or result.folder.absolute() == trial.run.path.absolute():
        return trial
    folder = result.folder.absolute()
    return replace(trial, run_id=folder.name[-8:], folder=str(folder), name=folder.name)


def _record(
    study: StudyFolder, slot: int, source: TrialSource, trial: Trial, outcome: TrialOutcome, seconds: float
) -> None:
    """Write a settled trial's end, before and after it is reported, so that a kill in between loses nothing."""
    if not outcome.settled:
        study.write_trial(replace(trial, end=None))
        return
    end = {"state": outcome.state, "time": now(), "seconds": seconds, "slot": slot, **outcome.facts}
    study.write_trial(replace(trial, end=end))
    study.write_trial(replace(trial, end=end | source.tell(trial, outcome.state)))
    study.clear_retry(trial.number)


def _compute(study: StudyFolder, source: TrialSource, trial: Trial) -> TrialOutcome:
    """Run a trial."""
    if trial.run.state() == "pruned" and source.has_pruned(trial):
        return TrialOutcome(
            "pruned", {"cause": trial.run.status().get("cause", "")}
        )  # its worker died before it could tell
    try:
        if deaths_without_progress(trial.run) >= DEATHS:
            cause = f"its process died {DEATHS} times without a word: killed from outside, or the memory was short"
            if of_gpu := trial.run.status().get("cause"):
                cause = f"{DEATHS} times: {of_gpu}"
            return TrialOutcome("lost", {"cause": cause})
        config = build_config(trial.config)
        tags = {**config.tracking.tags, STUDY_TAG: study.about()["key"]}
        config = replace(config, tracking=replace(config.tracking, tags=tags))
        result = run(
            config, source.pruner(trial), syncs_mlflow=False, stop_asked=lambda: study.should_stop(trial.number)
        )
    except DeviceError as problem:
        return TrialOutcome("lost", {"cause": str(problem)}, settled=False)
    except Exception as problem:
        if passing_fault(problem):
            raise
        return _refusal(trial, problem)
    if result.fault:
        raise result.fault
    status = RunFolder(result.folder, trial.run_id).status() if result.state not in DONE else {}
    facts = {name: status[name] for name in ("cause", "remedy") if status.get(name)}
    return TrialOutcome(result.state, facts, result.state in SETTLED, result)


def _refusal(trial: Trial, problem: Exception) -> TrialOutcome:
    """Return the outcome of a trial that did not become a run, or whose run another process has just taken."""
    if not isinstance(problem, SpecvitError):  # a bug, ours or a library's: it costs this trial
        traceback.print_exception(problem)
        trace = "".join(traceback.format_exception(problem))
        return TrialOutcome(REFUSED, {"cause": f"{type(problem).__name__}: {problem}", "traceback": trace})
    print(f"specvit: {problem}", file=sys.stderr, flush=True)
    if isinstance(problem, FolderError) and (state := trial.run.state()) in ALIVE:
        time.sleep(BUSY_SECONDS)
        return TrialOutcome(state, settled=False)
    return TrialOutcome(REFUSED, {"cause": str(problem), "remedy": problem.remedy})


def _cancel(run: RunFolder) -> None:
    if not run.state():
        return
    with contextlib.suppress(FolderError), run.claimed():
        run.set_status("cancelled", cause=CANCELLED)


def _out_of_time(run: RunFolder) -> TrialOutcome | None:
    """Return the end of a run whose jobs reached their time limit repeatedly without progress."""
    if stops_without_progress(run) < STOPS:
        return None
    cause = f"{STOPS} jobs in a row were stopped before it got any further"
    remedy = "raise hydra.launcher.time, then sweep.retry=true"
    with contextlib.suppress(FolderError), run.claimed():
        run.set_status("timeout", cause=cause, remedy=remedy)
    return TrialOutcome("timeout", {"cause": cause, "remedy": remedy})
