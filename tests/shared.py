"""What the workers of a test run make once and share."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Return `folder`, filled by `make(folder)` in the first process that asks; others wait until it is done."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.fstat(lock.fileno()).st_size:  # not done yet; `tell` is from before the wait
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            lock.write("done\n")
    return folder
