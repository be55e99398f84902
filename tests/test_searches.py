"""Searches by Optuna: exact counts whatever dies, trials taken over, pruning from the run, any sampler and storage."""

import csv
import json
import re
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import postgres
import pytest
from studies import Study, until

from specvit.analysis.__main__ import main as analysis
from specvit.config.build import build_config
from specvit.config.folder import STATES
from specvit.run import run
from specvit.sweep.__main__ import main as sweep
from specvit.sweep.definition import SAMPLERS
from specvit.sweep.folder import WAITING
from specvit.sweep.results import outcome_of
from specvit.sweep.source import GROUPS, group_of
from specvit.sweep.storage import open_storage
from specvit.tracking.mlflow import mlflow_status
from specvit.tracking.record import read_record

pytestmark = pytest.mark.slow

SPACE = {"opt.lr": {"low": 1.0e-3, "high": 1.0e-2, "log": True}, "model/tokenizer": ["c1d", "sw"]}
ONE = {"space": SPACE, "metrics": {"val_r2": "maximize"}, "trials": 4, "sampler": "random"}


START = [
    {"opt.lr": round(1.0e-3 * 1.1**n, 6), "model/tokenizer": ["c1d", "sw"][n % 2], "opt.weight_decay": 0.0,
     "tracking.folder": "outputs"}
    for n in range(22)
]  # fmt: skip


@pytest.fixture
def search(tiny: list[str], tmp_path: Path) -> Iterator[Callable[..., Study]]:
    """Return `search(section, *overrides, place=)`, which writes a study's file."""
    made: list[Study] = []

    def make(section: dict[str, Any], *overrides: str, place: Path = tmp_path, **parts: Any) -> Study:
        place.mkdir(exist_ok=True)
        made.append(Study(place, "toy", {"search": section, **parts}, [*tiny, *overrides]))
        return made[-1]

    yield make
    for one in made:
        one.close()


def told(study: Study, url: str | None = None) -> list[Any]:
    """Return Optuna's own record of a study's trials."""
    storage = open_storage(study.folder, url)
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)


def states(study: Study) -> Counter[str]:
    return Counter(trial.state.name for trial in told(study))


def test_24_trials_through_every_kind_of_death(search, tmp_path: Path) -> None:
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
    common = ["train.epochs=12", "opt.lr_sch=constant"]
    broken = search(section, *common)
    broken.start()
    for death in range(3):
        until(lambda death=death: len(broken.events("ends")) >= 2 + 4 * death, "some ends")
        broken.drivers[-1].kill()
        broken.drivers[-1].wait()
        if death < 2:
            broken.kill_a_worker()
        broken.start()
    said, _ = broken.drivers[-1].communicate(timeout=240)
    assert broken.drivers[-1].returncode in (0, 1), said
    assert len(told(broken)) == 24
    assert "RUNNING" not in states(broken)
    assert [trial.number for trial in broken.folder.trials()] == list(range(24))
    assert all(trial.end for trial in broken.folder.trials())
    ends = Counter(event["trial"] for event in broken.events("ends"))
    assert ends == Counter(range(24)), "each told once"
    whole = search(section, *common, place=tmp_path / "whole")
    code, said = whole.run()
    assert code in (0, 1), said
    assert [trial.params for trial in told(broken)] == [trial.params for trial in told(whole)]
    pairs = zip(told(broken), told(whole), strict=True)
    complete = [(a.values, b.values) for a, b in pairs if {a.state.name, b.state.name} == {"COMPLETE"}]
    assert len(complete) >= 5
    assert all(a == b for a, b in complete), "a taken-over run ends to the same bits"
    if states(broken)["PRUNED"] == states(whole)["PRUNED"] == 0:
        pytest.fail("nothing was pruned, so pruning was not tried")


