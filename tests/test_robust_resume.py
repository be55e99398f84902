"""Whole runs whose checkpoints come to harm end bitwise as the unbroken one, and say what was found."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harm import DAMAGES, rewrite, stop_at
from whole_runs import assert_same_run

from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.folder import RunFolder
from specvit.run import Result, run

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


SETTINGS = ("train.epochs=6", "model.dropout=0.1", "opt.lr=3e-3", "train.threads=1")


def train(tiny: list[str], where: Path) -> Result:
    return run(build_config(compose([*tiny, *SETTINGS, f"tracking.folder={where}"])))


@pytest.fixture(scope="module")
def reference(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Result:
    return train(tiny, tmp_path_factory.mktemp("reference"))


@pytest.fixture
def stopped(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Result]:
    """Return a run that was stopped at the end of epoch 4."""
    with monkeypatch.context() as patched:
        stop_at(4, patched)
        result = train(tiny, tmp_path / "stopped")
    assert result.state == "preempted"
    yield result


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "foreign", "missing"])
@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["last.ckpt"], "going on from previous.ckpt, step 36"),
        (["last.ckpt", "previous.ckpt"], "this run was preempted before"),
        (["best.ckpt"], "step 48"),
        (["last.ckpt", "best.ckpt"], "step 36"),
        (["last.ckpt", "previous.ckpt", "best.ckpt"], "this run was preempted before"),
    ],
)
def test_a_run_with_damaged_files_ends_bitwise_as_the_unbroken_one(
    names: list[str], words: str, damage: str, stopped: Result, reference: Result, tiny: list[str], capsys: Any
) -> None:
    for name in names:
        DAMAGES[damage][0](stopped.folder / name)
    capsys.readouterr()
    again = train(tiny, stopped.folder.parent)
    shown = capsys.readouterr().out
    assert again.state == reference.state
    assert_same_run(again.folder, reference.folder)
    assert words in shown
    notes = [line for line in shown.splitlines() if line.startswith("note: ") and ".ckpt" in line]
    assert len(notes) == (0 if damage == "missing" and "previous.ckpt" in names else 1), shown


@pytest.mark.parametrize("damage", ["truncated", "missing"])
@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_files_that_come_to_harm_before_the_final_test_cost_no_result(
    name: str, damage: str, reference: Result, tiny: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    from specvit import pipeline

    real, done = pipeline.fit, []

    def fit(*arguments: Any) -> str:
        ended = real(*arguments)
        if not done:
            done.append(DAMAGES[damage][0](next((tmp_path / "harmed").iterdir()) / name))
        return ended

    monkeypatch.setattr(pipeline, "fit", fit)
    result = train(tiny, tmp_path / "harmed")
    assert done and result.state == reference.state
    for file in ("metrics.jsonl", "predictions.csv", "summary.json"):
        assert (result.folder / file).read_bytes() == (reference.folder / file).read_bytes()
    shown = capsys.readouterr().out
    assert ("note: best.ckpt" in shown) == (name == "best.ckpt")


def test_best_weights_that_are_harmed_again_and_again_are_one_sentence(
    tiny: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    from specvit import pipeline

    monkeypatch.setattr(pipeline, "faults_of_best", lambda *_: "best.ckpt is missing")
    result = train(tiny, tmp_path / "harmed")
    status = RunFolder(result.folder, "").status()
    assert (result.state, result.exit_code, status["traceback"]) == ("crashed", 1, "")
    assert status["cause"] == f"{result.folder}: best.ckpt is missing; see to the disk, then the same command goes on."


def test_a_rerun_forgets_previous_and_damaged_checkpoints(stopped: Result, tiny: list[str]) -> None:
    for name in ("last.ckpt.damaged", "best.ckpt.damaged"):
        (stopped.folder / name).write_bytes(b"old")
    train(tiny, stopped.folder.parent)
    assert (stopped.folder / "previous.ckpt").exists()
    RunFolder(stopped.folder, "").forget()
    assert not [path.name for path in stopped.folder.iterdir() if ".ckpt" in path.name]


def test_a_rerun_that_was_killed_while_it_removed_results_starts_from_nothing(
    stopped: Result, tiny: list[str], reference: Result, capsys: Any
) -> None:
    RunFolder(stopped.folder, "").set_status("lost", to_forget=True)
    again = train(tiny, stopped.folder.parent)
    assert "starting from nothing" in capsys.readouterr().out
    assert_same_run(again.folder, reference.folder)


def test_a_checkpoint_of_another_models_code_is_refused_in_one_sentence(
    stopped: Result, tiny: list[str], capsys: Any
) -> None:
    rewrite(lambda content: content["model"].update(new_layer=torch.zeros(1)))(stopped.folder / "last.ckpt")
    result = train(tiny, stopped.folder.parent)
    status = RunFolder(result.folder, "").status()
    assert (result.state, status["traceback"]) == ("crashed", "")
    assert "new_layer" in status["cause"] and "train.rerun=true" in status["cause"]
    assert (stopped.folder / "last.ckpt").exists()
