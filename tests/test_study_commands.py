"""`specvit sweep`: status, table, why, diff, retry, cancel, on a study made by hand and without any heavy import."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from handmade import at_work, ended, epochs, holder, make_run, make_study, mixed_study, run_of

from specvit.commands.sweep import main
from specvit.study.status import status_lines
from specvit.study.store import CANCELLED, StudyFolder

Sweep = Callable[..., tuple[int, str, str]]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyFolder:
    monkeypatch.chdir(tmp_path)
    return mixed_study(tmp_path)


@pytest.fixture
def sweep(capsys: pytest.CaptureFixture[str]) -> Sweep:
    """Return `sweep(*words)`: exit code, and what was said on stdout and stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def ends(study: StudyFolder) -> list[str | None]:
    return [trial.end["state"] if trial.end else None for trial in study.trials()]


# to look at


def test_status_counts_and_explains(study: StudyFolder, sweep: Sweep) -> None:
    run = make_run(run_of(study, 3).path, rows=epochs(val_r2=[0.0, 0.25], train_loss=[2.0, 1.0]))
    with at_work(run, forecast="2026-01-02T03:04:05+0000"):
        code, said, _ = sweep("status", "toy")
    assert code == 0
    epochs_wanted = study.trials()[3].config["train"]["epochs"]
    assert said.splitlines() == [
        "study toy: 4 runs: 1 running, 1 waiting, 1 completed, 1 crashed; no worker running",
        "  crashed       toy-aaaa0001  it broke",
        f"  running       toy-aaaa0003  epoch 2/{epochs_wanted}, val_r2 0.250, until 03:04, healthy",
        "best: test_r2 0.5  toy-aaaa0000  train.seed=0",
    ]


def test_status_names_workers_at_work_and_a_cancelled_study(study: StudyFolder) -> None:
    with holder(study, 2, "claim"):
        first, _, at_work, _ = status_lines(study)
        assert first.endswith("; 1 worker running")
        assert at_work.startswith("  running       toy-aaaa0002  epoch 2/")
    study.file("cancelled").touch()
    assert next(status_lines(study)).endswith("; no worker running, cancelled")


@pytest.mark.parametrize(
    ("facts", "best"),
    [
        ({"metrics": {"test_r2": "maximize"}}, "best: test_r2 0.9  toy-aaaa0002  train.seed=2"),
        ({"metrics": {"test_r2": "minimize"}}, "best: test_r2 0.5  toy-aaaa0000  train.seed=0"),
        (
            {"table": {"metric": "test_mae", "of": None, "above": None}},
            "best: test_mae 0.1  toy-aaaa0002  train.seed=2",
        ),
        (
            {"table": {"metric": "escape_step", "of": "val_r2", "above": 0.2}},
            "best: escape_step 10  toy-aaaa0002  train.seed=2",
        ),
    ],
)
def test_the_best_is_the_best_by_the_studys_metric(facts: dict, best: str, study: StudyFolder) -> None:
    scores = {"test_r2": 0.9, "test_mae": 0.1}
    make_run(run_of(study, 2).path, "completed", rows=epochs(val_r2=[0.3, 0.4]), summary=scores)
    study.create(**{**study.about(), **facts})
    *_, last = status_lines(study)
    assert last == best


def test_watching_ends_when_nothing_is_at_work(study: StudyFolder, sweep: Sweep) -> None:
    code, said, _ = sweep("status", "toy", "--watch")
    assert (code, said.count("study toy")) == (0, 1)


def test_the_table_is_printed_in_three_forms(study: StudyFolder, sweep: Sweep) -> None:
    code, said, _ = sweep("table", "toy", "--style", "csv", "--by", " train.seed ", "--metric", "val_r2")
    rows = list(csv.DictReader(said.splitlines()))
    assert code == 0
    assert [(row["train.seed"], row["val_r2"], row["other"]) for row in rows] == [
        ("0", "0.4", ""),
        ("1", "0.0", "1 crashed"),
        ("2", "", "1 waiting"),
        ("3", "", "1 waiting"),
    ]
    assert sweep("table", "toy", "--style", "markdown")[1].startswith("| test_r2 | of the finished | sd |")
    assert sweep("table", "toy")[1].split()[:5] == ["test_r2", "of", "the", "finished", "sd"]


