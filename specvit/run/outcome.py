"""How a run ended: its state, the cause in one sentence, and what to try, from the exception that ended it."""

import contextlib
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from specvit.config.schema import Config, NetworkConfig, OptConfig, ViTConfig
from specvit.run_folder.folder import RunFolder, free_disk_reserve, job_here
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
    """A run's end; `trace` is set if the cause is a bug, ours or a library's; `code` is the exit code."""

    state: str
    cause: str = ""
    remedy: str = ""
    trace: str = ""
    code: int = 0
    fault: OSError | None = None
    """The temporary fault of a disk or file server that is the cause; a study tries the run again."""


def outcome_of_error(problem: BaseException, config: Config, folder: RunFolder) -> RunOutcome:
    """Return the outcome of the run of `config` in `folder` that this exception ended."""
    if isinstance(problem, Interrupted):
        return RunOutcome("preempted", _stop_cause(problem), code=128 + problem.signal_number)
    if isinstance(problem, KeyboardInterrupt):  # if a library has replaced our handler by its own
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
    """Return the error of the run's GPU if this process can no longer use it, "" if it still computes."""
    torch = sys.modules.get("torch")
    if torch is None or config.train.device == "cpu" or not torch.cuda.is_initialized():
        return ""
    from specvit.training.device import fault_of

    fault = fault_of(torch.device("cuda" if config.train.device == "auto" else config.train.device))
    return "" if fault and is_out_of_memory(RuntimeError(fault)) else fault


def _stop_cause(stop: Interrupted) -> str:
    job = job_here()
    if job and stop.signal_number == signal.SIGUSR2:
        return f"job {job} came to its time limit, or another job takes its place ({stop.signal_name})"
    return f"stopped by {stop.signal_name}" + (f" in job {job}" if job else "")


def record_outcome(end: RunOutcome, folder: RunFolder) -> RunOutcome:
    """Write an outcome into its folder, using the disk reserve, and return it; a success not written is `crashed`.

    A failure that cannot be written is only printed, and the run counts as `lost`.
    """
    free_disk_reserve(folder.path)
    try:
        passing = {"passing": True} if end.fault else {}
        folder.set_status(end.state, cause=end.cause, remedy=end.remedy, traceback=end.trace, **passing)
        if end.state != "lost":  # a study counts starts without an end
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
    """Return an exception as one sentence, without its type if its text is for users."""
    if isinstance(problem, SpecvitError | Diverged):
        return str(problem)
    return f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else 'no message'}"


def _place_of(fault: OSError, folder: Path) -> str:
    """Return the file of a fault if it is outside the run's folder, else the folder."""
    named = Path(str(fault.filename)) if fault.filename else folder
    return str(folder if named.is_relative_to(folder) else named)


ESTIMATOR_REMEDIES = {
    "diverged": "look at the spectra with `specvit data inspect FILE`; trees may want a smaller model.min_leaf_rows",
    "oom": "use a machine with more memory, or fewer rows (data.num_samples)",
    "plateau": "more rows (data.num_samples) or less noise (noise.noise_level) would help",
}
"""Remedies for estimators."""


def remedy_for(state: str, config: Config) -> str:
    """Return the remedy of a failed state as overrides to paste, most likely help first; "" if there is none."""
    if not isinstance(config.model, NetworkConfig):
        return ESTIMATOR_REMEDIES.get(state, "")
    train, opt = config.train, config.opt
    if state == "diverged":
        fixes = _rate_overrides(opt, opt.lr / 4)
        fixes += ["train.gradient_clip=0.5"] if train.gradient_clip is None or train.gradient_clip > 0.5 else []
        fixes += ["train.precision=32"] if train.precision != "32" else []
        fixes += ["opt.warmup_epochs=1"] if opt.warmup_epochs == 0 and train.epochs > 1 else []
        inspect = "" if config.data.makes else ", and check the data with `specvit data inspect FILE`"
        return f"try {' '.join(fixes)}{inspect}"
    if state == "oom":
        fixes = []
        if train.batch_size > 1:
            fixes += [f"train.batch_size={train.batch_size // 2} train.accumulate={train.accumulate * 2}"]
        if not train.checkpoint_blocks:
            fixes += ["train.checkpoint_blocks=true" + (" train.compile=false" if train.compile else "")]
        fixes += ["train.precision=bf16-mixed"] if train.precision == "32" else []
        fixes += ["data.resident=never"] if config.data.resident == "auto" and config.data.kind != "synth" else []
        return f"try {', then '.join(fixes)}"
    if state == "plateau":
        other = 3e-4 if opt.lr < 1e-4 else opt.lr / 3
        fixes = _rate_overrides(opt, other)
        fixes += ["opt.warmup_epochs=1"] if opt.warmup_epochs < 1 < train.epochs else []
        fixes += ["data.flux_norm=standard"] if config.data.flux_norm == "none" else []
        legacy = isinstance(config.model, ViTConfig) and config.model.init != "specvit"
        fixes += ["model.init=specvit"] if legacy else []
        return f"try {' '.join(fixes)}, or more epochs"
    return ""


def _rate_overrides(opt: OptConfig, lr: float) -> list[str]:
    """Return the overrides of the learning rate, and of its minimum if that would be above it."""
    lowers_floor = opt.lr_sch in ("cosine", "onecycle") and opt.eta_min > lr
    return [f"opt.lr={lr:.2g}"] + ([f"opt.eta_min={lr / 100:.2g}"] if lowers_floor else [])
