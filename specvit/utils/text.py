"""Text made safe for its readers: names and URLs come from users' files and go into tables, records and terminals.

A spreadsheet evaluates a cell that begins like a formula, a terminal obeys escape codes, a markdown cell ends at a
pipe, and a record must not hold a password or token.
"""

import argparse
import csv
import difflib
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""All but tab and new line; the last two ranges change the direction of writing."""
_SECRET = r"passw|passphrase|pwd|token|secret|api[-_]?key|access[-_]?key|credential|signature"
_NAME = re.compile(rf"[\w.-]*(?:{_SECRET})[\w.-]*|pass|key|sig|auth", re.IGNORECASE)
_URL = re.compile(r"([a-z][a-z0-9+.-]*://)(?:[^\s@/]*:[^@\n]{0,200}@)?[^\s\"'<>]+", re.IGNORECASE)
"""Passwords may hold spaces and quotes."""


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Return rows as CSV with a header; by default the columns of all rows, in order of first appearance."""
    names = list(dict.fromkeys(name for row in rows for name in row)) if columns is None else columns
    return csv_lines([names, *([row.get(name) for name in names] for row in rows)])


def csv_lines(cells: Sequence[Sequence[Any]]) -> str:
    """Return lines of cells as CSV."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([map(safe_cell, line) for line in cells])
    return stream.getvalue()


def safe_cell(value: Any) -> Any:
    """Return a cell of CSV: an apostrophe precedes text that a spreadsheet would take for a formula."""
    if not isinstance(value, str):
        return value
    value = value.replace("\r", " ")  # which would end the line
    if not value.lstrip().startswith(("=", "+", "-", "@")) or value == "-":
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def markdown_table(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a markdown table."""
    head, *body = cells
    for line in (head, ["---"] * len(head), *body):
        yield f"| {' | '.join(' '.join(text.splitlines()).replace('|', chr(92) + '|') for text in line)} |"


def text_table(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        yield "  ".join(map(str.ljust, line, widths)).rstrip()


def printable(text: str) -> str:
    """Return text with control characters written as escape sequences, such as backslash x1b."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class PrintableStream:
    """A stream that escapes control characters; `unfiltered` is the wrapped stream, for progress bars."""

    def __init__(self, unfiltered: Any) -> None:
        """Wrap `unfiltered`."""
        self.unfiltered = unfiltered

    def __getattr__(self, name: str) -> Any:
        """Delegate everything else to the wrapped stream."""
        return getattr(self.unfiltered, name)

    def write(self, text: str) -> int:
        """Write; a lone carriage return passes, since a progress line is overwritten with it."""
        self.unfiltered.write(text if text == "\r" else printable(text))
        return len(text)


def unfiltered(stream: Any) -> Any:
    """Return the stream that a `PrintableStream` wraps; any other stream unchanged."""
    return getattr(stream, "unfiltered", stream)


def nearest(word: str, words: Iterable[str]) -> str:
    """Return "did you mean X? " for the word of `words` nearest to `word`, or an empty string."""
    by_lower = {w.lower(): w for w in words}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return f"did you mean {by_lower[near[0]]}? " if near else ""


def counted(count: float, noun: str, nouns: str = "") -> str:
    """Return "1 run" or "2,000 runs"; `nouns` is the plural where it takes more than an s."""
    return f"{count:,} {noun if count == 1 else nouns or f'{noun}s'}"


def short_count(count: int) -> str:
    """Return 5k for 5000, 1m for 1000000, 1234 for 1234."""
    for size, letter in ((1_000_000, "m"), (1000, "k")):
        if count >= size and count % size == 0:
            return f"{count // size}{letter}"
    return str(count)


def read_count(text: str, least: int = 1) -> int:
    """Return 5000 for 5000 or 5k, 1000000 for 1m; raises `ArgumentTypeError` for less than `least` and other text."""
    found = re.fullmatch(r"([0-9]{1,15})([km]?)", text.strip().lower())
    count = int(found[1]) * {"": 1, "k": 1000, "m": 1_000_000}[found[2]] if found else -1
    if count < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}, such as 500, 5k or 1m")
    return count


def short_value(value: Any) -> str:
    """Return a setting's value for people: a number that a search drew with three digits, 0.00606.

    One with up to six digits is written in full, as in a study's file.
    """
    if not isinstance(value, float):
        return str(value)
    return f"{value:.6g}" if float(f"{value:.6g}") == value else f"{value:.3g}"


def holds_secret(url: str) -> bool:
    """Return True for a URL with a password or access token before its host or among its parameters."""
    scheme, _, rest = url.partition("://")
    parts = re.split(r"[?#]", rest, maxsplit=1)
    names = [part.partition("=")[0].strip() for part in re.split(r"[&;?#\s]", _decoded("&".join(parts[1:])))]
    if any(_NAME.fullmatch(name) for name in names):
        return True
    if rest.startswith("/"):  # a file
        return False
    user = re.match(r"[^@/?#]*@", _decoded(rest))
    return bool(re.match(r"[^@/]*:[^@]*@", _decoded(rest)) or (user and scheme.lower().startswith("http")))


def hide_secrets(text: str) -> str:
    """Return text in which every URL with a secret is reduced to its scheme."""
    return _URL.sub(lambda found: f"{found[1]}***" if holds_secret(found[0]) else found[0], text)


def _decoded(text: str) -> str:
    """Return text decoded from percent-encoding, up to three times nested."""
    for _ in range(3):
        text = unquote(text)
    return text
