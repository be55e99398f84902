"""A file touched every few seconds shows other hosts that a run is alive, if they do not see its lock.

Ages are measured by the clock that sets file times in that folder (this host's, or the file server's), never by
another host's, so that a wrong clock does not keep a dead run alive. Only a process that may write there can read that
clock; others use their own.
"""

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

HEARTBEAT_SECONDS = 5.0
HEARTBEAT_DEAD_SECONDS = 60.0
_offsets: dict[int, float] = {}
"""File system's clock minus our monotonic clock, in seconds, by device."""


@contextlib.contextmanager
def heartbeat(path: Path) -> Iterator[None]:
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


def is_fresh(path: Path, *, probe: bool = False) -> bool:
    """Return True if `path` was touched within the last minute; a time in the future does not count.

    With `probe` a temporary file beside it measures the clock that sets its time.
    """
    touched = _touched(path)
    if touched is None:
        return False
    if probe:
        _measure_clock(path.parent)
    offset = _offsets.get(path.parent.stat().st_dev)
    now = time.time() if offset is None else time.monotonic() + offset
    return abs(now - touched) < HEARTBEAT_DEAD_SECONDS


def has_stopped(path: Path) -> bool:
    """Wait for two beats and return True if none came."""
    before = _touched(path)
    time.sleep(2 * HEARTBEAT_SECONDS + 1)
    return _touched(path) == before


def _touched(path: Path) -> float | None:
    try:
        with open(path) as stream:  # opening makes a network file system ask the server, unlike stat
            return os.fstat(stream.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _measure_clock(folder: Path) -> None:
    """Measure the clock that sets file times in `folder`, unless it is not writable."""
    try:
        handle, name = tempfile.mkstemp(prefix=".probe.", suffix=".tmp", dir=folder)
    except OSError:
        return
    try:
        stamp = os.fstat(handle)
        _offsets[stamp.st_dev] = stamp.st_mtime - time.monotonic()
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):  # the run's next process removes files that end in .tmp
            os.unlink(name)
