"""Files that are either whole or absent, and locks that die with their process."""

import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any


def write_atomic(path: Path, write: Callable[[IO[bytes]], Any], *, keep: Path | None = None) -> None:
    """Let `write(stream)` fill a temporary file beside `path`, flush it to disk, then rename it over `path`.

    A reader sees the old file or the new one, never a part. On any error the old file stays as it was. With `keep`
    the old file takes that name at last; a kill between the two renames leaves it there, and nothing at `path`.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        if keep is not None:
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, keep)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    write_atomic(path, lambda stream: stream.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=False, default=str) + "\n")


def read_json(path: Path, default: Any = None) -> Any:
    """Read JSON; a missing or damaged file gives `default`."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return default


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file with one a line; none if it is missing, and without lines cut off in writing."""
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for line in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                found += [value] if isinstance(value, dict) else []
    return found


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files that a killed writer left in `folder`; call it only with the folder locked."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, *, seconds: float = float("inf")) -> Iterator[bool]:
    """Hold an exclusive `flock` on `path`; yields False if another process still has it after `seconds`.

    The kernel lets go of the lock when the process dies, however it dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + seconds
    with open(path, "a") as stream:
        while not _try_lock(stream, fcntl.LOCK_EX):
            if time.monotonic() >= until:
                yield False
                return
            time.sleep(0.02)
        yield True


def is_locked(path: Path) -> bool:
    """Say whether a process holds `locked(path)`. Looking takes a shared lock, so lookers do not see each other."""
    try:
        with open(path) as stream:
            return not _try_lock(stream, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _try_lock(stream: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def drop_unwritten(stream: Any) -> None:
    """Empty the buffer of an output stream that a full disk or a terminal that is gone does not take.

    What is left in it would be tried again at the end of Python, which then changes the exit code.
    """
    with contextlib.suppress(OSError, ValueError):  # no file descriptor, or closed
        descriptor = stream.fileno()
        kept, nowhere = os.dup(descriptor), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, descriptor)
            stream.flush()
        finally:
            os.dup2(kept, descriptor)
            os.close(kept)
            os.close(nowhere)


def cache_dir() -> Path:
    """Return specvit's cache folder: `SPECVIT_CACHE`, else `$XDG_CACHE_HOME/specvit`, else `~/.cache/specvit`."""
    if own := os.environ.get("SPECVIT_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "specvit"


def _umask() -> int:
    """Return the process's umask, read where that is possible without setting it, which threads would do in turns."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    current = os.umask(0)
    os.umask(current)
    return current


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; some network file systems refuse, and then it is theirs to keep."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
