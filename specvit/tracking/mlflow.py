"""Synchronises run folders to MLflow. The only module that imports mlflow, which costs seconds.

Training never imports it. `sync` can be repeated at any time and from several processes: a run is found again by its
record's key, points that MLflow has are not sent again, and a deleted database is created again and filled from the
folders.
"""

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from specvit.config.tracking_uri import STUDY_TAG, artifact_folder, sqlite_file
from specvit.run_folder.folder import DONE, FAILED, RunFolder
from specvit.tracking.run_record import MetricPoint, Record, StudyRecord, metric_key, read_record
from specvit.utils.errors import TrackingError, TrackingRefused
from specvit.utils.files import locked

BATCH_POINTS, BATCH_PARAMS = 1000, 100
"""What MLflow takes in one call."""
LOCK_SECONDS = 60.0
"""How long a sync waits for another one of the same run, whose server may hang."""
PERMANENT = ("INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED")
"""MLflow's codes of errors that a retry does not change: a name that it refuses, a missing or wrong password."""
LATER = "the run folder has everything; `specvit track sync` sends it later"
VALUE_CHARACTERS = 6000
"""Longer parameters and tags are refused by MLflow."""
KIND_TAG = "mlflow.experimentKind"
"""Without it the UI opens an experiment as one about language models."""
FLEETING = {"cause", "remedy"}
"""Tags of a failure; a run that was resumed since has lost them."""
PARENT_TAG = "mlflow.parentRunId"
KEY_TAG, SYNCED_TAG = "specvit.record", "specvit.synced"


