"""`run(config) -> Result`: one run from configuration to test score. The composition root.

Asking again for the same run skips it if it is finished, goes on if it was stopped, and tries again if it failed.
torch is imported only when there is something to compute, or weights to start from.
"""

import os
import subprocess
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from specvit.config.build import to_plain
from specvit.config.folder import DONE, FAILED, RunFolder, find_folder, hostname
from specvit.config.identity import default_name, identity_of, run_id
from specvit.config.rules import check_patch
from specvit.config.schema import Config, effective_level
from specvit.data.splits import Splits, manifest, needs_files, open_splits
from specvit.engine.preempt import SignalStop
from specvit.engine.remedy import remedy_for
from specvit.errors import CheckpointError, ConfigError, Diverged, Interrupted, SpecvitError
from specvit.files import read_json
from specvit.tracking.console import Screen


@dataclass(frozen=True)
class Result:
    """How a run ended: its state, its folder, and the test scores if it came so far."""

    state: str
    folder: Path
    summary: dict[str, Any]
    exit_code: int
    signal: int | None = None
    """The signal that came while it worked, if any; a grid goes no further then."""


def run(config: Config) -> Result:
    """Make or finish the run of `config`; raises `SpecvitError` before a folder exists if it cannot be made."""
    screen = Screen(config.tracking.progress)
    with SignalStop().installed() as stop:
        weights, digest = _initial_weights(config)
        splits = open_splits(config, screen.making) if needs_files(config.data) else None
        identity = identity_of(config, manifest(config.data, splits), digest)
        name = config.tracking.name or default_name(config)
        folder = find_folder(Path(config.tracking.folder), run_id(identity), name)
        if _is_finished(folder, folder.state()) and not config.train.rerun:
            return _already(folder, screen)
        _check_device(config)
        splits = splits or open_splits(config, screen.making)
        lines = _check_model(config, splits, weights)
        with folder.claimed():
            before = folder.state(claimed=True)
            if _is_finished(folder, before) and not config.train.rerun:  # another process was faster
                return _already(folder, screen)
            anew = config.train.rerun and before in DONE + FAILED  # a rerun that was stopped goes on
            folder.create(identity, yaml.safe_dump(to_plain(config), sort_keys=False))
            screen.log = folder.file("log.txt")
            _banner(config, folder, before, lines, screen, anew=anew)
            if anew:
                folder.forget()
            return _guarded(config, splits, weights, folder, screen, stop)


def _is_finished(folder: RunFolder, state: str) -> bool:
    return state in DONE and folder.file("summary.json").exists()


def _initial_weights(config: Config) -> tuple[Any, dict[str, Any] | None]:
    """Return the weights to start from, read once, and their digest, which is part of what a run is."""
    if config.train.init_from is None:
        return None, None
    from specvit import pipeline

    try:
        weights, digest = pipeline.read_weights(config.train.init_from)
    except CheckpointError as problem:
        remedy = "name a run folder with a best.ckpt, or a .ckpt file"
        raise ConfigError(f"{problem.where} {problem.what}", where="train.init_from", remedy=remedy) from problem
    return weights, {"init_from": digest}


def _check_device(config: Config) -> None:
    """Refuse a device that is not there, before built-in spectra are made and a folder exists."""
    from specvit import pipeline

    pipeline.resolve_device(config.train)


def _check_model(config: Config, splits: Splits, weights: Any) -> list[str]:
    """Refuse a model that does not fit the data or the weights to start from; return its printed summary."""
    from specvit import pipeline

    check_patch(config.model, splits.train.num_pixels)
    if weights:
        pipeline.check_weights(config, splits, weights)
    return pipeline.describe_model(config, splits)


def _guarded(
    config: Config, splits: Splits, weights: Any, folder: RunFolder, screen: Screen, stop: SignalStop
) -> Result:
    """Train and test; whatever happens ends in exactly one state with its cause on file."""
    cause, code, trace = "", 0, ""
    with stop.deferred(wholly=True):  # a second signal must not lose what the first one was about
        try:
            folder.set_status("running", pid=os.getpid(), host=hostname(), log=str(folder.file("log.txt")))
            folder.record_attempt(event="start", commit=_commit(), job=os.environ.get("SLURM_JOB_ID"))
            with stop.immediate():
                state = _train_and_test(config, splits, weights, folder, screen, stop)
        except Interrupted as signal:
            state, cause, code = "preempted", f"stopped by {signal.signal_name}", 128 + signal.signal_number
        except Exception as problem:
            state, cause, code = _failure_of(problem), _sentence(problem), 1
            trace = "" if isinstance(problem, SpecvitError | Diverged) else traceback.format_exc()
        remedy = remedy_for(state, config)
        folder.set_status(state, cause=cause, remedy=remedy, traceback=trace)
        folder.record_attempt(event="end", state=state, cause=cause)
        if trace:
            with open(folder.file("log.txt"), "a") as log:
                log.write(trace)
        summary = read_json(folder.file("summary.json"), {})
        _farewell(state, cause + (" (traceback in log.txt)" if trace else ""), remedy, folder, summary, screen)
    return Result(state, folder.path, summary, code, stop.received)


