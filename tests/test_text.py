"""Names and questions of others act on nothing that shows them: spreadsheets, terminals, tables, pages."""

import contextlib
import csv
import io
import os
import pty
import sys

import pytest

from specvit.commands.entry import user_facing
from specvit.tracking.console import Console
from specvit.utils.text import csv_text, markdown_table, printable

CLEAR = "\x1b[2J\x1b]0;owned\x07\x9b31m\rname\u202e"


def test_a_cell_that_a_spreadsheet_would_compute_is_text_and_numbers_stay_numbers() -> None:
    texts = ['=HYPERLINK("http://x")', "+cmd|' /C calc'!A0", "-1+1", "@SUM(1)", "\t=1", "\r=1"]
    numbers = [-0.5, 1e-3, "-0.5", "+1.5e-3", "-inf", "nan", None, "-", "a=b"]
    rows = list(csv.reader(io.StringIO(csv_text([{"=x": text} for text in [*texts, *numbers]]), newline="")))
    assert rows[0] == ["'=x"]
    assert [row[0] for row in rows[1 : len(texts) + 1]] == [f"'{text}".replace("\r", " ") for text in texts]
    shown = ["-0.5", "0.001", "-0.5", "+1.5e-3", "-inf", "nan", "", "-", "a=b"]
    assert [row[0] if row else "" for row in rows[len(texts) + 1 :]] == shown


def test_a_pipe_or_a_new_line_breaks_no_markdown_table() -> None:
    assert list(markdown_table([["a"], ["x|y\nz"]])) == ["| a |", "| --- |", "| x\\|y z |"]


def test_control_characters_are_spelt_out() -> None:
    assert printable("tab\tand\nline é") == "tab\tand\nline é"
    assert printable(CLEAR) == "\\x1b[2J\\x1b]0;owned\\x07\\x9b31m\\rname\\u202e"


def test_what_a_command_prints_sends_no_escape_codes(capsys: pytest.CaptureFixture[str]) -> None:
    @user_facing
    def main(arguments: list[str] | None = None) -> int:
        Console("lines").say(CLEAR)
        print(CLEAR)
        print(CLEAR, file=sys.stderr)
        print("going", end="\r")
        return 0

    before = sys.stdout, sys.stderr
    assert main([]) == 0
    assert (sys.stdout, sys.stderr) == before
    said = capsys.readouterr()
    assert not any(sign in said.out.replace("going\r", "") + said.err for sign in "\x1b\x07\x9b\r\u202e")
    assert said.out.count("\\x1b[2J") == 2 and said.err.count("\\x1b[2J") == 1


def test_a_bar_on_a_terminal_still_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")

    @user_facing
    def main(arguments: list[str] | None = None) -> int:
        console = Console("auto")
        assert console.style == "bar"
        console.rich.print("[bold]x[/bold]")
        console.say(CLEAR)
        return 0

    with os.fdopen(theirs, "w") as terminal, contextlib.redirect_stdout(terminal):
        assert main([]) == 0
    said = os.read(ours, 4096).decode()
    os.close(ours)
    assert "\x1b[1m" in said and "\x1b[2J" not in said
