"""Trains one run of an estimator (`specvit.estimators`): the same rows, noise and records as for a network.

Nothing is saved before the fit is complete: an interrupted run starts again, with the same result.
"""

import math

import torch

from specvit.data.batches import eval_data
from specvit.data.noise import fit_flux_norm
from specvit.data.splits import file_mtimes
from specvit.estimators import build_estimator
from specvit.estimators.estimator import FitContext, Fitted
from specvit.run.context import RunContext
from specvit.run.predictor import build_task, described
from specvit.tracking.metric_files import CompositeTracker, FileTracker, StatusTracker
from specvit.training import checkpoint
from specvit.training.device import hardware, resolve_device, set_up_torch
from specvit.training.task import Regression
from specvit.utils.errors import Diverged
from specvit.utils.provenance import made_by


def train(run: RunContext) -> str:
    """Fit the model of one run; return "completed" or "early_stopped", raise `DataError`, `Diverged` or `Pruned`."""
    config, splits, folder, console = run.config, run.splits, run.folder, run.console
    estimator = build_estimator(config)
    device = torch.device("cpu") if estimator.on_host else resolve_device(config.train.device)
    set_up_torch(config.train, None, console.say, device)
    folder.cut_back(0)
    facts = {"device": str(device), "precision": "32", "threads": torch.get_num_threads()}
    folder.note_progress(step=0, **facts)
    origin = {**made_by(), **hardware(device)}
    folder.record_attempt(event="ready", step=0, **facts, made_by=origin, files=file_mtimes(config.data, splits))
    console.say(f"device {device}; {len(splits.train):,} training spectra, each with one noise")
    flux_norm = fit_flux_norm(splits.train, config.data.flux_norm, config.noise, fills=splits.masked)
    flux_norm = flux_norm.to(device)
    task = build_task(config, splits.coder)
    assert isinstance(task, Regression)
    status = StatusTracker(folder, start_step=0, total_steps=estimator.num_steps)
    context = FitContext(
        config=config,
        splits=splits,
        task=task,
        flux_norm=flux_norm,
        val=eval_data(splits.val, "val", config, splits.coder, flux_norm, device),
        device=device,
        tracker=CompositeTracker(FileTracker(folder.path), status),
        console=console,
        pruner=run.pruner,
    )
    fitted = estimator.fit(context)
    if not math.isfinite(context.row(fitted.best_step)["val_loss"]):
        raise Diverged("the validation loss is not finite")
    _save(run, context, fitted, origin)
    return "early_stopped" if fitted.stopped_early else "completed"


def _save(run: RunContext, context: FitContext, fitted: Fitted, origin: dict[str, str]) -> None:
    """Write `best.ckpt` atomically."""
    content = {
        **described(run, context.flux_norm),
        "made_by": origin,
        "epoch": fitted.best_step,
        "step": fitted.best_step,
        "model": fitted.parts,
    }
    checkpoint.save(run.folder.file("best.ckpt"), content)
