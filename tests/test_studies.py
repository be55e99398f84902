"""Whole studies on toy spectra: nothing that dies, fails or is edited costs a run, and no run is made twice."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from studies import LOCAL, Study, until
from whole_runs import assert_same_run

from specvit.config.folder import RunFolder
from specvit.files import read_json_lines
from specvit.sweep import __main__ as command

pytestmark = pytest.mark.slow

GRID = {"grids": [{"axes": {"model/tokenizer": ["c1d", "sw"]}}], "seeds": [1, 2, 3]}
SLOW = ["train.epochs=60"]


@pytest.fixture
def study(tiny: list[str], tmp_path: Path) -> Iterator[Callable[..., Study]]:
    """Return `study(definition, *overrides, name=)`, which writes a study's file."""
    made: list[Study] = []

    def make(definition: dict[str, Any], *overrides: str, name: str = "toy") -> Study:
        made.append(Study(tmp_path, name, definition, [*tiny, "opt.lr=3e-3", *overrides]))
        return made[-1]

    yield make
    for one in made:
        one.close()


def runs_in(place: Path) -> list[Path]:
    return sorted(path.parent for path in place.glob("outputs/*/run.json"))


def epochs(place: Path) -> int:
    """Return how many runs have an epoch on file."""
    return len(list(place.glob("outputs/*/metrics.jsonl")))


def starts(run: Path) -> int:
    return sum(attempt["event"] == "start" for attempt in read_json_lines(run / "attempts.jsonl"))


def test_a_grid_ends_with_a_table_and_the_same_command_does_nothing_again(study, tmp_path: Path) -> None:
    toy = study(GRID)
    code, said = toy.run()
    assert code == 0, said
    assert Counter(toy.states().values()) <= Counter({"completed": 6, "plateau": 6})
    assert "[6/6]" in said
    assert "3/3" in said.splitlines()[-1]
    assert [starts(run) for run in runs_in(tmp_path)] == [1] * 6
    assert len(list(toy.folder.file("runs").iterdir())) == 6
    begun = len(toy.events("begins"))
    code, said = toy.run()
    assert code == 0, said
    assert len(toy.events("begins")) == begun
    assert [starts(run) for run in runs_in(tmp_path)] == [1] * 6


def test_one_failing_cell_stops_nothing_and_waits_for_a_retry(study, tmp_path: Path) -> None:
    cells = {"good": {}, "diverges": {"opt.lr": 1e30, "opt.lr_sch": "constant"}, "other": {"train.seed": 7}}
    toy = study({"grids": [{"cells": cells}]})
    code, said = toy.run()
    assert code == 1
    assert Counter(toy.states().values()) == Counter(completed=2, diverged=1), said
    assert "failed: " in said and "diverged" in said
    (failed,) = [trial for trial in toy.folder.trials() if toy.folder.state(trial) == "diverged"]
    assert failed.cell == "diverges"
    toy.run()
    assert starts(failed.run.path) == 1
    toy.run("sweep.retry=true")
    assert starts(failed.run.path) == 2
    assert toy.states()[failed.number] == "diverged"


def test_a_cell_that_raises_is_told_with_its_traceback(study, tmp_path: Path) -> None:
    toy = study({"grids": [{"cells": {"good": {}, "raises": {"train.seed": 7}}}]})
    code, said = toy.run("sweep.dry_run=true")
    assert code == 0 and "2 to do" in said
    assert not toy.folder.path.exists()
    folder = next(line.split()[2] for line in said.splitlines() if "raises" in line)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / folder).write_text("no folder")
    code, said = toy.run()
    assert code == 1
    assert Counter(toy.states().values()) == Counter(completed=1, refused=1), said
    (end,) = [trial.end for trial in toy.folder.trials() if toy.folder.state(trial) == "refused"]
    assert end and end["cause"]
    assert end["cause"] in said


