"""Keeps MLflow up to date with a study: its own run, and those of its trials, until the study is at rest.

One process for all runs: importing mlflow takes seconds, which a hundred small runs would each pay.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from specvit.config.tracking_uri import STUDY_TAG, resolve_uri
from specvit.run_folder.verdict import LEARNT
from specvit.study.job_log import jobs_in_queue
from specvit.study.status import best_trial
from specvit.study.store import StudyFolder, Trial
from specvit.study.table import render, table_rows
from specvit.study.trial_queue import CLOSED_STATES, count_states
from specvit.tracking.mlflow import Server
from specvit.tracking.mlflow_sync import LOG, Change, SyncLoop, remove_if_empty, run_in_background
from specvit.tracking.run_record import StudyRecord, fingerprint_of, milliseconds
from specvit.utils.files import is_locked, locked

TAKE_OVER_SECONDS = 30.0
"""How long it waits for an older synchronisation that may be about to end."""
QUEUE_SECONDS = 30.0
"""Between two queries of a cluster's queue."""
STUDY_SECONDS = 10.0
"""Between two updates of the study's own run: its table reads all run folders."""
START_SECONDS = 3.0
"""Delay before mlflow is imported: the imports of the workers come first."""
WriteReport = Callable[[StudyFolder, Path], object]
"""Writes the report on a study into a folder."""


def follow_study(study: StudyFolder, write_report: WriteReport) -> int:
    """Synchronise a study and all its runs to MLflow until it is at rest; return the exit code."""
    run_in_background()
    os.chdir(study.about()["cwd"])
    time.sleep(START_SECONDS)
    with locked(study.file("courier.lock"), seconds=TAKE_OVER_SECONDS) as mine:
        code = StudySync(study, write_report).run() if mine else 0
    if code == 0:
        remove_if_empty(study.file(LOG))
    return code


class StudySync(SyncLoop):
    """Keeps MLflow up to date with one study."""

    poll_seconds = 1.0

    def __init__(self, study: StudyFolder, write_report: WriteReport) -> None:
        """Send nothing yet."""
        super().__init__()
        self.study, self.write_report = study, write_report
        self.tags = {STUDY_TAG: study.about()["key"], "study": study.name}
        self.active, self.updated = True, float("-inf")
        self.has_jobs, self.queried = False, float("-inf")
        self.settled: dict[str, Trial] = {}
        """Ended trials that MLflow has: while such a record is unchanged, its run folder is not read again."""

    def exists(self) -> bool:
        """Return False for a study that was removed."""
        return self.study.file("study.json").exists()

    def is_active(self) -> bool:
        """Return True while a command, a worker or a job of the study is alive."""
        driven = is_locked(self.study.file("driver.lock"))
        self.active = bool(self.study.busy_slots()) or driven or self._has_jobs()
        return self.active

    def _has_jobs(self) -> bool:
        """Return True if jobs of the study wait or run on a cluster, which is queried now and then."""
        if time.monotonic() - self.queried > QUEUE_SECONDS:
            self.queried = time.monotonic()
            jobs = jobs_in_queue(self.study, self.study.about())
            self.has_jobs = self.has_jobs if jobs is None else any(job.alive for job in jobs.values())
        return self.has_jobs

    def changes(self) -> Iterator[Change]:
        """Yield the study, now and then while it is active, and its runs."""
        trials = [trial for trial in self.study.trials() if trial.config["tracking"]["live"]]
        trials = [trial for trial in trials if trial.run.file("run.json").exists()]
        if trials and (not self.active or time.monotonic() - self.updated > STUDY_SECONDS):
            yield self._study_change(trials[0])
            self.updated = time.monotonic()
        for trial in trials:
            if self.settled.get(trial.name) is trial:
                continue
            fingerprint = fingerprint_of(trial.run)
            if trial.end and self.sent.get(trial.name) == fingerprint:
                self.settled[trial.name] = trial
            yield Change(trial.name, fingerprint, partial(_uri, trial), partial(self._sync_run, trial))

    def _sync_run(self, trial: Trial, server: Server) -> str:
        return server.sync(trial.run, self.tags)

    def _study_change(self, trial: Trial) -> Change:
        """Return the study's own run, which is in the experiment of its first `trial`."""
        counts = count_states(self.study)
        step = sum(counts[state] for state in CLOSED_STATES)
        ended = "FINISHED" if step == counts.total() else "KILLED"
        record = StudyRecord(
            key=self.tags[STUDY_TAG],
            name=self.study.name,
            experiment=trial.config["tracking"]["experiment"],
            status="RUNNING" if self.active else ended,
            started=milliseconds(self.study.about().get("started")),
            notes=self.study.about().get("question") or "",
            folder=str(self.study.path.resolve()),
            metrics={f"runs_{state}": float(count) for state, count in counts.items()},
            step=step,
        )
        fingerprint = f"{record.status} {sorted(counts.items())}"
        return Change(self.study.name, fingerprint, partial(_uri, trial), partial(self._sync_study, trial, record))

    def _sync_study(self, trial: Trial, record: StudyRecord, server: Server) -> str:
        """Send the study's record with its best score, its table and, when it has finished, its report."""
        about = self.study.about()
        finished = [trial for trial in self.study.trials() if self.study.state(trial) in LEARNT]
        if best := best_trial(finished, about):
            record.metrics[f"best_{best.metric}"] = best.value
            record.tags["best_run"] = best.trial.name
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            try:
                (folder / "table.csv").write_text(render(*table_rows(self.study), "csv") + "\n")
                if record.status == "FINISHED":
                    self.write_report(self.study, folder / "report")
            except Exception as problem:  # a table without its metric, a figure that cannot be drawn: MLflow lacks it
                self.report(self.study.name, problem)
            return server.sync_study(record, trial.run.path.parent, folder)


def _uri(trial: Trial) -> str:
    return resolve_uri(trial.config["tracking"]["uri"], trial.run.path)
