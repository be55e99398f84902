"""Searches by several workers at once: exact counts whatever dies, on any storage."""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest
from studies import LOCAL, until
from test_searches import ONE, SPACE, states, told

pytestmark = pytest.mark.nightly

START = [
    {"opt.lr": round(1.0e-3 * 1.1**n, 6), "model/tokenizer": ["c1d", "sw"][n % 2], "opt.weight_decay": 0.0,
     "tracking.folder": "outputs"}
    for n in range(22)
]  # fmt: skip


def test_24_trials_through_every_kind_of_death(study, tmp_path: Path) -> None:
    """The undisturbed study and one whose driver dies three times and whose workers die twice ask the same."""
    # One trial diverges, and one raises: its run folder is to lie below a file.
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "file").write_text("no folder")
    space = {**SPACE, "opt.weight_decay": [0.0, 1.0e30], "tracking.folder": ["outputs", "file/outputs"]}
    good = {"opt.weight_decay": 0.0, "tracking.folder": "outputs"}
    start = [{**good, "opt.weight_decay": 1.0e30}, {**good, "tracking.folder": "file/outputs"}, *START]
    section = {**ONE, "space": space, "trials": 24, "seed": 3, "start": start}
    section["pruner"] = {"name": "percentile", "percentile": 60.0, "n_startup_trials": 4, "warmup_steps": 60}
    common = {"train.epochs": 12, "opt.lr_sch": "constant"}
    broken = study({"search": section}, common)
    broken.start(launcher=LOCAL)
    for death in range(3):
        until(lambda death=death: len(broken.events("ends")) >= 2 + 4 * death, "some ends")
        broken.kill_the_driver()
        if death < 2:
            broken.kill_a_worker()
        driver = broken.start(launcher=LOCAL)
    assert driver.wait(240) in (0, 1), driver.said
    assert len(told(broken)) == 24
    assert "RUNNING" not in states(broken)
    assert [trial.number for trial in broken.folder.trials()] == list(range(24))
    assert all(trial.end for trial in broken.folder.trials())
    ends = Counter(event["trial"] for event in broken.events("ends"))
    assert ends == Counter(range(24)), "each told once"
    whole = study({"search": section}, common, place=tmp_path / "whole")
    code, said = whole.run(launcher=LOCAL)
    assert code in (0, 1), said
    assert [trial.params for trial in told(broken)] == [trial.params for trial in told(whole)]
    pairs = zip(told(broken), told(whole), strict=True)
    complete = [(a.values, b.values) for a, b in pairs if {a.state.name, b.state.name} == {"COMPLETE"}]
    assert len(complete) >= 5
    assert all(a == b for a, b in complete), "a taken-over run ends to the same bits"
    if states(broken)["PRUNED"] == states(whole)["PRUNED"] == 0:
        pytest.fail("nothing was pruned, so pruning was not tried")


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str | None]:
    """Return the URL of a storage that is really there; None: the journal."""
    if request.param == "postgresql":
        with postgres.serving() as url:
            yield url
    else:
        yield f"sqlite:///{tmp_path}/optuna.db" if request.param == "sqlite" else None


def test_eight_workers_at_once(study, tmp_path: Path, storage: str | None) -> None:
    toy = study({"search": {**ONE, "trials": 24}}, {"train.epochs": 40, "tracking.live": True})
    eight = [*LOCAL, "hydra.launcher.slots=8"]
    code, said = toy.run(*([f"sweep.storage={storage}"] if storage else []), launcher=eight)
    assert code == 0, said
    assert Counter(trial.state.name for trial in told(toy, storage)) == Counter(COMPLETE=24)
    assert len({event["slot"] for event in toy.events("begins")}) == 8
    for log in toy.folder.file("workers").iterdir():
        assert "Error" not in log.read_text(), log.read_text()
    database = tmp_path / "mlflow.db"
    until(lambda: _finished_in(database) == 24, "all runs in MLflow", 120.0)
    with sqlite3.connect(database) as connection:
        parents = connection.execute("SELECT value FROM tags WHERE key = 'mlflow.parentRunId'").fetchall()
    assert (len(parents), len(set(parents))) == (24, 1)


def _finished_in(database: Path) -> int:
    if not database.exists():
        return 0
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT count(*) FROM tags WHERE key = 'specvit.synced'").fetchone()
    return rows[0]
