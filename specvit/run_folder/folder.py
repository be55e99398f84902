"""The run folder: its files, its single writer, and the state of the run.

    outputs/<name>-<hash8>/
        run.json         format version, run id, and the identity that it is the hash of
        config.yaml      the resolved configuration
        status.json      the current state: step, cause, remedy, pid, host
        attempts.jsonl   start and end of each process that worked on the run
        metrics.jsonl    one line a validation; bitwise reproducible
        timing.jsonl     wall-clock figures of the same validations
        training.jsonl   loss, rate and gradient norms between validations (train.log_every)
        summary.json     test scores
        predictions.csv  one line a test spectrum
        val_predictions.csv  one line a validation spectrum, by which error bars are calibrated
        kept_wavelengths.csv  the tokens that model.reduction kept
        last.ckpt previous.ckpt best.ckpt  figures/  log.txt
        *.damaged        a checkpoint that could not be read, renamed

One process writes at a time. It holds `flock` on `.lock`, which the kernel releases however that process ends, and
touches `.heartbeat`, by which other hosts see that it is alive. `.ballast` is disk space held back (`disk_reserve`).
"""

import contextlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from specvit.run_folder.heartbeat import has_stopped, heartbeat, is_fresh
from specvit.run_folder.verdict import EXPLODED_REMEDY, LEARNT, verdict
from specvit.utils.errors import FolderError, explain, os_fault
from specvit.utils.files import (
    append_line,
    is_locked,
    locked,
    read_json,
    read_json_lines,
    remove_leftovers,
    write_json,
    write_text,
)

FORMAT = 1
ALIVE = ("queued", "running", "requeued")
DONE = (*LEARNT, "plateau")
RESUMABLE = ("preempted", "timeout", "lost")
FAILED = ("diverged", "oom", "crashed", "cancelled", "pruned")
STATES = ALIVE + DONE + RESUMABLE + FAILED
CHECKPOINTS = ("last.ckpt", "previous.ckpt")
"""What a run resumes from, newest first."""
LINES = ("metrics.jsonl", "timing.jsonl", "training.jsonl")
TABLES = {"test": "predictions.csv", "val": "val_predictions.csv"}
"""A run's predictions of each split."""
KEPT = "kept_wavelengths.csv"
RESULTS = ("best.ckpt", *LINES, "summary.json", *TABLES.values(), KEPT)
STOPPED_BY_USER = ("stopped by SIGINT", "stopped by Ctrl-C")
"""Causes of `preempted` for which users read the state `stopped`."""
DISK_RESERVE_BYTES = 256 * 1024
CLAIM_SECONDS = 1.0
"""How long a claim waits for the lock, which a process that only reads the state holds for a moment."""


