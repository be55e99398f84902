"""The training loop: step, log, evaluate, decide, save. Legend: N rows of a split, K outputs.

Everything random is keyed by (seed, step), so that the loop can stop after any step and resume at the next.
"""

import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from specvit.config.schema import OptConfig
from specvit.training.checkpoint import CheckpointManager
from specvit.training.protocols import EvalView, NoPruner, Pruner, Stop, Tracker, TrainView
from specvit.training.state import TrainState
from specvit.training.step import CHECK_STEPS, Learner
from specvit.utils.errors import Diverged, Pruned


@dataclass(frozen=True)
class Callbacks:
    """What the loop calls besides the learner and the data."""

    tracker: Tracker
    stop: Stop
    checkpoints: CheckpointManager
    pruner: Pruner = field(default_factory=NoPruner)


def fit(
    learner: Learner, state: TrainState, train: TrainView, val: EvalView, opt: OptConfig, callbacks: Callbacks
) -> str:
    """Train from `state` to the end and return "completed" or "early_stopped".

    Returns "interrupted" when `callbacks.stop` requests it, with everything saved. Raises `Diverged`, `Pruned`, also
    with everything saved, and `OSError` where a checkpoint could not be written.
    """
    writer = callbacks.checkpoints.writer
    try:
        ended = _train_epochs(learner, state, train, val, opt, callbacks)
    except BaseException:
        with contextlib.suppress(Exception):  # the error that ended the training is the one to report
            writer.finish()
        raise
    writer.finish()
    return ended


def _train_epochs(
    learner: Learner, state: TrainState, train: TrainView, val: EvalView, opt: OptConfig, callbacks: Callbacks
) -> str:
    epoch_start = time.perf_counter()
    while state.ended is None:
        learner.step(train.batch(state.step), state)
        state.step += 1
        epoch, step_in_epoch = divmod(state.step, train.steps_per_epoch)
        callbacks.tracker.progress(state.step, lambda: mean_loss(state))
        callbacks.checkpoints.writer.check()
        if (state.step % CHECK_STEPS == 0 or step_in_epoch == 0) and (reason := learner.divergence_reason(state)):
            raise Diverged(f"{reason}, up to step {state.step}")
        saved = False
        if step_in_epoch == 0:
            saved = _finish_epoch(epoch, epoch_start, learner, state, val, opt, callbacks)
            epoch_start = time.perf_counter()
        if callbacks.stop.requested() and state.ended is None:
            if not saved:  # a second save would make previous.ckpt equal to last.ckpt
                callbacks.checkpoints.save_last(learner, state)
            return "interrupted"
    return state.ended


def _finish_epoch(
    epoch: int,
    epoch_start: float,
    learner: Learner,
    state: TrainState,
    val: EvalView,
    opt: OptConfig,
    callbacks: Callbacks,
) -> bool:
    """Evaluate, log, decide, and save; return whether `last.ckpt` was written. Raises `Diverged` and `Pruned`."""
    settings, rule = learner.train, learner.train.early_stopping
    row = _train_metrics(learner, state, epoch)
    val_start = time.perf_counter()
    row |= {f"val_{name}": value for name, value in evaluate(learner, val).items()}
    is_best = state.update_best(row, epoch=epoch, rule=rule, opt=opt)
    callbacks.tracker.metrics(row)
    times = {"train_seconds": val_start - epoch_start, "val_seconds": time.perf_counter() - val_start}
    callbacks.tracker.timing({"step": state.step, "epoch": epoch, **times})
    prune_reason = callbacks.pruner.prunes(row)
    state.clear_epoch_sums()
    if state.should_stop_early(rule):
        state.ended = "early_stopped"
    elif epoch == settings.epochs:
        state.ended = "completed"
    if state.ended and state.best_epoch == 0:
        raise Diverged(f"{rule.monitor} was not finite in any epoch")
    if is_best:
        callbacks.checkpoints.save_best(learner, state)
    if not (epoch % settings.save_every == 0 or state.ended or prune_reason):
        return False
    if not callbacks.checkpoints.save_last(learner, state):
        raise Diverged(f"the weights are not finite after step {state.step}")
    if prune_reason and state.ended is None:
        raise Pruned(prune_reason)
    return True


def mean_loss(state: TrainState) -> float:
    """Return the mean training loss of the epoch so far; one device sync."""
    return (state.sums["loss"] / state.sums["steps"]).item()


@torch.no_grad()
def predict(module: nn.Module, view: EvalView) -> tuple[np.ndarray, np.ndarray]:
    """Return outputs (N, K) and targets of a whole split as NumPy arrays; always in float32, in fixed batches.

    Both are allocated after the first batch: a list of small arrays, allocated between large temporary ones, would
    fragment the memory and keep all of it.
    """
    module.eval()
    outputs, targets = torch.empty(0), torch.empty(0)
    start = 0
    for batch in view.batches():
        output, target = module(batch.flux_BP).float(), batch.target
        if not start:
            outputs, targets = (part.new_empty((len(view), *part.shape[1:])) for part in (output, target))
        stop = start + len(output)
        outputs[start:stop], targets[start:stop] = output, target
        start = stop
    return outputs.cpu().numpy(), targets.cpu().numpy()


def evaluate(learner: Learner, view: EvalView) -> dict[str, float]:
    """Return the scores of a split."""
    return learner.task.scores(*predict(learner.module, view))


def _train_metrics(learner: Learner, state: TrainState, epoch: int) -> dict[str, Any]:
    """Return the training metrics of an epoch, from its sums on the device."""
    sums = {name: value.cpu() for name, value in state.sums.items()}
    norms = (sums["norms"] / sums["steps"].clamp(min=1.0)).tolist()
    names = ("grad_norm", *(f"grad_norm_{part}" for part in learner.optimizer.parts))
    return {
        "step": state.step,
        "epoch": epoch,
        "lr": learner.schedule.lr(state.step - 1, state.plateau_factor),
        "train_loss": (sums["loss"] / sums["steps"]).item(),
        **{f"train_{name}": value for name, value in learner.task.running_scores(sums["task"]).items()},
        **dict(zip(names, norms, strict=True)),
        "skipped_steps": int(sums["skipped"].item()),
        **({"first_step_loss": sums["first"].item() or None} if epoch == 1 and "first" in sums else {}),
    }
