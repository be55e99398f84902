"""Studies in odd circumstances: interrupted retries, older workers, budgets, removed runs, spaces that change."""

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from mounts import fill, small_disk
from studies import Study, until

from specvit.config.folder import RunFolder
from specvit.sweep import __main__ as command
from specvit.sweep.results import outcome_of
from specvit.sweep.storage import open_storage

pytestmark = pytest.mark.slow

SEEDS = {"grids": [{}], "seeds": [1, 2]}
SLOW = {"train.epochs": 200}
SEARCH = {
    "space": {"opt.lr": {"low": 1.0e-3, "high": 1.0e-2}, "model/tokenizer": ["c1d", "sw"]},
    "metrics": {"val_r2": "maximize"},
    "trials": 2,
    "sampler": "random",
}
ONE_SLOT = ["hydra/launcher=local", "hydra.launcher.slots=1", "hydra.launcher.cpus_per_job=1"]


@pytest.fixture
def study(tiny: list[str], tmp_path: Path) -> Iterator[Callable[..., Study]]:
    """Return `study(definition, **settings)`, which writes the file of the study `toy`."""
    made: list[Study] = []

    def make(definition: dict[str, Any], settings: dict[str, Any] | None = None) -> Study:
        more = [f"{key}={value}" for key, value in (settings or {}).items()]
        made.append(Study(tmp_path, "toy", definition, [*tiny, "opt.lr=3e-3", *more]))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> Callable[..., str]:
    """Return `sweep(*words)`, which gives a command and returns what it says."""
    monkeypatch.chdir(tmp_path)

    def give(*words: str) -> str:
        assert command.main(list(words)) == 0
        return capsys.readouterr().out

    return give


def at_work(study: Study) -> bool:
    """Say whether a run of the study has an epoch on file and goes on."""
    return any(
        trial.run.file("metrics.jsonl").exists() and trial.run.state() == "running" for trial in study.folder.trials()
    )


