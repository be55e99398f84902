"""MLflow is brought to what run folders say: whole, once, and again after anything that may befall it."""

import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from handmade import write_lines

from specvit.children import python_command, python_environment
from specvit.config.folder import RunFolder
from specvit.config.tracking_uri import check_names
from specvit.errors import TrackingError
from specvit.files import locked, read_json, read_json_lines, write_json
from specvit.track import main, runs_in
from specvit.tracking.mlflow import Server, mlflow_status


@pytest.fixture
def folder(finished_run: RunFolder) -> RunFolder:
    return finished_run


@pytest.fixture
def server(mlflow_server: Server) -> Server:
    return mlflow_server


def runs_of(server: Server, experiment: str = "specvit") -> list[Any]:
    found = server.client.get_experiment_by_name(experiment)
    return server.client.search_runs([found.experiment_id]) if found else []


def only_run(server: Server) -> Any:
    (only,) = runs_of(server)
    return only


def points_of(server: Server, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in server.client.get_metric_history(run_id, name)]


def cut_after(folder: RunFolder, epochs: int) -> None:
    """Make a run look as it did after some epochs, killed."""
    for name in ("metrics.jsonl", "timing.jsonl"):
        lines = folder.file(name).read_text().splitlines(keepends=True)
        folder.file(name).write_text("".join(lines[:epochs]))
    folder.file("summary.json").unlink(missing_ok=True)
    folder.set_status("running")


def test_a_finished_run_is_told_whole(folder: RunFolder, server: Server) -> None:
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


def test_names_at_the_limits_are_taken_and_labels_of_any_spelling_are_told(folder: RunFolder, server: Server) -> None:
    tags = {"k" * 250: "1", "a b/c:d-e.f": "2", "ä": "3"}
    check_names("e" * 256, tags)
    tracked(folder, experiment="e" * 256, tags=tags)
    rows = [{**row, "val_r2_a+b": 0.5} for row in read_json_lines(folder.file("metrics.jsonl"))]
    write_lines(folder.file("metrics.jsonl"), rows)
    assert server.sync(folder) == "sent"
    (told,) = runs_of(server, "e" * 256)
    assert tags.items() <= told.data.tags.items()
    assert told.data.metrics["val_r2_a_b"] == 0.5


