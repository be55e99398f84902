"""A process beside the run that synchronises its run folder to MLflow.

A process, not a thread: importing mlflow takes seconds of pure Python, which would hold up the training loop, and a
server that hangs, a full disk or a bug there cannot touch the run. It needs nothing from the run but the folder, so it
outlives a run that is killed, and sends how that ended.
"""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from specvit.run_folder.folder import ALIVE, RunFolder
from specvit.tracking.mlflow import Server
from specvit.tracking.run_record import fingerprint_of
from specvit.utils.errors import TrackingError, TrackingRefused
from specvit.utils.files import locked
from specvit.utils.processes import python_command, start

LOG = "tracking.log"
POLL_SECONDS = 0.2
WAIT_SECONDS = 10.0
"""How long a finished run's command waits for its record; the process continues without it."""
START_SECONDS, FIRST_STEPS_SECONDS = 10.0, 1.0
"""How long it waits at most for the run's data and network, and then for its first steps."""
PATIENCE_SECONDS = 120.0
"""How long the process retries after the run has ended."""
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)


class MlflowSync:
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


def follow(folder: RunFolder, uri: str, *, patience: float = PATIENCE_SECONDS) -> int:
    """Synchronise `folder` to MLflow at `uri` until its run has ended and all is sent; return the exit code.

    Failures are retried, at longer intervals, and for `patience` seconds after the run's end.
    """
    run_in_background()
    _let_it_start(folder)
    with locked(folder.file(".courier.lock")):  # an older process holds it while the run is alive
        return _sync_until_ended(folder, uri, patience)


def _let_it_start(folder: RunFolder) -> None:
    """Wait until the run has taken its first steps: importing mlflow beside its own imports would delay them.

    Until then there is nothing to send but its start.
    """
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and folder.state() in ALIVE:
        if "device" in folder.status():  # all is loaded, the first step is a moment away
            end = min(end, time.monotonic() + FIRST_STEPS_SECONDS)
        time.sleep(POLL_SECONDS)


def _sync_until_ended(folder: RunFolder, uri: str, patience: float) -> int:
    server: Server | None = None
    synced, failures, ended = "", 0, 0.0
    while folder.file("run.json").exists():
        alive, fingerprint = folder.state() in ALIVE, fingerprint_of(folder)
        if not alive and not ended:
            ended = time.monotonic()
        ended = 0.0 if alive else ended
        if fingerprint != synced:
            try:
                server = server or Server(uri)
                server.sync(folder)
                synced, failures = fingerprint, 0
            except (TrackingError, OSError) as problem:
                pause = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
                failures += 1
                with contextlib.suppress(OSError):  # the log may be on a full disk
                    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {problem}", flush=True)
                if isinstance(problem, TrackingRefused) or (ended and time.monotonic() - ended > patience):
                    return 1
                time.sleep(pause)
                continue
        elif not alive:
            _remove_if_empty(folder.file(LOG))
            return 0
        time.sleep(POLL_SECONDS)
    return 0  # somebody removed the run


def _remove_if_empty(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.stat().st_size == 0:
            path.unlink()


def run_in_background() -> None:
    """Lower this process's priority and ignore signals: it ends by itself, after the run."""
    os.nice(10)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
