"""A study in MLflow: a run of its own, with those of its trials below it."""

from typing import Any

from specvit.config.folder import RunFolder
from specvit.tracking.mlflow import Server


def runs_of(server: Server) -> list[Any]:
    return server.client.search_runs([server.client.get_experiment_by_name("specvit").experiment_id])


def test_a_study_takes_in_a_run_that_was_made_before_it(finished_run: RunFolder, mlflow_server: Server) -> None:
    server = mlflow_server
    server.sync(finished_run)
    (alone,) = runs_of(server)
    for name in ("first", "second"):  # what it is in, it stays in
        server.sync(finished_run, {"specvit.study": f"key of {name}", "study": name})
        (parent,) = [run for run in runs_of(server) if run.info.run_id != alone.info.run_id]
        told = server.client.get_run(alone.info.run_id)
        assert (parent.info.run_name, told.data.tags["mlflow.parentRunId"]) == ("first", parent.info.run_id)
        assert (told.data.tags["study"], told.data.tags["specvit.study"]) == ("first", "key of first")