def test_a_trial_that_diverges_is_told_as_failed_and_counts(search) -> None:
    start = [{"opt.lr": 3.0e-3}, {"opt.lr": 1.0e30}]
    toy = search(
        {**ONE, "space": {"opt.lr": {"low": 1.0e-3, "high": 1.0e30, "log": True}}, "trials": 6, "start": start},
        "opt.lr_sch=constant",
        "opt.weight_decay=0",
    )
    code, said = toy.run()
    counts = states(toy)
    assert sum(counts.values()) == 6, said
    assert counts["FAIL"] >= 1 and counts["COMPLETE"] >= 1, said
    assert code == 1
    failed = [trial for trial in toy.folder.trials() if toy.folder.state(trial) == "diverged"]
    assert len(failed) == counts["FAIL"]
    code, said = toy.run()
    assert sum(states(toy).values()) == 6, "the same command finds nothing to do"
    code, said = toy.run("sweep.retry=true", "sweep.trials=7")
    assert sum(states(toy).values()) == 7, "failed ones fail again, and one more is asked for"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_asks_and_learns(search, sampler: str) -> None:
    space = (
        SPACE if sampler not in ("grid", "cmaes") else {"opt.lr": [1.0e-3, 3.0e-3], "model/tokenizer": ["c1d", "sw"]}
    )
    if sampler == "cmaes":
        space = {"opt.lr": SPACE["opt.lr"], "opt.weight_decay": {"low": 0.0, "high": 0.1}}
    toy = search({**ONE, "space": space, "sampler": sampler}, "train.epochs=1")
    code, said = toy.run(launcher=[])
    assert code == 0, said
    assert states(toy) == Counter(COMPLETE=4), said
    if sampler == "grid":
        assert len({tuple(trial.params.items()) for trial in told(toy)}) == 4


def test_a_pruned_run_is_final_for_its_study_alone(search, tmp_path: Path, monkeypatch) -> None:
    section = {**ONE, "space": {"opt.lr": {"low": 1.0e-5, "high": 1.0e-2, "log": True}}, "trials": 8, "seed": 2}
    toy = search({**section, "pruner": {"name": "median", "n_startup_trials": 2}}, "train.epochs=6")
    code, said = toy.run()
    assert code == 0, said
    pruned = [trial for trial in toy.folder.trials() if toy.folder.state(trial) == "pruned"]
    assert pruned and states(toy)["PRUNED"] == len(pruned)
    for trial in pruned:
        outcome = outcome_of(trial.run)
        assert 0 < len(outcome.rows) < 6
        assert not outcome.summary
        assert "is not among the better ones (median)" in (trial.end or {})["cause"]
    monkeypatch.chdir(tmp_path)
    result = run(build_config(pruned[0].config))
    assert result.state in ("completed", "plateau")
    assert pruned[0].run.epochs_on_file() == set(range(1, 7))


def test_nothing_is_pruned_before_the_warm_up(search) -> None:
    pruner = {"name": "percentile", "percentile": 1.0, "n_startup_trials": 1, "warmup_steps": 36}
    toy = search({**ONE, "pruner": pruner, "trials": 6}, "train.epochs=6")
    toy.run()
    pruned = [trial for trial in toy.folder.trials() if toy.folder.state(trial) == "pruned"]
    assert pruned
    assert min(outcome_of(trial.run).rows[-1]["step"] for trial in pruned) >= 36


def test_start_points_conditions_and_what_is_forbidden(search) -> None:
    space = {
        **SPACE,
        "opt.warmup_epochs": {"low": 0.0, "high": 1.0, "when": {"model/tokenizer": "sw"}},
        "model.patch_size, model.stride_size": [[32, 32], [32, 16], [16, 32]],
    }
    start = [{"opt.lr": 0.002, "model/tokenizer": "sw", "model.patch_size, model.stride_size": [32, 16]}]
    toy = search({**ONE, "space": space, "start": start, "trials": 10, "forbid": [{"model.patch_size": 32,
                  "model.stride_size": 32, "model/tokenizer": "c1d"}]}, "train.epochs=1")  # fmt: skip
    code, said = toy.run()
    assert code == 0, said
    trials = toy.folder.trials()
    assert len(trials) == 10
    assert trials[0].factors["opt.lr"] == 0.002 and trials[0].factors["model.stride_size"] == 16
    assert all(("opt.warmup_epochs" in trial.factors) == (trial.factors["model/tokenizer"] == "sw") for trial in trials)
    assert all(trial.factors["model.patch_size"] == 32 for trial in trials), "a stride above the patch is no run"
    assert not [t for t in trials if (t.factors["model/tokenizer"], t.factors["model.stride_size"]) == ("c1d", 32)]
    assert states(toy)["FAIL"] == len(told(toy)) - 10


def test_several_objectives(search) -> None:
    metrics = {"val_r2": "maximize", "train_seconds": "minimize"}
    toy = search({**ONE, "metrics": metrics, "sampler": "nsga2", "trials": 5}, "train.epochs=1")
    code, said = toy.run()
    assert code == 0, said
    assert all(len(trial.values) == 2 and trial.values[1] > 0 for trial in told(toy))


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str | None]:
    """Return the URL of a storage that is really there; None: the journal."""
    if request.param == "postgresql":
        with postgres.serving() as url:
            yield url
    else:
        yield f"sqlite:///{tmp_path}/optuna.db" if request.param == "sqlite" else None