def test_why_of_a_study_is_why_of_each_failure(study: StudyFolder, sweep: Sweep) -> None:
    code, said, _ = sweep("why", "toy")
    assert (code, said.count("cause:")) == (0, 1) and said.endswith("\n4 runs: 1 finished, 1 failed, 2 open\n")
    assert said.startswith("toy-aaaa0001: crashed\ncause: it broke\n")
    study.request_retry(study.trials()[1])
    assert sweep("why", "toy")[1] == "no run of toy failed\n4 runs: 1 finished, 3 open\n"


def test_why_of_a_run_knows_its_trial(study: StudyFolder, sweep: Sweep) -> None:
    assert "cause: it broke" in sweep("why", "aaaa0001")[1]
    assert "cause: the folder's cause" in sweep("why", "outputs/toy-aaaa0001")[1]
    assert sweep("why", "aaaa0003")[1] == "toy-aaaa0003: never started\n"


def test_diff_compares_two_runs(study: StudyFolder, sweep: Sweep) -> None:
    code, said, _ = sweep("diff", "aaaa0000", "outputs/toy-aaaa0001")
    assert code == 0
    assert "the same settings" in said
    assert ["state", "completed", "crashed"] in [line.split() for line in said.splitlines()]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status", "to"], "/multirun/to: is not a study; did you mean toy? there are toy."),
        (["table", "toy", "--metric", "x"], "x: is a metric that no finished run has; there are "),
        (["table", "toy", "--style", "html"], "argument --style: invalid choice: 'html'"),
        (["why", "aaaa000"], "aaaa000: fits 4 runs; there are toy-aaaa0000, "),
        (["diff", "aaaa0000", "b"], "b: is not a known run; name a folder in outputs or a run's hash."),
        (["retry", "toy", "b"], "b: is not a run of this study; `specvit sweep status toy` lists running ones, "),
        (["cancel", "toy", "aaaa0001", "b"], "b: is not a run of this study"),
        (
            ["retry", "toy", "aaaa000"],
            "aaaa000: fits 4 runs; there are toy-aaaa0000, toy-aaaa0001, toy-aaaa0002, toy-aaaa0003.",
        ),
        (["cancel", "toy", ""], "specvit sweep: is given an empty value; is a variable not set?"),
        (["retry", "x"], "/multirun/x: is not a study"),
        (["cancel", "x"], "/multirun/x: is not a study"),
        (["look"], "invalid choice: 'look'"),
        ([], "--help shows what it takes."),
    ],
)
def test_what_is_not_there_is_one_sentence(words: list[str], said: str, study: StudyFolder, sweep: Sweep) -> None:
    code, out, err = sweep(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("specvit: ") and err.count("\n") == 1
    assert not study.file("cancelled").exists()


def test_a_study_and_runs_elsewhere_are_named_by_their_paths(study: StudyFolder, sweep: Sweep, tmp_path: Path) -> None:
    shutil.move(tmp_path / "multirun", tmp_path / "studies")
    shutil.move(tmp_path / "outputs", tmp_path / "runs")
    assert sweep("status", "toy")[0] == 2
    assert sweep("status", "studies/toy")[0] == 0
    assert sweep("diff", "runs/toy-aaaa0000", "runs/toy-aaaa0001")[0] == 0


# to act


def test_retry_asks_for_what_failed(study: StudyFolder, sweep: Sweep) -> None:
    ended(study, 3, "refused")
    code, said, _ = sweep("retry", "toy", "aaaa0003", "aaaa0000")
    assert (code, study.requested_retries()) == (0, [3])
    assert said == "1 run will be tried again\nstart them with: specvit train sweeps=toy\n"
    assert sweep("retry", "toy")[1].startswith("1 run will be tried again")
    assert sorted(study.requested_retries()) == [1, 3]
    with holder(study, 2, "claim"):
        assert sweep("retry", "toy")[1] == "nothing failed\n"
        study.clear_retry(1)
        assert "a worker takes them up" in sweep("retry", "toy")[1]


def test_cancelling_a_study_stops_its_workers_and_starts_nothing(study: StudyFolder, sweep: Sweep) -> None:
    with holder(study, 2, "claim") as child:
        code, said, err = sweep("cancel", "toy")
        assert child.poll() is None  # its worker looks for the mark; by now its process may be at another run
        assert study.should_stop(2)
    assert (code, err) == (0, "")
    assert said == "1 asked to save and stop\nresume it with: specvit train sweeps=toy\n"
    assert study.is_cancelled
    assert ends(study) == ["completed", "crashed", None, None]
    assert not study.clear_cancel(2)  # the worker is to end, not only this run


def test_cancelling_a_run_leaves_the_study_alone(study: StudyFolder, sweep: Sweep) -> None:
    with holder(study, 2, "claim") as child:
        code, said, _ = sweep("cancel", "toy", "aaaa0002", "aaaa0003", "aaaa0000")
        assert child.poll() is None
        assert (study.should_stop(1), study.should_stop(2)) == (False, True)
    assert said.startswith("1 asked to save and stop, 1 waiting cancelled\n")
    assert (code, study.is_cancelled, study.clear_cancel(2)) == (0, False, True)
    assert ends(study) == ["completed", "crashed", None, "cancelled"]
    trial = study.trial(3)
    assert trial and trial.end and trial.end["cause"] == CANCELLED
    assert "1 run will be tried again" in sweep("retry", "toy", "aaaa0003")[1]
    assert sweep("cancel", "toy", "aaaa0003")[1].startswith("0 asked to save and stop, 1 waiting")
    assert study.state(trial) == "cancelled"  # whatever was asked for before


def test_a_run_whose_worker_still_reads_its_data_is_stopped_too(study: StudyFolder, sweep: Sweep) -> None:
    with study.claim(3) as mine:
        assert mine
        assert sweep("cancel", "toy", "aaaa0003")[1].startswith("1 asked to save and stop")
        assert study.should_stop(3)


def test_a_run_of_another_command_is_left_alone(study: StudyFolder, sweep: Sweep) -> None:
    with holder(study, 2) as child:
        for words in ([], ["aaaa0002"]):
            code, said, err = sweep("cancel", "toy", *words)
            assert (code, err) == (0, "toy-aaaa0002 is made outside of this study; cancel it there\n")
            assert said.startswith("0 asked to save and stop")
        assert child.poll() is None
    assert not study.clear_cancel(2)


def test_a_run_on_another_host_is_left_alone(study: StudyFolder, sweep: Sweep) -> None:
    run_of(study, 2).set_status("running", host="elsewhere", pid=os.getpid())
    run_of(study, 2).file(".heartbeat").touch()
    assert sweep("cancel", "toy", "aaaa0002")[2] == "toy-aaaa0002 is running on elsewhere; cancel it there\n"
    assert not study.clear_cancel(2)


# where folders are links


@pytest.mark.parametrize("linked", ["multirun", "outputs"])
def test_a_folder_that_is_a_link_leads_to_the_runs_all_the_same(
    linked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweep: Sweep
) -> None:
    scratch, place = tmp_path / "scratch" / "deep", tmp_path / "place"
    (scratch / linked).mkdir(parents=True)
    place.mkdir()
    (place / linked).symlink_to(scratch / linked)
    monkeypatch.chdir(place)
    study = mixed_study(place)
    run = run_of(study, 0).path
    assert (study.file("runs") / run.name / "run.json").exists()
    for name in ("toy", "multirun/toy", str((place / "multirun" / "toy").resolve())):
        assert "2 waiting, 1 completed, 1 crashed" in sweep("status", name)[1]
    by_link = os.path.relpath(run, place / "multirun" / "toy")  # as studies behind a link once had it
    trial = json.loads((study.file("trials") / "0000.json").read_text())
    (study.file("trials") / "0000.json").write_text(json.dumps(trial | {"folder": by_link}))
    assert "1 completed" in sweep("status", "toy")[1]


# without waiting for libraries


def test_looking_loads_no_heavy_library(study: StudyFolder) -> None:
    make_study(study.path.parent / "other", [run_of(study, 0)])
    code = """
import json, sys
from specvit.commands.sweep import main
codes = [main(words.split()) for words in ("status toy", "table toy", "why toy", "diff aaaa0000 aaaa0001", "retry toy")]
codes += [main(["cancel", "toy"])]
print(json.dumps([codes, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    codes, modules = json.loads(found.stdout.splitlines()[-1])
    assert codes == [0] * 6
    assert {"torch", "mlflow", "optuna", "hydra", "omegaconf", "numpy", "pandas", "h5py"} & set(modules) == set()


def test_the_module_runs_as_a_command(study: StudyFolder) -> None:
    words = [sys.executable, "-m", "specvit.sweep", "status", "toy"]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("study toy: 4 runs: 2 waiting, 1 completed, 1 crashed; no worker running\n")
