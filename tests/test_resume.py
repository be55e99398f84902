"""Whole runs in their own processes, killed at random moments: the end is bitwise that of the unbroken run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from specvit.engine import checkpoint

pytestmark = pytest.mark.slow

SIGNALS = [
    signal.SIGKILL,
    signal.SIGTERM,
    signal.SIGKILL,
    signal.SIGINT,
    signal.SIGKILL,
    signal.SIGUSR1,
    signal.SIGKILL,
    signal.SIGUSR2,
]
KILLS = 20


def command(folder: Path, overrides: list[str]) -> list[str]:
    # Dropout, shuffling and noise are on; enough steps that kills fall into training, evaluation and saving alike.
    settings = [
        "model.dropout=0.1",
        "noise.noise_level=1.0",
        "train.epochs=30",
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


def start_and_wait_for(words: list[str], beginning: str) -> subprocess.Popen[str]:
    """Start a run and return once it has printed a line that starts so."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(beginning):
            break
    return process


def only_run(folder: Path) -> Path:
    (run,) = folder.iterdir()
    return run


def same_content(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same_content(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same_content(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def assert_same_run(run: Path, reference: Path) -> None:
    for name in ("metrics.jsonl", "predictions.csv", "summary.json"):
        assert (run / name).read_bytes() == (reference / name).read_bytes(), name
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = checkpoint.load(run / name), checkpoint.load(reference / name)
        for content in (ours, theirs):  # where the folder lies and how it was asked for may differ, nothing else
            content["config"]["tracking"], content["config"]["train"]["rerun"] = {}, False
        assert same_content(ours, theirs), name


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tiny) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("unbroken")
    started = time.monotonic()
    subprocess.run(command(folder, tiny), check=True, capture_output=True, timeout=120)
    return only_run(folder), time.monotonic() - started


@pytest.mark.parametrize("number", range(KILLS))
def test_a_run_killed_at_a_random_moment_ends_bitwise_equal(number: int, reference, tiny, tmp_path: Path) -> None:
    unbroken, seconds = reference
    kill_with = SIGNALS[number % len(SIGNALS)]
    moment = random.Random(number).uniform(0.1, 1.0) * seconds
    for attempt in range(4):  # a kill that comes after the end shows nothing: try again, earlier
        folder = tmp_path / str(attempt)
        words = command(folder, tiny)
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        time.sleep(moment / 1.5**attempt)
        process.send_signal(kill_with)
        output, _ = process.communicate(timeout=120)
        assert "Traceback" not in output
        if process.returncode != 0:
            break
    # Stopped by our handler (128 + n), or by kill -9 or before the handler stood (-n).
    assert process.returncode in (128 + kill_with, -kill_with), output
    again = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stdout + again.stderr
    assert_same_run(only_run(folder), unbroken)


def test_a_run_stopped_again_and_again_ends_bitwise_equal(reference, tiny, tmp_path: Path) -> None:
    unbroken, _ = reference
    stops = 0
    for attempt in range(8):
        # Wait until one epoch is through, then a little into the next one.
        process = start_and_wait_for(command(tmp_path, tiny), "epoch")
        time.sleep(0.005 * (attempt % 5))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
        if process.returncode == 0:
            break
        assert process.returncode == 128 + signal.SIGTERM
        stops += 1
    assert stops >= 5
    subprocess.run(command(tmp_path, tiny), check=True, capture_output=True, timeout=120)
    assert_same_run(only_run(tmp_path), unbroken)


def test_ctrl_c_saves_says_so_and_leaves_the_state_preempted(tiny, tmp_path: Path) -> None:
    process = start_and_wait_for(command(tmp_path, tiny), "epoch")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "preempted: stopped by SIGINT; saved, the same command goes on" in output
    status = json.loads((only_run(tmp_path) / "status.json").read_text())
    assert (status["state"], status["cause"]) == ("preempted", "stopped by SIGINT")
    saved = checkpoint.load(only_run(tmp_path) / "last.ckpt")
    assert saved["state"]["step"] >= 1


def test_a_process_that_was_killed_leaves_a_lost_run_that_goes_on(tiny, tmp_path: Path) -> None:
    process = start_and_wait_for(command(tmp_path, tiny), "epoch 3")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    again = subprocess.run(command(tmp_path, tiny), capture_output=True, text=True, timeout=120)
    assert "this run was lost before; going on" in again.stdout
    assert "going on from step" in again.stdout
    attempts = [json.loads(line) for line in (only_run(tmp_path) / "attempts.jsonl").read_text().splitlines()]
    assert [a["event"] for a in attempts] == ["start", "ready", "start", "ready", "end"]


def test_a_second_signal_while_the_first_is_written_down_loses_nothing(tiny, tmp_path: Path) -> None:
    process = start_and_wait_for(command(tmp_path, tiny), "epoch 2")
    process.send_signal(signal.SIGUSR2)
    for _ in range(200):
        time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        if process.poll() is not None:
            break
    process.communicate(timeout=120)
    status = json.loads((only_run(tmp_path) / "status.json").read_text())
    assert status["state"] == "preempted"
    assert status["cause"].startswith("stopped by SIG")


def test_a_rerun_that_was_stopped_goes_on_with_the_same_command(reference, tiny, tmp_path: Path) -> None:
    subprocess.run(command(tmp_path, tiny), check=True, capture_output=True, timeout=120)
    again = [*command(tmp_path, tiny), "train.rerun=true"]
    process = start_and_wait_for(again, "epoch 3")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    third = subprocess.run(again, capture_output=True, text=True, timeout=120)
    assert "going on from step" in third.stdout
    assert_same_run(only_run(tmp_path), reference[0])


def test_a_run_under_nohup_is_not_stopped_by_a_hangup(tiny, tmp_path: Path) -> None:
    process = start_and_wait_for(["nohup", *command(tmp_path, tiny)], "epoch 2")
    process.send_signal(signal.SIGHUP)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
