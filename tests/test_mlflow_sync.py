"""The process that tells MLflow while runs go on: real runs, databases, a real server, and what befalls them."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import free_port, serving
from mounts import fill, small_disk

from specvit.commands.track import main, runs_in
from specvit.run_folder.folder import DONE, RunFolder
from specvit.tracking.mlflow import KEY_TAG, SYNCED_TAG, Server
from specvit.tracking.run_record import fingerprint_of
from specvit.utils.files import read_json_lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
LONG = ["train.epochs=800", "train.threads=1"]
SHORT = ["train.epochs=6", "train.threads=1"]


@pytest.fixture
def start(tiny: list[str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return `start(*overrides)`, which starts a run that is told live to `tmp_path/mlflow.db`."""
    started: list[subprocess.Popen[str]] = []

    def begin(*overrides: str) -> subprocess.Popen[str]:
        settings = [*tiny, "tracking.live=true", f"tracking.folder={tmp_path / 'outputs'}", *overrides]
        words = [sys.executable, "-m", "specvit.train", *settings]
        started.append(
            subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, process_group=0
            )
        )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()
    subprocess.run(["pkill", "-9", "-f", f"specvit.track follow {tmp_path}"], check=False)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Return the file of the runs' database, which is not there yet."""
    return tmp_path / "mlflow.db"


def runs(tmp_path: Path) -> list[RunFolder]:
    return list(runs_in([tmp_path / "outputs"])) if (tmp_path / "outputs").is_dir() else []


def states(tmp_path: Path) -> list[str]:
    return [run.state() for run in runs(tmp_path)]


def logs(tmp_path: Path) -> str:
    """Return what the sync processes of all runs have written."""
    return "".join(log.read_text() for log in tmp_path.glob("outputs/*/tracking.log"))


