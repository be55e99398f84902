"""A little disk space held back while a run works, so that a full disk can still be written down as its cause."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from specvit.utils.errors import FolderError, explain, os_fault

DISK_RESERVE_BYTES = 256 * 1024


@contextlib.contextmanager
def disk_reserve(folder: Path) -> Iterator[None]:
    """Hold the space in a file of `folder` while the block runs; raises `FolderError` if there is not even so much."""
    try:
        _take(folder / ".ballast")
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
    """Give the space back: what is written next needs it."""
    with contextlib.suppress(OSError):
        (folder / ".ballast").unlink(missing_ok=True)


def _take(path: Path) -> None:
    """Write the file unless a killed process left it; random bytes, which no file system compresses or leaves out."""
    if path.exists() and path.stat().st_size == DISK_RESERVE_BYTES:
        return
    with open(path, "wb") as stream:
        stream.write(os.urandom(DISK_RESERVE_BYTES))
        stream.flush()
        os.fsync(stream.fileno())  # space that was only promised would be no help