@dataclass(frozen=True)
class RunFolder:
    """Paths and records of one run; constructing one creates nothing."""

    path: Path
    run_id: str

    def file(self, name: str) -> Path:
        """Return the path of a file in the folder."""
        return self.path / name

    def about(self) -> dict[str, Any]:
        """Return `run.json`, empty if there is none; raises `FolderError` for a folder of another format."""
        about = read_json(self.file("run.json"), {})
        if (version := about.get("format", FORMAT)) != FORMAT:
            what = f"has format {version}, this specvit writes {FORMAT}"
            raise FolderError(what, where=str(self.path), remedy="move it away, or use the specvit that made it")
        return about

    def status(self) -> dict[str, Any]:
        """Return the last written status; if that is damaged, one from the other records; empty if there is no run.

        A `plateau` without a cause is from an older specvit, which judged by the last epoch: it is judged again.
        Raises `FolderError` for a folder of another format.
        """
        self.about()
        written = read_json(self.file("status.json"), {})
        status = written if written.get("state") in STATES else self._status_from_records()
        return self._judged_again(status) if status.get("state") == "plateau" and not status.get("cause") else status

    def attempts(self) -> list[dict[str, Any]]:
        """Return the lines of `attempts.jsonl`, oldest first, without a truncated one."""
        return read_json_lines(self.file("attempts.jsonl"))

    def state(self, *, claimed: bool = False) -> str:
        """Return the state of the run, `lost` if its process is gone, or "" if there is no run.

        With `claimed` the caller holds the folder, so that no other process can be working on it.
        """
        status = self.status()
        state = status.get("state", "")
        return "lost" if state in ALIVE and (claimed or not self._writer_lives(status)) else state

    def shown_state(self) -> str:
        """Return the state as users read it: `stopped` instead of `preempted` after Ctrl-C."""
        return shown_state({**self.status(), "state": self.state()})

    def set_status(self, state: str, **facts: Any) -> None:
        """Write the status, keeping facts that are not given again; a cause is dropped with its state."""
        assert state in STATES, state
        before = self.status()
        of_state = ("cause", "remedy", "traceback", "passing")
        carried = {k: v for k, v in before.items() if k not in of_state or before.get("state") == state}
        write_json(self.file("status.json"), {**carried, "state": state, "updated": now(), **facts})

    def note_progress(self, **facts: Any) -> None:
        """Write facts about a running run; errors are ignored, since these facts are for display only."""
        with contextlib.suppress(OSError):
            self.set_status("running", **facts)

    def record_attempt(self, **facts: Any) -> None:
        """Append one line to `attempts.jsonl`."""
        append_line(self.file("attempts.jsonl"), {"time": now(), "pid": os.getpid(), "host": hostname(), **facts})

    def create(self, identity: dict[str, Any], config_yaml: str) -> None:
        """Write identity and configuration, which never change; raises `FolderError` for another run's folder."""
        about = self.about()
        if about and about["identity"] != identity:
            what = "holds another run under the same id"
            raise FolderError(what, where=str(self.path), remedy="set another tracking.folder")
        if not about:
            self._write_about(identity)
        write_text(self.file("config.yaml"), config_yaml)

    def _write_about(self, identity: dict[str, Any]) -> None:
        """Write the identity; `record` is new whenever the run starts from nothing, for trackers to distinguish."""
        about = {"format": FORMAT, "run_id": self.run_id, "record": uuid.uuid4().hex, "identity": identity}
        write_json(self.file("run.json"), about)

    def forget(self) -> None:
        """Remove a run's results, so that it starts from nothing; `attempts.jsonl` stays.

        A kill during removal leaves a `lost` run that is still `to_forget`.
        """
        self.set_status("lost", to_forget=True)
        self._write_about(self.about()["identity"])
        for path in (*map(self.file, CHECKPOINTS + RESULTS), *self.path.glob("*.damaged")):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.file("figures"), ignore_errors=True)
        self.file("status.json").unlink(missing_ok=True)

    def to_forget(self) -> bool:
        """Return True if a process was killed while it removed the results."""
        return bool(self.status().get("to_forget"))

    def steps_on_file(self) -> set[int]:
        """Return the steps whose line in `metrics.jsonl` is complete."""
        return {row["step"] for row in read_json_lines(self.file("metrics.jsonl")) if "step" in row}

    def cut_back(self, step: int) -> None:
        """Drop lines of the metric files that are later than `step` or truncated."""
        for name in LINES:
            path = self.file(name)
            if path.exists():
                lines = [line for line in path.read_text(errors="replace").splitlines() if _step_of(line) <= step]
                write_text(path, "".join(f"{line}\n" for line in lines))

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Be the folder's only writer; raises `FolderError` if another process is."""
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                acquired = stack.enter_context(locked(self.file(".lock"), seconds=CLAIM_SECONDS))
            except OSError as problem:
                self._refuse_if_closed(problem)
                raise
            if not acquired:
                raise self._busy("wait for it, or stop it first")
            self._refuse_if_alive_elsewhere()
            remove_leftovers(self.path)
            stack.enter_context(heartbeat(self.file(".heartbeat")))
            yield

    def _status_from_records(self) -> dict[str, Any]:
        """Return the status according to the other files, if `status.json` is damaged or missing."""
        summary = read_json(self.file("summary.json"), {})
        if summary.get("state") in DONE:
            return {"state": summary["state"]}
        if not any(self.file(name).exists() for name in ("status.json", *CHECKPOINTS, "metrics.jsonl")):
            return {}
        last = (self.attempts() or [{}])[-1]
        known = {name: last[name] for name in ("pid", "host", "cause") if name in last}
        return {**known, "state": last["state"] if last.get("state") in STATES else "running"}

    def _judged_again(self, status: dict[str, Any]) -> dict[str, Any]:
        rows = read_json_lines(self.file("metrics.jsonl"))
        if not rows:
            return status
        new = verdict("plateau", rows)
        remedies = {"plateau": status.get("remedy", ""), "diverged": EXPLODED_REMEDY}
        return {**status, "state": new.state, "cause": new.cause, "remedy": remedies.get(new.state, "")}

    def _writer_lives(self, status: dict[str, Any]) -> bool:
        if status.get("host") == hostname():
            return is_locked(self.file(".lock"))
        return is_fresh(self.file(".heartbeat"))

    def _refuse_if_alive_elsewhere(self) -> None:
        """Refuse a folder that another host writes: many shared file systems do not show its lock here."""
        status = self.status()
        elsewhere = status.get("state") in ALIVE and status.get("host") != hostname()
        if elsewhere and is_fresh(self.file(".heartbeat"), probe=True):
            requeued = status.get("job") is not None and status.get("job") == job_here()
            if requeued and has_stopped(self.file(".heartbeat")):
                return  # the same job, requeued to this node: its former process has ended
            raise self._busy("wait for it; if it was killed, the same command works a minute later")

    def _busy(self, remedy: str) -> FolderError:
        status = self.status()
        who = f"process {status.get('pid')} on {status.get('host')}" if status else "another process"
        return FolderError(f"{who} is working on this run", where=str(self.path), remedy=remedy)

    def _refuse_if_closed(self, problem: OSError) -> None:
        """Raise `FolderError` if the problem is a folder that cannot be created or written."""
        if fault := os_fault(problem):
            cause, remedy = explain(fault, str(self.path))
            raise FolderError(cause, where="tracking.folder", remedy=remedy) from problem


