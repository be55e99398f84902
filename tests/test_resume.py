"""Whole runs in their own processes, killed at random moments: the end is bitwise that of the unbroken run."""

import itertools
import json
import math
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from planted import At, OnceWritten, Stop, wait_for
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


def storm(kills: int) -> list[Any]:
    """Return the numbers of kills, of which each fifth is made by day, too."""
    return [pytest.param(n, marks=[pytest.mark.nightly] if n % 5 else []) for n in range(kills)]


@pytest.mark.parametrize("number", storm(KILLS))
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


@pytest.mark.parametrize("number", storm(FORKED_KILLS))
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


STEP = "specvit.engine.loop.Learner.step"
LONG = [*STEADY, "train.epochs=20"]


def test_a_run_stopped_again_and_again_ends_bitwise_equal(promised, launch, trained, unbroken, tiny, tmp_path) -> None:
    arguments = [*tiny, *LONG, f"tracking.folder={tmp_path / 'runs'}"]
    stops = 0
    for attempt in range(8):
        # Wait until one epoch is through, then a little into the next one.
        child = launch(arguments)
        child.until("\nepoch ")
        time.sleep(0.003 * (attempt % 5))
        child.send(signal.SIGTERM)
        if child.wait() == 0:
            break
        stops += 1
        promised.kept(state=state_of(only_run(tmp_path / "runs")), said=child.said)
    assert stops >= 5
    assert trained(arguments).code == 0
    promised.whole(only_run(tmp_path / "runs"), unbroken([*tiny, *LONG]))


def test_a_run_that_was_killed_says_where_it_goes_on_and_keeps_its_attempts(trained, tiny, tmp_path) -> None:
    arguments = [*tiny, *LONG, f"tracking.folder={tmp_path / 'runs'}"]
    assert trained(arguments, At(STEP, OnceWritten(Stop(signal.SIGKILL)), call=40)).code == -signal.SIGKILL
    assert "going on from step 36 (epoch 3)" in trained(arguments).said
    attempts = (only_run(tmp_path / "runs") / "attempts.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in attempts] == ["start", "ready", "start", "ready", "end"]


def test_a_second_signal_while_the_first_is_written_down(promised, launch, trained, unbroken, tiny, tmp_path) -> None:
    arguments = [*tiny, *LONG, f"tracking.folder={tmp_path / 'runs'}"]
    child = launch(arguments, At(STEP, partial(wait_for, tmp_path / "go"), call=30))
    child.until("\nepoch 2/")
    child.send(signal.SIGUSR2)
    (tmp_path / "go").touch()
    while child.process.is_alive():
        child.send(signal.SIGTERM)
        time.sleep(0.002)
    promised.kept(state=state_of(only_run(tmp_path / "runs")), said=child.said)
    assert trained(arguments).code == 0
    promised.whole(only_run(tmp_path / "runs"), unbroken([*tiny, *LONG]))


def test_a_rerun_that_was_stopped(promised, trained, unbroken, tiny, tmp_path: Path) -> None:
    arguments = [*tiny, *LONG, f"tracking.folder={tmp_path / 'runs'}"]
    assert trained(arguments).code == 0
    assert trained([*arguments, "train.rerun=true"], At(STEP, Stop(signal.SIGTERM), call=40)).code == 143
    state = state_of(only_run(tmp_path / "runs"))
    again = trained([*arguments, "train.rerun=true"])
    promised.kept(state=state, said=again.said)
    promised.whole(only_run(tmp_path / "runs"), unbroken([*tiny, *LONG]))


def test_a_hangup_under_nohup(promised, unbroken, tiny, tmp_path: Path) -> None:
    words = ["nohup", sys.executable, "-m", "specvit.train", *tiny, *LONG, f"tracking.folder={tmp_path / 'runs'}"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    before = list(itertools.takewhile(lambda line: not line.startswith("epoch 2/"), process.stdout))
    process.send_signal(signal.SIGHUP)
    after, _ = process.communicate(timeout=120)
    assert before and process.returncode == 0, after
    run = only_run(tmp_path / "runs")
    promised.kept(state=state_of(run), said=after)
    promised.whole(run, unbroken([*tiny, *LONG]))
