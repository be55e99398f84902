"""What every entry point does with an error: one sentence on stderr and an exit code, no traceback."""

import argparse
import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from specvit.utils.errors import ConfigError, Interrupted, SpecvitError, explain, os_fault
from specvit.utils.files import drop_unwritten
from specvit.utils.text import PrintableStream


class Parser(argparse.ArgumentParser):
    """Refuses in one sentence, without the usage around it; an empty word, of a variable that is not set, too."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Read the command line; raises `ConfigError`."""
        words = list(sys.argv[1:] if args is None else args)
        for before, word in zip(["", *words], words, strict=False):
            if not word or (word.startswith("--") and word.endswith("=")):
                where = word.rstrip("=") or (before if before.startswith("-") else self.prog)
                what = "is given an empty value"
                raise ConfigError(what, where=where, remedy="is a variable not set? leave it out, or give it one")
        return super().parse_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and leaving."""
        raise ConfigError(message, where=self.prog, remedy="--help shows what it takes")


@contextlib.contextmanager
def _printable_streams() -> Iterator[None]:
    """Spell out control characters in all that is printed: names in files of others may hold some."""
    _accept_any_text()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (s if hasattr(s, "unfiltered") else PrintableStream(s) for s in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def user_facing(main: Callable[..., int]) -> Callable[..., int]:
    """Wrap an entry point so that a user's mistake ends in one sentence and a signal in its usual exit code."""

    @functools.wraps(main)
    @_printable_streams()
    def wrapped(arguments: list[str] | None = None) -> int:
        try:
            return _flushed(main(arguments))
        except SpecvitError as error:
            print(f"specvit: {error}", file=sys.stderr)
            return error.exit_code
        except Interrupted as stop:
            print(f"specvit: stopped by {stop.signal_name}; run the same command again to resume.", file=sys.stderr)
            return 128 + stop.signal_number
        except BrokenPipeError:
            sys.stderr.close()
            return 141
        except OSError as problem:
            drop_unwritten(sys.stdout)
            print(f"specvit: {_sentence(problem)}.", file=sys.stderr)
            return 2
        except (MemoryError, RecursionError) as problem:
            what = "memory is used up" if isinstance(problem, MemoryError) else "something given is nested too deeply"
            print(f"specvit: {what}; ask for less.", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("specvit: stopped by Ctrl-C.", file=sys.stderr)
            return 130

    return wrapped


def _sentence(problem: OSError) -> str:
    """Return what the operating system refused; an error that names neither a known cause nor a file is a bug."""
    if (fault := os_fault(problem)) is not None:
        return "; ".join(explain(fault, str(fault.filename or "")))
    if problem.filename is None:
        if isinstance(problem, FileNotFoundError) and not _has_working_folder():
            return "the working folder was deleted; go to another one"
        raise problem
    return f"{problem.filename}: {(problem.strerror or str(problem)).lower()}"


def _has_working_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _accept_any_text() -> None:
    """Print what an output's encoding lacks as ?; what goes to an output that was closed (>&-) is lost."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _flushed(code: int) -> int:
    """Flush what was printed and return `code`: left to Python's end, a full disk would be an exception there."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads any more
        drop_unwritten(sys.stdout)
    return code
