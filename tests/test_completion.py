"""Completion in the shells themselves, and what a line may become."""

import contextlib
import os
import pty
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from handmade import make_run, make_study

from specvit.commands.completion import BASH, completions
from specvit.run_folder.folder import RunFolder

PROGRAM = Path(sys.executable).parent
SHELLS = ["bash", "zsh", "fish"]
LINES = [
    ("specvit swe", "sweep"),
    ("specvit sweep sta", "status"),
    ("specvit sweep status to", "toy"),
    ("specvit sweep why toy-aaaa00", "toy-aaaa0001"),
    ("specvit evaluate aaaa", "aaaa0001"),
    ("specvit evaluate x --dev", "--device"),
    ("specvit predict aaaa", "aaaa0001"),
    ("specvit predict --study to", "toy"),
    ("specvit train sweeps=tokenization_s", "sweeps=tokenization_small"),
    ("specvit train opt.lr=1 hydra/launcher=sl", "hydra/launcher=slurm"),
    ("specvit train opt.lr_", "opt.lr_sch="),
    ("specvit evaluate x --data sha", "shard.h5"),
]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a run, a study that has it and a run that never began, and a file."""
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "outputs" / "toy-aaaa0001")
    make_study(tmp_path / "multirun" / "toy", [run, RunFolder(tmp_path / "outputs" / "other-bbbb0002", "bbbb0002")])
    (tmp_path / "shard.h5").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        *[(line, [word]) for line, word in LINES[:-1]],
        ("specvit evaluate x --data sha", []),
        ("specvit sweep retry toy ", ["toy-aaaa0001", "other-bbbb0002"]),
        ("specvit sweep retry toy aaaa0001 b", ["bbbb0002"]),
        ("specvit sweep table --metric x to", ["toy"]),
        ("specvit sweep diff a aaa", ["aaaa0001"]),
        ("specvit sweep table toy --style ", ["text", "csv", "markdown"]),
        ("specvit sweep table toy --style=csv --met", ["--metric"]),
        ("specvit analysis ablation to", ["toy", "toy-aaaa0001"]),
        ("specvit analysis scaling toy --style ", ["full", "single"]),
        ("specvit analysis scaling toy --reference p", ["published"]),
        ("specvit analysis report toy --template ", []),
        ("specvit analysis report toy --template ow", ["owner_zh"]),
        ("specvit train data/size=1", ["data/size=100k", "data/size=10k", "data/size=1k", "data/size=1m"]),
        ("specvit train sweep.dr", ["sweep.dry_run="]),
        ("specvit train trac", ["tracking=", "tracking."]),
        ("specvit train --mul", ["--multirun"]),
        ("specvit doctor --c", ["--cluster"]),
        ("specvit doctor model.dropout=0 --a", ["--against"]),
        ("specvit completion f", ["fish"]),
        ("specvit nothing ", []),
        ("specvit evaluate x y", []),
    ],
)
def test_a_line_may_become(line: str, offered: list[str]) -> None:
    assert completions(line) == offered


def test_names_that_a_shell_would_interpret_are_not_offered(place: Path) -> None:
    for name in ("$(touch PWNED)", "*", "a b", "a\nb", "a\tb", "a;b", "~", "a'b", "`c`"):
        make_study(place / "multirun" / name, [make_run(place / "outputs" / name)])
    assert completions("specvit sweep status ") == ["toy"]
    assert completions("specvit evaluate ") == ["toy-aaaa0001"]


def test_bash_inserts_no_word_that_it_would_interpret(place: Path) -> None:
    """Even if the command offered such words: `*` stays one word, and there is one for each line."""
    (place / "specvit").write_text("#!/bin/sh\nprintf '%s\\n' '*' 'a b' '$(touch PWNED)'\n")
    (place / "specvit").chmod(0o755)
    script = f"{BASH}\nCOMP_LINE='specvit ' COMP_POINT=8; _specvit ./specvit; printf '<%s>' \"${{COMPREPLY[@]}}\""
    answer = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, timeout=60)
    assert answer.stdout == "<*><a b><$(touch PWNED)>", answer.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("line", "offered"), LINES)
@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes(shell: str, line: str, offered: str) -> None:
    if shell != "bash" and shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    if shell == "fish":
        script = f"specvit completion fish | source; complete -C '{line}'"
        answer = subprocess.run(["fish", "-N", "-c", script], env=environment(), capture_output=True, timeout=60)
        assert offered in answer.stdout.decode().split()
    else:
        whole = f"{line.rpartition(' ')[0]} {offered}"
        assert typed(shell, line, whole) == whole


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{PROGRAM}:{os.environ['PATH']}", "TERM": "dumb", "HISTFILE": "/dev/null"}


def typed(shell: str, line: str, whole: str) -> str:
    """Return what an interactive shell makes of a line and a tab, which may take a while to become `whole`.

    The shell then prints the words instead of running them.
    """
    flags = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"]}[shell]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(shell, [shell, *flags], environment())
    try:
        os.write(terminal, f'PS1="rea""dy> "; eval "$(specvit completion {shell})"\n'.encode())
        read_until(terminal, "ready> ")
        os.write(terminal, b"print_words() { printf 'made<%s>\\n' \"$*\"; }\n")
        read_until(terminal, "ready> ")
        os.write(terminal, f"{line}\t".encode())
        with contextlib.suppress(AssertionError):
            read_until(terminal, whole, seconds=20)
        os.write(terminal, b"\x01print_words \n")
        return read_until(terminal, "made<", ">").rpartition("made<")[2].partition(">")[0].strip()
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


def read_until(terminal: int, *words: str, seconds: float = 60) -> str:
    """Return what the terminal shows until it has shown the last of the words after the first."""
    shown = ""
    while select.select([terminal], [], [], seconds)[0]:
        shown += os.read(terminal, 4096).decode(errors="replace")
        start = shown.rfind(words[0])
        if start >= 0 and shown.find(words[-1], start) >= 0:
            return shown
    raise AssertionError(f"{words} not shown in {shown!r}")
