"""`run(config) -> Result`: one run from configuration to test score. The composition root.

The same run again is skipped if finished, resumed if interrupted, and tried again if it failed. torch is imported only
if there is something to compute, or weights to start from.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from specvit.config.build import to_plain
from specvit.config.model_kinds import check_fits
from specvit.config.schema import Config, NetworkConfig, ViTConfig, effective_level
from specvit.config.tracking_uri import resolve_uri
from specvit.data.splits import (
    Splits,
    note_of_classes,
    note_of_masked,
    note_of_missing_labels,
    note_of_observed,
    open_splits,
)
from specvit.metrics.format import summary_line
from specvit.run.context import RunContext, locate
from specvit.run.outcome import RunOutcome, outcome_of_error, record_outcome, remedy_for
from specvit.run_folder.folder import (
    CHECKPOINTS,
    DONE,
    FAILED,
    STOPPED_BY_USER,
    RunFolder,
    disk_reserve,
    hostname,
    job_here,
    shown_state,
)
from specvit.run_folder.identity import note_of_other_data
from specvit.run_folder.verdict import EXPLODED_CAUSE, Verdict, verdict
from specvit.tracking.console import Console
from specvit.tracking.mlflow_sync import SyncProcess
from specvit.training.protocols import NoPruner, Pruner
from specvit.training.signals import SignalStop
from specvit.utils.errors import Diverged
from specvit.utils.files import read_json, read_json_lines
from specvit.utils.provenance import commit

_ORIGIN = {
    "builtin": "built-in spectra, made by specvit from a physical model (data=builtin)",
    "synth": "synthetic spectra, made on the device as it trains, from a physical model (data=synth)",
}
"""Banner line of spectra that specvit makes."""


@dataclass(frozen=True)
class Result:
    """How a run ended: its state, its folder, and the test scores if it finished."""

    state: str
    folder: Path
    summary: dict[str, Any]
    exit_code: int
    signal: int | None = None
    """The signal received during the run, if any; a grid stops then."""
    mlflow_sync: SyncProcess | None = None
    """Synchronises the run to MLflow, and may not have finished."""
    fault: OSError | None = None
    """The temporary fault of a disk or file server that ended it."""
    cause: str = ""
    """Why it ended so; "" for a run that went well."""
    remedy: str = ""


def run(
    config: Config,
    pruner: Pruner | None = None,
    *,
    syncs_mlflow: bool = True,
    stop_asked: Callable[[], bool] | None = None,
) -> Result:
    """Start, resume or skip the run of `config`; raises `SpecvitError` before a folder exists if it is impossible.

    A `pruner` may end it as `pruned`; another command for the same run then resumes it. `syncs_mlflow`: whether it
    starts its own synchronisation to MLflow. `stop_asked` is called every second; True stops the run like SIGTERM.
    """
    console = Console(config.tracking.progress)
    with SignalStop(stop_asked).installed() as stop:
        located = locate(config, console.show_generation)
        folder, identity, splits, weights = located.folder, located.identity, located.splits, located.weights
        if _is_finished(folder, folder.state()) and not config.train.rerun:
            return _skipped(folder, console)
        _check_device(config)
        splits = splits or open_splits(config, console.show_generation)
        notes = _check_model(config, splits, weights)
        notes += [
            note
            for noted in (note_of_classes, note_of_missing_labels, note_of_observed, note_of_masked)
            if (note := noted(config, splits))
        ]
        if config.train.rerun or not _can_resume(folder):
            _check_rows(config, splits)
        commit()  # cached: a `git` started under the lock would hold it, too, until its exec, though this run is killed
        with folder.claimed(), disk_reserve(folder.path):
            before = folder.state(claimed=True)
            if _is_finished(folder, before) and not config.train.rerun:  # another process was faster
                return _skipped(folder, console)
            # An interrupted rerun resumes; one killed while it removed the results starts again.
            from_nothing = folder.to_forget() or (config.train.rerun and before in DONE + FAILED)
            notes += [note] if not before and (note := note_of_other_data(folder, identity)) else []
            folder.create(identity, yaml.safe_dump(to_plain(config), sort_keys=False))
            console.log = folder.file("log.txt")
            _print_banner(config, folder, before, notes, console, from_nothing=from_nothing)
            if from_nothing:
                folder.forget()
            context = RunContext(config, splits, weights, folder, console, stop, pruner or NoPruner(), syncs_mlflow)
            return _run_to_end(context)


def _is_finished(folder: RunFolder, state: str) -> bool:
    return state in DONE and bool(read_json(folder.file("summary.json")))


def _can_resume(folder: RunFolder) -> bool:
    return any(folder.file(name).exists() for name in CHECKPOINTS)


def _check_device(config: Config) -> None:
    """Refuse a missing device before built-in spectra are made and a folder exists."""
    from specvit.run import train_network

    train_network.resolve_device(config.train.device)


def _check_model(config: Config, splits: Splits, weights: Any) -> list[str]:
    """Raise `SpecvitError` if the model does not fit the data or the initial weights; return its printed summary."""
    from specvit.estimators import build_estimator
    from specvit.run import train_network

    if not isinstance(config.model, NetworkConfig):
        return [build_estimator(config).describe(splits)]
    check_fits(config.model, splits.train.num_pixels)
    train_network.check_durations(config, splits)
    notes = train_network.check_weights(config, splits, weights) if weights else []
    return [*train_network.describe_model(config, splits), *_notes_of_legacy(config.model), *notes]


def _notes_of_legacy(model: NetworkConfig) -> list[str]:
    """Return a warning where the old initialisation gives a tokenizer other weights than C1D's."""
    old = ("legacy", "legacy_tokenizer")
    if not isinstance(model, ViTConfig) or model.proj_fn in ("C1D", "stem") or model.init not in old:
        return []
    words = f"weights of std 0.02, where C1D has {(3 * model.patch_size) ** -0.5:.3f}"
    return [f"note: model.init={model.init} starts {model.proj_fn} from {words}; model.init=specvit starts all alike"]


