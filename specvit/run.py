"""`run(config) -> Result`: one run from configuration to test score. The composition root.

Asking again for the same run skips it if it is finished, goes on if it was stopped, and tries again if it failed.
torch is imported only when there is something to compute.
"""

import hashlib
import os
import subprocess
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from specvit.config.build import to_plain
from specvit.config.folder import DONE, FAILED, RunFolder, find_folder
from specvit.config.identity import default_name, identity_of, run_id
from specvit.config.rules import check_patch
from specvit.config.schema import Config
from specvit.data.splits import Splits, manifest, needs_files, open_splits
from specvit.engine.preempt import SignalStop
from specvit.engine.remedy import remedy_for
from specvit.errors import ConfigError, Interrupted, SpecvitError
from specvit.files import read_json
from specvit.tracking.console import Screen


@dataclass(frozen=True)
class Result:
    """How a run ended: its state, its folder, and the test scores if it came so far."""

    state: str
    folder: Path
    summary: dict[str, Any]
    exit_code: int


def run(config: Config) -> Result:
    """Make or finish the run of `config`; raises `SpecvitError` before a folder exists if it cannot be made."""
    screen = Screen(config.tracking.progress)
    with SignalStop().installed() as stop:
        splits = open_splits(config, screen.making) if needs_files(config.data) else None
        identity = identity_of(config, manifest(config.data, splits), _extra(config))
        name = config.tracking.name or default_name(config)
        folder = find_folder(Path(config.tracking.folder), run_id(identity), name)
        before = folder.state()
        if before in DONE and not config.train.rerun:
            return _already(folder, before, screen)
        _check_device(config)
        splits = splits or open_splits(config, screen.making)
        check_patch(config.model, splits.train.num_pixels)
        with folder.claimed():
            folder.create(identity, yaml.safe_dump(to_plain(config), sort_keys=False))
            screen.log = folder.file("log.txt")
            if before in DONE:
                folder.forget()
            _banner(config, folder, before, screen)
            return _guarded(config, splits, folder, screen, stop)


def _check_device(config: Config) -> None:
    """Refuse a device that is not there, before spectra are made and a folder exists."""
    from specvit import pipeline

    pipeline.resolve_device(config.train)


def _guarded(config: Config, splits: Splits, folder: RunFolder, screen: Screen, stop: SignalStop) -> Result:
    """Train and test; whatever happens ends in exactly one state with its cause on file."""
    folder.set_status("running", pid=os.getpid(), host=os.uname().nodename, log=str(folder.file("log.txt")))
    folder.record_attempt(event="start", commit=_commit(), job=os.environ.get("SLURM_JOB_ID"))
    try:
        state = _train_and_test(config, splits, folder, screen, stop)
        cause, code, trace = "", 0, ""
    except Interrupted as signal:
        state, cause, code, trace = "preempted", f"stopped by {signal.signal_name}", 128 + signal.signal_number, ""
    except Exception as problem:
        state, cause, code, trace = _failure_of(problem), _sentence(problem), 1, traceback.format_exc()
    remedy = remedy_for(state, config)
    folder.set_status(state, cause=cause, remedy=remedy, traceback=trace)
    folder.record_attempt(event="end", state=state, cause=cause)
    if trace:
        with open(folder.file("log.txt"), "a") as log:
            log.write(trace)
    summary = read_json(folder.file("summary.json"), {})
    _farewell(state, cause, remedy, folder, summary, screen)
    return Result(state, folder.path, summary, code)


