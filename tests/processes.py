"""Processes of their own for runs. Imports neither torch nor pytest.

A process is forked from a server that has imported everything already, so that it is one's own to kill and yet starts
at once.
"""

import base64
import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from planted import BLANK_FIGURES, Act

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
SERVER = multiprocessing.get_context("forkserver")
IMPORTED = "specvit.train specvit.run.run specvit.run.train_network specvit.run.evaluation specvit.tracking.figures"
IMPORTED += " hydra hydra._internal.hydra pandas tables torch._inductor torch._dynamo"
IMPORTED += " matplotlib.figure matplotlib.font_manager matplotlib.backends.backend_agg PIL.PngImagePlugin"
SERVER.set_forkserver_preload(IMPORTED.split())


def computed(pid: int) -> float:
    """Return the seconds for which a process's main thread has had a CPU, whoever else works on it."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except (OSError, IndexError):
        return 0.0  # it has just ended


def wait_until_computed(pid: int, seconds: float, lives: Callable[[], bool]) -> float:
    """Wait until a process has computed so long, or has ended; return for how long it was seen to."""
    seen = 0.0
    while lives() and seen < seconds:
        seen = max(seen, computed(pid))
        time.sleep(0.002)
    return seen


class Child:
    """`specvit train` in a process forked for it, with blank figures; `said` is all that it has printed."""

    def __init__(self, arguments: Sequence[str], plants: Iterable[Act], output: Path) -> None:
        """Start it, in this process's folder and environment."""
        self.output = output
        output.touch()
        handed = (list(arguments), str(output), [*BLANK_FIGURES, *plants], dict(os.environ))
        self.process = SERVER.Process(target=_train, args=handed)
        self.process.start()

    @property
    def said(self) -> str:
        """What it has printed until now."""
        return self.output.read_text()

    def until_started(self) -> None:
        """Wait until it has come to the run."""
        while not self.output.with_suffix(".started").exists():
            assert self.process.is_alive(), self.said
            time.sleep(0.001)

    def until(self, words: str, seconds: float = 60.0) -> None:
        """Wait until it has printed `words`."""
        end = time.monotonic() + seconds
        lives = True
        while words not in self.said:
            assert lives and time.monotonic() < end, self.said
            lives = self.process.is_alive()
            time.sleep(0.002)

    def send(self, number: int) -> None:
        """Send it a signal, if it still lives."""
        assert self.process.pid is not None
        if self.process.is_alive():
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.process.pid, number)

    def wait(self, seconds: float = 120.0) -> int:
        """Return its exit code, -n if signal n ended it."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, self.said
        return self.process.exitcode

    def close(self) -> None:
        """End it, if it still lives."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.process.close()


def _train(arguments: list[str], output: str, plants: list[Act], environment: dict[str, str]) -> None:
    """Be the child."""
    stream = os.open(output, os.O_WRONLY | os.O_APPEND)
    for standard in (sys.stdout, sys.stderr):
        standard.flush()
        os.dup2(stream, standard.fileno())
        standard.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(environment)
    _take_part(plants)
    from specvit.commands.train import main

    Path(output).with_suffix(".started").touch()
    sys.exit(main(arguments))


def _take_part(plants: Iterable[Act]) -> None:
    """Handle signals as in a terminal, whatever the tests were started from, and plant."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in SIGNALS[1:]:
        signal.signal(number, signal.SIG_DFL)
    sys.argv = ["specvit train"]
    for plant in plants:
        plant()


@contextlib.contextmanager
def ready_process(code: str, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """Run code in a Python of its own until it says that it is ready; kill it in the end."""
    child = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def whole_process(arguments: Sequence[str], plants: Iterable[Act] = ()) -> subprocess.Popen[str]:
    """Start a run in a Python of its own, with what is planted in it before it imports anything of specvit."""
    code = "import sys; sys.path.append(sys.argv[1]); import processes; sys.exit(processes.main(*sys.argv[2:]))"
    packed = base64.b64encode(pickle.dumps(list(plants))).decode()
    words = [sys.executable, "-c", code, str(Path(__file__).parent), packed, *arguments]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def main(packed: str, *arguments: str) -> int:
    """Be such a process."""
    _take_part(pickle.loads(base64.b64decode(packed)))
    from specvit.commands.train import main as train

    return train(list(arguments))
