"""Entry points: errors become one sentence on stderr and an exit code, without a traceback."""

import argparse
import contextlib
import functools
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from specvit.utils.errors import ConfigError, Interrupted, SpecvitError, explain, os_fault
from specvit.utils.files import drop_unwritten
from specvit.utils.text import PrintableStream


class Parser(argparse.ArgumentParser):
    """Raises `ConfigError` instead of printing the usage, also for an empty argument, as from an unset variable."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Read the command line; raises `ConfigError`."""
        words = list(sys.argv[1:] if args is None else args)
        for before, word in zip(["", *words], words, strict=False):
            if not word or (word.startswith("--") and word.endswith("=")):
                where = word.rstrip("=") or (before if before.startswith("-") else self.prog)
                what = "is given an empty value"
                raise ConfigError(what, where=where, remedy="is a variable not set? leave it out, or give it one")
        return super().parse_args(words, namespace)

    def awaited(self, words: list[str]) -> tuple["Parser", argparse.Action | None, list[str]]:
        """Return the parser of the next word (perhaps a sub-command's), the action that takes it, the positionals.

        The action is None where the word can only be an option.
        """
        parser, option, seen = self, None, list[str]()
        for word in words:
            known = parser._option_string_actions.get(word.partition("=")[0])
            if option is not None:
                option = None
            elif known is not None:
                option = known if known.nargs != 0 and "=" not in word else None
            elif (inner := parser._positional(len(seen))) is not None and inner.nargs == argparse.PARSER:
                parser, seen = (inner.choices or {}).get(word, parser), []  # pyright: ignore[reportAttributeAccessIssue]
            else:
                seen.append(word)
        return parser, option or parser._positional(len(seen)), seen

    def options(self) -> list[str]:
        """Return the names of its options."""
        return list(self._option_string_actions)

    def _positional(self, number: int) -> argparse.Action | None:
        """Return the positional that takes the word of this number; the last one may take all further ones."""
        found = [action for action in self._actions if not action.option_strings]
        if number < len(found):
            return found[number]
        return found[-1] if found and found[-1].nargs in ("*", "+") else None

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError` with the parser's message."""
        raise ConfigError(message, where=self.prog, remedy="--help shows what it takes")


@contextlib.contextmanager
def _printable_streams() -> Iterator[None]:
    """Escape control characters in all output: names in users' files may contain them."""
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
            what = "memory is used up" if isinstance(problem, MemoryError) else "the input is nested too deeply"
            print(f"specvit: {what}; ask for less.", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("specvit: stopped by Ctrl-C.", file=sys.stderr)
            return 130
        finally:
            if arguments is None:  # the process ends next
                _end_quietly_on_ctrl_c()

    return wrapped


def _end_quietly_on_ctrl_c() -> None:
    """Let Ctrl-C end the process without a traceback while Python and the libraries shut down."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _sentence(problem: OSError) -> str:
    """Return an operating system's error as a sentence; raise one without a known cause or a file, which is a bug."""
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
    """Print characters that the encoding lacks as ?; discard output to a closed stream (>&-)."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _flushed(code: int) -> int:
    """Flush the output and return `code`: at Python's exit a full disk would raise an exception."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed the pipe
        drop_unwritten(sys.stdout)
    return code
