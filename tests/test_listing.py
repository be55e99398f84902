"""`specvit runs` and `specvit sweep list`."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from handmade import ended, epochs, make_run, make_study

from specvit import cli
from specvit.run_folder.folder import RunFolder
from specvit.utils.files import read_json, write_json


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def put(name: str, state: str, clock: str, lr: float, **facts: object) -> RunFolder:
    """Make a run with a learning rate, last updated at a time of one day."""
    identity = {"config": {"model": {"kind": "vit"}, "opt": {"lr": lr, "betas": [0.9, 0.99]}}, "data": {}}
    run = make_run(Path("outputs").absolute() / name, state, identity=identity, **facts)
    status = read_json(run.file("status.json")) or {}
    write_json(run.file("status.json"), {**status, "updated": f"2026-11-30T{clock}"})
    return run


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[RunFolder]:
    monkeypatch.setenv("TZ", "UTC")
    rows = epochs(train_loss=[1.0, 0.5], val_r2=[0.1, 0.4])
    return [
        put("late-aaaa0001", "completed", "04:00:00+0000", 0.1, rows=rows, summary={"test_r2": 0.35, "best_epoch": 2}),
        put("early-aaaa0002", "preempted", "04:59:00+0200", 0.2, rows=rows[:1], cause="stopped by SIGINT"),
        put("classes-bbbb0003", "completed", "03:30:00+0000", 0.1, summary={"test_accuracy": 0.75}),
        make_run(Path("outputs").absolute() / "never-cccc0004", identity={"config": {}, "data": {}}),
    ]


LINES = [
    ["hash", "state", "val R²", "test R²", "updated", "run", "differs in"],
    ["cccc0004", "-", "-", "-", "-", "never"],
    ["aaaa0002", "stopped", "0.100", "-", "2026-11-30 02:59", "early", "opt.lr=0.2"],
    ["bbbb0003", "completed", "-", "0.750 accuracy", "2026-11-30 03:30", "classes", "opt.lr=0.1"],
    ["aaaa0001", "completed", "0.400", "0.350", "2026-11-30 04:00", "late", "opt.lr=0.1"],
]


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]


def test_runs_are_listed_by_time_with_what_differs(runs: list[RunFolder], capsys) -> None:
    assert cli.main(["runs"]) == 0
    assert cells(capsys.readouterr().out) == LINES


def test_runs_of_a_study_of_a_run_and_of_none_are_listed(runs: list[RunFolder], capsys) -> None:
    make_study(Path("multirun/toy"), [runs[0], RunFolder(Path("outputs/waiting-dddd0005").absolute(), "dddd0005")])
    for named in ("toy", "multirun/toy", "aaaa0001", "outputs/late-aaaa0001"):
        assert cli.main(["runs", named]) == 0
        assert cells(capsys.readouterr().out) == [LINES[0], LINES[4][:-1]], named  # alone, it differs in nothing
    Path("empty").mkdir()
    assert cli.main(["runs", "empty"]) == 0
    assert capsys.readouterr().out == "no run in empty yet\n"
    assert cli.main(["runs", "nowhere"]) == 2
    assert "nowhere: is not a folder" in capsys.readouterr().err


def test_rows_and_settings_within_a_kind_are_listed(capsys) -> None:
    """Keys that another kind of model lacks are not what a run differs in."""
    for number, rows in enumerate((1000, 2000, 2000, 2000)):
        kind = {"kind": "vit", "depth": 6} if number == 3 else {"kind": "ridge", "num_alphas": 33}
        data = {"train": {"builtin": 1, "rows": rows}, "val": {"shape": [500, 4096]}}
        identity = {"config": {"model": kind}, "data": data}
        make_run(Path("outputs").absolute() / f"run-aaaa000{number}", identity=identity)
    assert cli.main(["runs"]) == 0
    differs = {row[0]: row[6:] for row in cells(capsys.readouterr().out)[1:]}
    assert differs == {
        "aaaa0000": ["data.num_samples=1000"],
        "aaaa0001": [],
        "aaaa0002": [],
        "aaaa0003": ["model.kind=vit"],
    }


def test_without_runs_the_first_command_is_named(capsys) -> None:
    assert cli.main(["runs"]) == 0
    assert capsys.readouterr().out == "no run in outputs yet; `specvit train` makes one\n"


@pytest.mark.slow
def test_lines_are_cut_on_a_terminal_only(runs: list[RunFolder]) -> None:
    command = [sys.executable, "-m", "specvit", "runs"]
    piped = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "70"}
    subprocess.run(command, stdout=theirs, env=environment, timeout=60, check=True)
    shown = os.read(ours, 100_000).decode().splitlines()
    os.close(ours)
    os.close(theirs)
    whole = piped.splitlines()
    assert max(map(len, shown)) == 70 < max(map(len, whole))
    assert shown == [line if len(line) <= 70 else f"{line[:69]}…" for line in whole]


def test_studies_to_run_and_begun_are_listed(tmp_path: Path, capsys) -> None:
    own = Path("sweeps")
    own.mkdir()
    (own / "mine.yaml").write_text(
        "# Question: which rate?\ngrids:\n  - axes: {opt.lr: [0.1, 0.2], model: [vit, cnn]}\nseeds: [1, 2]\n"
    )
    (own / "broken.yaml").write_text("grids: 3\n")
    runs = [
        make_run(tmp_path / "outputs" / f"toy-aaaa000{n}", state) for n, state in enumerate(("completed", "crashed"))
    ]
    study = make_study(Path("multirun/toy"), runs, trials=4, question="does it work?")
    ended(study, 1, "crashed")
    assert cli.main(["sweep", "list"]) == 0
    rows = {row[0]: row[1:] for row in cells(capsys.readouterr().out)}
    assert rows["study"] == ["runs", "state", "question"]
    assert rows["mine"] == ["8", "not started", "which rate?"]
    assert rows["toy"] == ["4", "1 finished, 1 failed, 2 open", "does it work?"]
    assert rows["broken"][:2] == ["-", "refused"] and "broken.yaml" in rows["broken"][2]
    assert rows["tokenization_small"][:2] == ["30", "not started"]
    assert rows["lr_small"][:2] == ["30", "not started"]  # a search
