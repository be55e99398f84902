"""How a run ended: its state, the cause in one sentence, and what to do, from whatever was raised."""

import contextlib
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from specvit.config.schema import Config
from specvit.run.suggested_fixes import remedy_for
from specvit.run_folder.disk_reserve import free_disk_reserve
from specvit.run_folder.folder import RunFolder, job_here
from specvit.utils.errors import (
    DeviceError,
    Diverged,
    Interrupted,
    Pruned,
    SpecvitError,
    explain,
    is_out_of_memory,
    os_fault,
    passing_fault,
)


@dataclass(frozen=True)
class RunOutcome:
    """A run's end: `trace` is given where the cause is a bug, of ours or of a library; `code` is the exit code."""

    state: str
    cause: str = ""
    remedy: str = ""
    trace: str = ""
    code: int = 0
    fault: OSError | None = None
    """The fault of the disk or of its server, where that is the cause: it passes, and the run is tried again."""


def outcome_of_error(problem: BaseException, config: Config, folder: RunFolder) -> RunOutcome:
    """Return the end that an exception means for the run of `config` in `folder`."""
    if isinstance(problem, Interrupted):
        return RunOutcome("preempted", _why_stopped(problem), code=128 + problem.signal_number)
    if isinstance(problem, KeyboardInterrupt):  # where a library has put its own handler in place of ours
        return RunOutcome("preempted", "stopped by Ctrl-C", code=130)
    if isinstance(problem, DeviceError):
        return RunOutcome("lost", str(problem), code=1)
    if isinstance(problem, SpecvitError | Diverged):
        state = "diverged" if isinstance(problem, Diverged) else "crashed"
        return RunOutcome(state, str(problem), remedy_for(state, config), code=1)
    if isinstance(problem, Pruned):
        return RunOutcome("pruned", str(problem))
    fault = os_fault(problem)
    if fault is not None:
        return RunOutcome(
            "crashed", *explain(fault, _place_of(fault, folder.path)), code=1, fault=passing_fault(problem)
        )
    trace = "".join(traceback.format_exception(problem))
    if gpu_fault := _gpu_fault(config):
        cause = f"this GPU does not work: {gpu_fault}, after {outcome_sentence(problem)}"
        return RunOutcome("lost", cause, "try again; if it fails there again, use another GPU", trace, code=1)
    state = "oom" if is_out_of_memory(problem) else "crashed"
    return RunOutcome(state, outcome_sentence(problem), remedy_for(state, config), trace, code=1)


def _gpu_fault(config: Config) -> str:
    """Return what the run's GPU says where an error has ended it for this process, and "" where it still computes."""
    torch = sys.modules.get("torch")
    if torch is None or config.train.device == "cpu" or not torch.cuda.is_initialized():
        return ""
    from specvit.training.device import fault_of

    fault = fault_of(torch.device("cuda" if config.train.device == "auto" else config.train.device))
    return "" if fault and is_out_of_memory(RuntimeError(fault)) else fault


def _why_stopped(stop: Interrupted) -> str:
    job = job_here()
    if job and stop.signal_number == signal.SIGUSR2:
        return f"job {job} came to its time limit, or another job takes its place ({stop.signal_name})"
    return f"stopped by {stop.signal_name}" + (f" in job {job}" if job else "")


def record_outcome(end: RunOutcome, folder: RunFolder) -> RunOutcome:
    """Write an end into its folder, in the space kept for it, and return it; a good end that cannot be written is none.

    A bad one that cannot be written is told on the screen alone, and the run counts as `lost`.
    """
    free_disk_reserve(folder.path)
    try:
        passing = {"passing": True} if end.fault else {}
        folder.set_status(end.state, cause=end.cause, remedy=end.remedy, traceback=end.trace, **passing)
        if end.state != "lost":  # a study counts it among the deaths over this run
            folder.record_attempt(event="end", state=end.state, cause=end.cause)
    except OSError as problem:
        if end.code:
            return end
        fault = os_fault(problem)
        cause, remedy = explain(fault, str(folder.path)) if fault else (outcome_sentence(problem), "")
        return RunOutcome(
            "crashed", f"its end could not be written: {cause}", remedy, code=1, fault=passing_fault(problem)
        )
    if end.trace:
        with contextlib.suppress(OSError), open(folder.file("log.txt"), "a") as log:
            log.write(end.trace)
    return end


def outcome_sentence(problem: BaseException) -> str:
    """Return an exception as one sentence, without its type where it was written for the user."""
    if isinstance(problem, SpecvitError | Diverged):
        return str(problem)
    return f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else 'no message'}"


def _place_of(fault: OSError, folder: Path) -> str:
    """Return the file that a fault names if it lies outside the run's folder, else the folder."""
    named = Path(str(fault.filename)) if fault.filename else folder
    return str(folder if named.is_relative_to(folder) else named)
