"""Whether a run is healthy, why it ended, and how two runs differ: remedy, curves, gradient norms."""

import math
import time
from collections.abc import Iterator
from typing import Any

from specvit.cluster import queue
from specvit.cluster.queue import ended_jobs
from specvit.config.build import flatten
from specvit.run_folder.folder import ALIVE, DONE, RunFolder, moment, shown_state
from specvit.run_folder.verdict import LEARNT, verdict
from specvit.study.find import Found
from specvit.study.results import Outcome, outcome_of
from specvit.study.store import Trial
from specvit.utils.errors import FolderError
from specvit.utils.files import read_yaml
from specvit.utils.text import counted

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60
CURVES = ("train_loss", "val_loss", "val_r2", "val_accuracy", "lr", "grad_norm")
PATIENT_ROWS = 5
"""A run that has learnt nothing after so many validations is reported; networks may need longer to start learning."""
SLOWER, LATE = 3.0, 3.0
"""Validations whose steps took, or that are overdue by, this many times the median are reported."""


def health_of(run: RunFolder, outcome: Outcome, now: float | None = None) -> str:
    """Return `healthy`, or what looks wrong; "" before the first validation. Only a live run can be called slow."""
    rows = outcome.rows
    if not rows:
        return ""
    losses = [row.get("train_loss") for row in rows]
    if losses[-1] is None or not math.isfinite(losses[-1]):
        return "the loss is not finite"
    before = rows[-2] if rows[1:] else {}
    skipped, steps = (rows[-1].get(name, 0) - before.get(name, 0) for name in ("skipped_steps", "step"))
    if skipped > 0.2 * steps:
        return f"{skipped} of {steps} steps overflowed fp16"
    words = _learning(rows, [loss for loss in losses if loss is not None])
    return words or _pace(run, outcome, time.time() if now is None else now) or "healthy"


def _learning(rows: list[dict[str, Any]], losses: list[float]) -> str:
    if len(losses) >= PATIENT_ROWS and not min(losses[1:]) < losses[0]:
        return f"the training loss has not fallen in {counted(len(losses), 'validation')}"
    scores = [row["val_r2"] for row in rows if row.get("val_r2") is not None]
    if len(scores) >= PATIENT_ROWS and verdict("completed", rows).state not in LEARNT:
        return f"val R² is {scores[-1]:.3f} after step {rows[-1]['step']}: nothing learnt yet"
    return ""


