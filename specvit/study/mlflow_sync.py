"""A process beside a study that tells MLflow what its run folders say; it ends when the study rests and all is told.

One for all runs: importing mlflow costs seconds, which a hundred small runs would each pay. It needs only the folders,
so it outlives driver and workers, and a run that is killed is told as what it is.
"""

import os
import time

from specvit.config.tracking_uri import STUDY_TAG, resolve_uri
from specvit.study.job_log import jobs_in_queue
from specvit.study.store import StudyFolder, Trial
from specvit.tracking.mlflow import Server
from specvit.tracking.mlflow_sync import PATIENCE_SECONDS, RETRY_SECONDS, live_quietly
from specvit.tracking.run_record import fingerprint_of
from specvit.utils.errors import TrackingError, TrackingRefused
from specvit.utils.files import is_locked, locked

POLL_SECONDS = 1.0
TAKE_OVER_SECONDS = 30.0
"""How long it waits for an older one that may be about to end."""
QUEUE_SECONDS = 30.0
"""Between two looks at a cluster's queue."""
START_SECONDS = 3.0
"""Imports wait so long: those of the workers come first."""


def follow_study(study: StudyFolder, *, patience: float = PATIENCE_SECONDS) -> int:
    """Tell MLflow about all runs of a study until it rests; return the exit code."""
    live_quietly()
    os.chdir(study.about()["cwd"])
    time.sleep(START_SECONDS)
    with locked(study.file("courier.lock"), seconds=TAKE_OVER_SECONDS) as mine:
        return _StudySync(study).deliver(patience) if mine else 0


class _StudySync:
    def __init__(self, study: StudyFolder) -> None:
        self.study = study
        self.tags = {STUDY_TAG: study.about()["key"], "study": study.name}
        self.servers: dict[str, Server] = {}
        self.told: dict[int, str] = {}
        self.jobs, self.asked = False, float("-inf")

    def deliver(self, patience: float) -> int:
        """Go round until nobody works on the study and all is told, or for `patience` seconds more."""
        failures, resting = 0, 0.0
        while self.study.file("study.json").exists():
            at_work = self._at_work()
            resting = 0.0 if at_work else resting or time.monotonic()
            whole = self._round()
            failures = 0 if whole else failures + 1
            if whole and not at_work and not self._at_work():  # a round takes its time
                return 0
            if resting and time.monotonic() - resting > patience:
                return 1
            time.sleep(POLL_SECONDS if whole else RETRY_SECONDS[min(failures, len(RETRY_SECONDS)) - 1])
        return 0

    def _at_work(self) -> bool:
        return bool(self.study.busy_slots()) or is_locked(self.study.file("driver.lock")) or self._has_jobs()

    def _has_jobs(self) -> bool:
        """Say whether jobs of the study wait or run in a cluster, which is asked now and then."""
        if time.monotonic() - self.asked > QUEUE_SECONDS:
            self.asked = time.monotonic()
            jobs = jobs_in_queue(self.study, self.study.about())
            self.jobs = self.jobs if jobs is None else any(job.alive for job in jobs.values())
        return self.jobs

    def _round(self) -> bool:
        """Send what has changed; say whether everything came through."""
        for trial in self.study.trials():
            if not trial.run.file("run.json").exists() or not trial.config["tracking"]["live"]:
                continue
            fingerprint = fingerprint_of(trial.run)
            if self.told.get(trial.number) == fingerprint:
                continue
            try:
                self._server(trial).sync(trial.run, self.tags)
                self.told[trial.number] = fingerprint
            except TrackingRefused as problem:  # of this run; the others' records are their own
                self.told[trial.number] = fingerprint
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