def test_eight_workers_at_once(search, tmp_path: Path, storage: str | None) -> None:
    toy = search({**ONE, "trials": 24}, "train.epochs=2", "tracking.live=true")
    eight = ["hydra/launcher=local", "hydra.launcher.slots=8", "hydra.launcher.cpus_per_job=1"]
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


def counted(said: str) -> dict[str, int]:
    """Return the counts in a sentence such as `12 runs: 3 finished, 2 learnt nothing`, or `1 waiting, 3 completed`."""
    found: Counter[str] = Counter()
    for count, word in re.findall(r"(\d+) (learnt nothing|[a-z_]+)", said):
        if word in (*GROUPS, *STATES, WAITING):
            found[word if word in GROUPS else group_of(word)] += int(count)
    return dict(found)


def test_all_commands_count_the_runs_of_a_study_alike(
    search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three runs are good, four explode, two learn nothing, two are pruned in epoch 5, and one is interrupted."""
    settings = {"good": [3e-3, 8], "explodes": [10.0, 3], "learns nothing": [1e-9, 4], "pruned": [1e-9, 8]}
    counts = {"good": 3, "explodes": 4, "learns nothing": 2, "pruned": 2}
    points = [[*settings[name], seed] for name, count in counts.items() for seed in range(count)] + [[3e-3, 500, 0]]
    keys = "opt.lr, train.epochs, train.seed"
    section = {**ONE, "space": {keys: points}, "start": [{keys: point} for point in points], "trials": 11}
    section["pruner"] = {"name": "median", "n_startup_trials": 3, "warmup_steps": 60}
    toy = search(section, "opt.lr_sch=constant")
    code, end = toy.run(launcher=[])
    stopped = toy.start("sweep.trials=12", launcher=[])
    until(lambda: toy.states().get(11) == "running", "the last run")
    stopped.send_signal(signal.SIGINT)
    stopped.communicate(timeout=60)
    monkeypatch.chdir(tmp_path)

    def said(command: Callable[[list[str]], int], *words: str) -> str:
        assert command(list(words)) == 0
        return capsys.readouterr().out

    rows = csv.DictReader(said(sweep, "table", "toy", "--style", "csv").splitlines())
    others = [(row["runs"].split("/"), row["other"]) for row in rows]
    table = sum(
        (Counter(counted(other)) for _, other in others), Counter({"finished": sum(int(n) for (n, _), _ in others)})
    )
    ablation = said(analysis, "ablation", "multirun/toy", "--metric", "test_r2")
    records = [read_record(trial.run) for trial in toy.folder.trials()]
    found = {
        "status": counted(said(sweep, "status", "toy").splitlines()[0]),
        "table": dict(table),
        "why": counted(said(sweep, "why", "toy").splitlines()[-1]),
        "ablation": counted(ablation.splitlines()[0]),
        "report": counted(said(analysis, "report", "toy").splitlines()[0]),
        "MLflow": dict(Counter(group_of(record.state) for record in records)),
    }
    right = {"finished": 3, "learnt nothing": 2, "failed": 4, "pruned": 2, "open": 1}
    assert {name: counts for name, counts in found.items() if counts != right} == {}
    assert (code, stopped.returncode) == (1, 130)
    assert counted(end[end.rindex("11 runs:") :].splitlines()[0]) == {k: v for k, v in right.items() if k != "open"}
    (tally, *_) = json.loads(Path("multirun/toy/ablation/ablation.json").read_text())["tallies"]
    assert [tally[name] for name in ("finished", "unlearnt", "failed", "pruned", "open")] == list(right.values())
    assert states(toy) == {"COMPLETE": 5, "FAIL": 4, "PRUNED": 2, "RUNNING": 1}
    report = Path("multirun/toy/report/report.md").read_text()
    assert (
        "- **diverged**, 4: e.g. it exploded: " in report
        and "- **plateau**, 2: " in report
        and "**pruned**" not in report
    )
    assert Counter(mlflow_status(record.state) for record in records) == {"FINISHED": 5, "FAILED": 4, "KILLED": 3}
    assert all("it exploded" in record.notes for record in records if record.state == "diverged")
    assert "healthy" not in said(sweep, "why", "toy")
    assert said(sweep, "retry", "toy").splitlines()[:3] == [
        "2 learnt nothing, which another try would not change",
        "4 runs will be tried again",
        "4 of them exploded and will again: `specvit sweep why toy` names other settings",
    ]