def test_what_mlflow_will_never_take_is_tried_once(folder: RunFolder, server: Server) -> None:
    tracked(folder, experiment="", tags={})
    words = python_command("specvit.track", "follow", str(folder.path), "--uri", server.uri)
    done = subprocess.run(words, env=python_environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert "Invalid experiment name" in line


def tracked(folder: RunFolder, **settings: Any) -> None:
    """Give a run other settings of its record."""
    config = yaml.safe_load(folder.file("config.yaml").read_text())
    config["tracking"] |= settings
    folder.file("config.yaml").write_text(yaml.safe_dump(config))


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


def test_a_resumed_run_goes_on_in_its_record_without_doubled_points(
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


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_sync_that_is_cut_off_leaves_no_hole_behind(
    calls: int, folder: RunFolder, promised, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_batch, left = server.client.log_batch, [calls]

    def cut_off(run_id: str, metrics=(), **others) -> None:
        left[0] -= bool(metrics)
        if left[0] < 0:
            raise ConnectionError("gone")
        log_batch(run_id, metrics=metrics, **others)

    with monkeypatch.context() as patch:
        patch.setattr("specvit.tracking.mlflow.BATCH_POINTS", 30)  # a row has some 25 points
        patch.setattr(server.client, "log_batch", cut_off)
        with pytest.raises(TrackingError) as problem:
            server.sync(folder)
    promised.kept(state=folder.state(), said=str(problem.value))
    server.sync(folder)
    rows = read_json_lines(folder.file("metrics.jsonl"))
    for name in set(rows[0]) - {"step"}:
        expected = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        assert points_of(server, only_run(server).info.run_id, name) == expected, name


def test_the_cause_of_a_failure_goes_when_the_run_has_gone_on(folder: RunFolder, server: Server) -> None:
    folder.set_status("crashed", cause="the disk is full", remedy="free some space")
    server.sync(folder)
    assert only_run(server).data.tags["cause"] == "the disk is full"
    folder.set_status("completed")
    server.sync(folder)
    assert not {"cause", "remedy"} & set(only_run(server).data.tags)


def test_a_sync_does_not_wait_for_ever_for_another_one(
    folder: RunFolder, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specvit.tracking.mlflow.LOCK_SECONDS", 0.1)
    with locked(folder.file(".tracking.lock")), pytest.raises(TrackingError, match="another process is telling"):
        server.sync(folder)
    assert runs_of(server) == []


@pytest.mark.parametrize("about", ["", "null", "{}", "[1]"])
def test_a_damaged_folder_does_not_keep_the_others_from_being_told(
    about: str, folder: RunFolder, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    other = folder.path.parent / "another"
    other.mkdir()
    (other / "run.json").write_text(about)
    assert main(["sync", str(folder.path.parent)]) == 0
    assert capsys.readouterr().out == "1 sent\n"
    assert only_run(server).data.tags["signature"] == folder.run_id


def test_a_setting_without_effect_may_differ_when_a_run_goes_on(folder: RunFolder, server: Server) -> None:
    server.sync(folder)
    config = yaml.safe_load(folder.file("config.yaml").read_text())
    config["train"]["device"] = "cpu"
    folder.file("config.yaml").write_text(yaml.safe_dump(config))
    assert server.sync(folder) == "sent"
    assert only_run(server).data.params["train.device"] == "auto"


def test_a_rerun_is_another_record_and_the_older_one_is_marked(folder: RunFolder, server: Server) -> None:
    server.sync(folder)
    about = read_json(folder.file("run.json"))
    write_json(folder.file("run.json"), {**about, "record": "another"})
    server.sync(folder)
    tags = [found.data.tags for found in runs_of(server)]
    assert sorted(t.get("superseded", "no") for t in tags) == ["no", "true"]
    assert next(t for t in tags if "superseded" not in t)["specvit.record"] == "another"


def test_a_copy_elsewhere_with_a_record_of_its_own_does_not_outdate_this_one(
    folder: RunFolder, server: Server, tmp_path: Path
) -> None:
    server.sync(folder)
    shutil.copytree(folder.path, tmp_path / "elsewhere" / folder.path.name)
    (other,) = runs_in([tmp_path / "elsewhere"])
    write_json(other.file("run.json"), {**read_json(other.file("run.json")), "record": "colleague"})
    server.sync(other)
    assert [found.data.tags.get("superseded") for found in runs_of(server)] == [None, None]


def test_a_run_that_somebody_deleted_is_left_alone(folder: RunFolder, promised, server: Server) -> None:
    server.sync(folder)
    server.client.delete_run(only_run(server).info.run_id)
    folder.file("log.txt").write_text("another line")
    promised.kept(state=folder.state(), said=server.sync(folder))
    assert runs_of(server) == []


@pytest.mark.slow
def test_a_deleted_experiment_is_not_brought_back(folder: RunFolder, promised, server: Server, capsys) -> None:
    server.sync(folder)
    server.client.delete_experiment(only_run(server).info.experiment_id)
    assert main(["sync", str(folder.path)]) == 1
    said = capsys.readouterr().err
    assert "`mlflow experiments restore -x 1`" in said
    promised.kept(state=folder.state(), said=said)


@pytest.mark.slow
@pytest.mark.parametrize("meanwhile", ["deleted", "emptied", "replaced by another"])
def test_a_database_that_is_gone_is_made_again_and_told_everything(
    meanwhile: str, folder: RunFolder, promised, server: Server, empty_database: Path
) -> None:
    server.sync(folder)
    assert server.file is not None
    server.file.unlink()
    if meanwhile == "emptied":
        server.file.touch()
    if meanwhile == "replaced by another":
        shutil.copy(empty_database, server.file)
    promised.kept(state=folder.state(), said=server.sync(folder))
    assert len(points_of(server, only_run(server).info.run_id, "val_r2")) == 3


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ("completed", "FINISHED"),
        ("early_stopped", "FINISHED"),
        ("plateau", "FINISHED"),
        ("diverged", "FAILED"),
        ("oom", "FAILED"),
        ("crashed", "FAILED"),
        ("preempted", "KILLED"),
        ("timeout", "KILLED"),
        ("lost", "KILLED"),
        ("cancelled", "KILLED"),
        ("pruned", "KILLED"),
        ("running", "RUNNING"),
        ("requeued", "RUNNING"),
        ("queued", "SCHEDULED"),
    ],
)
def test_each_state_has_a_word_of_mlflow(state: str, word: str) -> None:
    from mlflow.entities import RunStatus

    assert mlflow_status(state) == word
    assert RunStatus.from_string(word)


def test_the_command_says_what_it_did(folder: RunFolder, server: Server, capsys, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "no run").mkdir()
    assert main(["sync"]) == 0
    assert main(["sync", "outputs", str(folder.path)]) == 0
    assert capsys.readouterr().out == "1 sent\n2 up to date\n"
    assert only_run(server).data.tags["signature"] == folder.run_id


def test_a_file_that_is_no_database_costs_a_sentence_and_not_the_next_server(
    folder: RunFolder, promised, server: Server, tmp_path: Path, capsys
) -> None:
    (tmp_path / "text.db").write_text("no database at all, but longer than its header would be " * 9)
    assert main(["sync", str(folder.path), "--uri", f"sqlite:///{tmp_path}/text.db"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "1 failed\n"
    promised.kept(state=folder.state(), said=shown.err)
    assert "Traceback" not in shown.err
    assert main(["sync", str(folder.path)]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["snyc"], "invalid choice: 'snyc'"),
        (["sync", "nowhere"], "nowhere: is no folder"),
        (["sync", "--uri", "mlruns"], "is no MLflow database or server"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments: list[str], said: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
