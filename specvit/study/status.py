"""The status of a study, and news as its trials end. Imports neither torch, mlflow nor optuna."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from specvit.cluster.queue import ClusterJob
from specvit.config.model_kinds import kind_of
from specvit.run_folder.folder import ALIVE, DONE
from specvit.run_folder.verdict import LEARNT
from specvit.study.diagnose import health_of
from specvit.study.job_log import jobs_in_queue, jobs_of_trials
from specvit.study.results import lower_is_better, outcome_of, value_of
from specvit.study.schema import Table
from specvit.study.search_space import FORBIDDEN
from specvit.study.store import WAITING, StudyFolder, Trial, command_of
from specvit.study.table import factors_of, setting_text
from specvit.study.trial_queue import state_counts
from specvit.utils.text import counted

HEALTH_MINUTES, HEALTH_SECONDS = 2.0, 10.0
"""Time from the start of a run to the first check of its health where the study names none, and between checks."""


class StudyMonitor:
    """Prints what has changed since the last call."""

    def __init__(self, study: StudyFolder) -> None:
        """Trials that have ended already are not news."""
        self.study = study
        self.metric, self.table = metric_of(study.about()), Table(**study.about()["table"])
        self._health_seconds = 60 * (study.about().get("health_minutes") or HEALTH_MINUTES)
        self._ended = {t.number: t.end for t in study.trials() if t.end or study.state(t) in DONE}
        self._settled: dict[int, Trial] = {}
        """Records of ended trials: while a record is unchanged, its run folder is not read again."""
        self._health: dict[int, str] = {}
        self._begun: dict[int, float] = {}

    def print_news(self) -> None:
        """Print a line for each trial that has ended, and one for each run that does not look healthy."""
        for trial in self.study.trials():
            number = trial.number
            if self._settled.get(number) is trial:
                continue
            state = self.study.state(trial)
            if not trial.end and state not in DONE:
                self._ended.pop(number, None)  # it is being retried
                if state in ALIVE:
                    self._check_health(trial)
                continue
            if trial.end and trial.end != self._ended.get(number):
                self._ended[number] = trial.end
                print(f"{self._count()} {end_line(trial, state, self.metric, self.table)}", flush=True)
            self._settled[number] = trial

    def _count(self) -> str:
        return f"[{len(self._ended)}/{max(self.study.about()['trials'], len(self._ended))}]"

    def _check_health(self, trial: Trial) -> None:
        """Print a run's health if it is not healthy, and again when it changes."""
        begun = self._begun.setdefault(trial.number, time.monotonic())
        if time.monotonic() - begun < self._health_seconds:
            return
        self._begun[trial.number] = time.monotonic() - self._health_seconds + HEALTH_SECONDS
        health = health_of(trial.run, outcome_of(trial.run))
        kind = re.sub(r"[-\d.]+", "", health)  # only the figures differ
        if health and kind != self._health.get(trial.number):
            if health != "healthy" or self._health.get(trial.number):
                print(f"{trial.name}: {health}", flush=True)
            self._health[trial.number] = kind


def metric_of(about: dict[str, Any]) -> str:
    """Return the metric by which a study compares its runs."""
    return next(iter(about.get("metrics") or {}), about["table"]["metric"])


def end_line(trial: Trial, state: str, metric: str, table: Table) -> str:
    """Return one line about how a trial ended."""
    outcome = outcome_of(trial.run)
    value = value_of(outcome, metric, table)
    detail = f"{metric} {value:.4g}" if value is not None else (trial.end or {}).get("cause", "")[:80]
    return f"{state:<13} {_time((trial.end or {}).get('seconds'))}  {trial.name}  {detail}"


