"""MLflow is brought to what run folders say: whole and once; `test_mlflow_faults.py` has what may befall it."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml
from handmade import write_lines
from mlflow_records import cut_after, only_run, points_of, runs_of, tracked

from specvit.commands.track import main
from specvit.config.tracking_uri import check_names
from specvit.run_folder.folder import STATES, RunFolder
from specvit.tracking.mlflow import Server, mlflow_status
from specvit.utils.files import read_json, read_json_lines


@pytest.fixture
def folder(finished_run: RunFolder) -> RunFolder:
    return finished_run


@pytest.fixture
def server(mlflow_server: Server) -> Server:
    return mlflow_server


def test_a_finished_run_is_recorded_whole(folder: RunFolder, server: Server) -> None:
    assert server.sync(folder) == "sent"
    told = only_run(server)
    assert (told.info.run_name, told.info.status) == (folder.path.name, "FINISHED")
    assert told.info.end_time >= told.info.start_time > 1_700_000_000_000
    rows = read_json_lines(folder.file("metrics.jsonl"))
    for name in ("val_r2", "train_loss", "lr", "grad_norm_tokenizer", "epoch"):
        assert points_of(server, told.info.run_id, name) == [(row["step"], row[name]) for row in rows]
    assert len(points_of(server, told.info.run_id, "train_seconds")) == 3
    summary = read_json(folder.file("summary.json"))
    assert told.data.metrics["test_r2"] == summary["test_r2"]
    config = yaml.safe_load(folder.file("config.yaml").read_text())
    assert told.data.params["opt.lr"] == str(config["opt"]["lr"])
    assert told.data.params["train.early_stopping.mode"] == config["train"]["early_stopping"]["mode"]
    assert told.data.tags["signature"] == folder.run_id
    files = {file.path for file in server.client.list_artifacts(told.info.run_id)}
    assert files == {"config.yaml", "summary.json", "status.json", "attempts.jsonl", "log.txt", "figures"}
    figures = {file.path for file in server.client.list_artifacts(told.info.run_id, "figures")}
    assert figures == {f"figures/{path.name}" for path in folder.file("figures").iterdir()}


def test_names_at_the_limits_are_taken_and_labels_of_any_spelling_are_recorded(
    folder: RunFolder, server: Server
) -> None:
    tags = {"k" * 250: "1", "a b/c:d-e.f": "2", "ä": "3"}
    check_names("e" * 256, tags)
    tracked(folder, experiment="e" * 256, tags=tags)
    rows = [{**row, "val_r2_a+b": 0.5} for row in read_json_lines(folder.file("metrics.jsonl"))]
    write_lines(folder.file("metrics.jsonl"), rows)
    assert server.sync(folder) == "sent"
    (told,) = runs_of(server, "e" * 256)
    assert tags.items() <= told.data.tags.items()
    assert told.data.metrics["val_r2_a_b"] == 0.5


def test_an_experiment_opens_as_one_about_training(folder: RunFolder, server: Server) -> None:
    server.sync(folder)
    experiment = server.client.get_experiment_by_name("specvit")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert experiment.artifact_location == (folder.path.parent.parent / "mlartifacts" / "specvit").as_uri()


def test_telling_again_changes_nothing(folder: RunFolder, server: Server) -> None:
    server.sync(folder)
    before = only_run(server)
    assert server.sync(folder) == "up to date"
    folder.file("log.txt").write_text("another line")
    assert server.sync(folder) == "sent"
    after = only_run(server)
    assert after.data.metrics == before.data.metrics
    steps = Counter(step for step, _ in points_of(server, after.info.run_id, "val_r2"))
    assert set(steps.values()) == {1}


def test_a_resumed_run_continues_its_record_without_doubled_points(
    finished: Path, folder: RunFolder, server: Server
) -> None:
    cut_after(folder, 2)
    server.sync(folder)
    lost = only_run(server)
    assert (lost.info.status, lost.data.tags["state"]) == ("KILLED", "lost")
    cut_after(folder, 1)  # the last checkpoint was older than what MLflow has
    folder.set_status("running", device="another")
    server.sync(folder)
    for name in ("metrics.jsonl", "timing.jsonl", "summary.json", "status.json"):
        shutil.copy(finished / name, folder.file(name))
    server.sync(folder)
    told = only_run(server)
    assert (told.info.run_id, told.info.status) == (lost.info.run_id, "FINISHED")
    rows = read_json_lines(folder.file("metrics.jsonl"))
    for name in ("val_r2", "train_seconds"):
        assert [step for step, _ in points_of(server, told.info.run_id, name)] == [row["step"] for row in rows]


def test_each_state_has_a_word_of_mlflow() -> None:
    from mlflow.entities import RunStatus

    words = {state: mlflow_status(state) for state in STATES}
    assert words == {
        **dict.fromkeys(("completed", "early_stopped", "plateau"), "FINISHED"),
        **dict.fromkeys(("diverged", "oom", "crashed"), "FAILED"),
        **dict.fromkeys(("preempted", "timeout", "lost", "cancelled", "pruned"), "KILLED"),
        **dict.fromkeys(("running", "requeued"), "RUNNING"),
        "queued": "SCHEDULED",
    }
    assert all(RunStatus.from_string(word) for word in words.values())


def test_the_command_says_what_it_did(folder: RunFolder, server: Server, capsys, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "no run").mkdir()
    assert main(["sync"]) == 0
    assert main(["sync", "outputs", str(folder.path)]) == 0
    assert capsys.readouterr().out == "1 sent\n2 up to date\n"
    assert only_run(server).data.tags["signature"] == folder.run_id


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["snyc"], "invalid choice: 'snyc'"),
        (["sync", "nowhere"], "nowhere: is not a folder"),
        (["sync", "--uri", "mlruns"], "is not an MLflow database or server"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments: list[str], said: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


def test_a_study_takes_in_a_run_that_was_made_before_it(folder: RunFolder, server: Server) -> None:
    server.sync(folder)
    (alone,) = runs_of(server)
    for name in ("first", "second"):  # what it is in, it stays in
        server.sync(folder, {"specvit.study": f"key of {name}", "study": name})
        (parent,) = [run for run in runs_of(server) if run.info.run_id != alone.info.run_id]
        told = server.client.get_run(alone.info.run_id)
        assert (parent.info.run_name, told.data.tags["mlflow.parentRunId"]) == ("first", parent.info.run_id)
        assert (told.data.tags["study"], told.data.tags["specvit.study"]) == ("first", "key of first")
