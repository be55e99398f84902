"""The status of a study, and news as its trials end. Imports neither torch, mlflow nor optuna."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
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
from specvit.study.trial_queue import count_states, counts_line
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


@dataclass(frozen=True)
class Progress:
    """How far a run is: its last validation, and when it will end."""

    step: int
    epoch: float
    epochs: int | None
    """None for models that are fitted in one go."""
    score: str
    value: float | None
    forecast: str | None
    health: str


@dataclass(frozen=True)
class TrialStatus:
    """One trial. Its state is `queued` or `requeued` while its job waits; `progress` is that of a running one."""

    number: int
    run: str
    run_id: str
    folder: str
    cell: str
    factors: dict[str, Any]
    state: str
    run_state: str
    """Of its run alone, "" before it began; a run that was stopped waits to be resumed."""
    cause: str | None
    remedy: str | None
    seconds: float | None
    progress: Progress | None
    job: ClusterJob | None


@dataclass(frozen=True)
class Waiting:
    """Jobs that wait in SLURM's queue for one reason; `requeued` if they have run before, else `queued`."""

    state: str
    reason: str
    jobs: list[str]


@dataclass(frozen=True)
class BestTrial:
    """The best trial of a study by its metric."""

    metric: str
    value: float
    trial: Trial


@dataclass(frozen=True)
class StudyStatus:
    """How a study is: the number of trials in each state, its workers, jobs and trials."""

    study: str
    folder: str
    states: dict[str, int]
    workers: int
    cancelled: bool
    slurm_answers: bool
    waiting: list[Waiting]
    trials: list[TrialStatus]
    lost_records: list[str]
    refused: dict[str, int]
    """Causes for which a search's points were refused, with their numbers."""
    best: BestTrial | None

    def facts(self) -> dict[str, Any]:
        """Return it as its JSON document has it: the best trial by name."""
        best = self.best and {"metric": self.best.metric, "value": self.best.value, "run": self.best.trial.name}
        return {**asdict(replace(self, best=None)), "best": best}


def study_status(study: StudyFolder) -> StudyStatus:
    """Return how a study is now."""
    about, trials = study.about(), study.trials()
    queued = jobs_in_queue(study, about)
    jobs = jobs_of_trials(study, about, queued)
    states = {trial.number: _state(study, trial, jobs) for trial in trials}
    requeued = {job.id for number, job in jobs.items() if states[number] == "requeued"}
    return StudyStatus(
        study=study.name,
        folder=str(study.path),
        states={state: count for state, count in count_states(study, states).items() if count},
        workers=len(study.busy_slots()),
        cancelled=study.is_cancelled,
        slurm_answers=queued is not None,
        waiting=_waiting(queued or {}, requeued),
        trials=[_trial_status(trial, states[trial.number], jobs.get(trial.number)) for trial in trials],
        lost_records=[f"{path.parent.name}/{path.name}" for path in study.lost_records(trials)],
        refused=refused_causes(study),
        best=best_trial([trial for trial in trials if states[trial.number] in LEARNT], about),
    )


def status_lines(study: StudyFolder) -> Iterator[str]:
    """Yield the status of a study: counts, then one line for each trial that runs, failed or learnt nothing."""
    status = study_status(study)
    workers = f"{counted(status.workers, 'worker')} running" if status.workers else "no worker running"
    counts = counts_line(Counter(status.states))
    yield f"study {status.study}: {counts}; {workers}{', cancelled' if status.cancelled else ''}"
    if not status.slurm_answers:
        yield "  SLURM does not answer: what waits there is not shown"
    for kind in status.waiting:
        named = ", ".join(kind.jobs[:5]) + (f", ... ({len(kind.jobs)} jobs)" if len(kind.jobs) > 5 else "")
        yield f"  {kind.state:<13} {kind.reason}: job {named}"
    for trial in status.trials:
        if trial.state == "running":
            at = f", {trial.job}" if trial.job and trial.job.alive else ""
            yield f"  {trial.state:<13} {trial.run}  {_progress_line(trial.progress)}{at}"
        elif trial.state == WAITING and trial.job and not trial.job.alive and trial.run_state:
            yield f"  {trial.run_state:<13} {trial.run}  {trial.job}"
        elif trial.state not in (*ALIVE, *LEARNT, WAITING, "pruned"):
            yield f"  {trial.state:<13} {trial.run}  {trial.cause or 'cause unknown'}"
    for name in status.lost_records:
        yield f"  {'record lost':<13} {name}; `{command_of(study)}` writes it again"
    yield from (f"  {line}" for line in refused_lines(study))
    if best := status.best:
        setting = setting_text(factors_of(best.trial))
        yield f"best: {best.metric} {best.value:.4g}  {best.trial.name}  {setting}".rstrip()