def _pace(run: RunFolder, outcome: Outcome, now: float) -> str:
    times = [(row.get("train_seconds") or 0.0) + (row.get("val_seconds") or 0.0) for row in outcome.timing]
    if len(times) < 3 or run.state() not in ALIVE:
        return ""
    usual = sorted(times)[len(times) // 2]
    if times[-1] > SLOWER * usual:
        return f"the steps to the last validation took {times[-1]:.1f} s, usually {usual:.1f} s"
    since = now - (moment(run.status().get("updated")) or now)
    return (
        f"no news for {since:.0f} s, a validation usually comes every {usual:.1f} s"
        if since > LATE * usual + 10
        else ""
    )


def diagnosis_lines(run: RunFolder, trial: Trial | None = None) -> Iterator[str]:
    """Yield what the record of a run says about its course, with what the worker of its `trial` recorded."""
    status, outcome, state = run.status(), outcome_of(run), run.state()
    end = (trial.end if trial and state not in ALIVE + DONE else None) or {}
    yield f"{run.path.name}: {end.get('state') or run.shown_state() or 'never started'}"
    if cause := end.get("cause") or status.get("cause"):
        yield f"cause: {cause}"
    if remedy := end.get("remedy") or status.get("remedy"):
        yield f"remedy: {remedy}"
    yield from _job(run, state)
    if state and state not in (*DONE, "diverged") and (health := health_of(run, outcome)):
        yield f"health: {health}"
    yield from _curves(outcome)
    yield from _gradients(outcome)
    yield from _attempts(run, is_alive=state in ALIVE)
    trace = str(end.get("traceback") or status.get("traceback") or "").strip().splitlines()
    if trace:
        yield from ["traceback (the last lines; all of it is in log.txt):", *(f"  {line}" for line in trace[-6:])]


def _job(run: RunFolder, state: str) -> Iterator[str]:
    """Yield what SLURM says of the latest job of a run that is not done."""
    job = next((attempt["job"] for attempt in reversed(run.attempts()) if attempt.get("job")), None)
    if job is None or state in DONE:
        return
    found = ended_jobs([job]).get(job) if queue.has_slurm() else None
    yield f"SLURM: {found or f'job {job}'}"


def _curves(outcome: Outcome) -> Iterator[str]:
    rows = outcome.rows
    if rows:
        yield f"{counted(rows[-1]['epoch'], 'epoch')}, {counted(rows[-1]['step'], 'step')}"
    for name in CURVES:
        values = [row[name] for row in rows if isinstance(row.get(name), int | float) and math.isfinite(row[name])]
        if values:
            yield f"  {name:<12} {sparkline(values)}  {values[0]:.4g} → {values[-1]:.4g}"


def _gradients(outcome: Outcome) -> Iterator[str]:
    """Yield the mean gradient norm of each part before the last validation, and whether any part hardly gets one."""
    last = outcome.rows[-1] if outcome.rows else {}
    norms = {n.removeprefix("grad_norm_"): v for n, v in last.items() if n.startswith("grad_norm_") and v is not None}
    if norms:
        yield "gradient norm by part, at the end: " + ", ".join(f"{name} {value:.3g}" for name, value in norms.items())
        faint = [name for name, value in norms.items() if value < 1e-3 * max(norms.values())]
        if faint:
            yield f"  {', '.join(faint)} hardly gets a gradient"


def _attempts(run: RunFolder, *, is_alive: bool) -> Iterator[str]:
    starts = [attempt for attempt in run.attempts() if attempt.get("event") == "start"]
    ends = [shown_state(attempt) for attempt in run.attempts() if attempt.get("event") == "end"]
    if len(starts) > 1:
        silent = len(starts) - len(ends) - is_alive
        said = [*ends, *([f"{silent} without a word"] if silent > 0 else [])]
        said += ["one running"] if is_alive else []
        yield f"{len(starts)} attempts: {', '.join(said)}"


def sparkline(values: list[float]) -> str:
    """Return a curve as one line of text."""
    if len(values) > WIDTH:
        values = [values[round(n * (len(values) - 1) / (WIDTH - 1))] for n in range(WIDTH)]
    low, high = min(values), max(values)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1)) if high > low else 0] for value in values)


def diff_lines(left: Found, right: Found) -> Iterator[str]:
    """Yield the keys in which two runs differ, then their scores side by side; a run that never began has its plan."""
    runs = (left[0], right[0])
    shown = [("", runs[0].path.name, runs[1].path.name)]
    keys = [flatten(_config(run) or (trial.config if trial else {})) for run, trial in (left, right)]
    keys = [{k: v for k, v in one.items() if not k.startswith("tracking.")} for one in keys]
    differing = [key for key in {**keys[0], **keys[1]} if keys[0].get(key) != keys[1].get(key)]
    shown += [(key, str(keys[0].get(key)), str(keys[1].get(key))) for key in differing]
    shown += [] if differing else [("the same settings", "", "")]
    if all(run.file("run.json").exists() for run in runs) and _data(runs[0]) != _data(runs[1]):
        shown.append(("the data differ", "", ""))
    scores = [_scores(run) for run in runs]
    for name in dict.fromkeys([*scores[0], *scores[1]]):
        a, b = scores[0].get(name), scores[1].get(name)
        gap = f"  {b - a:+.4g}" if isinstance(a, int | float) and isinstance(b, int | float) else ""
        shown.append((name, _short(a), _short(b) + gap))
    widths = [max(len(row[column]) for row in shown) for column in range(2)]
    for key, *values in shown:
        yield f"{key:<{widths[0]}}  {values[0]:<{widths[1]}}  {values[1]}".rstrip()


def _config(run: RunFolder) -> dict[str, Any]:
    try:
        return read_yaml(run.file("config.yaml"))
    except (OSError, FolderError):
        return {}


def _data(run: RunFolder) -> Any:
    return run.about().get("identity", {}).get("data")


def _scores(run: RunFolder) -> dict[str, Any]:
    outcome = outcome_of(run)
    names = ("test_r2", "test_mae", "test_rmse", "test_bias", "test_accuracy", "best_epoch", "epochs")
    found: dict[str, Any] = {"state": run.shown_state() or "never started"}
    found |= {name: outcome.summary[name] for name in names if name in outcome.summary}
    found |= {name: value for name, value in outcome.best_row.items() if name.startswith("val_")}
    return found | {"train_seconds": outcome.train_seconds}


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