@contextlib.contextmanager
def disk_reserve(folder: Path) -> Iterator[None]:
    """Hold back disk space in `folder` while the block runs, so that a full disk can still be recorded as the cause.

    Raises `FolderError` if there is not even so much space.
    """
    try:
        _allocate(folder / ".ballast")
    except OSError as problem:
        free_disk_reserve(folder)
        if (fault := os_fault(problem)) is None:
            raise
        cause, remedy = explain(fault, str(folder))
        raise FolderError(cause, remedy=remedy) from problem
    try:
        yield
    finally:
        free_disk_reserve(folder)


def free_disk_reserve(folder: Path) -> None:
    """Release the space, for the records that are written next."""
    with contextlib.suppress(OSError):
        (folder / ".ballast").unlink(missing_ok=True)


def _allocate(path: Path) -> None:
    """Write the file unless a killed process left it: random bytes, which no file system compresses or skips."""
    if path.exists() and path.stat().st_size == DISK_RESERVE_BYTES:
        return
    with open(path, "wb") as stream:
        stream.write(os.urandom(DISK_RESERVE_BYTES))
        stream.flush()
        os.fsync(stream.fileno())  # otherwise the space may be promised, not allocated


def hostname() -> str:
    """Return this host's name, as in the records."""
    return socket.gethostname()


def job_here() -> str | None:
    """Return the SLURM job of this process as users write it: `12`, or `12_3` in an array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def shown_state(record: dict[str, Any]) -> str:
    """Return the state of a status or an attempt as users read it: a run stopped by Ctrl-C was not preempted."""
    by_user = record.get("state") == "preempted" and str(record.get("cause", "")).startswith(STOPPED_BY_USER)
    return "stopped" if by_user else record.get("state", "")


def find_folder(root: Path, run_id: str, name: str) -> RunFolder:
    """Return the folder of a run: the one whose name ends in its id, else a new `<name>-<id>` (not created).

    Raises `FolderError` if several folders hold the run, such as a copy beside the original.
    """
    candidates = sorted(root.glob(f"*-{run_id}")) if root.is_dir() else []
    runs = [path for path in candidates if (path / "run.json").exists()]
    if len(runs) > 1:
        what = f"holds run {run_id} {len(runs)} times, as {' and '.join(path.name for path in runs)}"
        raise FolderError(what, where=str(root), remedy="move all of these but one elsewhere")
    return RunFolder((runs or candidates or [root / f"{name}-{run_id}"])[0], run_id)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def now() -> str:
    """Return the local time in ISO 8601, as written into records."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def moment(text: Any) -> float:
    """Return a recorded time in seconds since 1970; 0 for anything else."""
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return 0.0
