"""A file touched every few seconds tells other hosts that a run lives, where they do not see its lock.

Times are compared by the clock that stamps files in that folder, a file server's or ours, and never with another
host's: a clock that jumps makes no run immortal.
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


def is_fresh(path: Path) -> bool:
    """Say whether `path` was touched within the last minute; one from the future was not."""
    touched = _touched(path)
    return touched is not None and abs(_now_in(path.parent) - touched) < HEARTBEAT_DEAD_SECONDS


def stands_still(path: Path) -> bool:
    """Wait two beats and say whether none came."""
    before = _touched(path)
    time.sleep(2 * HEARTBEAT_SECONDS + 1)
    return _touched(path) == before


def _touched(path: Path) -> float | None:
    try:
        with open(path) as stream:  # opening makes a network file system ask the server, which a mere stat does not
            return os.fstat(stream.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _now_in(folder: Path) -> float:
    """Return the time by which files in `folder` are stamped; ours where nothing can be written there."""
    try:
        handle, name = tempfile.mkstemp(prefix=".probe.", suffix=".tmp", dir=folder)
    except OSError:
        return time.time()
    try:
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):  # the run's next process removes what ends in .tmp
            os.unlink(name)
