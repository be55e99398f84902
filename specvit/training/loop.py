"""The training loop: step, evaluate, decide, log, save. Legend: N rows of a split, K outputs.

Everything random is keyed by (seed, step), so that the loop can stop after any step and resume at the next.
"""

import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from specvit.config.schema import OptConfig
from specvit.training.checkpoint import CheckpointManager
from specvit.training.protocols import EvalView, NoPruner, Pruner, Stop, Tracker, TrainView
from specvit.training.schedule import Rhythm, build_rhythm
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
        ended = _train_steps(learner, state, train, val, opt, callbacks)
    except BaseException:
        with contextlib.suppress(Exception):  # the error that ended the training is the one to report
            writer.finish()
        raise
    writer.finish()
    return ended


def _train_steps(
    learner: Learner, state: TrainState, train: TrainView, val: EvalView, opt: OptConfig, callbacks: Callbacks
) -> str:
    rhythm, started = build_rhythm(learner.train, train.steps_per_epoch), time.perf_counter()
    while state.ended is None:
        learner.step(train.batch(state.step), state)
        state.step += 1
        callbacks.tracker.progress(state.step, lambda: mean_loss(state))
        callbacks.checkpoints.writer.check()
        validates, prune_reason = rhythm.evaluate.due(state.step), ""
        if (state.step % CHECK_STEPS == 0 or validates) and (reason := learner.divergence_reason(state)):
            raise Diverged(f"{reason}, up to step {state.step}")
        if validates:
            prune_reason = _validate(rhythm, started, learner, state, val, opt, callbacks)
            started = time.perf_counter()
        elif rhythm.log and rhythm.log.due(state.step):
            callbacks.tracker.log(_running_metrics(learner, state, rhythm.epoch(state.step)))
        saves = bool(rhythm.save.due(state.step) or state.ended or prune_reason)
        if saves and not callbacks.checkpoints.save_last(learner, state):
            raise Diverged(f"the weights are not finite after step {state.step}")
        if prune_reason and state.ended is None:
            raise Pruned(prune_reason)
        if callbacks.stop.requested() and state.ended is None:
            if not saves:  # a second save would make previous.ckpt equal to last.ckpt
                callbacks.checkpoints.save_last(learner, state)
            return "interrupted"
    return state.ended


def _validate(
    rhythm: Rhythm,
    started: float,
    learner: Learner,
    state: TrainState,
    val: EvalView,
    opt: OptConfig,
    callbacks: Callbacks,
) -> str:
    """Evaluate, record, decide, save the best; return why the run is to be pruned, or "". Raises `Diverged`.

    `started` is when the steps since the last validation began.
    """
    epoch = rhythm.epoch(state.step)
    rule, opt = rhythm.in_validations(learner.train.early_stopping, opt)
    row = _train_metrics(learner, state, epoch, is_first=state.step == rhythm.evaluate.first)
    val_start = time.perf_counter()
    row |= {f"val_{name}": value for name, value in evaluate(learner, val).items()}
    is_best = state.update_best(row, epoch=epoch, rule=rule, opt=opt)
    callbacks.tracker.metrics(row)
    times = {"train_seconds": val_start - started, "val_seconds": time.perf_counter() - val_start}
    callbacks.tracker.timing({"step": state.step, "epoch": epoch, **times})
    prune_reason = callbacks.pruner.prunes(row)
    state.clear_sums()
    if state.should_stop_early(rule):
        state.ended = "early_stopped"
    elif state.step == rhythm.evaluate.total_steps:
        state.ended = "completed"
    if state.ended and state.best_epoch == 0:
        raise Diverged(f"{rule.monitor} was not finite in any epoch")
    if is_best:
        callbacks.checkpoints.save_best(learner, state)
    return prune_reason


def mean_loss(state: TrainState) -> float:
    """Return the mean training loss since the last validation; one device sync."""
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


def _train_metrics(learner: Learner, state: TrainState, epoch: int | float, *, is_first: bool) -> dict[str, Any]:
    """Return the training metrics since the last validation, from their sums on the device."""
    sums = {name: value.cpu() for name, value in state.sums.items()}
    return {
        "step": state.step,
        "epoch": epoch,
        "lr": learner.schedule.lr(state.step - 1, state.plateau_factor),
        "train_loss": (sums["loss"] / sums["steps"]).item(),
        **{f"train_{name}": value for name, value in learner.task.running_scores(sums["task"]).items()},
        **_gradient_norms(learner, sums),
        "skipped_steps": int(sums["skipped"].item()),
        **({"first_step_loss": sums["first"].item() or None} if is_first and "first" in sums else {}),
    }


def _running_metrics(learner: Learner, state: TrainState, epoch: int | float) -> dict[str, Any]:
    """Return learning rate, and loss and gradient norms since the last line of the log or validation."""
    sums = {name: value.cpu() for name, value in state.sums_since_log().items()}
    return {
        "step": state.step,
        "epoch": epoch,
        "lr": learner.schedule.lr(state.step - 1, state.plateau_factor),
        "running_loss": (sums["loss"] / sums["steps"]).item(),
        **{f"running_{name}": value for name, value in _gradient_norms(learner, sums).items()},
    }


def _gradient_norms(learner: Learner, sums: dict[str, Tensor]) -> dict[str, float]:
    norms = (sums["norms"] / sums["steps"].clamp(min=1.0)).tolist()
    return dict(zip(("grad_norm", *(f"grad_norm_{part}" for part in learner.optimizer.parts)), norms, strict=True))
