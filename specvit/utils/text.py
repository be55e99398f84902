"""Text for readers of all kinds: names and questions come from files of others, and must not act on what shows them.

A spreadsheet computes a cell that begins as a formula, a terminal obeys escape codes, a markdown table ends at a pipe.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""All but tab and new line; the last two ranges turn the direction of writing."""


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Return rows as CSV with a header; without `columns` those of all rows, in the order in which they come up."""
    names = list(dict.fromkeys(name for row in rows for name in row)) if columns is None else columns
    return csv_lines([names, *([row.get(name) for name in names] for row in rows)])


def csv_lines(cells: Sequence[Sequence[Any]]) -> str:
    """Return lines of cells as CSV."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([map(safe_cell, line) for line in cells])
    return stream.getvalue()


def safe_cell(value: Any) -> Any:
    """Return a cell of CSV: text that a spreadsheet would take for a formula has an apostrophe before it."""
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
    """Return text in which control characters are spelt out, an escape as x1b behind a backslash."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class PrintableStream:
    """A stream that spells out control characters; `unfiltered` is the one below, for bars that need them."""

    def __init__(self, unfiltered: Any) -> None:
        """`unfiltered` is where the text goes."""
        self.unfiltered = unfiltered

    def __getattr__(self, name: str) -> Any:
        """Be the stream in all else."""
        return getattr(self.unfiltered, name)

    def write(self, text: str) -> int:
        """Write; a carriage return alone is the end of a line that is to be written over."""
        self.unfiltered.write(text if text == "\r" else printable(text))
        return len(text)


def unfiltered(stream: Any) -> Any:
    """Return the stream below a `PrintableStream`, or any other as it is."""
    return getattr(stream, "unfiltered", stream)


def short_count(count: int) -> str:
    """Return 5k for 5000, 1m for 1000000, 1234 for 1234."""
    for size, letter in ((1_000_000, "m"), (1000, "k")):
        if count >= size and count % size == 0:
            return f"{count // size}{letter}"
    return str(count)