def until(true: Callable[[], Any], what: str, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def told(server: Server, run: RunFolder) -> Any:
    """Return the only MLflow run of a folder, None as long as there is none."""
    experiment = server.client.get_experiment_by_name("specvit")
    if experiment is None:
        return None
    key = json.loads(run.file("run.json").read_text())["record"]
    found = server.client.search_runs([experiment.experiment_id], f"tags.`{KEY_TAG}` = '{key}'")
    assert len(found) <= 1
    return found[0] if found else None


def is_whole(server: Server, run: RunFolder) -> bool:
    """Say whether MLflow has everything that a finished run's folder says, each point once."""
    found = told(server, run)
    if found is None or found.data.tags.get(SYNCED_TAG) != fingerprint_of(run):
        return False
    rows = read_json_lines(run.file("metrics.jsonl"))
    for name in ("val_r2", "train_loss", "epoch"):
        points = server.client.get_metric_history(found.info.run_id, name)
        assert [(p.step, p.value) for p in points] == [(row["step"], row[name]) for row in rows]
    assert found.data.metrics["test_r2"] == json.loads(run.file("summary.json").read_text())["test_r2"]
    files = [file.path for file in server.client.list_artifacts(found.info.run_id)]
    assert {"config.yaml", "summary.json", "figures"} <= set(files)
    return found.info.status == "FINISHED"


def has_rows(run: RunFolder) -> bool:
    """Say whether a run has validated."""
    return run.file("metrics.jsonl").exists() and bool(read_json_lines(run.file("metrics.jsonl")))


def points_in(database: Path) -> int:
    """Return the number of points in a database that may not be there."""
    if not database.exists():
        return 0
    with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute("select count(*) from metrics").fetchone()[0]
    return 0


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.mark.nightly
def test_eight_runs_at_once_make_one_database_with_eight_whole_records(
    start, database, promised, tmp_path: Path
) -> None:
    for process in [start(*SHORT, f"train.seed={seed}") for seed in range(8)]:
        said = finish(process)
    assert len(runs(tmp_path)) == 8
    for run in runs(tmp_path):
        promised.kept(state=run.state(), said=said)
    server = Server(f"sqlite:///{database}")
    until(lambda: all(is_whole(server, run) for run in runs(tmp_path)), "eight whole records")
    until(lambda: all(log.stat().st_size for log in tmp_path.glob("outputs/*/tracking.log")), "sync processes tidy up")
    complaints = [line for line in logs(tmp_path).splitlines() if "database is locked" not in line]
    assert not complaints, "waiting for each other's turn, which a slow machine can make long, is all that may be said"


@pytest.mark.nightly
def test_a_database_that_is_locked_for_30_seconds_stops_no_run_and_loses_nothing(
    start, database, promised, tmp_path
) -> None:
    server = Server(f"sqlite:///{database}")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("begin exclusive")
        locked = time.monotonic()
        processes = [start(*SHORT, f"train.seed={seed}") for seed in range(8)]
        until(lambda: any(run.state() in DONE for run in runs(tmp_path)), "a run ends under the lock")
        until(lambda: "database is locked" in logs(tmp_path), "MLflow's patience ends under the lock")
        time.sleep(max(0.0, 30 - (time.monotonic() - locked)))
        connection.rollback()
    for process in processes:
        finish(process)
    until(lambda: all(is_whole(server, run) for run in runs(tmp_path)), "eight whole records after the lock")
    assert len(runs(tmp_path)) == 8
    for run in runs(tmp_path):
        promised.kept(state=run.state(), said=logs(tmp_path))


@pytest.mark.nightly
def test_a_database_that_is_deleted_while_eight_runs_train_is_created_again_and_complete(
    start, database, promised, tmp_path
) -> None:
    processes = [start(*LONG, "train.epochs=250", f"train.seed={seed}") for seed in range(8)]
    until(
        lambda: states(tmp_path) == ["running"] * 8 and all(map(has_rows, runs(tmp_path))),
        "all eight have written their first points",
    )
    for process in processes:  # the niced sync processes get no core on a small machine before such runs end
        process.send_signal(signal.SIGSTOP)
    until(lambda: points_in(database) > 0, "first points")
    for process in processes:
        process.send_signal(signal.SIGCONT)
    database.unlink()
    assert states(tmp_path) == ["running"] * 8
    for process in processes:
        said = finish(process)
    server = Server(f"sqlite:///{database}")
    until(lambda: all(is_whole(server, run) for run in runs(tmp_path)), "eight whole records in the new database")
    assert len(runs(tmp_path)) == 8
    for run in runs(tmp_path):
        promised.kept(state=run.state(), said=said)


@pytest.mark.nightly
def test_points_come_while_the_run_trains_and_a_killed_run_is_recorded_as_lost(
    start, database, promised, tmp_path: Path
) -> None:
    process = start(*LONG)
    until(lambda: points_in(database) > 0, "first points")
    (run,) = runs(tmp_path)
    server = Server(f"sqlite:///{database}")
    assert told(server, run).info.status == "RUNNING"
    process.kill()
    until(lambda: told(server, run).data.tags.get("state") == "lost", "the end is told")
    assert told(server, run).info.status == "KILLED"
    promised.kept(state=run.state(), said=run.file("log.txt").read_text())
    first = told(server, run).info.run_id
    finish(start(*LONG))
    until(lambda: is_whole(server, run), "the same record, whole")
    assert told(server, run).info.run_id == first


@pytest.mark.nightly
def test_ctrl_c_reaches_the_run_and_not_its_sync_process(start, database, promised, tmp_path: Path) -> None:
    process = start(*LONG)
    until(lambda: points_in(database) > 0, "first points")
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    (run,) = runs(tmp_path)
    server = Server(f"sqlite:///{database}")
    until(lambda: told(server, run).data.tags.get("state") == "preempted", "the end is told")
    assert told(server, run).data.tags["cause"] == "stopped by SIGINT"
    promised.kept(state=run.state(), said=output)


@pytest.mark.nightly
def test_a_run_whose_sync_process_is_killed_finishes_and_a_sync_completes_the_record(
    start, database, promised, tmp_path: Path
) -> None:
    process = start(*LONG)
    until(lambda: points_in(database) > 0, "first points")
    subprocess.run(["pkill", "-9", "-f", f"specvit.track follow {tmp_path}"], check=True)
    output = finish(process)
    (run,) = runs(tmp_path)
    promised.kept(state=run.state(), said=output)
    server = Server(f"sqlite:///{database}")
    assert not is_whole(server, run)
    assert main(["sync", str(run.path)]) == 0
    assert is_whole(server, run)


def test_the_training_process_never_imports_mlflow(tiny, tmp_path: Path) -> None:
    settings = [*tiny, "tracking.live=true", f"tracking.folder={tmp_path / 'outputs'}"]
    code = "import sys; from specvit.train import main; main(sys.argv[1:]); print('mlflow' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code, *settings], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "False"


@pytest.mark.nightly
def test_a_database_on_a_full_disk_stops_no_run_and_gets_everything_later(start, promised, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 8000) as disk:
        server = Server(f"sqlite:///{disk / 'mlflow.db'}")
        fill(disk / "filler")
        said = finish(start(*SHORT, f"tracking.uri=sqlite:///{disk / 'mlflow.db'}"))
        (run,) = runs(tmp_path)
        promised.kept(state=run.state(), said=said + run.file("tracking.log").read_text())
        (disk / "filler").unlink()
        until(lambda: is_whole(server, run), "a whole record once there is space")


@pytest.mark.nightly
def test_a_server_that_is_down_stops_no_run_and_gets_everything_when_it_is_back(
    start, promised, tmp_path: Path
) -> None:
    port = free_port()
    output = finish(start(*SHORT, f"tracking.uri=http://127.0.0.1:{port}"))
    (run,) = runs(tmp_path)
    promised.kept(state=run.state(), said=output)
    with serving(tmp_path / "server.db", port) as address:
        assert main(["sync", str(run.path)]) == 0
        assert is_whole(Server(address), run)
