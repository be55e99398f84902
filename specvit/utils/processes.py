"""Processes that this one starts: background commands and pools of workers.

Python puts the working folder, or a script's own, first on its import path. A child must not import from either: a
user's `statistics.py` or another clone of specvit in that folder would replace the module that is meant.
"""

import contextlib
import errno
import multiprocessing
import os
import shlex
import signal
import site
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SAFE_PATH = "PYTHONSAFEPATH"
"""Environment variable that keeps the working folder off the import path of a child and of its children."""
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def python_command(module: str, *words: str) -> list[str]:
    """Return the command line of a module, for `start`."""
    return [sys.executable, "-m", module, *words]


def python_environment() -> dict[str, str]:
    """Return an environment in which a child imports this copy of specvit; PYTHONPATH follows it."""
    folder, inherited = import_folder(), os.environ.get("PYTHONPATH", "")
    has_folder = not folder or f"{inherited}:".startswith(f"{folder}:")  # in a child's child
    path = inherited if has_folder else f"{folder}:{inherited}" if inherited else folder
    return {**os.environ, SAFE_PATH: "1", **({"PYTHONPATH": path} if path else {})}


def shell_exports(code: Path | None = None) -> list[str]:
    """Return `python_environment` as lines of a job's script; `code` is a copy of the package to run instead."""
    folder = str(code or import_folder())
    path = [f'export PYTHONPATH={shlex.quote(folder)}"${{PYTHONPATH:+:$PYTHONPATH}}"'] if folder else []
    return [f"export {SAFE_PATH}=1", *path]


def import_folder() -> str:
    """Return the folder that holds this package, "" where it is installed and every process of this Python imports it.

    The folder of installed packages must not come before the standard library, as entries of PYTHONPATH do.
    """
    folder = Path(__file__).resolve().parents[2]
    installed = [Path(path).resolve() for path in (*site.getsitepackages(), site.getusersitepackages())]
    return "" if folder in installed else str(folder)


def start(words: list[str], log: Path, environment: dict[str, str] | None = None) -> "subprocess.Popen[bytes]":
    """Start a process that appends to `log`, in its own session: it gets Ctrl-C only if this process passes it on."""
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

    Process numbers are reused; with its start a process is identified for good.
    """
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]  # field 22 of proc(5)
    return None


class _Pool(ProcessPoolExecutor):
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Start a process if one is missing; raises `BrokenProcessPool` also if one dies in that moment.

        The new process's pipe is broken then, or after another's death the pool has closed the queue that it needs.
        """
        try:
            return super().submit(fn, *args, **kwargs)
        except OSError as problem:
            if problem.errno not in (errno.EPIPE, errno.EBADF, None):  # None: multiprocessing's "handle is closed"
                raise
            raise BrokenProcessPool("a process died as one started") from problem


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of fresh single-threaded processes, which never outlive this one; pending work is dropped at exit.

    Raises `BrokenProcessPool` if one of them died, perhaps for lack of memory.
    """
    os.environ[SAFE_PATH] = "1"  # until they get our path, they would import from the working folder
    context, others = multiprocessing.get_context("spawn"), multiprocessing.active_children()
    pool = _Pool(workers, mp_context=context, initializer=_start_worker)
    try:
        yield pool
    except BrokenProcessPool:  # shutdown would wait forever for a process that is just starting
        for child in multiprocessing.active_children():
            if child not in others:
                child.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, which ends the pool, and exit if the parent is killed."""
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))  # before the first task imports numpy
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
