"""Files that are either whole or absent, records in JSON and YAML, and locks that die with their process."""

import contextlib
import errno
import fcntl
import itertools
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from specvit.utils.errors import DataError, FolderError

if TYPE_CHECKING:
    import yaml

MAX_YAML_VALUES = 100_000
"""Most values, keys included, that an alias of a YAML file may stand for."""


def write_atomic(path: Path, write: Callable[[IO[bytes]], Any], *, keep: Path | None = None) -> None:
    """Let `write(stream)` fill a temporary file beside `path`, flush it to disk, then rename it over `path`.

    A reader sees the old file or the new one, never a part. On any error the old file remains. With `keep` the old
    file is renamed to that; a kill between the two renames leaves it there, and nothing at `path`.
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


def finite(value: Any) -> Any:
    """Return a nested value with NaN and infinities as None, which JSON can hold."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, default: Any = None) -> Any:
    """Read a JSON object; returns `default` for a file that is missing, damaged or holds something else.

    Raises `OSError` where a file cannot be read.
    """
    try:
        found = json.loads(read_text(path))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return default
    return found if isinstance(found, dict) else default


def read_text(path: Path) -> str:
    """Read text; retries after a passing fault of a file server (ESTALE, EIO)."""
    for pause in (0.1, 0.3):
        try:
            return path.read_text(errors="replace")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
            raise
        except OSError:
            time.sleep(pause)
    return path.read_text(errors="replace")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file, one a line; none if it is missing. Incomplete lines are skipped."""
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for line in read_text(path).splitlines():
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                found += [value] if isinstance(value, dict) else []
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML record; raises `OSError` for a file that cannot be read, and `FolderError` for a damaged one."""
    import yaml  # not at the top: a GPU benchmark imports this module without PyYAML

    try:
        text = path.read_text(encoding="utf-8")
        check_aliases(text)
        record = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as problem:  # not UTF-8, or a number of thousands of digits
        raise FolderError("is damaged", where=str(path), remedy="train it again") from problem
    if not isinstance(record, dict):
        raise FolderError("is damaged: it holds no keys with values", where=str(path), remedy="train it again")
    return record


def check_aliases(text: str) -> None:
    """Raise `yaml.YAMLError` for aliases that contain themselves or stand for more than `MAX_YAML_VALUES` values.

    Twenty-five lines of aliases of aliases expand to 33 million values in whatever copies or prints them.
    """
    if "*" not in text:
        return
    import yaml

    sizes: dict[int, float] = {}

    def size(node: "yaml.Node") -> float:
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = float("inf")  # what an alias within the node itself counts
            parts = itertools.chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
            sizes[id(node)] = 1 + sum(map(size, parts))
        if sizes[id(node)] > MAX_YAML_VALUES:
            what = f"an alias refers to itself or to more than {MAX_YAML_VALUES:,} values"
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {what}")
        return sizes[id(node)]

    if (root := yaml.compose(text, yaml.SafeLoader)) is not None:
        size(root)


def copy_folders(sources: dict[Path, str], target: Path) -> None:
    """Copy folders to their places in `target`, later ones over earlier ones; `target` is whole or absent.

    One writer at a time. Compiled code and dead links, such as the locks of an editor, are skipped.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    for leftover in (temporary, target.with_name(f".{target.name}.old")):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    for source, place in sources.items():
        for folder, _, names in os.walk(source, followlinks=True):
            if Path(folder).name == "__pycache__":
                continue
            inside = temporary / place / Path(folder).relative_to(source)
            inside.mkdir(parents=True, exist_ok=True)
            for name in names:
                if os.path.isfile(os.path.join(folder, name)):
                    shutil.copyfile(os.path.join(folder, name), inside / name)
    if target.exists():
        os.replace(target, target.with_name(f".{target.name}.old"))
    os.replace(temporary, target)
    shutil.rmtree(target.with_name(f".{target.name}.old"), ignore_errors=True)


def check_space(target: Path, needed: int) -> None:
    """Raise `DataError` if the disk of a file or folder to be written has fewer than `needed` bytes left."""
    there = next(folder for folder in (target.absolute(), *target.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        what = f"{needed / 1e9:.2f} GB are needed but {free / 1e9:.2f} GB are free"
        raise DataError(what, where=str(target), remedy="free some space there, or name a target elsewhere")


def append_line(path: Path, record: dict[str, Any], *, durable: bool = False) -> None:
    """Append `record` as one line of JSON, in one write, so that lines of several processes stay whole.

    An incomplete last line, after a full disk or a power failure, is ended first. `durable`: flush it to the disk.
    Raises `OSError` where the line could not be written whole.
    """
    with open(path, "ab+", buffering=0) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 1))
        torn = size > 0 and stream.read(1) != b"\n"
        line = b"\n" * torn + json.dumps(record).encode() + b"\n"
        if stream.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if durable:
            os.fsync(stream.fileno())


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of a killed writer in `folder`; call it only with the folder locked."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, *, seconds: float = float("inf")) -> Iterator[bool]:
    """Hold an exclusive `flock` on `path`; yields False if another process still has it after `seconds`.

    The kernel releases the lock when the process dies, however it dies.
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
    """Return True if a process holds `locked(path)`. The test takes a shared lock, so tests do not see each other."""
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
    """Discard output that can no longer be written (disk full, terminal closed), so that Python does not retry it.

    The retry at Python's exit would change the exit code.
    """
    with contextlib.suppress(OSError, ValueError):  # no file descriptor, or closed
        descriptor = stream.fileno()
        original, null = os.dup(descriptor), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, descriptor)
            stream.flush()
        finally:
            os.dup2(original, descriptor)
            os.close(original)
            os.close(null)


def cache_dir() -> Path:
    """Return specvit's cache folder: `SPECVIT_CACHE`, else `$XDG_CACHE_HOME/specvit`, else `~/.cache/specvit`."""
    if own := os.environ.get("SPECVIT_CACHE"):
        return _expanded(own, "SPECVIT_CACHE")
    return _expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME") / "specvit"


def _expanded(text: str, variable: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as problem:
        what = f"{text!r} begins with the home of a user that this machine does not know"
        raise FolderError(what, where=variable, remedy="set SPECVIT_CACHE=FOLDER") from problem


def _umask() -> int:
    """Return the process's umask, if possible without setting it, which is not thread-safe."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    current = os.umask(0)
    os.umask(current)
    return current


def _sync_folder(folder: Path) -> None:
    """Make the rename durable; some network file systems refuse, which is ignored."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