class Server:
    """One MLflow database or server."""

    def __init__(self, uri: str) -> None:
        """Open `uri`, making a new sqlite database if there is none; raises `TrackingError`."""
        # Telemetry is on by default.
        os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        # A pool would keep writing into a database file that was deleted.
        os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
        for name, value in (("MAX_RETRIES", "0"), ("TIMEOUT", "20")):
            os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
        self.uri, self.file = uri, sqlite_file(uri)
        with explained(uri):
            from mlflow import MlflowClient

            for noisy in ("alembic", "mlflow"):
                logging.getLogger(noisy).setLevel(logging.ERROR)
            with _created_database(self.file):  # opening it makes tables, too, where somebody deleted it just now
                self.client = MlflowClient(tracking_uri=uri)
                self.client.search_experiments(max_results=1)  # says at once if nobody answers

    def sync(self, folder: RunFolder, study: dict[str, str] | None = None) -> str:
        """Send MLflow what it lacks of a run; raises `TrackingError`.

        `study` are the tags of a study that shares an existing run; they apply to a run that has none.
        Returns `sent`, `up to date`, or `left alone` for a run that was deleted in MLflow.
        """
        with explained(self.uri), locked(folder.file(".tracking.lock"), seconds=LOCK_SECONDS) as acquired:
            if not acquired:
                raise TrackingError("another process is telling MLflow about it", where=str(folder.path), remedy=LATER)
            with _created_database(self.file):  # again, if somebody deleted it
                pass
            record = read_record(folder)
            record = replace(record, tags={**(study or {}), **record.tags})
            run = self._find(record) or self._create(record)
            if run.info.lifecycle_stage == "deleted":
                return "left alone"
            self._adopt(run, record, folder.path.parent)
            if run.data.tags.get(SYNCED_TAG) == record.fingerprint:
                return "up to date"
            self._update(run, record)
            return "sent"

    def sync_study(self, record: StudyRecord, runs: Path, files: Path) -> str:
        """Send a study's own run with all files of the folder `files`; raises `TrackingError`.

        `runs` is the folder of its run folders. Returns `sent`, or `left alone` for a run that was deleted in MLflow.
        """
        with explained(self.uri):
            with _created_database(self.file):
                pass
            experiment = self._experiment(record.experiment)
            with locked(runs / ".studies.lock", seconds=LOCK_SECONDS):
                run_id = self._parent(experiment, record.key, record.name, record.started)
            run = self.client.get_run(run_id)
            if run.info.lifecycle_stage == "deleted":
                return "left alone"
            notes = {"mlflow.note.content": record.notes} if record.notes else {}
            self._send_tags(run_id, {**record.tags, **notes, "folder": record.folder})
            counts = {name: 0.0 for name in run.data.metrics if name.startswith("runs_")}  # of states that are no more
            metrics = {metric_key(name): value for name, value in {**counts, **record.metrics}.items()}
            now = int(1000 * time.time())
            new = [MetricPoint(n, v, record.step, now) for n, v in metrics.items() if run.data.metrics.get(n) != v]
            self._send_rows(run_id, [new] if new else [])
            self.client.log_artifacts(run_id, str(files))
            if record.status == "RUNNING":
                self.client.update_run(run_id, status=record.status)
            else:
                self.client.set_terminated(run_id, record.status)
            return "sent"

    def _find(self, record: Record) -> Any:
        experiment = self._existing_experiment(record.experiment)
        return self._run_of(experiment, record.key) if experiment else None

    def _run_of(self, experiment: str, key: str) -> Any:
        """Return the run of a record, also one that was deleted; None if there is none."""
        from mlflow.entities import ViewType

        runs = self.client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", ViewType.ALL, max_results=1)
        return runs[0] if runs else None

    def _create(self, record: Record) -> Any:
        tags = {KEY_TAG: record.key, "mlflow.user": _user(), "mlflow.source.name": "specvit train"}
        experiment = self._experiment(record.experiment)
        for older in self.client.search_runs([experiment], f"tags.signature = '{record.tags['signature']}'"):
            if older.data.tags.get("folder") == record.tags["folder"]:  # train.rerun=true did it again
                self.client.set_tag(older.info.run_id, "superseded", "true")
        return self.client.create_run(experiment, start_time=record.started, tags=tags, run_name=record.name)

    def _adopt(self, run: Any, record: Record, runs: Path) -> None:
        """Put a run under its study's own one; the first study that has it keeps it."""
        key = record.tags.get(STUDY_TAG)
        if key is None or PARENT_TAG in run.data.tags:
            return
        with locked(runs / ".studies.lock", seconds=LOCK_SECONDS):
            parent = self._parent(run.info.experiment_id, key, record.tags["study"], record.started, "FINISHED")
        self._send_tags(run.info.run_id, {STUDY_TAG: key, "study": record.tags["study"], PARENT_TAG: parent})

    def _parent(self, experiment: str, key: str, name: str, started: int, status: str = "RUNNING") -> str:
        """Return the id of a study's own run, the parent of those of its trials; created with `status` if need be."""
        if found := self._run_of(experiment, key):
            return found.info.run_id
        tags = {KEY_TAG: key, "mlflow.user": _user(), "mlflow.source.name": "specvit train sweeps", "study": name}
        parent = self.client.create_run(experiment, start_time=started or None, tags=tags, run_name=name)
        if status != "RUNNING":  # nothing is known of the study but a run of it
            self.client.set_terminated(parent.info.run_id, status)
        return parent.info.run_id

    def _experiment(self, name: str) -> str:
        """Return the id of an experiment, created if it does not exist; another process may do so, too."""
        from mlflow.exceptions import MlflowException

        if found := self._existing_experiment(name):
            return found
        try:
            place = artifact_folder(self.uri, name)
            return self.client.create_experiment(
                name, artifact_location=place, tags={KIND_TAG: "custom_model_development"}
            )
        except MlflowException:
            if found := self._existing_experiment(name):
                return found
            raise

    def _existing_experiment(self, name: str) -> str | None:
        """Return the id of an experiment, None if there is none; raises `TrackingError` for a deleted one."""
        found = self.client.get_experiment_by_name(name)
        if found and found.lifecycle_stage == "deleted":
            remedy = f"`mlflow experiments restore -x {found.experiment_id}`, or set another tracking.experiment"
            raise TrackingError(f"experiment {name} was deleted there", where=self.uri, remedy=remedy)
        return found.experiment_id if found else None

    def _update(self, run: Any, record: Record) -> None:
        """Send parameters, points, tags, the state and files, in this order, and last that all of it was sent."""
        run_id = run.info.run_id
        self._send_params(run, record)
        self._send_rows(run_id, self._new_rows(run, record))
        self._send_rows(run_id, [[p] for p in record.results if run.data.metrics.get(p.name) != p.value])
        tags = {**record.tags, "mlflow.note.content": record.notes}
        self._send_tags(run_id, {n: v for n, v in tags.items() if run.data.tags.get(n) != v[:VALUE_CHARACTERS]})
        for name in (FLEETING & run.data.tags.keys()) - record.tags.keys():
            self.client.delete_tag(run_id, name)
        status = mlflow_status(record.state)
        if record.alive:
            self.client.update_run(run_id, status=status)
        else:
            self.client.set_terminated(run_id, status, end_time=record.ended)
        for path, place in record.files:
            self.client.log_artifact(run_id, str(path), place or None)
        self._send_tags(run_id, {SYNCED_TAG: record.fingerprint})

    def _new_rows(self, run: Any, record: Record) -> list[list[MetricPoint]]:
        """Return the rows after the last one that MLflow has. A resumed run's repeated steps are equal to the bit."""
        if "epoch" not in run.data.metrics:
            return record.rows
        known = max(point.step for point in self.client.get_metric_history(run.info.run_id, "epoch"))
        return [row for row in record.rows if row[0].step > known]

    def _send_rows(self, run_id: str, rows: list[list[MetricPoint]]) -> None:
        """Send rows in batches of whole ones, each taken as a whole: a kill in between must not leave half a row."""
        from mlflow.entities import Metric

        batch: list[Metric] = []
        for number, row in enumerate(rows):
            batch += [Metric(key=p.name, value=p.value, timestamp=p.time, step=p.step) for p in row]
            if number + 1 == len(rows) or len(batch) + len(rows[number + 1]) > BATCH_POINTS:
                self.client.log_batch(run_id, metrics=batch)
                batch = []

    def _send_params(self, run: Any, record: Record) -> None:
        """Send parameters that MLflow lacks: MLflow refuses to change one, as a resumed run's device may."""
        from mlflow.entities import Param

        new = [Param(n, v[:VALUE_CHARACTERS]) for n, v in record.params.items() if n not in run.data.params]
        for batch in _batches(new, BATCH_PARAMS):
            self.client.log_batch(run.info.run_id, params=batch)

    def _send_tags(self, run_id: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        for batch in _batches([RunTag(name, value[:VALUE_CHARACTERS]) for name, value in tags.items()], BATCH_PARAMS):
            self.client.log_batch(run_id, tags=batch)


@contextlib.contextmanager
def _created_database(file: Path | None) -> Iterator[None]:
    """Make a sqlite database that is whole or absent, and keep all others from making it while the block runs.

    MLflow builds its tables by dozens of migrations in place: several processes at once, or one that is killed, break
    a new file for good. So one process makes it under another name.
    """
    if file is None:
        yield
        return
    from mlflow import MlflowClient

    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.with_name(f".{file.name}.lock")):
        if not file.exists() or file.stat().st_size == 0:  # a connection to a deleted file leaves an empty one
            for leftover in file.parent.glob(f".{file.name}.*.new*"):
                leftover.unlink()
            scratch = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.new")  # mlflow makes no name twice
            MlflowClient(tracking_uri=f"sqlite:///{scratch}").search_experiments(max_results=1)
            for ending in ("journal", "wal", "shm"):  # of the deleted one: sqlite would roll it back into the new one
                file.with_name(f"{file.name}-{ending}").unlink(missing_ok=True)
            os.replace(scratch, file)
        yield


def mlflow_status(state: str) -> str:
    """Return MLflow's word for a run's state; ours is in the tag `state`."""
    if state in DONE:
        return "FINISHED"
    if state in ("running", "requeued"):
        return "RUNNING"
    if state == "queued":
        return "SCHEDULED"
    return "FAILED" if state in FAILED and state not in ("cancelled", "pruned") else "KILLED"


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn every error of MLflow into a `TrackingError`, or into `TrackingRefused` where a retry cannot help."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as problem:
        reason = str(problem).strip().splitlines()[0][:300] if str(problem).strip() else "no message"
        what = f"MLflow did not take the record ({type(problem).__name__}: {reason})"
        if "out-of-date database schema" in str(problem):
            remedy = f"bring it up to date with `mlflow db upgrade {uri}`, then `specvit track sync`"
            raise TrackingRefused(what, where=uri, remedy=remedy) from problem
        if getattr(problem, "error_code", "") in PERMANENT:
            remedy = "the run folder has everything; see tracking.* in docs/mlflow.md"
            raise TrackingRefused(what, where=uri, remedy=remedy) from problem
        raise TrackingError(what, where=uri, remedy=LATER) from problem


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