def _check_rows(config: Config, splits: Splits) -> None:
    """Refuse validation and test spectra that are not finite, before a folder exists."""
    from specvit.run import train_network

    train_network.check_evaluation_rows(config, splits)


def _run_to_end(run: RunContext) -> Result:
    """Train and test; every exception ends in exactly one recorded state with its cause."""
    config, folder, console, stop = run.config, run.folder, run.console, run.stop
    mlflow_sync = None
    with stop.deferred(wholly=True):  # a second signal must not interrupt the handling of the first
        try:
            job_id, log = job_here(), str(folder.file("log.txt"))
            folder.set_status("running", pid=os.getpid(), host=hostname(), job=job_id, log=log)
            folder.record_attempt(event="start", commit=commit(), job=job_id)
            mlflow_sync = _start_mlflow_sync(config, folder, console) if run.syncs_mlflow else None
            with stop.immediate():
                judged = _train_and_test(run)
            end = RunOutcome(judged.state, judged.cause, remedy_for(judged.state, config))
        except BaseException as problem:  # including a library's sys.exit()
            end = outcome_of_error(problem, config, folder)
        end = record_outcome(end, folder)
        summary = {} if end.code else read_json(folder.file("summary.json"), {})
        _print_outcome(end, folder, summary, console)
    return Result(
        end.state, folder.path, summary, end.code, stop.received, mlflow_sync, end.fault, end.cause, end.remedy
    )


def _start_mlflow_sync(config: Config, folder: RunFolder, console: Console) -> SyncProcess | None:
    if not config.tracking.live:
        return None
    uri = resolve_uri(config.tracking.uri, folder.path)
    console.say(f"MLflow: {uri}, experiment {config.tracking.experiment}")
    return SyncProcess(folder, uri)