def _train_and_test(
    config: Config, splits: Splits, weights: Any, folder: RunFolder, screen: Screen, stop: SignalStop
) -> str:
    from specvit import pipeline, score
    from specvit.tracking.files import read_metrics

    state = pipeline.train(config, splits, weights, folder, screen, stop)
    stop.raise_if_requested()
    device = pipeline.resolve_device(config.train)
    trained = pipeline.load_trained(folder.file("best.ckpt"), config, device)
    scored = score.score(trained, splits.test, "test", device)
    rows = read_metrics(folder.path)
    monitor = config.train.early_stopping.monitor
    best = next(row[monitor] for row in rows if row["epoch"] == trained.epoch)
    facts = {"run_id": folder.run_id, "state": state, "data": config.data.kind, "epochs": rows[-1]["epoch"]}
    facts |= {"best_epoch": trained.epoch, f"best_{monitor}": best, "test_rows": len(splits.test)}
    facts |= {"noise_level": effective_level(config.noise), "seed": config.train.seed}
    score.write_scored(scored, folder.path, split="test", summary=facts)
    _draw(scored, rows, folder, screen)
    return state


def _draw(scored: Any, rows: list[dict[str, Any]], folder: RunFolder, screen: Screen) -> None:
    """Draw a run's figures; a failure there costs the figures, not the run."""
    from specvit import score
    from specvit.tracking.figures import draw_curves

    try:
        score.draw_scored(scored, folder.file("figures") / "predictions.png")
        draw_curves(folder.file("figures") / "curves.png", rows, score="r2" if "r2" in scored.scores else "accuracy")
    except Exception as problem:
        screen.say(f"note: the figures could not be drawn ({_sentence(problem)})")


def _already(folder: RunFolder, screen: Screen) -> Result:
    state, summary = folder.state(), read_json(folder.file("summary.json"), {})
    screen.say(f"finished already ({state}): {_score_line(summary)}  {folder.path}")
    screen.say("nothing was done; train.rerun=true does it again, another train.seed is another run")
    return Result(state, folder.path, summary, 0)


def _banner(config: Config, folder: RunFolder, before: str, lines: list[str], screen: Screen, *, anew: bool) -> None:
    screen.say(f"run {folder.path}")
    if config.data.kind == "builtin":
        screen.say("data: built-in spectra, made by specvit from a physical model (data=builtin), not observations")
    if anew:
        screen.say(f"this run was {before} before; starting from nothing (train.rerun=true)")
    elif before in FAILED:
        screen.say(f"this run ended as {before} before: {folder.status().get('cause', 'cause unknown')}; trying again")
    elif before:
        screen.say(f"this run was {before} before; going on")
    for line in lines:
        screen.say(line)


def _farewell(state: str, cause: str, remedy: str, folder: RunFolder, summary: dict[str, Any], screen: Screen) -> None:
    if state in DONE:
        screen.say(f"{state}: {_score_line(summary)}  {folder.path}")
    elif state == "preempted":
        saved = folder.file("last.ckpt").exists()
        goes_on = "saved, the same command goes on" if saved else "nothing to save yet, the same command starts again"
        screen.say(f"{state}: {cause}; {goes_on}  {folder.path}")
    else:
        screen.say(f"{state}: {cause}  {folder.path}")
    if remedy:
        screen.say(f"remedy: {remedy}")


def _score_line(summary: dict[str, Any]) -> str:
    if "test_accuracy" in summary:
        return f"test accuracy {summary['test_accuracy']:.4f} ({summary['test_rows']:,} spectra)"
    unit = f" {summary['unit']}" if summary.get("unit") else ""
    r2 = "undefined" if summary["test_r2"] is None else f"{summary['test_r2']:.4f}"
    return f"test R² {r2}, MAE {summary['test_mae']:.4f}{unit} ({summary['label']}, {summary['test_rows']:,} spectra)"


def _failure_of(problem: Exception) -> str:
    import torch

    if isinstance(problem, Diverged):
        return "diverged"
    text = str(problem).lower()
    out_of_memory = isinstance(problem, MemoryError | torch.OutOfMemoryError)
    said = ("can't allocate memory", "out of memory", "alloc_failed")
    return "oom" if out_of_memory or any(words in text for words in said) else "crashed"


def _sentence(problem: Exception) -> str:
    if isinstance(problem, SpecvitError | Diverged):
        return str(problem)
    return f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else 'no message'}"


def _commit() -> str | None:
    """Return the commit of specvit's own source tree, if it runs from one."""
    source = Path(__file__).resolve().parent.parent
    if not (source / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(source), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
