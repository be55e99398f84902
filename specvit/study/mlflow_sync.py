"""A process beside a study that synchronises its run folders to MLflow, until the study rests and all is sent.

One process for all runs: importing mlflow takes seconds, which a hundred small runs would each pay. It needs only the
folders, so it outlives driver and workers, and sends the end of a killed run as well.
"""

import os
import time

from specvit.config.tracking_uri import STUDY_TAG, resolve_uri
from specvit.study.job_log import jobs_in_queue
from specvit.study.store import StudyFolder, Trial
from specvit.tracking.mlflow import Server
from specvit.tracking.mlflow_sync import PATIENCE_SECONDS, RETRY_SECONDS, run_in_background
from specvit.tracking.run_record import fingerprint_of
from specvit.utils.errors import TrackingError, TrackingRefused
from specvit.utils.files import is_locked, locked

POLL_SECONDS = 1.0
TAKE_OVER_SECONDS = 30.0
"""How long it waits for an older synchronisation that may be about to end."""
QUEUE_SECONDS = 30.0
"""Between two queries of a cluster's queue."""
START_SECONDS = 3.0
"""Delay before mlflow is imported: the imports of the workers come first."""


def follow_study(study: StudyFolder, *, patience: float = PATIENCE_SECONDS) -> int:
    """Synchronise all runs of a study to MLflow until it rests; return the exit code."""
    run_in_background()
    os.chdir(study.about()["cwd"])
    time.sleep(START_SECONDS)
    with locked(study.file("courier.lock"), seconds=TAKE_OVER_SECONDS) as mine:
        return _StudySync(study).deliver(patience) if mine else 0


class _StudySync:
    def __init__(self, study: StudyFolder) -> None:
        self.study = study
        self.tags = {STUDY_TAG: study.about()["key"], "study": study.name}
        self.servers: dict[str, Server] = {}
        self.sent: dict[int, str] = {}
        self.has_jobs, self.queried = False, float("-inf")

    def deliver(self, patience: float) -> int:
        """Send changes until the study rests and all is sent, or for `patience` seconds after it came to rest."""
        failures, resting_since = 0, 0.0
        while self.study.file("study.json").exists():
            active = self._is_active()
            resting_since = 0.0 if active else resting_since or time.monotonic()
            complete = self._send_changes()
            failures = 0 if complete else failures + 1
            if complete and not active and not self._is_active():  # a round takes time
                return 0
            if resting_since and time.monotonic() - resting_since > patience:
                return 1
            time.sleep(POLL_SECONDS if complete else RETRY_SECONDS[min(failures, len(RETRY_SECONDS)) - 1])
        return 0

    def _is_active(self) -> bool:
        return bool(self.study.busy_slots()) or is_locked(self.study.file("driver.lock")) or self._has_jobs()

    def _has_jobs(self) -> bool:
        """Return True if jobs of the study wait or run on a cluster, which is queried now and then."""
        if time.monotonic() - self.queried > QUEUE_SECONDS:
            self.queried = time.monotonic()
            jobs = jobs_in_queue(self.study, self.study.about())
            self.has_jobs = self.has_jobs if jobs is None else any(job.alive for job in jobs.values())
        return self.has_jobs

    def _send_changes(self) -> bool:
        """Send what has changed; return True if all of it was accepted."""
        for trial in self.study.trials():
            if not trial.run.file("run.json").exists() or not trial.config["tracking"]["live"]:
                continue
            fingerprint = fingerprint_of(trial.run)
            if self.sent.get(trial.number) == fingerprint:
                continue
            try:
                self._server(trial).sync(trial.run, self.tags)
                self.sent[trial.number] = fingerprint
            except TrackingRefused as problem:  # this run's record alone is refused
                self.sent[trial.number] = fingerprint
                print(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {trial.name}: {problem}", flush=True)
            except (TrackingError, OSError) as problem:
                self.servers.clear()
                print(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {problem}", flush=True)
                return False
        return True

    def _server(self, trial: Trial) -> Server:
        uri = resolve_uri(trial.config["tracking"]["uri"], trial.run.path)
        if uri not in self.servers:
            self.servers[uri] = Server(uri)
        return self.servers[uri]
