"""Whole runs in their own processes, killed at random moments: the end is bitwise that of the unbroken run."""

import math
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults import by_day
from processes import Child, computed, wait_until_computed
from whole_runs import STEADY, only_run, state_of

pytestmark = pytest.mark.slow

KILL = signal.SIGKILL
SIGNALS = [KILL, signal.SIGTERM, KILL, signal.SIGINT, KILL, signal.SIGUSR1, KILL, signal.SIGUSR2, KILL, signal.SIGHUP]
KILLS, FORKED_KILLS = 20, 40


def command(folder: Path, overrides: list[str]) -> list[str]:
    # Dropout, shuffling and noise are on; enough steps that kills fall into training, evaluation and saving alike.
    settings = [
        "model.dropout=0.1",
        "noise.noise_level=1.0",
        "train.epochs=12",
        "train.threads=1",
        "train.deterministic=true",
        "train.eval_every=7steps",
        "train.log_every=2steps",
        "train.save_every=0.4",
    ]
    settings += [
        "model.hidden_size=64",
        "model.intermediate_size=128",
        "model.patch_size=8",
        "model.num_hidden_layers=2",
    ]
    return [sys.executable, "-m", "specvit.train", *overrides, *settings, f"tracking.folder={folder}"]


def begin(folder: Path, overrides: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command(folder, overrides), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tiny) -> tuple[Path, float]:
    """Return the folder of the unbroken run and the seconds that it computed."""
    folder = tmp_path_factory.mktemp("unbroken")
    process = begin(folder, tiny)
    seconds = wait_until_computed(process.pid, math.inf, lambda: process.poll() is None)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return only_run(folder), seconds


def moment_of(number: int, kills: int, seconds: float) -> float:
    """Return a random moment in the `number`-th of equal parts of a run."""
    return (number + random.Random(number).random()) / kills * seconds


@pytest.mark.nightly
@pytest.mark.parametrize("number", range(KILLS))
def test_a_run_killed_at_a_random_moment_ends_bitwise_equal(
    number: int, reference, promised, trained, tiny, tmp_path: Path
) -> None:
    unbroken, seconds = reference
    kill_with, moment = SIGNALS[number % len(SIGNALS)], max(0.5, moment_of(3 * number % KILLS, KILLS, seconds))
    for attempt in range(4):  # a kill that comes after the end shows nothing: try again, earlier
        folder = tmp_path / f"runs-{attempt}"
        process = begin(folder, tiny)
        wait_until_computed(process.pid, moment / 1.2**attempt, lambda process=process: process.poll() is None)
        process.send_signal(kill_with)
        output, _ = process.communicate(timeout=120)
        assert "Traceback" not in output
        if "completed: " not in output:
            break
    # Stopped by our handler (128 + n), or by kill -9 or before the handler stood (-n).
    assert process.returncode in (128 + kill_with, -kill_with), output
    state = state_of(only_run(folder)) if folder.exists() else "nothing yet"
    again = trained(command(folder, tiny)[3:])
    assert again.code == 0, again.said
    promised.kept(state=state, said=again.said)
    promised.whole(only_run(folder), unbroken)


@pytest.fixture(scope="module")
def steady(tmp_path_factory, tiny) -> tuple[Path, float, float]:
    """Return the unbroken run that forked processes make, and the seconds computed before it and in it."""
    place, before, after = tmp_path_factory.mktemp("steady"), 0.0, 0.0
    for number in range(2):  # the first one waits for the server to start
        child = Child([*tiny, *STEADY, f"tracking.folder={place / str(number)}"], (), place / f"{number}.txt")
        child.until_started()
        before = computed(child.process.pid)
        after = wait_until_computed(child.process.pid, math.inf, child.process.is_alive)
        assert child.wait() == 0, child.said
        child.close()
    return only_run(place / "0"), before, after - before


@pytest.mark.parametrize("number", by_day(range(FORKED_KILLS), 0, 14, 21, 38))
def test_a_forked_run_killed_at_a_random_moment_ends_bitwise_equal(
    number: int, steady, promised, launch, trained, tiny, tmp_path: Path
) -> None:
    unbroken, before, seconds = steady
    kill_with, moment = SIGNALS[number % len(SIGNALS)], moment_of(number, FORKED_KILLS, seconds)
    for attempt in range(6):
        folder = tmp_path / f"runs-{attempt}"
        child = launch([*tiny, *STEADY, f"tracking.folder={folder}"])
        child.until_started()
        wait_until_computed(child.process.pid, before + moment / 1.2**attempt, child.process.is_alive)
        child.send(kill_with)
        code = child.wait()
        assert "Traceback" not in child.said
        if "completed: " not in child.said:
            break
    assert code in (128 + kill_with, -kill_with), child.said
    state = state_of(only_run(folder)) if folder.exists() else "nothing yet"
    again = trained([*tiny, *STEADY, f"tracking.folder={folder}"])
    assert again.code == 0, again.said
    promised.kept(state=state, said=again.said)
    promised.whole(only_run(folder), unbroken)
