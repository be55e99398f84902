"""A study's own run in MLflow lives as long as the study, and what MLflow refuses for good is sent once."""

import http.server
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow_records import points_of, runs_of
from studies import LOCAL, until

from specvit.run_folder.folder import RunFolder
from specvit.study.mlflow_sync import StudySync
from specvit.study.store import StudyFolder
from specvit.study.table import render, table_rows
from specvit.tracking.mlflow import Server
from specvit.tracking.mlflow_sync import RunSync
from specvit.utils.files import read_text

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def own_run(server: Server) -> Any:
    """Return the study's own run; None before there is one."""
    own = (run for run in runs_of(server) if run.data.tags["mlflow.source.name"] == "specvit train sweeps")
    return next(own, None)


def artifact(server: Server, run: Any, name: str) -> str:
    return read_text(Path(server.client.download_artifacts(run.info.run_id, name)))


@pytest.fixture
def until_own_run(mlflow_server: Server) -> Callable[[str], Any]:
    """Return a function that waits for a status of the study's own run, and returns the run."""

    def wait(status: str) -> Any:
        until(lambda: (run := own_run(mlflow_server)) and run.info.status == status, f"a study that is {status}", 240)
        return own_run(mlflow_server)

    return wait


@pytest.mark.nightly
def test_a_study_is_running_until_it_ends_and_again_when_it_resumes(
    study, mlflow_server: Server, until_own_run: Callable[[str], Any], tmp_path: Path
) -> None:
    toy = study({"grids": [{}], "seeds": [1, 2]}, {"tracking.live": True, "train.epochs": 150})
    file = tmp_path / "sweeps" / "toy.yaml"
    file.write_text(f"# Question: does the seed matter?\n{file.read_text()}")
    driver = toy.start(launcher=LOCAL)
    until(lambda: toy.is_at_work(2), "two runs that train")
    for pid in toy.workers():
        os.kill(pid, signal.SIGSTOP)  # on a fast machine they would end before mlflow is imported
    running = until_own_run("RUNNING")
    until(lambda: "runs_running" in own_run(mlflow_server).data.metrics, "its counts")
    assert own_run(mlflow_server).data.tags["mlflow.note.content"] == "does the seed matter?"
    driver.send(signal.SIGINT)
    for pid in toy.workers():
        os.kill(pid, signal.SIGCONT)
    driver.wait(60)
    stopped = until_own_run("KILLED")
    assert stopped.data.metrics["runs_waiting"] == 2
    code, said = toy.run(launcher=LOCAL)
    assert code == 0, said
    done = until_own_run("FINISHED")
    assert done.info.run_id == running.info.run_id
    own, *trials = sorted(runs_of(mlflow_server), key=lambda run: "mlflow.parentRunId" in run.data.tags)
    assert own.info.run_id == done.info.run_id and len(trials) == 2
    assert done.data.metrics["runs_completed"] == 2 and done.data.metrics["runs_waiting"] == 0
    best = max((run.data.metrics["test_r2"], Path(run.data.tags["folder"]).name) for run in trials)
    assert (done.data.metrics["best_test_r2"], done.data.tags["best_run"]) == best
    assert points_of(mlflow_server, done.info.run_id, "runs_completed")[-1] == (2, 2.0)
    assert artifact(mlflow_server, done, "table.csv") == render(*table_rows(toy.folder), "csv") + "\n"
    assert "does the seed matter?" in artifact(mlflow_server, done, "report/report.md")


def test_a_study_without_a_report_keeps_its_table(study, mlflow_server: Server, capsys) -> None:
    toy = study({"grids": [{}], "seeds": [1]})
    assert toy.run()[0] == 0
    (trial,) = toy.folder.trials()
    toy.folder.write_trial(
        replace(trial, config=trial.config | {"tracking": trial.config["tracking"] | {"live": True}})
    )

    def fail(folder: StudyFolder, out: Path) -> None:
        raise ValueError("no figure")

    assert StudySync(toy.folder, fail).run() == 0
    assert "toy: no figure" in capsys.readouterr().out
    own = own_run(mlflow_server)
    assert own.info.status == "FINISHED"
    assert [file.path for file in mlflow_server.client.list_artifacts(own.info.run_id)] == ["table.csv"]
    mlflow_server.client.delete_run(own.info.run_id)
    assert StudySync(toy.folder, fail).run() == 0
    assert own_run(mlflow_server) is None, "what somebody deleted is left alone"


@pytest.fixture
def forbidden() -> Iterator[tuple[str, list[str]]]:
    """Serve 403 to everything, as MLflow does for a foreign host name; yields the address and the paths asked for."""
    asked: list[str] = []

    class Forbid(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(403)

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

        do_POST = do_GET

    with http.server.HTTPServer(("127.0.0.1", 0), Forbid) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_a_server_that_forbids_it_is_asked_once(finished_run: RunFolder, forbidden, capsys) -> None:
    address, asked = forbidden
    assert RunSync(finished_run, address).run() == 1
    assert len(asked) == 1
    assert "error code 403" in capsys.readouterr().out
