"""Real small file systems, where mounting is permitted."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(path: Path, kilobytes: int) -> Iterator[Path]:
    """Mount a memory file system of this size at `path`; skips the test where that is not permitted."""
    path.mkdir(parents=True)
    mounted = _mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(path))
    if mounted:
        pytest.skip(f"no file system can be mounted here: {mounted}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[Path]:
    """Make `path` read-only for everybody, root included, while the block runs."""
    mounted = _mount("--bind", str(path), str(path)) or _mount("-o", "remount,ro,bind", str(path))
    if mounted:
        pytest.skip(f"no file system can be mounted here: {mounted}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(path: Path) -> None:
    """Take all the space that is left on the disk of `path`, the last kilobyte, too."""
    with open(path, "ab", buffering=0) as stream, contextlib.suppress(OSError):
        for size in (2**16, 2**12, 2**10, 1):
            with contextlib.suppress(OSError):
                while stream.write(b"\1" * size):
                    pass


def _mount(*arguments: str) -> str:
    """Return why a mount failed, "" if it did not."""
    try:
        found = subprocess.run(["mount", *arguments], capture_output=True, text=True, timeout=20)
    except OSError as problem:
        return str(problem)
    return found.stderr.strip() if found.returncode else ""
