"""Decisions at the end of an epoch: is it the best so far, lower the rate, stop early, call it a plateau."""

import math

from specvit.config.schema import EarlyStoppingConfig, OptConfig
from specvit.engine.state import TrainState

PLATEAU_R2 = 0.02
"""A run whose validation R2 ends at or below this has not learnt anything; it ends as `plateau`."""


def note_validation(
    state: TrainState, scores: dict[str, float], *, epoch: int, rule: EarlyStoppingConfig, opt: OptConfig
) -> bool:
    """Take an epoch's validation scores (`val_...`) into the state and return whether they are the best so far."""
    value = scores[rule.monitor]
    state.last_val_r2 = scores.get("val_r2")
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


def final_state(state: TrainState, *, early: bool) -> str:
    """Return how a finished run ended; `plateau` outranks `early_stopped`."""
    if state.last_val_r2 is not None and not state.last_val_r2 > PLATEAU_R2:
        return "plateau"
    return "early_stopped" if early else "completed"
