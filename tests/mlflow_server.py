"""A real MLflow server on a free port of this machine."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(database: Path, port: int) -> Iterator[str]:
    """Serve a sqlite database on `port` within the block, and its UI; yields the address."""
    words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(database.parent / "files")]
    quiet = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    with open(database.parent / "server.log", "w") as log:
        service = subprocess.Popen(words, cwd=database.parent, stdout=log, stderr=log, env=quiet, process_group=0)
    try:
        end = time.monotonic() + 120
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert service.poll() is None and time.monotonic() < end, (database.parent / "server.log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(service.pid, signal.SIGKILL)
        service.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False
