"""The run folder: what lies in it, who may write, and what became of the run.

    outputs/<name>-<hash8>/
        run.json         format version, run id, and what the id was made from
        config.yaml      the resolved configuration
        status.json      the state now: step, cause, remedy, pid, host
        attempts.jsonl   one line each time a process worked on it, and how that ended
        metrics.jsonl    one line an epoch; bitwise reproducible
        timing.jsonl     wall-clock figures of the same epochs
        summary.json     test scores
        predictions.csv  one line a test spectrum
        last.ckpt best.ckpt  figures/  log.txt

One process writes at a time: it holds `flock` on `.lock`, which the kernel releases however that process ends, and
touches `.heartbeat`, which says to other hosts that it lives.
"""

import contextlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specvit.errors import FolderError
from specvit.files import is_locked, locked, read_json, remove_leftovers, write_json, write_text

FORMAT = 1
ALIVE = ("queued", "running", "requeued")
DONE = ("completed", "early_stopped", "plateau")
RESUMABLE = ("preempted", "timeout", "lost")
FAILED = ("diverged", "oom", "crashed", "cancelled", "pruned")
STATES = ALIVE + DONE + RESUMABLE + FAILED
HEARTBEAT_SECONDS = 5.0
HEARTBEAT_DEAD_SECONDS = 60.0
CLAIM_SECONDS = 1.0
"""How long a claim waits: somebody who only looks at the state holds the lock for a moment."""


@dataclass(frozen=True)
class RunFolder:
    """Paths and records of one run; holding one does not create anything."""

    path: Path
    run_id: str

    def file(self, name: str) -> Path:
        """Return the path of a file in the folder."""
        return self.path / name

    def status(self) -> dict[str, Any]:
        """Return the last written status; empty where there is none."""
        return read_json(self.file("status.json"), {}) or {}

    def state(self, *, claimed: bool = False) -> str:
        """Return what became of the run, `lost` if its process is gone, or "" if there is no run.

        With `claimed` the caller holds the folder, so that no other process can still be at work.
        """
        status = self.status()
        state = status.get("state", "")
        return "lost" if state in ALIVE and (claimed or not self._writer_lives(status)) else state

    def set_status(self, state: str, **facts: Any) -> None:
        """Write the status, keeping facts that are not given anew; a cause outlives only its own state."""
        assert state in STATES, state
        before = self.status()
        kept = {
            k: v for k, v in before.items() if k not in ("cause", "remedy", "traceback") or before.get("state") == state
        }
        write_json(self.file("status.json"), {**kept, "state": state, "updated": _now(), **facts})

    def record_attempt(self, **facts: Any) -> None:
        """Append one line to `attempts.jsonl`."""
        with open(self.file("attempts.jsonl"), "a") as stream:
            stream.write(json.dumps({"time": _now(), "pid": os.getpid(), "host": hostname(), **facts}) + "\n")

    def create(self, identity: dict[str, Any], config_yaml: str) -> None:
        """Write what never changes: the identity and the configuration. Refuses a folder of another format."""
        found = read_json(self.file("run.json"), {})
        if found and found.get("format") != FORMAT:
            what = f"has format {found.get('format')}, this specvit writes {FORMAT}"
            raise FolderError(what, where=str(self.path), remedy="move it away, or use the specvit that made it")
        if found and found["identity"] != identity:
            what = "holds another run under the same id"
            raise FolderError(what, where=str(self.path), remedy="set another tracking.folder")
        if not found:
            write_json(self.file("run.json"), {"format": FORMAT, "run_id": self.run_id, "identity": identity})
        write_text(self.file("config.yaml"), config_yaml)

    def forget(self) -> None:
        """Remove a run's results, so that it starts from nothing; its attempts stay on file.

        A kill in between leaves a `lost` run, which starts again.
        """
        self.set_status("lost")
        for name in ("last.ckpt", "best.ckpt", "metrics.jsonl", "timing.jsonl", "summary.json", "predictions.csv"):
            self.file(name).unlink(missing_ok=True)
        shutil.rmtree(self.file("figures"), ignore_errors=True)
        self.file("status.json").unlink(missing_ok=True)

    def cut_back(self, step: int) -> None:
        """Drop lines of the metric files that are later than `step` or were cut off in writing."""
        for name in ("metrics.jsonl", "timing.jsonl"):
            path = self.file(name)
            if path.exists():
                kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
                write_text(path, "".join(f"{line}\n" for line in kept))

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Be the folder's one writer; raises `FolderError` if another process is."""
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.file(".lock"), seconds=CLAIM_SECONDS) as mine:
            if not mine:
                raise self._busy("wait for it, or stop it first")
            self._refuse_if_alive_elsewhere()
            remove_leftovers(self.path)
            with _heartbeat(self.file(".heartbeat")):
                yield

    def _writer_lives(self, status: dict[str, Any]) -> bool:
        if status.get("host") == hostname():
            return is_locked(self.file(".lock"))
        return self._heartbeat_is_fresh()

    def _heartbeat_is_fresh(self) -> bool:
        try:
            return time.time() - self.file(".heartbeat").stat().st_mtime < HEARTBEAT_DEAD_SECONDS
        except FileNotFoundError:
            return False

    def _refuse_if_alive_elsewhere(self) -> None:
        """Refuse a folder that another host writes: on many shared file systems a lock is not seen from here."""
        status = self.status()
        elsewhere = status.get("state") in ALIVE and status.get("host") != hostname()
        if elsewhere and self._heartbeat_is_fresh():
            raise self._busy("wait for it; if it was killed, the same command works a minute later")

    def _busy(self, remedy: str) -> FolderError:
        status = self.status()
        who = f"process {status.get('pid')} on {status.get('host')}" if status else "another process"
        return FolderError(f"{who} is working on this run", where=str(self.path), remedy=remedy)


def hostname() -> str:
    """Return this host's name, as the records have it."""
    return socket.gethostname()


def find_folder(root: Path, run_id: str, name: str) -> RunFolder:
    """Return the folder of a run: the one whose name ends in its id, else a new `<name>-<id>` (not created)."""
    there = sorted(root.glob(f"*-{run_id}")) if root.is_dir() else []
    return RunFolder(there[0] if there else root / f"{name}-{run_id}", run_id)


@contextlib.contextmanager
def _heartbeat(path: Path) -> Iterator[None]:
    """Touch `path` every few seconds from a thread while the block runs."""
    over = threading.Event()

    def beat() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                path.touch()
            over.wait(HEARTBEAT_SECONDS)

    thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
