"""Whether a run is healthy, why it ended, and how two runs differ: remedy, curves, gradient norms."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Attempts:
    """The processes that worked on a run: how many started, how those that said so ended, and the silent ones."""

    starts: int
    ends: list[str]
    silent: int
    running: bool


@dataclass(frozen=True)
class Diagnosis:
    """What the record of a run says about its course; `state` is None of a run that never started."""

    run: str
    run_id: str
    folder: str
    state: str | None
    cause: str | None
    remedy: str | None
    job: str | None
    """What SLURM says of the latest job of a run that is not done."""
    health: str | None
    epoch: float | None
    step: int | None
    steps: list[int]
    curves: dict[str, list[float | None]]
    """Values at `steps`."""
    gradient_norms: dict[str, float]
    """The mean of each part before the last validation."""
    attempts: Attempts
    traceback: list[str]


def diagnose(run: RunFolder, trial: Trial | None = None) -> Diagnosis:
    """Return what the record of a run says, with what the worker of its `trial` recorded."""
    status, outcome, state = run.status(), outcome_of(run), run.state()
    end = (trial.end if trial and state not in ALIVE + DONE else None) or {}
    rows, last = outcome.rows, outcome.rows[-1] if outcome.rows else {}
    curves = {name: [row.get(name) for row in rows] for name in CURVES}
    norms = {n.removeprefix("grad_norm_"): v for n, v in last.items() if n.startswith("grad_norm_") and v is not None}
    is_open = bool(state) and state not in (*DONE, "diverged")
    return Diagnosis(
        run=run.path.name,
        run_id=run.run_id,
        folder=str(run.path),
        state=end.get("state") or state or None,
        cause=end.get("cause") or status.get("cause") or None,
        remedy=end.get("remedy") or status.get("remedy") or None,
        job=_job(run, state),
        health=(health_of(run, outcome) or None) if is_open else None,
        epoch=last.get("epoch"),
        step=last.get("step"),
        steps=[row["step"] for row in rows],
        curves={name: values for name, values in curves.items() if _finite(values)},
        gradient_norms=norms,
        attempts=_attempts(run, is_alive=state in ALIVE),
        traceback=str(end.get("traceback") or status.get("traceback") or "").strip().splitlines(),
    )


def diagnosis_lines(run: RunFolder, trial: Trial | None = None) -> Iterator[str]:
    """Yield the diagnosis of a run for people."""
    found = diagnose(run, trial)
    shown = shown_state({"state": found.state or "", "cause": found.cause})
    yield f"{found.run}: {shown or 'never started'}"
    for name, text in (
        ("cause", found.cause),
        ("remedy", found.remedy),
        ("SLURM", found.job),
        ("health", found.health),
    ):
        if text:
            yield f"{name}: {text}"
    if found.epoch is not None and found.step is not None:
        yield f"{counted(found.epoch, 'epoch')}, {counted(found.step, 'step')}"
    for name, values in found.curves.items():
        known = _finite(values)
        yield f"  {name:<12} {sparkline(known)}  {known[0]:.4g} → {known[-1]:.4g}"
    if norms := found.gradient_norms:
        yield "gradient norm by part, at the end: " + ", ".join(f"{name} {value:.3g}" for name, value in norms.items())
        if faint := [name for name, value in norms.items() if value < 1e-3 * max(norms.values())]:
            yield f"  {', '.join(faint)} hardly gets a gradient"
    if (of := found.attempts).starts > 1:
        said = [*of.ends, *([f"{of.silent} without a word"] if of.silent else []), *["one running"] * of.running]
        yield f"{of.starts} attempts: {', '.join(said)}"
    if found.traceback:
        yield "traceback (the last lines; all of it is in log.txt):"
        yield from (f"  {line}" for line in found.traceback[-6:])


def _finite(values: list[Any]) -> list[float]:
    return [value for value in values if isinstance(value, int | float) and math.isfinite(value)]


def _job(run: RunFolder, state: str) -> str | None:
    """Return what SLURM says of the latest job of a run that is not done."""
    job = next((attempt["job"] for attempt in reversed(run.attempts()) if attempt.get("job")), None)
    if job is None or state in DONE:
        return None
    found = ended_jobs([job]).get(job) if queue.has_slurm() else None
    return str(found or f"job {job}")


def _attempts(run: RunFolder, *, is_alive: bool) -> Attempts:
    starts = sum(attempt.get("event") == "start" for attempt in run.attempts())
    ends = [shown_state(attempt) for attempt in run.attempts() if attempt.get("event") == "end"]
    return Attempts(starts, ends, max(0, starts - len(ends) - is_alive), is_alive)


def sparkline(values: list[float]) -> str:
    """Return a curve as one line of text."""
    if len(values) > WIDTH:
        values = [values[round(n * (len(values) - 1) / (WIDTH - 1))] for n in range(WIDTH)]
    low, high = min(values), max(values)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1)) if high > low else 0] for value in values)


@dataclass(frozen=True)
class Difference:
    """How two runs differ: settings and scores by key, each with both values, None where one lacks it."""

    runs: tuple[str, str]
    settings: dict[str, tuple[Any, Any]]
    data_differ: bool
    scores: dict[str, tuple[Any, Any]]


def difference(left: Found, right: Found) -> Difference:
    """Return how two runs differ; a run that never began has its plan."""
    runs = (left[0], right[0])
    keys = [flatten(_config(run) or (trial.config if trial else {})) for run, trial in (left, right)]
    ours, theirs = ({k: v for k, v in one.items() if not k.startswith("tracking.")} for one in keys)
    recorded = all(run.file("run.json").exists() for run in runs)
    scores = [_scores(run) for run in runs]
    return Difference(
        runs=(runs[0].path.name, runs[1].path.name),
        settings={k: (ours.get(k), theirs.get(k)) for k in {**ours, **theirs} if ours.get(k) != theirs.get(k)},
        data_differ=recorded and _data(runs[0]) != _data(runs[1]),
        scores={name: (scores[0].get(name), scores[1].get(name)) for name in {**scores[0], **scores[1]}},
    )


def diff_lines(left: Found, right: Found) -> Iterator[str]:
    """Yield the keys in which two runs differ, then their scores side by side."""
    found = difference(left, right)
    shown = [("", *found.runs)]
    shown += [(key, str(ours), str(theirs)) for key, (ours, theirs) in found.settings.items()]
    shown += [] if found.settings else [("the same settings", "", "")]
    shown += [("the data differ", "", "")] if found.data_differ else []
    for name, (a, b) in found.scores.items():
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
