"""Decisions at the end of an epoch: is it the best so far, lower the rate, stop early."""

import math

from specvit.config.schema import EarlyStoppingConfig, OptConfig
from specvit.training.state import TrainState


def note_validation(
    state: TrainState, scores: dict[str, float], *, epoch: int, rule: EarlyStoppingConfig, opt: OptConfig
) -> bool:
    """Take an epoch's validation scores (`val_...`) into the state and return whether they are the best so far."""
    value = scores[rule.monitor]
    better = math.isfinite(value) and (
        state.best_value is None or (value < state.best_value if rule.mode == "min" else value > state.best_value)
    )
    if better:
        state.best_value, state.best_epoch, state.epochs_since_best, state.plateau_epochs = value, epoch, 0, 0
        return True
    state.epochs_since_best += 1
    state.plateau_epochs += 1
    if opt.lr_sch == "plateau" and state.plateau_epochs > opt.plateau_patience:
        state.plateau_factor *= opt.factor
        state.plateau_epochs = 0
    return False


def stops_early(state: TrainState, rule: EarlyStoppingConfig) -> bool:
    """Say whether the patience is used up, or the target reached."""
    if rule.target is not None and state.best_value is not None:
        reached = state.best_value <= rule.target if rule.mode == "min" else state.best_value >= rule.target
        if reached:
            return True
    return rule.patience is not None and state.epochs_since_best >= rule.patience