def test_killed_workers_and_drivers_lose_nothing(study, tmp_path: Path, tiny) -> None:
    toy = study(GRID, *SLOW)
    toy.start()
    until(lambda: epochs(tmp_path) >= 2, "two runs at work")
    toy.kill_a_worker()
    until(lambda: len(toy.events("begins")) >= 3, "the slot is filled again")
    toy.drivers[-1].kill()
    toy.drivers[-1].wait()
    assert toy.workers()
    toy.kill_a_worker()
    code, said = toy.run()
    assert code == 0, said
    assert set(toy.states().values()) <= {"completed", "plateau"}
    assert len(runs_in(tmp_path)) == 6
    ends = Counter(event["trial"] for event in toy.events("ends"))
    assert ends == Counter(range(6))
    killed = [run for run in runs_in(tmp_path) if starts(run) > 1]
    assert len(killed) == 2
    for run in killed:  # to the same bits as alone
        seed, tokenizer = yaml.safe_load((run / "config.yaml").read_text())["train"]["seed"], run.name.split("-")[0]
        alone = [*tiny, "opt.lr=3e-3", *SLOW, f"train.seed={seed}", f"model/tokenizer={tokenizer}", "train.threads=1"]
        words = [sys.executable, "-m", "specvit.train", *alone, f"tracking.folder={tmp_path / 'alone'}"]
        subprocess.run(words, check=True, capture_output=True)
        assert_same_run(run, tmp_path / "alone" / run.name)


def test_a_slow_run_leaves_the_other_slot_at_work(study) -> None:
    cells = {"slow": {"train.epochs": 600}, **{f"seed {n}": {"train.seed": n} for n in range(8)}}
    toy = study({"grids": [{"cells": cells}]})
    code, said = toy.run()
    assert code == 0, said
    spans = {
        event["trial"]: (event["time"] - event["seconds"], event["time"], event["slot"]) for event in toy.events("ends")
    }
    slow, *quick = [spans[number] for number in range(9)]
    assert len({slot for _, _, slot in quick}) == 1, "all quick runs were made beside the slow one"
    assert max(end for _, end, _ in quick) < slow[1]
    gaps = [later[0] - earlier[1] for earlier, later in itertools.pairwise(quick)]
    assert max(gaps) < 0.5


def test_editing_the_configuration_changes_no_waiting_run(study, tmp_path: Path) -> None:
    conf = tmp_path / "conf" / "loss"
    conf.mkdir(parents=True)
    (conf / "mine.yaml").write_text("name: huber\nhuber_delta: 0.5\nlabel_smoothing: 0.0\n")
    toy = study({"overrides": {"loss": "mine"}, "grids": [{}], "seeds": [1, 2, 3, 4]})
    driver = toy.start()
    until(lambda: toy.events("begins"), "the first run")
    (conf / "mine.yaml").write_text("name: nonsense\n")
    said, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, said
    configs = [yaml.safe_load((run / "config.yaml").read_text()) for run in runs_in(tmp_path)]
    assert [config["loss"]["huber_delta"] for config in configs] == [0.5] * 4


def test_two_studies_share_a_run(study, tmp_path: Path) -> None:
    first, second = study(GRID, *SLOW, name="first"), study({**GRID, "seeds": [3, 2]}, *SLOW, name="second")
    first.start()
    until(lambda: first.events("begins"), "the first study at work")
    code, said = second.run()
    assert code == 0, said
    first.drivers[0].wait(240)
    assert set(first.states().values()) | set(second.states().values()) <= {"completed", "plateau"}
    assert (len(first.states()), len(second.states())) == (6, 4)
    assert [starts(run) for run in runs_in(tmp_path)] == [1] * 6


@pytest.mark.parametrize("launcher", [LOCAL, []], ids=["local", "inprocess"])
def test_ctrl_c_saves_and_the_same_command_goes_on(study, launcher: list[str], tmp_path: Path) -> None:
    toy = study({"grids": [{}], "seeds": [1, 2]}, *SLOW)
    driver = toy.start(launcher=launcher)
    until(lambda: any(run.joinpath("metrics.jsonl").exists() for run in runs_in(tmp_path)), "a first epoch")
    os.killpg(driver.pid, signal.SIGINT)
    said, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130, said
    assert "Traceback" not in said
    assert not toy.workers()
    code, said = toy.run(launcher=launcher)
    assert code == 0, said
    assert set(toy.states().values()) <= {"completed", "plateau"}


def test_a_study_in_the_background(study) -> None:
    toy = study({"grids": [{}], "seeds": [1, 2]})
    code, said = toy.run("sweep.detach=true")
    assert code == 0
    assert "process" in said and "driver.log" in said
    until(lambda: len(toy.states()) == 2 and "waiting" not in toy.states().values(), "both runs")
    until(lambda: "2/2" in toy.folder.file("driver.log").read_text(), "the driver's own words")


