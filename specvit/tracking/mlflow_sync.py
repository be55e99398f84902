"""Keeps MLflow up to date with run folders: one loop, in a process beside a run, beside a study, or in `track sync`.

A process, not a thread: importing mlflow takes seconds of pure Python, which would hold up the training loop, and a
server that hangs, a full disk or a bug there cannot touch the run. It needs nothing but the folders, so it outlives a
run that is killed, and sends how that ended.
"""

import contextlib
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from specvit.run_folder.folder import ALIVE, RunFolder, now
from specvit.tracking.mlflow import Server, explained
from specvit.tracking.run_record import fingerprint_of
from specvit.utils.errors import TrackingError, TrackingRefused
from specvit.utils.files import locked
from specvit.utils.processes import python_command, start

LOG = "tracking.log"
WAIT_SECONDS = 10.0
"""How long a finished run's command waits for its record; the process continues without it."""
START_SECONDS, FIRST_STEPS_SECONDS = 10.0, 1.0
"""How long it waits at most for the run's data and network, and then for its first steps."""
PATIENCE_SECONDS = 120.0
"""How long the process retries after the run, or the study, has ended."""
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)


@dataclass(frozen=True)
class Change:
    """What MLflow may lack of one record: `send` brings it to the server of `uri`.

    A record with the same `fingerprint` as before is not sent again.
    """

    name: str
    fingerprint: str
    uri: Callable[[], str]
    send: Callable[[Server], str]


class SyncLoop(ABC):
    """Sends changes until nothing more is to come. What MLflow refuses for good waits until it changes.

    A server that refuses to be opened, since its database is out of date, is tried again for all records.
    """

    poll_seconds: ClassVar[float]

    def __init__(self) -> None:
        """Open no server yet: that imports mlflow."""
        self.servers: dict[str, Server] = {}
        self.sent: dict[str, str] = {}
        self.refused: dict[str, tuple[str, str]] = {}
        """Records, by name, and servers, by URI, that were refused: the fingerprint then, and why."""

    @abstractmethod
    def exists(self) -> bool:
        """Return False once its folder was removed, or there is nothing that MLflow would accept."""

    @abstractmethod
    def is_active(self) -> bool:
        """Return True while more is to come."""

    @abstractmethod
    def changes(self) -> Iterator[Change]:
        """Yield all records as they are now."""

    def run(self, patience: float = PATIENCE_SECONDS) -> int:
        """Send changes until all is at rest and sent, or for `patience` seconds after that; return the exit code.

        Failures are retried, at longer intervals.
        """
        failures, resting_since = 0, 0.0
        while self.exists():
            active = self.is_active()
            resting_since = 0.0 if active else resting_since or time.monotonic()
            counts = self.round()
            failures = failures + 1 if counts["failed"] else 0
            if not (active or counts["failed"] or counts["sent"] or self.is_active()):  # sending takes time: look again
                break
            if failures and resting_since and time.monotonic() - resting_since > patience:
                return 1
            pause = RETRY_SECONDS[-1] if self.refused and not self.servers else self.poll_seconds
            time.sleep(RETRY_SECONDS[min(failures, len(RETRY_SECONDS)) - 1] if failures else pause)
        return 1 if self.refused else 0

    def round(self) -> Counter[str]:
        """Send what has changed; return the number of records `sent`, `up to date`, `left alone`, `refused`, `failed`.

        A server that does not open is not tried again in the same round.
        """
        closed: dict[str, str] = {}
        return Counter(self._send(change, closed) for change in self.changes())

    def report(self, name: str, problem: Exception) -> None:
        """Print why the record `name` was not sent."""
        with contextlib.suppress(OSError):  # the log may be on a full disk
            print(f"{now()} {name}: {problem}", flush=True)

    def open(self, uri: str) -> Server:
        """Return the server of `uri`, opened once."""
        if uri not in self.servers:
            self.servers[uri] = Server(uri)
        return self.servers[uri]

    def _send(self, change: Change, closed: dict[str, str]) -> str:
        if change.fingerprint == self.refused.get(change.name, ("", ""))[0]:
            return "left alone"
        if self.sent.get(change.name) == change.fingerprint:
            return "up to date"
        uri = ""
        try:
            with explained(change.name):
                uri = change.uri()
            if uri in closed:
                return closed[uri]
            closed[uri] = "failed"  # until it has opened
            server = self.open(uri)
            del closed[uri]
            self.refused.pop(uri, None)
            outcome = change.send(server)
        except (TrackingError, OSError) as problem:
            self.servers.pop(uri, None)  # the fault may be the record's or the server's: the next one opens it again
            outcome = self._outcome_of(problem, change, uri if uri in closed else change.name)
            if uri in closed:
                closed[uri] = outcome
            return outcome
        self.refused.pop(change.name, None)
        self.sent[change.name] = change.fingerprint
        return outcome

    def _outcome_of(self, problem: Exception, change: Change, culprit: str) -> str:
        """Report a problem, unless the server or record `culprit` was refused for the same reason before."""
        if not isinstance(problem, TrackingRefused):
            self.report(change.name, problem)
            return "failed"
        _, before = self.refused.get(culprit, ("", ""))
        self.refused[culprit] = change.fingerprint, str(problem)
        if before == str(problem):
            return "left alone"
        self.report(change.name, problem)
        return "refused"