def _train_and_test(run: RunContext) -> Verdict:
    """Train, judge and test; raises `Diverged` for a run that exploded, which has no test scores."""
    from specvit.data.noise import added_noise
    from specvit.run import calibration, evaluation, train_estimator, train_network
    from specvit.run.predictor import load_predictor
    from specvit.tracking.metric_files import read_metrics

    config, splits, folder = run.config, run.splits, run.folder
    is_network = isinstance(config.model, NetworkConfig)
    ended = train_network.train(run) if is_network else train_estimator.train(run)
    run.stop.raise_if_requested()
    rows = read_metrics(folder.path)
    judged = verdict(ended, rows)
    if judged.state == "diverged":
        raise Diverged(judged.cause)
    device = train_network.resolve_device(config.train.device)
    trained = load_predictor(folder.file("best.ckpt"), config, device, folder.run_id)
    calibration.write_val_predictions(trained, splits.val, folder.path, device)
    residuals = calibration.read_residuals(trained, folder)
    scored = evaluation.score(trained, splits.test, "test", device, residuals)
    monitor = config.train.early_stopping.monitor if is_network else "val_loss"
    best = next(row[monitor] for row in rows if row["epoch"] == trained.epoch)
    facts = {"run_id": folder.run_id, "state": judged.state, "data": config.data.kind, "epochs": rows[-1]["epoch"]}
    facts |= {"best_epoch": trained.epoch, f"best_{monitor}": best, "test_rows": len(splits.test)}
    facts |= {"noise_level": effective_level(added_noise(splits.test, config.noise)), "seed": config.train.seed}
    evaluation.write_scored(scored, folder.path, split="test", summary=facts)
    _draw(scored, rows, folder, run.console, steps="epoch" if is_network else "trees")
    return judged


def _draw(scored: Any, rows: list[dict[str, Any]], folder: RunFolder, console: Console, *, steps: str) -> None:
    """Draw a run's figures; an error there loses the figure, not the run."""
    from specvit.run import evaluation
    from specvit.tracking.figures import attempt, draw_curves

    name = "r2" if "r2" in scored.scores else "accuracy"
    evaluation.draw_scored(scored, folder.file("figures"), console.say)
    if len(rows) > 1:
        place, between = folder.file("figures") / "curves.png", read_json_lines(folder.file("training.jsonl"))
        attempt(place, lambda path: draw_curves(path, rows, score=name, steps=steps, between=between), console.say)


def _skipped(folder: RunFolder, console: Console) -> Result:
    state, status, summary = folder.state(), folder.status(), read_json(folder.file("summary.json"), {})
    console.say(f"finished already ({state}): {summary_line(summary)}  {folder.path}")
    console.say("nothing was done; train.rerun=true does it again, another train.seed is another run")
    return Result(state, folder.path, summary, 0, cause=status.get("cause", ""), remedy=status.get("remedy", ""))


def _print_banner(
    config: Config, folder: RunFolder, before: str, notes: list[str], console: Console, *, from_nothing: bool
) -> None:
    console.say(f"run {folder.path}")
    if config.data.makes:
        console.say(f"data: {_ORIGIN[config.data.kind]}, not observations")
    if from_nothing:
        console.say(f"this run was {before} before; starting from nothing (train.rerun=true)")
    elif before in FAILED:
        cause, outlook = folder.status().get("cause", "cause unknown"), "trying again"
        if cause.startswith(EXPLODED_CAUSE):
            outlook = "the same settings end the same way; train.rerun=true trains it again from the beginning"
        console.say(f"this run ended as {before} before: {cause}; {outlook}")
    elif before:
        shown = shown_state({**folder.status(), "state": before})
        console.say(f"this run was {shown} before; resuming")
    for note in notes:
        console.say(note)


def _print_outcome(end: RunOutcome, folder: RunFolder, summary: dict[str, Any], console: Console) -> None:
    if end.state in DONE:
        console.say(f"{end.state}: {summary_line(summary)}  {folder.path}")
        if end.cause:
            console.say(f"note: {end.cause}")
    elif end.state == "preempted":
        saved = "saved; run the same command again to resume"
        advice = saved if _can_resume(folder) else "nothing to save yet; run the same command again to start over"
        word = "" if end.cause.startswith(STOPPED_BY_USER) else f"{end.state}: "
        console.say(f"{word}{end.cause}; {advice}  {folder.path}")
    else:
        trace = " (traceback in log.txt)" if end.trace else ""
        console.say(f"{end.state}: {end.cause}{trace}  {folder.path}")
    if end.remedy:
        console.say(f"remedy: {end.remedy}")
