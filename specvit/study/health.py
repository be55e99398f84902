"""Is a run healthy? A verdict from its own record, minutes after it began rather than at its end."""

import math
import time
from datetime import datetime
from typing import Any

from specvit.run_folder.folder import ALIVE, RunFolder
from specvit.run_folder.verdict import LEARNT
from specvit.run_folder.verdict import verdict as how_ended
from specvit.study.results import Outcome

PATIENT_EPOCHS = 5
"""Nothing learnt after so many epochs is worth a look; networks may take longer to get off the ground."""
SLOWER, LATE = 3.0, 3.0
"""An epoch that took so many times the usual one, or is overdue by as many, is worth a look."""


def verdict(run: RunFolder, outcome: Outcome, now: float | None = None) -> str:
    """Return `healthy`, or what is worth a look; "" while there is nothing to judge by. Only a run at work is slow."""
    rows = outcome.rows
    if not rows:
        return ""
    losses = [row.get("train_loss") for row in rows]
    if losses[-1] is None or not math.isfinite(losses[-1]):
        return "the loss is not finite"
    if skipped := rows[-1].get("skipped_steps"):
        steps = rows[-1]["step"] - (rows[-2]["step"] if len(rows) > 1 else 0)
        if skipped > 0.2 * steps:
            return f"{skipped} of {steps} steps overflowed fp16"
    words = _learning(rows, [loss for loss in losses if loss is not None])
    return words or _pace(run, outcome, time.time() if now is None else now) or "healthy"


def _learning(rows: list[dict[str, Any]], losses: list[float]) -> str:
    if len(losses) >= PATIENT_EPOCHS and not min(losses[1:]) < losses[0]:
        return f"the training loss has not fallen in {len(losses)} epochs"
    scores = [row["val_r2"] for row in rows if row.get("val_r2") is not None]
    if len(scores) >= PATIENT_EPOCHS and how_ended("completed", rows).state not in LEARNT:
        return f"val R² is {scores[-1]:.3f} after step {rows[-1]['step']}: nothing learnt yet"
    return ""


def _pace(run: RunFolder, outcome: Outcome, now: float) -> str:
    times = [(row.get("train_seconds") or 0.0) + (row.get("val_seconds") or 0.0) for row in outcome.timing]
    if len(times) < 3 or run.state() not in ALIVE:
        return ""
    usual = sorted(times)[len(times) // 2]
    if times[-1] > SLOWER * usual:
        return f"the last epoch took {times[-1]:.1f} s, the usual one {usual:.1f} s"
    since = now - _moment(run.status().get("updated"), now)
    return f"no epoch for {since:.0f} s, the usual one takes {usual:.1f} s" if since > LATE * usual + 10 else ""


def _moment(text: Any, default: float) -> float:
    try:
        return datetime.strptime(str(text), "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except ValueError:
        return default