class RunSync(SyncLoop):
    """Keeps MLflow at `uri` up to date with one run."""

    poll_seconds = 0.2

    def __init__(self, folder: RunFolder, uri: str) -> None:
        """Send nothing yet."""
        super().__init__()
        self.folder, self.uri = folder, uri

    def exists(self) -> bool:
        """Return False for a run that was removed or refused."""
        return not self.refused and self.folder.file("run.json").exists()

    def is_active(self) -> bool:
        """Return True while the run is alive."""
        return self.folder.state() in ALIVE

    def changes(self) -> Iterator[Change]:
        """Yield the run."""
        yield Change(self.folder.path.name, fingerprint_of(self.folder), lambda: self.uri, self._sync)

    def _sync(self, server: Server) -> str:
        return server.sync(self.folder)

    def wait_for_first_steps(self) -> None:
        """Wait until the run has taken its first steps: importing mlflow beside its own imports would delay them.

        Until then there is nothing to send but its start.
        """
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.is_active():
            if "device" in self.folder.status():  # all is loaded, the first step is a moment away
                end = min(end, time.monotonic() + FIRST_STEPS_SECONDS)
            time.sleep(self.poll_seconds)


def follow_run(folder: RunFolder, uri: str) -> int:
    """Synchronise `folder` to MLflow at `uri` until its run has ended and all is sent; return the exit code."""
    loop = RunSync(folder, uri)
    run_in_background()
    loop.wait_for_first_steps()
    with locked(folder.file(".courier.lock")):  # an older process holds it while the run is alive
        code = loop.run()
    if code == 0:
        remove_if_empty(folder.file(LOG))
    return code


def run_in_background() -> None:
    """Lower this process's priority and ignore signals: it ends by itself, after the run."""
    os.nice(10)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def remove_if_empty(log: Path) -> None:
    """Remove a log that has no line."""
    with contextlib.suppress(OSError):
        if log.stat().st_size == 0:
            log.unlink()


class SyncProcess:
    """The sync process of one run, seen from the run's own process."""

    def __init__(self, folder: RunFolder, uri: str) -> None:
        """Start it; a failure to start is reported by `closing_note`, never raised."""
        self.folder, self.uri = folder, uri
        self.problem = ""
        self.process: subprocess.Popen[bytes] | None = None
        words = python_command("specvit.track", "follow", str(folder.path), "--uri", uri)
        try:
            self.process = start(words, folder.file(LOG))
        except OSError as problem:
            self.problem = f"its process did not start ({problem})"

    def closing_note(self, *, patience: float = WAIT_SECONDS) -> str:
        """Wait up to `patience` seconds for the last sync; return a note for the user if it is not complete, or ""."""
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            code = self.process.wait(patience) if self.process else 1
        if code == 0:
            return ""
        log = self.folder.file(LOG)
        if code is None and self.process:
            return f"MLflow ({self.uri}) is slow; process {self.process.pid} keeps trying, see {log}"
        reason = self.problem or f"see {log}"
        return f"MLflow ({self.uri}) has no whole record of this run ({reason}); `specvit track sync` sends it"