def _train_and_test(config: Config, splits: Splits, folder: RunFolder, screen: Screen, stop: SignalStop) -> str:
    from specvit import pipeline, score
    from specvit.tracking.figures import draw_curves
    from specvit.tracking.files import read_metrics

    state = pipeline.train(config, splits, folder, screen, stop)
    stop.raise_if_requested()
    device = pipeline.resolve_device(config.train)
    trained = pipeline.load_trained(folder.file("best.ckpt"), config, device)
    scored = score.score(trained, splits.test, "test", device)
    main_score = "r2" if config.model.task_type == "reg" else "accuracy"
    draw_curves(folder.file("figures") / "curves.png", rows := read_metrics(folder.path), score=main_score)
    monitor = config.train.early_stopping.monitor
    best = (max if config.train.early_stopping.mode == "max" else min)(
        (row for row in rows if row[monitor] is not None), key=lambda row: row[monitor]
    )
    facts = {"run_id": folder.run_id, "state": state, "data": config.data.kind, "epochs": rows[-1]["epoch"]}
    facts |= {"best_epoch": best["epoch"], f"best_{monitor}": best[monitor], "test_rows": len(splits.test)}
    facts |= {"noise_level": config.noise.noise_level, "seed": config.train.seed}
    title = f"{main_score.replace('r2', 'R²')} = {scored.scores[main_score]:.3f}, {len(splits.test):,} test spectra"
    score.write_scored(scored, folder.path, split="test", summary=facts, title=title)
    return state


def _already(folder: RunFolder, state: str, screen: Screen) -> Result:
    summary = read_json(folder.file("summary.json"), {})
    screen.say(f"finished already ({state}): {_score_line(summary)}  {folder.path}")
    screen.say("nothing was done; train.rerun=true does it again, another train.seed is another run")
    return Result(state, folder.path, summary, 0)


def _banner(config: Config, folder: RunFolder, before: str, screen: Screen) -> None:
    screen.say(f"run {folder.path}")
    if config.data.kind == "builtin":
        screen.say("data: built-in spectra, made by specvit from a physical model (data=builtin), not observations")
    if before in FAILED:
        screen.say(f"this run ended as {before} before: {folder.status().get('cause', 'cause unknown')}; trying again")
    elif before:
        screen.say(f"this run was {before} before; going on")


def _farewell(state: str, cause: str, remedy: str, folder: RunFolder, summary: dict[str, Any], screen: Screen) -> None:
    if state in DONE:
        screen.say(f"{state}: {_score_line(summary)}  {folder.path}")
    elif state == "preempted":
        screen.say(f"{state}: {cause}; saved, the same command goes on  {folder.path}")
    else:
        screen.say(f"{state}: {cause}  {folder.path} (traceback in log.txt)")
    if remedy:
        screen.say(f"remedy: {remedy}")


def _score_line(summary: dict[str, Any]) -> str:
    if "test_r2" not in summary:
        return f"test accuracy {summary.get('test_accuracy', float('nan')):.4f}"
    unit = f" {summary['unit']}" if summary.get("unit") else ""
    r2 = "undefined" if summary["test_r2"] is None else f"{summary['test_r2']:.4f}"
    return f"test R² {r2}, MAE {summary['test_mae']:.4f}{unit} ({summary['label']}, {summary['test_rows']:,} spectra)"


def _failure_of(problem: Exception) -> str:
    import torch

    if type(problem).__name__ == "Diverged":
        return "diverged"
    text = str(problem).lower()
    out_of_memory = isinstance(problem, MemoryError | torch.OutOfMemoryError)
    return "oom" if out_of_memory or "can't allocate memory" in text or "out of memory" in text else "crashed"


def _sentence(problem: Exception) -> str:
    if isinstance(problem, SpecvitError) or _failure_of(problem) == "diverged":
        return str(problem)
    return f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else 'no message'}"


def _extra(config: Config) -> dict[str, Any] | None:
    """Return the digest of the weights to start from, which are part of what a run is."""
    if config.train.init_from is None:
        return None
    path = Path(config.train.init_from).expanduser()
    path = path / "best.ckpt" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(
            f"nothing lies at {path}", where="train.init_from", remedy="name a run folder or a .ckpt file"
        )
    return {"init_from": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}


def _commit() -> str | None:
    """Return the commit of specvit's own source tree, if it is one."""
    source = Path(__file__).resolve().parent.parent
    try:
        found = subprocess.run(
            ["git", "-C", str(source), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
