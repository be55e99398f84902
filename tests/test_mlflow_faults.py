"""Whatever befalls MLflow, its database or the way there, a later sync has everything there, once."""

import contextlib
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest
import yaml
from mlflow_records import only_run, points_of, runs_of, tracked

from specvit.commands.track import main, runs_in
from specvit.run_folder.folder import RunFolder
from specvit.tracking.mlflow import SYNCED_TAG, Server
from specvit.tracking.mlflow_sync import RunSync
from specvit.tracking.run_record import fingerprint_of
from specvit.utils.errors import TrackingError
from specvit.utils.files import locked, read_json, read_json_lines, write_json
from specvit.utils.processes import python_command, python_environment

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(finished_run: RunFolder) -> RunFolder:
    return finished_run


@pytest.fixture
def server(mlflow_server: Server) -> Server:
    return mlflow_server


def test_what_mlflow_will_never_take_is_tried_once(folder: RunFolder, server: Server) -> None:
    tracked(folder, experiment="", tags={})
    words = python_command("specvit.track", "follow", str(folder.path), "--uri", server.uri)
    done = subprocess.run(words, env=python_environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert "Invalid experiment name" in line


def test_what_a_run_writes_while_its_end_is_sent_is_sent_too(
    folder: RunFolder, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = Server.sync

    def writing(server: Server, run: RunFolder, *others: dict[str, str]) -> str:
        outcome = sync(server, run, *others)
        if outcome == "sent" and "late line" not in run.file("log.txt").read_text():
            with run.file("log.txt").open("a") as log:
                log.write("late line\n")
        return outcome

    monkeypatch.setattr(Server, "sync", writing)
    assert RunSync(folder, server.uri).run() == 0
    (found,) = runs_of(server)
    assert found.data.tags[SYNCED_TAG] == fingerprint_of(folder)


def test_what_was_refused_is_tried_again_once_it_has_changed(
    folder: RunFolder, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = RunSync(folder, server.uri)
    tracked(folder, experiment="", tags={})
    assert [loop.round(), loop.round()] == [{"refused": 1}, {"left alone": 1}]
    tracked(folder, experiment="", tags={"more": "1"})
    assert loop.round() == {"left alone": 1}  # tried again, and refused for the same reason
    assert len(capsys.readouterr().out.splitlines()) == 1
    tracked(folder, experiment="fine", tags={})
    assert loop.round() == {"sent": 1} and not loop.refused


def test_a_database_that_is_out_of_date_takes_all_records_once_it_is_upgraded(
    folder: RunFolder, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert server.file
    shutil.copy(server.file, tmp_path / "older.db")  # mlflow checks a database once in a process
    loop = RunSync(folder, f"sqlite:///{tmp_path}/older.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "older.db", isolation_level=None)) as database:
        (head,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        assert [loop.round(), loop.round()] == [{"refused": 1}, {"left alone": 1}]
        (line,) = capsys.readouterr().out.splitlines()
        assert f"bring it up to date with `mlflow db upgrade {loop.uri}`" in line
        database.execute("UPDATE alembic_version SET version_num = ?", (head,))
    assert loop.round() == {"sent": 1} and not loop.refused


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


def test_a_damaged_folder_does_not_keep_the_others_from_being_sent(
    folder: RunFolder, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    other = folder.path.parent / "another"
    other.mkdir()
    said = []
    for about in ("", "null", "{}", "[1]"):
        (other / "run.json").write_text(about)
        assert main(["sync", str(folder.path.parent)]) == 0
        said.append(capsys.readouterr().out)
    assert said == ["1 sent\n", *["1 up to date\n"] * 3]
    assert only_run(server).data.tags["signature"] == folder.run_id


def test_a_setting_without_effect_may_differ_when_a_run_resumes(folder: RunFolder, server: Server) -> None:
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


def test_a_deleted_experiment_is_not_brought_back(folder: RunFolder, promised, server: Server, capsys) -> None:
    server.sync(folder)
    server.client.delete_experiment(only_run(server).info.experiment_id)
    assert main(["sync", str(folder.path)]) == 1
    said = capsys.readouterr().err
    assert "`mlflow experiments restore -x 1`" in said
    promised.kept(state=folder.state(), said=said)


@pytest.mark.parametrize("meanwhile", ["deleted", "emptied", "replaced by another"])
def test_a_deleted_database_is_created_again_and_filled(
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


def test_a_file_that_is_not_a_database_costs_a_sentence_and_not_the_next_server(
    folder: RunFolder, promised, server: Server, tmp_path: Path, capsys
) -> None:
    (tmp_path / "text.db").write_text("no database at all, but longer than its header would be " * 9)
    assert main(["sync", str(folder.path), "--uri", f"sqlite:///{tmp_path}/text.db"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "1 failed\n"
    promised.kept(state=folder.state(), said=shown.err)
    assert "Traceback" not in shown.err
    assert main(["sync", str(folder.path)]) == 0


def test_what_a_deleted_database_left_behind_does_not_get_into_a_new_one(folder: RunFolder, server: Server) -> None:
    """SQLite would take the journal of a transaction on the deleted file for one of the new file, and roll it back."""
    assert server.file is not None
    journal = server.file.with_name(f"{server.file.name}-journal")
    with contextlib.closing(sqlite3.connect(server.file, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size=2")  # changed pages go to the file before the transaction ends
        connection.execute("CREATE TABLE rubbish (text TEXT)")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DROP TABLE metrics")
        connection.executemany("INSERT INTO rubbish VALUES (hex(randomblob(4000)))", [()] * 100)
        assert journal.exists()
        kept = journal.read_bytes()
        server.file.unlink()
    journal.write_bytes(kept)
    assert server.sync(folder) == "sent"
    assert not journal.exists()
    with contextlib.closing(sqlite3.connect(server.file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert not connection.execute("SELECT name FROM sqlite_master WHERE name = 'rubbish'").fetchall()
    assert len(runs_of(server)) == 1


def test_a_database_is_made_whole_where_there_is_none(empty_database: Path, tmp_path: Path) -> None:
    emptied = tmp_path / "new" / "mlflow.db"
    emptied.parent.mkdir()
    emptied.touch()
    Server(f"sqlite:///{emptied}")
    for file in (empty_database, emptied):
        assert sorted(path.name for path in file.parent.iterdir()) == [".mlflow.db.lock", "mlflow.db"]
        with sqlite3.connect(file) as connection:
            tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
        assert {"experiments", "runs", "metrics", "latest_metrics", "alembic_version"} <= tables
