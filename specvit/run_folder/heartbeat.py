"""A file touched every few seconds tells other hosts that a run lives, where they do not see its lock.

Times are compared by the clock that stamps files in that folder, a file server's or ours, and never with another
host's: a clock that jumps makes no run immortal. Only a process that writes there learns that clock; one that merely
looks needs no right to write, and takes its own.
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
_ahead: dict[int, float] = {}
"""By how much a file system's clock is ahead of our monotonic one, by device."""


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
    """Say whether `path` was touched within the last minute; one from the future was not.

    With `probe` a temporary file beside it tells the clock by which it is stamped.
    """
    touched = _touched(path)
    if touched is None:
        return False
    if probe:
        _learn_clock(path.parent)
    ahead = _ahead.get(path.parent.stat().st_dev)
    now = time.time() if ahead is None else time.monotonic() + ahead
    return abs(now - touched) < HEARTBEAT_DEAD_SECONDS


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


def _learn_clock(folder: Path) -> None:
    """Note the time by which files in `folder` are stamped, unless nothing can be written there."""
    try:
        handle, name = tempfile.mkstemp(prefix=".probe.", suffix=".tmp", dir=folder)
    except OSError:
        return
    try:
        stamp = os.fstat(handle)
        _ahead[stamp.st_dev] = stamp.st_mtime - time.monotonic()
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):  # the run's next process removes what ends in .tmp
            os.unlink(name)
