"""A worker: claim, run, tell, until nothing is open. Any number of them share a study; each may die at any moment.

Its imports are paid once: from the second trial on a run costs what it computes, and a second at most.
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
from specvit.config.schema import TrainConfig
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
from specvit.utils.child_processes import start_ticks
from specvit.utils.errors import DeviceError, FolderError, Interrupted, SpecvitError, explain, passing_fault
from specvit.utils.files import locked

LOOK_SECONDS = 1.0
"""Somebody who only looks whether a slot is taken holds its lock for a moment."""
BUSY_SECONDS = 2.0
"""Between two looks at trials that somebody else makes."""
STOPS = 5
"""So many jobs may come to their limit over one run, without a step, before it is left alone."""
DEATHS = 3
"""So many processes, or their GPUs, may die over one run, without a step, before it is left alone."""


def work(study: StudyFolder, slot: int, *, trial: int | None = None, patience: float = LOOK_SECONDS) -> int:
    """Make trials until nothing is left to do; return the exit code, 128 + n after signal n, or `BROKEN_GPU`.

    A disk that is full, or a file server that fails, is no trial's fault: trials wait, and this worker ends with
    `os.EX_TEMPFAIL`.

    `trial`: only this one. `patience`: seconds for an older worker to leave the slot; one on a node that SLURM has
    given up may still be ending.
    """
    with locked(study.file("slots") / f"{slot}.lock", seconds=patience) as mine:
        if not mine:
            return 0  # a worker of an earlier driver still has this slot
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
    """Note the ends of trials whose worker died between writing an end and noting it."""
    for number in study.running_trials():
        with study.claim(number) as mine:  # a worker that is still at it notes the end itself
            begun, trial = study.running_trials().get(number), study.trial(number)
            if mine and begun and trial and (end := trial.end):
                slot, job = begun["slot"], begun.get("job")
                study.log_event(
                    "ends", slot=slot, trial=number, state=end["state"], seconds=end.get("seconds"), job=job
                )


def open_source(study: StudyFolder, about: dict[str, Any], trial: int | None = None) -> TrialSource:
    """Return where this study's trials come from; of a grid's, it may be one alone."""
    if about["kind"] == "grid":
        return TrialQueue(study, trial)
    from specvit.study.optuna_trials import OptunaTrials

    return OptunaTrials(study, about)


def _work(study: StudyFolder, slot: int, source: TrialSource) -> int:
    while not stop_reason(study, study.about()):
        with source.claimed() as trial:
            if trial is not None:
                fault = _gpu_fault(trial)
                code = _leave_gpu(study, slot, fault) if fault else _make(study, slot, source, trial)
                if code:
                    return code
                _free_memory()
                continue
        if not source.skipped_trials():
            break
        time.sleep(BUSY_SECONDS)
    return 0


def _gpu_fault(trial: Trial) -> str:
    """Return why the GPU that this process was given cannot be used; "" where it can, or the trial needs none."""
    if not given_by() or trial.config["train"]["device"] == "cpu":
        return ""
    from specvit.training.device import resolve_device

    try:
        resolve_device(TrainConfig(device="cuda"))
    except DeviceError as problem:
        return str(problem)
    return ""


def _leave_gpu(study: StudyFolder, slot: int, fault: str) -> int:
    """Leave all trials to workers with a GPU that works; of this process each would fail in a second."""
    print(f"specvit: {fault}", file=sys.stderr, flush=True)
    study.log_event("GPU fails", slot=slot, cause=fault, job=job_here())
    return BROKEN_GPU


def _free_memory() -> None:
    """Give a trial's GPU memory back to other workers: a compiled model is a cycle, and torch keeps what it had."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial went: its state, what is to be recorded with it, whether that is its end, the run's result if any."""

    state: str
    facts: dict[str, Any] = field(default_factory=dict)
    settled: bool = True
    result: Result | None = None


def _make(study: StudyFolder, slot: int, source: TrialSource, trial: Trial) -> int:
    """Make one trial and tell its end; return the exit code if no other is to follow, else 0."""
    study.clear_cancel(trial.number)  # one that came too late for an earlier try
    study.write_trial(replace(trial, end=None))
    study.log_event("begins", slot=slot, trial=trial.number, run=trial.name, job=job_here())
    started = time.monotonic()
    try:
        made = _run(study, source, trial)
        signal = (made.result.signal if made.result else None) or 0
    except Interrupted as stop:  # before the run had a folder
        made, signal = TrialOutcome("preempted", settled=False), stop.signal_number
    if study.clear_cancel(trial.number) and signal:  # meant for this run, not for the worker
        signal = 0
        if trial.run.state() not in DONE:  # it may have come to its end in that second
            _cancel(trial.run)
            made = TrialOutcome("cancelled", {"cause": CANCELLED})
    elif signal == SIGUSR2 and (late := _out_of_time(trial.run)):
        made = late
    seconds = round(time.monotonic() - started, 3)
    _record(study, slot, source, _where_it_lies(trial, made.result), made, seconds)
    if made.state == "lost" and not made.settled:  # no end, as if the process had died
        return _leave_gpu(study, slot, made.facts.get("cause", "this GPU does not work"))  # a full disk takes no cause
    study.log_event("ends", slot=slot, trial=trial.number, state=made.state, seconds=seconds, job=job_here())
    return 128 + signal if signal else 0


def _where_it_lies(trial: Trial, result: Result | None) -> Trial:
    """Return the trial with its run's folder: another one where the data changed since the study was planned."""
    if result is None or result.folder.absolute() == trial.run.path.absolute():
        return trial
    folder = result.folder.absolute()
    return replace(trial, run_id=folder.name[-8:], folder=str(folder), name=folder.name)


def _record(
    study: StudyFolder, slot: int, source: TrialSource, trial: Trial, made: TrialOutcome, seconds: float
) -> None:
    """Write a trial's end, if it has come to one, before and after it is told: a kill in between is made up for."""
    if not made.settled:
        study.write_trial(replace(trial, end=None))
        return
    end = {"state": made.state, "time": now(), "seconds": seconds, "slot": slot, **made.facts}
    study.write_trial(replace(trial, end=end))
    study.write_trial(replace(trial, end=end | source.tell(trial, made.state)))
    study.clear_retry(trial.number)


def _run(study: StudyFolder, source: TrialSource, trial: Trial) -> TrialOutcome:
    """Make the run of a trial."""
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
        result = run(config, source.pruner(trial), syncs_mlflow=False, asked=lambda: study.should_stop(trial.number))
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
    """Return how a trial went that did not become a run, or that somebody else took in this moment."""
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
    """Return the end of a run whose jobs come to their limit again and again before it gets any further."""
    if stops_without_progress(run) < STOPS:
        return None
    cause = f"{STOPS} jobs in a row were stopped before it got any further"
    remedy = "raise hydra.launcher.time, then sweep.retry=true"
    with contextlib.suppress(FolderError), run.claimed():
        run.set_status("timeout", cause=cause, remedy=remedy)
    return TrialOutcome("timeout", {"cause": cause, "remedy": remedy})
