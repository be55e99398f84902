"""Studies in the slots of this machine: whatever dies, is interrupted or waits, no run is lost and none made twice."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from mounts import fill, small_disk
from studies import LOCAL, ONE_SLOT, Study, starts_of, until
from whole_runs import assert_same_run

from specvit.commands.train import main as train
from specvit.config.build import build_config
from specvit.run.run import run
from specvit.study.store import StudyFolder
from specvit.utils.files import is_locked, locked

pytestmark = pytest.mark.slow

SEEDS = {"grids": [{}], "seeds": [1, 2]}


def test_killed_workers_and_drivers_lose_nothing(study, tmp_path: Path) -> None:
    toy = study({"grids": [{"axes": {"model/tokenizer": ["c1d", "sw"]}}], "seeds": [1, 2]}, {"train.epochs": 60})
    toy.start(launcher=LOCAL)
    until(lambda: toy.is_at_work(2), "two runs at work")
    toy.kill_a_worker()
    until(lambda: len(toy.events("begins")) >= 3, "the slot is filled again")
    toy.kill_the_driver()
    assert toy.workers()
    toy.kill_a_worker()
    code, said = toy.run(launcher=LOCAL)
    assert code == 0, said
    assert toy.is_done(4) and "[4/4]" in said and "2/2" in said.splitlines()[-1]
    assert Counter(event["trial"] for event in toy.events("ends")) == Counter(range(4))
    killed = [trial for trial in toy.folder.trials() if starts_of(trial.run) > 1]
    assert len(killed) == 2
    for trial in killed:
        tracking = {**trial.config["tracking"], "folder": str(tmp_path / "alone")}
        assert_same_run(trial.run.path, run(build_config({**trial.config, "tracking": tracking})).folder)


@pytest.mark.nightly
def test_a_slow_run_leaves_the_other_slot_working(study) -> None:
    cells = {"slow": {"train.epochs": 400}, **{f"seed {n}": {"train.seed": n} for n in range(4)}}
    toy = study({"grids": [{"cells": cells}]})
    code, said = toy.run(launcher=LOCAL)
    assert code == 0, said
    spans = {e["trial"]: (e["time"] - e["seconds"], e["time"], e["slot"]) for e in toy.events("ends")}
    slow, *quick = [spans[number] for number in range(5)]
    assert len({slot for _, _, slot in quick}) == 1, "all quick runs were made beside the slow one"
    assert max(end for _, end, _ in quick) < slow[1]
    assert max(later[0] - earlier[1] for earlier, later in itertools.pairwise(quick)) < 0.5


def test_ctrl_c_stops_the_workers_once_they_have_saved_and_twice_leaves_at_once(study) -> None:
    toy = study(SEEDS, {"train.epochs": 2000})
    driver = toy.start(launcher=LOCAL)
    until(lambda: toy.is_at_work(2), "two runs at work")
    for pid in toy.workers():
        os.kill(pid, signal.SIGSTOP)  # they cannot save just now
    driver.send(signal.SIGINT)
    time.sleep(1.0)
    assert driver.process.is_alive()
    driver.send(signal.SIGINT)
    assert driver.wait(10) == 130 and "Traceback" not in driver.said, driver.said
    assert len(toy.workers()) == 2
    for pid in toy.workers():
        os.kill(pid, signal.SIGCONT)
    until(lambda: not toy.workers(), "they save and end")
    assert {trial.run.state() for trial in toy.folder.trials()} == {"preempted"}


def test_a_signal_reaches_the_workers_of_an_earlier_command(study) -> None:
    toy = study(SEEDS, {"train.epochs": 2000})
    toy.start(launcher=LOCAL)
    until(lambda: toy.is_at_work(2), "two workers")
    toy.kill_the_driver()
    diary = toy.folder.file("events.jsonl")
    known = diary.read_text()
    diary.write_text(known.replace('"born": "', '"born": "1'))  # as if their numbers had gone to other processes
    code, said = _stopped(toy, signal.SIGINT)
    assert (code, said.count("the worker of an earlier command continues")) == (130, 2), said
    assert len(toy.workers()) == 2
    diary.write_text(known)
    code, said = _stopped(toy, signal.SIGTERM)
    assert code == 143, said
    until(lambda: not toy.workers(), "they end", 10.0)
    assert {trial.run.state() for trial in toy.folder.trials()} == {"preempted"}


def _stopped(toy: Study, number: signal.Signals) -> tuple[int, str]:
    """Give the command, send it a signal when it looks after its slots, and return how it ended."""
    driver = toy.start(launcher=LOCAL)
    driver.until("2 slots: 1 CPU thread\n")
    driver.send(number)
    return driver.wait(60), driver.said


def test_a_worker_whose_driver_died_keeps_its_study_as_it_is_and_another_launcher_joins_it(study) -> None:
    toy = study(SEEDS, {"train.epochs": 200})
    toy.start(launcher=ONE_SLOT)
    until(lambda: toy.is_at_work(), "the first run")
    toy.kill_the_driver()
    code, said = study({**SEEDS, "seeds": [3, 4]}, {"train.epochs": 200}).run("sweep.extend=true")
    assert code == 2
    assert "still running" in said and "specvit sweep cancel toy" in said
    toy = study(SEEDS, {"train.epochs": 200})
    _, said = toy.run()
    assert len({event["slot"] for event in toy.events("begins")}) == 2, said
    until(lambda: toy.is_done(2), "both runs")
    assert toy.starts() == [1, 1]


@pytest.mark.nightly
def test_a_disk_that_is_full_for_a_while_costs_no_trial(study, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 20000) as disk:
        toy = study({**SEEDS, "seeds": [1, 2, 3, 4]}, {"train.epochs": 30}, place=disk)
        driver = toy.start(launcher=ONE_SLOT)
        try:
            until(lambda: toy.is_at_work(), "the first run")
            fill(disk / "filler")
            until(lambda: not toy.workers(), "its worker stops")
            time.sleep(5.0)
            (disk / "filler").unlink()
            code, said = driver.wait(240), driver.said
        finally:
            toy.close()
        assert code == 0, said
        assert "the disk is full" in said and "its runs wait, and another worker starts in 2 s" in said, said
        assert toy.is_done(4)
        assert "Traceback" not in said + toy.folder.file("workers/0.log").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this GPU works")
def test_a_slot_whose_gpu_cannot_be_used_takes_no_trial(study, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = study(SEEDS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    code, said = toy.run(launcher=["hydra/launcher=local"])
    assert code == 1
    assert "slot 0 is left empty: train.device: there is a GPU (CUDA_VISIBLE_DEVICES=0), but torch" in said
    assert set(toy.states().values()) == {"waiting"}
    assert ([event["code"] for event in toy.events("worker ends")], toy.events("begins")) == ([3], [])


def test_a_single_run_in_the_background_and_the_same_command_again(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*tiny, "train.epochs=2000", "train.early_stopping.patience=null", "tracking.live=false"]
    assert train([*words, "sweep.detach=true"]) == 0
    said = capsys.readouterr().out
    (folder,) = Path("multirun").iterdir()
    pid = int(said.partition("process ")[2].partition(",")[0])
    assert f"study {folder.name} started in the background: process {pid}, log {folder}/driver.log; watch it" in said
    assert "disk: about" in said and "time: " in said
    try:
        until(lambda: "epoch 1/2000" in (folder / "driver.log").read_text(), "its first epoch")
        assert train([*words, "sweep.detach=true"]) == 0
        again = capsys.readouterr().out
        assert again.startswith(f"study {folder.name} is already running in the background: process {pid}, log ")
    finally:
        os.kill(pid, signal.SIGTERM)
    until(lambda: not is_locked(folder / "driver.lock"), "its end")
    assert StudyFolder(folder.absolute()).trials()[0].run.state() == "preempted"


@pytest.mark.parametrize("word", ["sweep.detach=true", "+sweep.detach=Yes"])
def test_a_study_in_the_background_starts_there_once(word: str, study) -> None:
    toy = study({"grids": [{}], "seeds": [1]})
    try:
        code, said = toy.run(word)
        assert code == 0
        assert "process" in said and "driver.log" in said
        until(lambda: toy.is_done(1), "its run", 60.0)
        until(lambda: "1/1" in toy.folder.file("driver.log").read_text(), "the driver's own words")
        assert len(toy.events("detached")) == 1
    finally:
        (toy.place / "sweeps" / "toy.yaml").unlink()  # without it, no command starts another


def test_a_command_in_the_foreground_is_not_taken_for_one_in_the_background(study) -> None:
    toy = study({"grids": [{}], "seeds": [1]})
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    toy.folder.make_folders()
    with locked(toy.folder.file("driver.lock")):
        for pid, born in ((int(ended.stdout), "1"), (os.getpid(), "1")):
            toy.folder.log_event("detached", pid=pid, born=born)
            code, said = toy.run("sweep.detach=true")
            assert code == 2 and "another command drives this study" in said and "watch it with" in said
