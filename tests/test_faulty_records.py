"""A run's own records damaged, its code changed, and other processes that ask for the same run.

The run has four epochs of twelve steps; where it resumes it was stopped after step 31.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faults import by_day
from planted import At, Instead, Stop, wait_for
from whole_runs import STEADY, only_run, state_of

from specvit.training import checkpoint

pytestmark = pytest.mark.slow

STEP = "specvit.training.step.Learner.step"
ELSEWHERE = Instead("socket.gethostname", str)  # a host without a name


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    """Return a copy of the stopped run."""
    return Path(shutil.copytree(stopped, tmp_path / "runs" / stopped.name))


@pytest.fixture
def arguments(tiny: list[str], tmp_path: Path) -> list[str]:
    return [*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"]


def write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda run: (run / name).write_text(text)


def append(name: str, text: str) -> Callable[[Path], Any]:
    return lambda run: (run / name).write_text((run / name).read_text() + text)


def tear(name: str) -> Callable[[Path], Any]:
    return lambda run: os.truncate(run / name, (run / name).stat().st_size - 20)


def change(name: str, **facts: Any) -> Callable[[Path], Any]:
    """Return what changes facts of a JSON file."""
    return lambda run: (run / name).write_text(json.dumps({**json.loads((run / name).read_text()), **facts}))


def made_by(**facts: str) -> Callable[[Path], Any]:
    """Return what makes the checkpoint one of other code."""

    def alter(run: Path) -> None:
        content = checkpoint.load(run / "last.ckpt")
        checkpoint.save(run / "last.ckpt", {**content, "made_by": {**content["made_by"], **facts}})

    return alter


def remove(name: str) -> Callable[[Path], Any]:
    return lambda run: (run / name).unlink()


GOES_ON: dict[str, Callable[[Path], Any]] = {
    "status.json empty": write("status.json", ""),
    "status.json torn": tear("status.json"),
    "status.json missing": remove("status.json"),
    "status.json of an unknown state": change("status.json", state="finished"),
    "attempts.jsonl torn": tear("attempts.jsonl"),
    "attempts.jsonl missing": remove("attempts.jsonl"),
    "metrics.jsonl torn": append("metrics.jsonl", '{"step": 36, "epo'),
    "config.yaml damaged": write("config.yaml", "model: [a"),
    "run.json damaged": write("run.json", "{"),
    "folder renamed": lambda run: run.rename(run.with_name(f"my-best-{run.name.rpartition('-')[2]}")),
    "specvit changed": made_by(code="0123456789ab"),
    "torch changed": made_by(torch="2.0.0"),
    "another device": made_by(device="A100 (sm_80, 108 multiprocessors)"),
    "log.txt a folder": lambda run: ((run / "log.txt").unlink(), (run / "log.txt").mkdir()),
}


@pytest.mark.parametrize(
    "fault",
    by_day(
        GOES_ON,
        "status.json torn",
        "status.json missing",
        "attempts.jsonl torn",
        "metrics.jsonl torn",
        "config.yaml damaged",
        "folder renamed",
        "specvit changed",
        "another device",
        "log.txt a folder",
    ),
)
def test_a_run_resumes_with(
    fault: str, promised: Any, run: Path, trained: Any, unbroken: Any, arguments: list[str], tiny: list[str]
) -> None:
    GOES_ON[fault](run)
    ended = trained(arguments)
    assert ended.code == 0, ended.said
    again = only_run(run.parent)
    promised.kept(state=state_of(again), said=ended.said)
    promised.whole(again, unbroken([*tiny, *STEADY]))
    attempts = [json.loads(line) for line in (again / "attempts.jsonl").read_text().splitlines()[-3:]]
    assert [attempt["event"] for attempt in attempts] == ["start", "ready", "end"]
    notes = [line for line in ended.said.splitlines() if line.startswith("note: ") and "bits may differ" in line]
    assert len(notes) == (fault in ("specvit changed", "torch changed", "another device"))
    assert attempts[1].get("changed", []) == notes


REFUSED: dict[str, Callable[[Path], Any]] = {
    "run.json of another format": change("run.json", format=99),
    "run.json of another run": change("run.json", identity={"another": "run"}),
    "a copy beside it": lambda run: shutil.copytree(run, run.parent / f"backup-{run.name}"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_folder_is_refused(fault: str, promised: Any, run: Path, trained: Any, arguments: list[str]) -> None:
    REFUSED[fault](run)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    ended = trained(arguments)
    assert ended.code == 2
    promised.kept(state="refused", said=ended.said)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.name in before} == before


@pytest.mark.parametrize("name", ["summary.json", "status.json"])
def test_a_finished_run_whose_record_is_damaged(
    name: str, promised: Any, trained: Any, unbroken: Any, arguments: list[str], tiny: list[str], tmp_path: Path
) -> None:
    whole = unbroken([*tiny, *STEADY])
    run = Path(shutil.copytree(whole, tmp_path / "runs" / whole.name))
    tear(name)(run)
    ended = trained(arguments)
    assert ended.code == 0, ended.said
    promised.kept(state=state_of(run), said=ended.said)
    promised.whole(run, whole)


# other processes


def test_two_processes_ask_at_once(
    promised: Any, launch: Any, unbroken: Any, arguments: list[str], tiny: list[str], tmp_path: Path
) -> None:
    both = [launch(arguments, At(STEP, partial(wait_for, tmp_path / "go"), call=20)) for _ in range(2)]
    while all(child.process.is_alive() for child in both):
        time.sleep(0.002)
    first, second = sorted(both, key=lambda child: not child.process.is_alive())
    assert second.wait() == 2, second.said
    promised.kept(state="refused", said=second.said)
    (tmp_path / "go").touch()
    assert first.wait() == 0, first.said
    run = only_run(tmp_path / "runs")
    assert state_of(run) == "completed"
    assert (run / "metrics.jsonl").read_bytes() == (unbroken([*tiny, *STEADY]) / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_process_asks_while_another_works(
    where: str, promised: Any, launch: Any, trained: Any, arguments: list[str], tmp_path: Path
) -> None:
    first = launch(arguments, At(STEP, partial(wait_for, tmp_path / "go"), call=20))
    first.until("\nepoch 1/")
    if where == "elsewhere":  # where another host's lock is not seen
        (only_run(tmp_path / "runs") / ".lock").unlink()
    second = trained(arguments, *([ELSEWHERE] if where == "elsewhere" else []))
    assert second.code == 2, second.said
    assert f"process {first.process.pid} on " in second.said
    promised.kept(state="refused", said=second.said)
    (tmp_path / "go").touch()
    assert first.wait() == 0, first.said


BEATS: dict[str, float] = {"killed two minutes ago": -120.0, "with a clock an hour ahead": 3600.0}


@pytest.mark.parametrize("fault", BEATS)
def test_a_run_on_another_host_was(
    fault: str, promised: Any, run: Path, trained: Any, unbroken: Any, arguments: list[str], tiny: list[str]
) -> None:
    change("status.json", state="running", host="elsewhere", pid=1)(run)
    os.utime(run / ".heartbeat", times=(time.time() + BEATS[fault],) * 2)
    ended = trained(arguments)
    assert ended.code == 0, ended.said
    promised.kept(state=state_of(run), said=ended.said)
    promised.whole(run, unbroken([*tiny, *STEADY]))


def test_a_run_is_killed_and_asked_for_at_once_from_another_host(
    promised: Any, run: Path, trained: Any, unbroken: Any, arguments: list[str], tiny: list[str]
) -> None:
    assert trained(arguments, At(STEP, Stop(signal.SIGKILL), call=3)).code == -signal.SIGKILL
    (run / ".lock").unlink()
    refused = trained(arguments, ELSEWHERE)
    assert refused.code == 2
    promised.kept(state="refused", said=refused.said)
    assert trained(arguments).code == 0  # on the same host the kernel has let go of the lock
    promised_run = unbroken([*tiny, *STEADY])
    assert (run / "metrics.jsonl").read_bytes() == (promised_run / "metrics.jsonl").read_bytes()
