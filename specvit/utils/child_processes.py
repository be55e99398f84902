"""Processes that this one starts in the background: they run the code of specvit that this one runs.

Python puts the working folder, or a script's own, before everything else that it imports. Of a child neither may count:
a `statistics.py` of the user's, or another clone of specvit, that lies there would run in place of what is meant.
"""

import contextlib
import os
import shlex
import site
import subprocess
import sys
from pathlib import Path

SAFE_PATH = "PYTHONSAFEPATH"
"""Set to anything, it keeps the working folder off Python's path; of children of children, too."""


def python_command(module: str, *words: str) -> list[str]:
    """Return the command line of a module, for `start`."""
    return [sys.executable, "-m", module, *words]


def python_environment() -> dict[str, str]:
    """Return the environment in which a child imports the same specvit, then what PYTHONPATH names."""
    folder, theirs = import_folder(), os.environ.get("PYTHONPATH", "")
    has_it = not folder or f"{theirs}:".startswith(f"{folder}:")  # a child's child
    path = theirs if has_it else f"{folder}:{theirs}" if theirs else folder
    return {**os.environ, SAFE_PATH: "1", **({"PYTHONPATH": path} if path else {})}


def shell_exports(code: Path | None = None) -> list[str]:
    """Return the same as lines of a job's script; `code` is a copy of the package's folder to be run in its place."""
    folder = str(code or import_folder())
    path = [f'export PYTHONPATH={shlex.quote(folder)}"${{PYTHONPATH:+:$PYTHONPATH}}"'] if folder else []
    return [f"export {SAFE_PATH}=1", *path]


def import_folder() -> str:
    """Return the folder that holds this package, "" where it is installed: every process of this Python sees it there.

    Installed packages are not to come before the standard library, as what stands in PYTHONPATH does.
    """
    folder = Path(__file__).resolve().parents[2]
    installed = [Path(path).resolve() for path in (*site.getsitepackages(), site.getusersitepackages())]
    return "" if folder in installed else str(folder)


def start(words: list[str], log: Path, environment: dict[str, str] | None = None) -> "subprocess.Popen[bytes]":
    """Start a process that adds to `log`, in a session of its own: Ctrl-C is this one's to pass on."""
    with open(log, "ab") as stream:
        return subprocess.Popen(
            words,
            env=environment or python_environment(),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )


def start_ticks(pid: int) -> str | None:
    """Return when a process of this host started, in clock ticks since boot; None if unknown, as outside of Linux.

    With the host's name it identifies a process for good: process numbers are used again.
    """
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]  # field 22 of proc(5)
    return None
