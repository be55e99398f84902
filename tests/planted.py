"""Faults to plant in a process of its own at exact moments. Imports neither torch nor pytest.

Each is a callable that can be sent to the process, which calls it before it trains.
"""

import base64
import builtins
import gc
import importlib
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Act = Callable[[], object]


@dataclass(frozen=True)
class Stop:
    """Sends a signal to the process that it is called in."""

    number: int

    def __call__(self) -> None:
        """Send it."""
        os.kill(os.getpid(), self.number)


@dataclass(frozen=True)
class Fail:
    """Raises an error."""

    error: BaseException

    def __call__(self) -> None:
        """Raise it."""
        raise self.error


@dataclass(frozen=True)
class OnceWritten:
    """Acts when every checkpoint that was handed over so far is on disk."""

    act: Act = bool

    def __call__(self) -> None:
        """Wait for the thread that writes them, then act."""
        from specvit.training.checkpoint import AsyncCheckpointWriter

        for writer in [thing for thing in gc.get_objects() if type(thing) is AsyncCheckpointWriter]:
            futures.wait(list(writer._pending))
        self.act()


@dataclass(frozen=True)
class At:
    """Acts at the `call`-th call of `where`, before it or `after` it has returned; `lasting`: at all later ones, too.

    `where` is the dotted name under which the running program looks the function up.
    """

    where: str
    act: Act
    call: int = 1
    after: bool = False
    lasting: bool = False

    def __call__(self) -> None:
        """Put a counting function in the place of the real one."""
        owner, name = find(self.where)
        real, calls = getattr(owner, name), 0

        def counting(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            due = calls == self.call or (self.lasting and calls > self.call)
            if due and not self.after:
                self.act()
            result = real(*arguments, **named)
            if due and self.after:
                self.act()
            return result

        setattr(owner, name, counting)


@dataclass(frozen=True)
class Changed:
    """Changes what the `call`-th call of `where` returns, and if `lasting` all later ones."""

    where: str
    change: Callable[[Any], Any]
    call: int = 1
    lasting: bool = False

    def __call__(self) -> None:
        """Put a function that changes it in the place of the real one."""
        owner, name = find(self.where)
        real, calls = getattr(owner, name), 0

        def changing(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            result = real(*arguments, **named)
            return self.change(result) if calls == self.call or (self.lasting and calls > self.call) else result

        setattr(owner, name, changing)


@dataclass(frozen=True)
class Instead:
    """Puts a value in the place of `where`."""

    where: str
    value: Any

    def __call__(self) -> None:
        """Put it there."""
        setattr(*find(self.where), self.value)


def save_blank(figure: object, path: Path) -> None:
    """Write an image of one pixel in the place of a figure: drawing takes more than half of a small run's time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(BLANK_PNG))


BLANK_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
BLANK_FIGURES = [Instead("specvit.tracking.figures.save", save_blank)]
"""Nothing is drawn; all else that belongs to a figure is done."""


@dataclass(frozen=True)
class AtImport:
    """Acts when a module is about to be imported."""

    module: str
    act: Act

    def __call__(self) -> None:
        """Look at each import first."""
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Find nothing, but act at the module's name."""
        if name == self.module:
            self.act()


@dataclass(frozen=True)
class AtRename:
    """Acts just before the `call`-th rename of a file to `name`."""

    name: str
    act: Act
    call: int = 1

    def __call__(self) -> None:
        """Put a counting function in the place of the real one."""
        real, calls = os.replace, 0

        def counting(source: Any, target: Any) -> None:
            nonlocal calls
            calls += Path(target).name == self.name
            if calls == self.call and Path(target).name == self.name:
                self.act()
            real(source, target)

        os.replace = counting


@dataclass(frozen=True)
class Torn:
    """Lets only half of the `write`-th text reach the files called `name`, then acts."""

    name: str
    act: Act
    write: int = 1

    def __call__(self) -> None:
        """Hand out streams that count."""
        real, writes = builtins.open, 0

        def opened(file: Any, *arguments: Any, **named: Any) -> Any:
            stream = real(file, *arguments, **named)
            if not isinstance(file, str | Path) or Path(file).name != self.name or not stream.writable():
                return stream
            whole = stream.write

            def half(text: Any) -> int:
                nonlocal writes
                writes += 1
                if writes != self.write:
                    return whole(text)
                middle = len(text) // 2
                whole(text[:middle])
                stream.flush()
                self.act()
                return middle + whole(text[middle:])

            stream.write = half
            return stream

        builtins.open = opened


@dataclass(frozen=True)
class TornCheckpoint:
    """Lets the first `size` bytes of the `call`-th checkpoint reach its file, then acts."""

    act: Act
    call: int = 1
    size: int = 10_000

    def __call__(self) -> None:
        """Save through a stream that counts."""
        import torch

        real, calls = torch.save, 0

        def save(content: Any, stream: Any) -> None:
            nonlocal calls
            calls += 1
            real(content, _Counted(stream, self) if calls == self.call else stream)

        torch.save = save


class _Counted:
    def __init__(self, stream: Any, torn: TornCheckpoint) -> None:
        self.stream, self.left, self.torn = stream, torn.size, torn

    def write(self, data: Any) -> int:
        data, cut = bytes(data), self.left
        self.left -= len(data)
        if not 0 <= cut < len(data):
            return self.stream.write(data)
        self.stream.write(data[:cut])
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.torn.act()
        return cut + self.stream.write(data[cut:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def wait_for(path: Path) -> None:
    """Wait until there is a file, for a minute at most."""
    end = time.monotonic() + 60.0
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.002)


def limit(kind: int, amount: int) -> None:
    """Set a limit of this process; memory counts from what it has now."""
    if kind == resource.RLIMIT_AS:
        amount += int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(kind, (amount, amount))


def find(where: str) -> tuple[Any, str]:
    """Return the module or class in which the last part of a dotted name stands, and that part."""
    parts = where.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            owner = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:-1]:
            owner = getattr(owner, part)
        getattr(owner, parts[-1])  # a misspelt name shows here
        return owner, parts[-1]
    raise ModuleNotFoundError(where)