def done(study: Study) -> bool:
    return set(study.states().values()) <= {"completed", "plateau"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_retry_that_is_interrupted_goes_on(study, sweep, number: signal.Signals) -> None:
    toy = study({"search": {**SEARCH, "trials": 1}}, SLOW)
    toy.start(launcher=ONE_SLOT)
    until(lambda: at_work(toy), "the trial")
    sweep("cancel", "toy", toy.folder.trials()[0].name)
    toy.drivers[-1].wait(60)
    assert toy.states() == {0: "cancelled"}
    sweep("retry", "toy")
    driver = toy.start(launcher=[])
    until(lambda: at_work(toy), "the other try")
    driver.send_signal(number)
    driver.wait(60)
    code, said = toy.run(launcher=[])
    assert code == 0, said
    assert done(toy)
    storage = open_storage(toy.folder, None)
    (name,) = optuna.get_all_study_names(storage)
    found = optuna.load_study(study_name=name, storage=storage).get_trials()
    assert Counter(trial.state.name for trial in found) == Counter(FAIL=1, COMPLETE=1)


def test_a_cancelled_trial_of_a_search_stays_so(study, sweep) -> None:
    toy = study({"search": SEARCH}, SLOW)
    driver = toy.start(launcher=[])
    until(lambda: at_work(toy), "the first trial")
    driver.terminate()
    driver.wait(60)
    sweep("cancel", "toy", toy.folder.trials()[0].name)
    code, said = toy.run(launcher=[])
    assert code == 1, said
    assert Counter(toy.states().values())["cancelled"] == 1
    assert len(toy.states()) == 2


def test_another_launcher_goes_on_beside_a_worker_whose_driver_died(study) -> None:
    toy = study(SEEDS, SLOW)
    driver = toy.start(launcher=ONE_SLOT)
    until(lambda: at_work(toy), "the first run")
    driver.kill()
    _, said = toy.run(launcher=[])
    assert len({event["slot"] for event in toy.events("begins")}) == 2, said
    until(lambda: done(toy), "both runs", 20.0)


def test_a_study_is_not_changed_under_its_workers(study) -> None:
    toy = study(SEEDS, SLOW)
    driver = toy.start(launcher=ONE_SLOT)
    until(lambda: at_work(toy), "the first run")
    driver.kill()
    toy = study({**SEEDS, "seeds": [3, 4]}, SLOW)
    code, said = toy.run("sweep.extend=true")
    assert code == 2
    assert "still at work" in said and "specvit sweep cancel toy" in said
    os.kill(toy.workers()[0], signal.SIGTERM)
    until(lambda: not toy.workers(), "it ends")
    assert toy.run("sweep.extend=true")[0] == 0
    assert [trial.config["train"]["seed"] for trial in toy.folder.trials()] == [3, 4]


def test_a_search_does_not_change_its_choices(study) -> None:
    toy = study({"search": SEARCH}, {"train.epochs": 1})
    assert toy.run(launcher=[])[0] == 0
    changed = {**SEARCH, "space": {**SEARCH["space"], "model/tokenizer": ["c1d", "sw", "linear"]}}
    code, said = study({"search": changed}, {"train.epochs": 1}).run("sweep.extend=true", launcher=[])
    assert code == 2
    assert said.startswith("specvit: search.space.model/tokenizer: has other choices than the trials that are there")


def test_a_spent_budget_is_said_and_the_same_command_goes_on(study) -> None:
    toy = study(SEEDS)
    code, said = toy.run("sweep.hours=1e-7", launcher=[])
    assert (code, "not finished: the time budget is spent (sweep.hours)" in said) == (1, True), said
    assert toy.run(launcher=[])[0] == 0
    assert done(toy)


def test_a_budget_of_failures(study) -> None:
    cells = {f"bad {n}": {"opt.lr": 1e30, "opt.lr_sch": "constant", "train.seed": n} for n in range(4)}
    toy = study({"grids": [{"cells": cells}], "budget": {"failures": 2}})
    code, said = toy.run(launcher=[])
    assert (code, Counter(toy.states().values())) == (1, Counter(diverged=2, waiting=2)), said
    assert "not finished: 2 runs failed, which is the budget" in said


def test_a_run_that_was_removed_is_made_again(study, tmp_path: Path) -> None:
    toy = study(SEEDS)
    assert toy.run(launcher=[])[0] == 0
    shutil.rmtree(toy.folder.trials()[1].run.path)
    assert toy.states()[1] == "waiting"
    assert toy.run(launcher=[])[0] == 0
    assert done(toy)


def test_a_run_given_up_is_tried_again_when_asked(study) -> None:
    toy = study(SEEDS)
    toy.run("sweep.dry_run=true")
    code, said = toy.run("sweep.hours=1e-7", launcher=[])
    run: RunFolder = toy.folder.trials()[0].run
    run.path.mkdir(parents=True)
    for _ in range(3):
        run.record_attempt(event="start")
    run.set_status("running")
    code, said = toy.run(launcher=[])
    assert (code, toy.states()[0]) == (1, "lost"), said
    assert toy.run(launcher=[])[0] == 1
    code, said = toy.run("sweep.retry=true", launcher=[])
    assert code == 0, said
    assert done(toy)


def test_a_mark_left_by_a_late_cancel_stops_nothing(study) -> None:
    toy = study(SEEDS, SLOW)
    toy.run("sweep.hours=1e-7", launcher=[])
    toy.folder.ask_cancel(0)
    driver = toy.start(launcher=[])
    until(lambda: at_work(toy), "the first run")
    driver.terminate()
    said, _ = driver.communicate(timeout=60)
    assert driver.returncode == 143, said
    assert "cancelled" not in toy.states().values()


def test_a_grid_sampler_asks_each_point_once(study) -> None:
    space = {"opt.lr": [1.0e-3, 3.0e-3], "model/tokenizer": ["c1d", "sw"]}
    forbid = [{"opt.lr": 1.0e-3, "model/tokenizer": "sw"}]
    section = {**SEARCH, "space": space, "sampler": "grid", "trials": 10, "forbid": forbid}
    toy = study({"search": section}, {"train.epochs": 1})
    _, said = toy.run(launcher=[])
    points = [tuple(trial.factors.values()) for trial in toy.folder.trials()]
    assert sorted(points) == [(1.0e-3, "c1d"), (3.0e-3, "c1d"), (3.0e-3, "sw")], said


def test_what_another_search_pruned_is_finished_here(study) -> None:
    toy = study({"search": {**SEARCH, "pruner": {"name": "median", "n_startup_trials": 5}}})
    toy.run("sweep.hours=1e-7", launcher=[])
    assert toy.run(launcher=[])[0] == 0
    (run, *_) = [trial.run for trial in toy.folder.trials()]
    run.set_status("pruned", cause="by another study")
    shutil.rmtree(toy.folder.path)
    code, said = toy.run(launcher=[])
    assert code == 0, said
    assert done(toy)
    curves = [[row["val_r2"] for row in outcome_of(trial.run).rows] for trial in toy.folder.trials()]
    told = optuna.load_study(study_name=None, storage=open_storage(toy.folder, None)).get_trials()
    assert [list(trial.intermediate_values.values()) for trial in told] == curves, "what it found there is told, too"


def test_a_signal_reaches_the_workers_of_an_earlier_command(study, tmp_path: Path) -> None:
    toy = study(SEEDS, {"train.epochs": 2000})
    first = toy.start()
    until(lambda: len(toy.events("worker starts")) == 2 and at_work(toy), "two workers")
    first.kill()
    first.wait()
    diary = toy.folder.file("events.jsonl")
    known = diary.read_text()
    diary.write_text(known.replace('"born": "', '"born": "1'))  # as if their numbers had gone to other processes
    code, said = stopped(toy, signal.SIGINT)
    assert (code, said.count("the worker of an earlier command goes on")) == (130, 2), said
    assert len(toy.workers()) == 2
    diary.write_text(known)
    code, said = stopped(toy, signal.SIGTERM)
    assert code == 143, said
    until(lambda: not toy.workers(), "they end", 10.0)
    assert {trial.run.state() for trial in toy.folder.trials()} == {"preempted"}


def test_a_second_ctrl_c_leaves_at_once(study) -> None:
    toy = study(SEEDS, {"train.epochs": 2000})
    driver = toy.start()
    until(lambda: at_work(toy), "a run")
    for pid in toy.workers():
        os.kill(pid, signal.SIGSTOP)  # they cannot save just now
    driver.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert driver.poll() is None
    driver.send_signal(signal.SIGINT)
    said, _ = driver.communicate(timeout=10)
    assert driver.returncode == 130 and "Traceback" not in said, said
    assert toy.workers()
    for pid in toy.workers():
        os.kill(pid, signal.SIGCONT)
    until(lambda: not toy.workers(), "they save and end")
    assert "preempted" in {trial.run.state() for trial in toy.folder.trials()}


def stopped(toy: Study, number: signal.Signals) -> tuple[int, str]:
    """Give the command, send it a signal when it looks after its slots, and return how it ended."""
    driver = toy.start()
    assert driver.stdout is not None
    said = list(iter(lambda: driver.stdout.readline(), "2 slots: 1 CPU thread\n"))
    driver.send_signal(number)
    more, _ = driver.communicate(timeout=60)
    return driver.returncode, "".join(said) + more


def test_a_disk_that_is_full_for_a_while_costs_no_trial(study, tiny, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 20000) as disk:
        toy = Study(disk, "toy", {**SEEDS, "seeds": [1, 2, 3, 4]}, [*tiny, "train.epochs=30"])
        driver = toy.start(launcher=ONE_SLOT)
        try:
            until(lambda: at_work(toy), "the first run")
            fill(disk / "filler")
            until(lambda: not toy.workers(), "its worker stops")
            time.sleep(5.0)
            (disk / "filler").unlink()
            said, _ = driver.communicate(timeout=240)
        finally:
            toy.close()
        assert driver.returncode == 0, said
        assert "the disk is full" in said and "its runs wait, and another try comes in 2 s" in said, said
        assert done(toy) and len(toy.states()) == 4
        assert "Traceback" not in said + toy.folder.file("workers/0.log").read_text()
