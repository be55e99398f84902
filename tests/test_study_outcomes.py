"""What becomes of a study's runs: failed, cancelled, interrupted, given up, removed, edited, shared, out of budget."""

import contextlib
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from planted import At, Stop
from processes import Child
from studies import Study, until

from specvit.commands import sweep as command
from specvit.commands.train import main
from specvit.run_folder.folder import DONE
from specvit.study import worker

pytestmark = pytest.mark.slow

SEEDS = {"grids": [{}], "seeds": [1, 2]}
LONG = {"train.epochs": 30}
STEP = "specvit.training.step.Learner.step"
DIVERGES = {"opt.lr": 1e30, "opt.lr_sch": "constant"}


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return `sweep(*words)`, which gives a command and returns what it says."""
    monkeypatch.chdir(tmp_path)

    def give(*words: str) -> str:
        assert command.main(list(words)) == 0
        return capsys.readouterr().out

    return give


def run_folders(place: Path) -> list[Path]:
    return [path.parent for path in place.glob("outputs/*/run.json")]


def count_of(study: Study) -> Counter[str]:
    return Counter(study.states().values())


# runs that end


def test_a_grid_ends_with_a_table_and_the_same_command_does_nothing_again(study, tmp_path: Path) -> None:
    toy = study({"grids": [{"axes": {"model/tokenizer": ["c1d", "sw"]}}], "seeds": [1, 2]})
    code, said = toy.run()
    assert (code, toy.is_done(4)) == (0, True), said
    assert "2/2" in said.splitlines()[-1]
    assert {link.name for link in toy.folder.file("runs").iterdir()} == {path.name for path in run_folders(tmp_path)}
    begins = toy.events("begins")
    code, said = toy.run()
    assert (code, toy.events("begins"), toy.starts()) == (0, begins, [1] * 4), said


def test_a_failed_run_stops_no_other_and_waits_for_a_retry(study) -> None:
    cells = {"diverges": DIVERGES, "raises": {"train.seed": 6}, "good": {"train.seed": 7}}
    toy = study({"grids": [{"cells": cells}]})
    code, said = toy.run("sweep.dry_run=true")
    assert (code, "3 to do" in said, toy.folder.path.exists()) == (0, True, False)
    folder = next(line.split()[2] for line in said.splitlines() if "raises" in line)
    (toy.place / "outputs").mkdir()
    (toy.place / "outputs" / folder).write_text("no folder")
    code, said = toy.run()
    assert (code, toy.states()) == (1, {0: "diverged", 1: "refused", 2: "completed"}), said
    cause = (toy.trial(1).end or {})["cause"]
    assert "failed: " in said and "diverged" in said and cause and cause in said
    toy.run()
    assert toy.starts() == [1, 0, 1]
    (toy.place / "outputs" / folder).unlink()
    code, said = toy.run("sweep.retry=true")
    assert (code, toy.states()) == (1, {0: "diverged", 1: "completed", 2: "completed"}), said
    assert toy.starts() == [2, 1, 1]


def test_a_run_that_kills_its_process_again_and_again_is_left_alone_until_a_retry(study) -> None:
    toy = study(SEEDS, {"train.epochs": 1})
    for _ in range(3):
        killed = toy.start(plants=[At(STEP, Stop(signal.SIGKILL))])
        assert killed.wait() == -signal.SIGKILL
    code, said = toy.run()
    assert (code, toy.states()[0], toy.trial(1).run.state() in DONE) == (1, "lost", True), said
    assert "its process died 3 times" in (toy.trial(0).end or {})["cause"]
    assert toy.run()[0] == 1 and toy.starts()[0] == 3
    code, said = toy.run("sweep.retry=true")
    assert (code, toy.is_done(2)) == (0, True), said


def test_a_run_that_was_removed_is_made_again(study) -> None:
    toy = study(SEEDS, {"train.epochs": 1})
    assert toy.run()[0] == 0
    shutil.rmtree(toy.trial(1).run.path)
    assert toy.states()[1] == "waiting"
    assert toy.run()[0] == 0
    assert toy.is_done(2)


@pytest.mark.parametrize("key", ["sweep.hours", "sweep.failures"])
def test_a_spent_budget_is_reported_and_the_same_command_resumes(study, key: str) -> None:
    if key == "sweep.hours":
        toy = study(SEEDS, {"train.epochs": 1})
        code, said = toy.run("sweep.hours=1e-7")
        assert (code, "not finished: the time budget is spent (sweep.hours)" in said) == (1, True), said
        assert toy.run()[0] == 0
        assert toy.is_done(2)
    else:
        cells = {f"bad {n}": {**DIVERGES, "train.seed": n} for n in range(4)}
        toy = study({"grids": [{"cells": cells}], "budget": {"failures": 2}})
        code, said = toy.run()
        assert (code, count_of(toy)) == (1, Counter(diverged=2, waiting=2)), said
        assert "not finished: 2 runs failed, which is the budget" in said


# stops


def test_ctrl_c_saves_and_the_same_command_resumes(study) -> None:
    toy = study(SEEDS)
    toy.run("sweep.hours=1e-7")
    toy.folder.request_cancel(0)  # by a cancel that came too late: it stops nothing
    driver = toy.start(plants=[At(STEP, Stop(signal.SIGINT), call=18)])
    assert driver.wait() == 130 and "Traceback" not in driver.said, driver.said
    assert toy.states() == {0: "waiting", 1: "waiting"} and toy.trial(0).run.state() == "preempted"
    code, said = toy.run()
    assert (code, toy.is_done(2), toy.starts()) == (0, True, [2, 1]), said


@pytest.mark.nightly
def test_cancel_stops_one_run_or_all_and_the_command_resumes(study, sweep) -> None:
    toy = study({**SEEDS, "seeds": [1, 2, 3]}, {"train.epochs": 120})  # seconds, so that a cancel comes in time
    driver = toy.start()
    until(lambda: toy.is_at_work(), "the first run")
    with paused(driver):
        sweep("cancel", "toy", toy.trial(0).name)
    until(lambda: toy.states()[0] == "cancelled" and toy.states()[1] == "running", "the next run")
    with paused(driver):
        sweep("cancel", "toy")
    driver.wait()
    assert toy.states() == {0: "cancelled", 1: "waiting", 2: "waiting"}
    sweep("retry", "toy")
    code, said = toy.run()
    assert (code, toy.is_done(3), toy.starts()) == (0, True, [2, 2, 1]), said


@contextlib.contextmanager
def paused(driver: Child) -> Iterator[None]:
    """Let a command wait during the block, however fast its runs are."""
    driver.send(signal.SIGSTOP)
    yield
    driver.send(signal.SIGCONT)


# what a study is


def test_editing_the_configuration_changes_no_waiting_run(study, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = study({"overrides": {"loss": "mine"}, "grids": [{}], "seeds": [1, 2]}, {"train.epochs": 1})
    mine = toy.place / "conf" / "loss" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("name: huber\nhuber_delta: 0.5\nlabel_smoothing: 0.0\n")
    real = worker.run

    def run(*arguments, **named):
        mine.write_text("name: nonsense\n")
        return real(*arguments, **named)

    monkeypatch.setattr(worker, "run", run)
    code, said = toy.run()
    assert code == 0, said
    configs = [yaml.safe_load(trial.run.file("config.yaml").read_text()) for trial in toy.folder.trials()]
    assert [config["loss"]["huber_delta"] for config in configs] == [0.5] * 2


def test_two_studies_share_a_run(study, tmp_path: Path) -> None:
    first, second = study(SEEDS, LONG, name="first"), study({**SEEDS, "seeds": [1, 2, 3]}, LONG, name="second")
    drivers = [first.start()]
    until(lambda: first.is_at_work(), "the first study at work")
    with paused(drivers[0]):
        drivers.append(second.start())
        until(lambda: second.events("begins"), "the second one at work beside it")
    assert [driver.wait() for driver in drivers] == [0, 0], drivers[1].said
    assert first.is_done(2) and second.is_done(3)
    assert second.starts() == [1, 1, 1] and len(run_folders(tmp_path)) == 3


def test_another_definition_under_the_same_name_is_refused_and_can_extend_it(study) -> None:
    assert study({**SEEDS, "seeds": [1]}, {"train.epochs": 1}).run()[0] == 0
    toy = study(SEEDS, {"train.epochs": 1})
    code, said = toy.run()
    assert code == 2
    assert "sweep.name=NAME" in said and "sweep.extend=true" in said
    assert toy.run("sweep.extend=true")[0] == 0
    assert toy.starts() == [1, 1]
    code, said = toy.run("opt.lr=1e-3")
    assert (code, "opt.lr differ" in said) == (2, True), said


def test_a_grid_with_one_bad_cell_starts_nothing(study) -> None:
    toy = study({"grids": [{"axes": {"model.stride_size": [32, 64]}}], "seeds": [1, 2]})
    code, said = toy.run()
    assert code == 2
    assert said.startswith("specvit: 2 of 4 runs cannot be made: model.stride_size: is 64"), said
    assert said.count("\n") == 1
    assert not (toy.place / "multirun").exists() and not (toy.place / "outputs").exists()


def test_plain_multirun_is_a_grid_without_a_file(tiny: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["-m", *tiny, "train.epochs=1", "model/tokenizer=c1d,sw", "train.seed=range(1,3)"]) == 0
    (folder,) = (tmp_path / "multirun").iterdir()
    assert folder.name.startswith("grid-") and len(run_folders(tmp_path)) == 4
    assert all((path / "attempts.jsonl").read_text().count('"start"') == 1 for path in run_folders(tmp_path))
