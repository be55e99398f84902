"""What the workers of a test run make once and share."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path


def once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Return `folder`, filled by `make(folder)` in the first process that asks; others wait until it is done."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if lock.tell() == 0:  # nobody has noted that it is done
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            lock.write("done\n")
    return folder
