"""A SQLite database is made whole where there is none, also where it was deleted under its users."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from specvit.config.folder import RunFolder
from specvit.tracking.mlflow import Server


def test_what_a_deleted_database_left_behind_does_not_get_into_a_new_one(
    finished_run: RunFolder, mlflow_server: Server
) -> None:
    """SQLite would take the journal of a transaction on the deleted file for one of the new file, and roll it back."""
    server = mlflow_server
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
    assert server.sync(finished_run) == "sent"
    assert not journal.exists()
    with contextlib.closing(sqlite3.connect(server.file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert not connection.execute("SELECT name FROM sqlite_master WHERE name = 'rubbish'").fetchall()
    assert len(server.client.search_runs([server.client.get_experiment_by_name("specvit").experiment_id])) == 1


@pytest.mark.parametrize("content", [b"", None])
def test_a_database_is_made_whole_where_there_is_none(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "new" / "mlflow.db"
    if content is not None:
        file.parent.mkdir()
        file.write_bytes(content)
    Server(f"sqlite:///{file}")
    assert sorted(path.name for path in file.parent.iterdir()) == [".mlflow.db.lock", "mlflow.db"]
    with sqlite3.connect(file) as connection:
        tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
    assert {"experiments", "runs", "metrics", "latest_metrics", "alembic_version"} <= tables
