"""The only definition of how a run ended: whether it learnt, learnt nothing, or exploded.

It is applied when a run ends, and again to runs that an older specvit recorded.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

LEARNT = ("completed", "early_stopped")
"""States of a finished run that learnt something; a finished run that did not is a `plateau`."""
LEARNT_R2 = 0.02
"""A run whose validation R² exceeds this at no validation has learnt nothing."""
EXPLODED = 2.0
"""A run that has learnt nothing has exploded if its last loss is more than so many times its first."""
EXPLODED_NATS = 1.0
"""Minus a log-likelihood, which may be negative, has exploded if it ends so much above its first value."""
EXPLODED_CAUSE = "it exploded: "
"""Start of the cause of a run that exploded: with the same settings it would explode again."""
EXPLODED_REMEDY = "try a quarter of its opt.lr"
"""For a run that an older specvit recorded as `plateau`; now the run records overrides to paste."""


@dataclass(frozen=True)
class Verdict:
    """The state of a run, and a sentence with its numbers, or ""."""

    state: str
    cause: str = ""


def verdict(state: str, rows: Sequence[Row]) -> Verdict:
    """Return how a run with these rows of `metrics.jsonl` ended; only a finished run is judged.

    The validation of the highest R² decides, which is not always the one that is tested: above `LEARNT_R2`, for
    any label, the run has learnt. Otherwise it is `diverged` if it exploded, else `plateau`. Without R² (classes, or a
    label that is the same in all validation rows) it has learnt if its training loss fell at all, and is never
    `plateau`.
    """
    if state not in (*LEARNT, "plateau") or not rows:
        return Verdict(state)
    ended = "completed" if state == "plateau" else state
    scores = [(r2, row.get("epoch")) for row in rows if (r2 := _r2(row)) is not None]
    best, epoch = max(scores, key=lambda pair: pair[0], default=(None, None))
    if best is not None and best > LEARNT_R2:
        return Verdict(ended, _collapse(best, epoch, rows[-1]))
    losses = [loss for row in rows if (loss := _finite(row.get("train_loss"))) is not None]
    fell = best is None and any(loss < losses[0] for loss in losses)
    at_best = "" if best is None else f"; val R² was {best:.4g} at best"
    if not fell and (explosion := _explosion(rows)):
        return Verdict("diverged", f"{EXPLODED_CAUSE}{explosion}{at_best}")
    if best is None:
        return Verdict(ended)
    return Verdict("plateau", f"it learnt nothing: val R² was {best:.4g} at best, not above {LEARNT_R2:g}")


def _explosion(rows: Sequence[Row]) -> str:
    """Return how far the last loss is above the first one, or "" if the run did not explode.

    The reference is the mean loss until the first validation. Since a run may explode before it, the loss of the first
    step is a second reference; it is of one batch only, so R² must confirm it by being below -1 (a squared error above
    twice that of predicting the mean). Older versions record R² only. Rows of estimators have no learning rate.
    """
    first, last = rows[0], rows[-1]
    if "train_loss" not in last:  # templates are not trained
        return ""
    before, after, r2 = _finite(first.get("train_loss")), _finite(last["train_loss"]), _r2(last)
    at_step_1 = _finite(first.get("first_step_loss"))
    factor, above = (1.0, EXPLODED_NATS) if "val_nll" in first else (EXPLODED, 0.0)
    which = f"at the end (epoch {last.get('epoch')})"
    if after is None or _finite(last.get("val_loss", 0.0)) is None:
        return f"the {'training' if after is None else 'validation'} loss {which} is not finite"
    if before is not None and after > factor * before + above:
        return f"the training loss was {before:.4g} at first and {after:.4g} {which}"
    confirmed = at_step_1 is None or after > factor * at_step_1 + above
    if "lr" in last and r2 is not None and r2 < 1 - EXPLODED and confirmed:
        return f"val R² is {r2:.4g} and the training loss {after:.4g} {which}"
    return ""


def _collapse(best: float, epoch: Any, last: Row) -> str:
    """Return a note on a run whose last epoch is as bad as one that learnt nothing, else ""."""
    r2 = _r2(last)
    if r2 is not None and r2 > LEARNT_R2:
        return ""
    ended = "not finite" if r2 is None else f"{r2:.4g}"
    course = f"val R² was {best:.4g} in epoch {epoch} and {ended} in the last ({last.get('epoch')})"
    return f"it collapsed: {course}; the weights of its best epoch are kept"


def _r2(row: Row) -> float | None:
    """Return the best validation R² over the labels, None if none is finite."""
    values = [_finite(value) for name, value in row.items() if name.startswith("val_r2")]
    return max((value for value in values if value is not None), default=None)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
