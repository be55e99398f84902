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

from specvit.commands.answer import Answer, Notes, notes_apart
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


def user_facing(main: Callable[..., int | Answer]) -> Callable[..., int]:
    """Wrap an entry point so that a user's mistake ends in one sentence and a signal in its usual exit code.

    With `--json` the `Answer` of `main`, or the error, is written as the one document on standard output.
    """

    @functools.wraps(main)
    @_printable_streams()
    def wrapped(arguments: list[str] | None = None) -> int:
        with notes_apart(sys.argv[1:] if arguments is None else arguments) as notes:
            try:
                answer = main(arguments)
                return _flushed(answer if isinstance(answer, int) else _written(answer, notes))
            except BrokenPipeError:
                sys.stderr.close()
                return 141
            except (SpecvitError, Interrupted, OSError, MemoryError, RecursionError, KeyboardInterrupt) as problem:
                error, code = _explained(problem)
                if isinstance(problem, OSError):
                    drop_unwritten(sys.stdout)
                print(f"specvit: {error}", file=sys.stderr)
                if notes is not None:
                    notes.refuse(error)
                return code
            finally:
                if arguments is None:  # the process ends next
                    _end_quietly_on_ctrl_c()

    return wrapped


def _written(answer: Answer, notes: Notes | None) -> int:
    assert notes is not None, "only --json asks for an Answer"
    return notes.give(answer)


def _explained(problem: BaseException) -> tuple[SpecvitError, int]:
    """Return what ended a command as an error in one sentence, and the exit code; raise what is a bug."""
    if isinstance(problem, SpecvitError):
        return problem, problem.exit_code
    if isinstance(problem, Interrupted):
        stopped = f"stopped by {problem.signal_name}"
        return SpecvitError(stopped, remedy="run the same command again to resume"), 128 + problem.signal_number
    if isinstance(problem, KeyboardInterrupt):
        return SpecvitError("stopped by Ctrl-C"), 130
    if isinstance(problem, OSError):
        return _of_system(problem), 2
    what = "memory is used up" if isinstance(problem, MemoryError) else "the input is nested too deeply"
    return SpecvitError(what, remedy="ask for less"), 2


def _end_quietly_on_ctrl_c() -> None:
    """Let Ctrl-C end the process without a traceback while Python and the libraries shut down."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _of_system(problem: OSError) -> SpecvitError:
    """Return an operating system's error as ours; raise one without a known cause or a file, which is a bug."""
    if (fault := os_fault(problem)) is not None:
        cause, remedy = explain(fault, str(fault.filename or ""))
        return SpecvitError(cause, remedy=remedy)
    if problem.filename is None:
        if isinstance(problem, FileNotFoundError) and not _has_working_folder():
            return SpecvitError("the working folder was deleted", remedy="go to another one")
        raise problem
    return SpecvitError((problem.strerror or str(problem)).lower(), where=str(problem.filename))


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