def _trial_status(trial: Trial, state: str, job: ClusterJob | None) -> TrialStatus:
    end, status = trial.end or {}, trial.run.status()
    return TrialStatus(
        number=trial.number,
        run=trial.name,
        run_id=trial.run_id,
        folder=trial.folder,
        cell=trial.cell,
        factors=trial.factors,
        state=state,
        run_state=trial.run.state(),
        cause=end.get("cause") or status.get("cause") or None,
        remedy=end.get("remedy") or status.get("remedy") or None,
        seconds=end.get("seconds"),
        progress=_progress(trial) if state == "running" else None,
        job=job,
    )


def refused_lines(study: StudyFolder) -> Iterator[str]:
    """Yield the number of refused points of a search, with the most frequent cause."""
    if causes := refused_causes(study):
        cause = next(iter(causes))
        more = f" ({counted(len(causes) - 1, 'other cause')})" if len(causes) > 1 else ""
        yield f"{counted(sum(causes.values()), 'point')} refused: {cause}{more}"


def refused_causes(study: StudyFolder) -> dict[str, int]:
    """Return the causes for which points of a search were refused, the most frequent first."""
    events = study.events("refused")
    return dict(Counter(event["cause"] for event in events if FORBIDDEN not in event["cause"]).most_common())


def _state(study: StudyFolder, trial: Trial, jobs: dict[int, ClusterJob]) -> str:
    """Return a trial's state; one whose job is in the queue is `queued`, or `requeued` if it has run before."""
    state, job = study.state(trial), jobs.get(trial.number)
    if state == WAITING and job and job.alive:
        return "requeued" if trial.run.attempts() else "queued"
    return state


def _waiting(queued: dict[str, ClusterJob], requeued: set[str]) -> list[Waiting]:
    """Return for which reasons jobs wait; `requeued` are the ids of those that have run before."""
    found: dict[tuple[str, str], list[str]] = {}
    for job in queued.values():
        if job.waits:
            kind = "requeued" if job.id in requeued else "queued"
            found.setdefault((kind, job.reason or "no reason given"), []).append(job.id)
    return [Waiting(state, reason, jobs) for (state, reason), jobs in found.items()]


def best_trial(finished: list[Trial], about: dict[str, Any]) -> BestTrial | None:
    """Return the best of the finished trials by the study's metric; None if none has a value."""
    metric, table = metric_of(about), Table(**about["table"])
    values = ((value_of(outcome_of(trial.run), metric, table), trial) for trial in finished)
    known = [BestTrial(metric, value, trial) for value, trial in values if value is not None]
    best = min if lower_is_better(metric, about.get("metrics")) else max
    return best(known, key=lambda one: one.value, default=None)


def _progress(trial: Trial) -> Progress | None:
    """Return how far a running trial is; None before its first validation."""
    outcome, status = outcome_of(trial.run), trial.run.status()
    if not outcome.rows:
        return None
    row = outcome.rows[-1]
    score = "val_r2" if "val_r2" in row else "val_accuracy"
    return Progress(
        step=row["step"],
        epoch=status.get("epoch", row["epoch"]),
        epochs=trial.config["train"]["epochs"] if kind_of(trial.config["model"]).is_network else None,
        score=score,
        value=row.get(score),
        forecast=status.get("forecast"),
        health=health_of(trial.run, outcome),
    )


def _progress_line(progress: Progress | None) -> str:
    if progress is None:
        return "starting"
    place = f"epoch {progress.epoch}/{progress.epochs}" if progress.epochs else f"step {progress.step}"
    shown = f"{place}, {progress.score} {float('nan') if progress.value is None else progress.value:.3f}"
    until = f", until {progress.forecast[11:16]}" if progress.forecast else ""
    return f"{shown}{until}, {progress.health}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "   -"
    whole = round(seconds)
    return (
        f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02d}"
    )