def test_cancel_and_retry(study, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    toy = study({"grids": [{}], "seeds": [1, 2, 3]}, *SLOW)
    toy.start()
    until(lambda: len(runs_in(tmp_path)) >= 2, "two runs")
    until(lambda: all(run.joinpath("metrics.jsonl").exists() for run in runs_in(tmp_path)), "their first epochs")
    one = toy.folder.trial(0)
    assert one is not None
    assert command.main(["cancel", "toy", one.name]) == 0
    until(lambda: toy.states()[0] == "cancelled", "it stops")
    toy.drivers[0].wait(240)
    assert Counter(toy.states().values())["cancelled"] == 1
    assert command.main(["retry", "toy"]) == 0
    code, said = toy.run()
    assert code == 0, said
    assert "cancelled" not in toy.states().values()
    capsys.readouterr()


def test_cancel_of_all_stops_and_the_command_goes_on(study, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    toy = study(GRID, *SLOW)
    driver = toy.start()
    until(lambda: len(toy.events("begins")) >= 2, "two runs")
    assert command.main(["cancel", "toy"]) == 0
    driver.wait(120)
    assert "waiting" in toy.states().values()
    code, said = toy.run()
    assert code == 0, said
    assert set(toy.states().values()) <= {"completed", "plateau"}
    capsys.readouterr()


def test_a_run_that_kills_its_process_again_and_again_is_left_alone(study, tmp_path: Path) -> None:
    toy = study({"grids": [{}], "seeds": [1, 2]}, "train.epochs=2000")
    driver = toy.start(launcher=[*LOCAL, "hydra.launcher.slots=1"])
    for deaths in range(3):
        until(lambda deaths=deaths: len(toy.events("begins")) > deaths, "the run begins")
        run = toy.folder.trials()[0].run
        until(lambda run=run, deaths=deaths: starts(run.path) > deaths, "its process")
        toy.kill_a_worker()
    until(lambda: toy.states()[0] == "lost", "it is given up")
    driver.send_signal(signal.SIGTERM)
    driver.communicate(timeout=60)
    assert "its process died 3 times" in (toy.folder.trials()[0].end or {})["cause"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this GPU works")
def test_a_slot_whose_gpu_cannot_be_used_takes_no_trial(study, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = study({"grids": [{}], "seeds": [1, 2]})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    code, said = toy.run(launcher=["hydra/launcher=local"])
    assert code == 1
    assert "slot 0 is left empty: train.device: there is a GPU (CUDA_VISIBLE_DEVICES=0), but torch" in said
    assert set(toy.states().values()) == {"waiting"}
    assert ([event["code"] for event in toy.events("worker ends")], toy.events("begins")) == ([3], [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, said = toy.run()
    assert code == 0, said


def test_another_definition_under_the_same_name_is_refused_and_can_extend_it(study, tmp_path: Path) -> None:
    toy = study({"grids": [{}], "seeds": [1]})
    assert toy.run()[0] == 0
    toy = study({"grids": [{}], "seeds": [1, 2]})
    code, said = toy.run()
    assert code == 2
    assert "sweep.name=NAME" in said and "sweep.extend=true" in said
    assert toy.run("sweep.extend=true")[0] == 0
    assert len(toy.states()) == 2
    assert [starts(run) for run in runs_in(tmp_path)] == [1, 1]
    code, said = toy.run("opt.lr=1e-3")
    assert (code, "opt.lr differ" in said) == (2, True), said


def test_a_grid_with_one_bad_cell_starts_nothing(study, tmp_path: Path) -> None:
    toy = study({"grids": [{"axes": {"model.stride_size": [32, 64]}}], "seeds": [1, 2]})
    code, said = toy.run()
    assert code == 2
    assert said.startswith("specvit: 2 of 4 runs cannot be made: model.stride_size: is 64"), said
    assert said.count("\n") == 1
    assert not (tmp_path / "multirun").exists() and not (tmp_path / "outputs").exists()


def test_plain_multirun_is_a_grid_without_a_file(tiny: list[str], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "specvit.train", "-m", *tiny, "model/tokenizer=c1d,sw", "train.seed=range(1,3)"]
    for _ in range(2):
        ended = subprocess.run([*words, *LOCAL], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [starts(run) for run in runs_in(tmp_path)] == [1] * 4
    assert len(list((tmp_path / "multirun").iterdir())) == 1
    shutil.rmtree(tmp_path / "multirun")
    assert all(RunFolder(run, "").state() in ("completed", "plateau") for run in runs_in(tmp_path))