def status_lines(study: StudyFolder) -> Iterator[str]:
    """Yield the status of a study: counts, then one line for each trial that runs, failed or learnt nothing."""
    about = study.about()
    slots = study.busy_slots()
    workers = f"{counted(len(slots), 'worker')} running" if slots else "no worker running"
    trials, queued = study.trials(), jobs_in_queue(study, about)
    jobs = jobs_of_trials(study, about, queued)
    states = {trial.number: _state(study, trial, jobs) for trial in trials}
    counts = state_counts(study, states)
    yield f"study {study.name}: {counts}; {workers}{', cancelled' if study.is_cancelled else ''}"
    if queued is None:
        yield "  SLURM does not answer: what waits there is not shown"
    yield from _queue_lines(queued or {}, {job.id for n, job in jobs.items() if states[n] == "requeued"})
    for trial in trials:
        state, job = states[trial.number], jobs.get(trial.number)
        if state == "running":
            yield f"  {state:<13} {trial.name}  {_progress(trial)}{f', {job}' if job and job.alive else ''}"
        elif state == WAITING and job and not job.alive and trial.run.state():
            yield f"  {trial.run.state():<13} {trial.name}  {job}"
        elif state in ALIVE:
            continue
        elif state not in (*LEARNT, WAITING, "pruned"):
            cause = (trial.end or {}).get("cause") or trial.run.status().get("cause", "cause unknown")
            yield f"  {state:<13} {trial.name}  {cause}"
    for path in study.lost_records(trials):
        yield f"  {'record lost':<13} {path.parent.name}/{path.name}; `{command_of(study)}` writes it again"
    yield from (f"  {line}" for line in refused_lines(study))
    if best := best_trial([trial for trial in trials if states[trial.number] in LEARNT], about):
        setting = setting_text(factors_of(best.trial))
        yield f"best: {best.metric} {best.value:.4g}  {best.trial.name}  {setting}".rstrip()


def refused_lines(study: StudyFolder) -> Iterator[str]:
    """Yield the number of refused points of a search, with the most frequent cause."""
    causes = Counter(event["cause"] for event in study.events("refused") if FORBIDDEN not in event["cause"])
    if causes:
        (cause, _), *others = causes.most_common()
        more = f" ({counted(len(others), 'other cause')})" if others else ""
        yield f"{counted(causes.total(), 'point')} refused: {cause}{more}"


def _state(study: StudyFolder, trial: Trial, jobs: dict[int, ClusterJob]) -> str:
    """Return a trial's state; one whose job is in the queue is `queued`, or `requeued` if it has run before."""
    state, job = study.state(trial), jobs.get(trial.number)
    if state == WAITING and job and job.alive:
        return "requeued" if trial.run.attempts() else "queued"
    return state


def _queue_lines(queued: dict[str, ClusterJob], requeued: set[str]) -> Iterator[str]:
    """Yield one line for each reason for which jobs wait; `requeued` are the ids of those that have run before."""
    waiting: dict[tuple[str, str], list[str]] = {}
    for job in queued.values():
        if job.waits:
            kind = "requeued" if job.id in requeued else "queued"
            waiting.setdefault((kind, job.reason or "no reason given"), []).append(job.id)
    for (kind, reason), ids in waiting.items():
        named = ", ".join(ids[:5]) + (f", ... ({len(ids)} jobs)" if len(ids) > 5 else "")
        yield f"  {kind:<13} {reason}: job {named}"


@dataclass(frozen=True)
class BestTrial:
    """The best trial of a study by its metric."""

    metric: str
    value: float
    trial: Trial


def best_trial(finished: list[Trial], about: dict[str, Any]) -> BestTrial | None:
    """Return the best of the finished trials by the study's metric; None if none has a value."""
    metric, table = metric_of(about), Table(**about["table"])
    values = ((value_of(outcome_of(trial.run), metric, table), trial) for trial in finished)
    known = [BestTrial(metric, value, trial) for value, trial in values if value is not None]
    best = min if lower_is_better(metric, about.get("metrics")) else max
    return best(known, key=lambda one: one.value, default=None)


def _progress(trial: Trial) -> str:
    outcome, config, status = outcome_of(trial.run), trial.config, trial.run.status()
    if not outcome.rows:
        return "starting"
    row = outcome.rows[-1]
    score = "val_r2" if "val_r2" in row else "val_accuracy"
    epoch = f"epoch {status.get('epoch', row['epoch'])}/{config['train']['epochs']}"
    place = epoch if kind_of(config["model"]).is_network else f"step {row['step']}"
    progress = f"{place}, {score} {row.get(score) or float('nan'):.3f}"
    until = f", until {end[11:16]}" if (end := status.get("forecast")) else ""
    return f"{progress}{until}, {health_of(trial.run, outcome)}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "   -"
    whole = round(seconds)
    return (
        f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02d}"
    )
