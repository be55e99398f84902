"""`--json`, the same in all commands: one document on standard output, everything else on standard error.

A command returns an `Answer` instead of printing; `commands.entry` writes it, or the error that took its place.
For users: docs/json.md.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from specvit.utils.errors import ConfigError, SpecvitError
from specvit.utils.files import drop_unwritten, finite
from specvit.utils.text import PrintableStream, hide_secrets, unfiltered

FLAG, VERSION = "--json", 1


@dataclass(frozen=True)
class Answer:
    """A command's document, without its schema, and the exit code."""

    command: str
    """As in the schema's name: `sweep.status`."""
    facts: dict[str, Any]
    code: int = 0


class Notes(PrintableStream):
    """Standard output while a command answers in JSON: documents go to `answers`, what is printed to standard error."""

    def __init__(self, answers: Any) -> None:
        """Documents go to the stream `answers`."""
        super().__init__(unfiltered(sys.stderr))
        self.answers = answers

    def give(self, answer: Answer) -> int:
        """Write a document and return the exit code."""
        self._write(answer.command, answer.facts)
        return answer.code

    def refuse(self, error: SpecvitError) -> None:
        """Write the document of an error, if that is possible; its sentence is on standard error anyway."""
        faults = [_parts(part) for part in getattr(error, "parts", ())]
        try:
            self._write("error", {"error": {**_parts(error), "faults": faults}})
        except OSError:
            drop_unwritten(self.answers)

    def _write(self, command: str, facts: dict[str, Any]) -> None:
        document = {"schema": f"specvit.{command}/{VERSION}", **facts}
        print(json.dumps(finite(document), indent=2, allow_nan=False), file=self.answers, flush=True)


@contextlib.contextmanager
def notes_apart(words: Sequence[str]) -> Iterator[Notes | None]:
    """Divert what is printed if the command line asks for JSON, else yield None; the inner of two changes nothing."""
    before = sys.stdout
    if isinstance(before, Notes) or not any(_is_flag(word) for word in words):
        yield before if isinstance(before, Notes) else None
        return
    sys.stdout = notes = Notes(unfiltered(before))
    try:
        yield notes
    finally:
        sys.stdout = before


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option to the parser of a command that returns an `Answer` where it is given."""
    parser.add_argument(FLAG, action="store_true", help="print one JSON document (docs/json.md)")


def refuse_beside(flags: Sequence[str]) -> None:
    """Raise `ConfigError` if any of `flags`, which choose another form of output, is given beside `--json`."""
    if flags:
        raise ConfigError(f"does not go with {flags[0]}", where=FLAG, remedy="leave one of them out")


def _is_flag(word: str) -> bool:
    """Return True for the flag and the beginnings that argparse takes for it."""
    return len(word) > 2 and FLAG.startswith(word.partition("=")[0])


def _parts(error: SpecvitError) -> dict[str, str]:
    return {name: hide_secrets(getattr(error, name)) for name in ("what", "where", "remedy")}
