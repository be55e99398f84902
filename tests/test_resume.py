"""Whole runs in their own processes, killed at random moments: the end is bitwise that of the unbroken run."""

import itertools
import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import Child
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


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tiny) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("unbroken")
    started = time.monotonic()
    subprocess.run(command(folder, tiny), check=True, capture_output=True, timeout=120)
    return only_run(folder), time.monotonic() - started


def moment_of(number: int, kills: int, seconds: float) -> float:
    """Return a random moment in the `number`-th of equal parts of a run's time."""
    return (number + random.Random(number).random()) / kills * seconds


@pytest.mark.parametrize("number", range(KILLS))
def test_a_run_killed_at_a_random_moment_ends_bitwise_equal(
    number: int, reference, promised, trained, tiny, tmp_path: Path
) -> None:
    unbroken, seconds = reference
    kill_with, moment = SIGNALS[number % len(SIGNALS)], max(0.5, moment_of(3 * number % KILLS, KILLS, seconds))
    for attempt in range(4):  # a kill that comes after the end shows nothing: try again, earlier
        folder = tmp_path / f"runs-{attempt}"
        process = subprocess.Popen(command(folder, tiny), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        time.sleep(moment / 1.5**attempt)
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
def steady(tmp_path_factory, tiny) -> tuple[Path, float]:
    """Return the folder of the unbroken run that forked processes make, and its seconds there."""
    place, seconds = tmp_path_factory.mktemp("steady"), 0.0
    for number in range(3):  # the first one waits for the server to start
        child = Child([*tiny, *STEADY, f"tracking.folder={place / str(number)}"], (), place / f"{number}.txt")
        child.until_started()
        started = time.monotonic()
        assert child.wait() == 0, child.said
        child.close()
        seconds = time.monotonic() - started
    return only_run(place / "0"), seconds


@pytest.mark.parametrize("number", range(FORKED_KILLS))
def test_a_forked_run_killed_at_a_random_moment_ends_bitwise_equal(
    number: int, steady, promised, launch, trained, tiny, tmp_path: Path
) -> None:
    unbroken, seconds = steady
    kill_with, moment = SIGNALS[number % len(SIGNALS)], moment_of(number, FORKED_KILLS, seconds)
    for attempt in range(6):
        folder = tmp_path / f"runs-{attempt}"
        child = launch([*tiny, *STEADY, f"tracking.folder={folder}"])
        child.until_started()
        time.sleep(moment / 1.5**attempt)
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


def test_a_run_that_was_killed_says_where_it_goes_on_and_keeps_its_attempts(launch, trained, tiny, tmp_path) -> None:
    arguments = [*tiny, *LONG, f"tracking.folder={tmp_path / 'runs'}"]
    child = launch(arguments)
    child.until("\nepoch 3/")
    child.send(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    again = trained(arguments)
    assert re.search(r"going on from step \d+ \(epoch \d+\)", again.said)
    attempts = (only_run(tmp_path / "runs") / "attempts.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in attempts] == ["start", "ready", "start", "ready", "end"]


def test_a_second_signal_while_the_first_is_written_down(promised, launch, trained, unbroken, tiny, tmp_path) -> None:
    arguments = [*tiny, *LONG, f"tracking.folder={tmp_path / 'runs'}"]
    child = launch(arguments)
    child.until("\nepoch 2/")
    child.send(signal.SIGUSR2)
    while child.process.is_alive():
        child.send(signal.SIGTERM)
        time.sleep(0.002)
    promised.kept(state=state_of(only_run(tmp_path / "runs")), said=child.said)
    assert trained(arguments).code == 0
    promised.whole(only_run(tmp_path / "runs"), unbroken([*tiny, *LONG]))


def test_a_rerun_that_was_stopped(promised, launch, trained, unbroken, tiny, tmp_path: Path) -> None:
    arguments = [*tiny, *LONG, f"tracking.folder={tmp_path / 'runs'}"]
    assert trained(arguments).code == 0
    child = launch([*arguments, "train.rerun=true"])
    child.until("\nepoch 3/")
    child.send(signal.SIGTERM)
    child.wait()
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
