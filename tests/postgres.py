"""A real PostgreSQL server on a free port of this machine, in a folder that goes with it."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_server import free_port

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Serve an empty database within the block; yields its URL. Skips the test where no server is installed."""
    found = shutil.which("initdb", path=os.pathsep.join([str(p) for p in PROGRAMS[-1:]] + [os.environ["PATH"]]))
    if found is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: postgresql)")
    programs, place = Path(found).resolve().parent, Path(tempfile.mkdtemp(prefix="specvit-pg-"))
    user = None
    if os.geteuid() == 0:  # the server refuses to be root's
        user = "nobody"
        os.chown(place, pwd.getpwnam(user).pw_uid, -1)
    port, data = free_port(), place / "data"
    make = [programs / "initdb", "-D", data, "-U", "specvit", "-A", "trust", "--no-sync"]
    subprocess.run(make, user=user, cwd="/", check=True, capture_output=True)
    options = ["-h", "127.0.0.1", "-p", str(port), "-k", str(place)]
    server = subprocess.Popen(
        [programs / "postgres", "-D", data, *options], user=user, cwd="/", stderr=subprocess.DEVNULL
    )
    try:
        ready, end = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)], time.monotonic() + 60
        while subprocess.run(ready, cwd="/").returncode != 0:
            assert server.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        yield f"postgresql+psycopg://specvit@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # not waiting for its clients
        server.wait()
        shutil.rmtree(place)
