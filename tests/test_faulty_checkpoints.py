"""Checkpoints that are damaged, foreign or gone: what a run is resumed from, and that it ends as the unbroken one.

The run has four epochs of twelve steps and was stopped after step 31: last.ckpt is of step 31, previous.ckpt of
step 24, best.ckpt of epoch 2.
"""

import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import by_day
from harm import DAMAGES
from planted import At, Stop
from processes import Child
from whole_runs import STEADY, only_run, state_of

from specvit.commands import evaluate
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.run import train_network
from specvit.run.run import run as run_here
from specvit.run_folder.folder import RunFolder
from specvit.training import checkpoint

pytestmark = pytest.mark.slow

STEP = "specvit.training.step.Learner.step"


def stop_at(step: int, number: int = signal.SIGTERM) -> At:
    """Return what stops a run after `step` of its steps."""
    return At(STEP, Stop(number), call=step)


def make(arguments: list[str], place: Path, *plants: At) -> Path:
    """Make a run whose processes have these planted, one after the other; return its folder."""
    for number, plant in enumerate(plants):
        child = Child([*arguments, f"tracking.folder={place / 'runs'}"], [plant], place / f"{number}.txt")
        child.wait()
        child.close()
    return only_run(place / "runs")


@pytest.fixture(scope="module")
def stopped_twice(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """Return a run whose two checkpoints are both later than its best epoch: of steps 31 and 33."""
    return make([*tiny, *STEADY], tmp_path_factory.mktemp("twice"), stop_at(31), stop_at(2))


@pytest.fixture(scope="module")
def killed_in_the_test(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """Return a run that has trained to its end and was killed while it predicted the test set."""
    plant = At("specvit.run.evaluation.predict", Stop(signal.SIGKILL))
    return make([*tiny, *STEADY], tmp_path_factory.mktemp("tested"), plant)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """Return a run with another seed."""
    return make([*tiny, *STEADY, "train.seed=7"], tmp_path_factory.mktemp("stranger"), stop_at(31))


class MakesFolder:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        """`folder` is what it makes."""
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def flip(path: Path, share: float = 0.5) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 0x10
    path.write_bytes(content)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def without(key: str, path: Path) -> None:
    content = checkpoint.load(path)
    del content[key]
    checkpoint.save(path, content)


def with_code(path: Path) -> None:
    checkpoint.save(path, {**checkpoint.load(path), "scaler": MakesFolder(path.parent / "trace")})


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def both(run: Path) -> None:
    halve(run / "last.ckpt")
    flip(run / "previous.ckpt")


def lines_without(number: int, run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:number] + lines[number + 1 :]))


LAST: dict[str, Callable[[Path], Any]] = {
    "damaged: truncated": halve,
    "damaged: one bit flipped": flip,
    "damaged: empty": lambda path: os.truncate(path, 0),
    "damaged: text": lambda path: path.write_text("not a checkpoint"),
    "damaged: a folder": as_folder,
    "missing": os.unlink,
    "of another format": lambda path: torch.save({"format": 99, "model": {}}, path),
    "without optimizer": partial(without, "optimizer"),
    "the best one copied over it": lambda path: shutil.copy(path.with_name("best.ckpt"), path),
    "with code in it": with_code,
    "put back from the epoch before": lambda path: shutil.copy(path.with_name("previous.ckpt"), path),
}
RUN: dict[str, Callable[[Path], Any]] = {
    "last and previous damaged": both,
    "last and previous missing": lambda run: [(run / name).unlink() for name in ("last.ckpt", "previous.ckpt")],
    "best truncated": lambda run: halve(run / "best.ckpt"),
    "best missing": lambda run: (run / "best.ckpt").unlink(),
    "metrics without its last line": partial(lines_without, 1),
    "metrics without its first line": partial(lines_without, 0),
    "metrics gone": lambda run: (run / "metrics.jsonl").unlink(),
}


@pytest.fixture
def check_resumed(promised: Any, trained: Any, unbroken: Any, tiny: list[str]) -> Callable[[Path], None]:
    """Return `check_resumed(run)`: the same command ends as the row of its fault promises."""

    def check(run: Path) -> None:
        ended = trained([*tiny, *STEADY, f"tracking.folder={run.parent}"])
        assert ended.code == 0, ended.said
        assert only_run(run.parent) == run
        promised.kept(state=state_of(run), said=ended.said)
        promised.whole(run, unbroken([*tiny, *STEADY]))

    return check


@pytest.mark.parametrize(
    "fault",
    by_day(
        LAST,
        "damaged: truncated",
        "missing",
        "without optimizer",
        "the best one copied over it",
        "with code in it",
        "put back from the epoch before",
    ),
)
def test_the_last_checkpoint_is(fault: str, check_resumed: Any, stopped: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "runs" / stopped.name))
    LAST[fault](run / "last.ckpt")
    check_resumed(run)
    assert not (run / "trace").exists()


@pytest.mark.parametrize(
    "fault", by_day(RUN, "last and previous damaged", "best truncated", "best missing", "metrics without its last line")
)
def test_a_run_resumes_with(fault: str, check_resumed: Any, stopped: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "runs" / stopped.name))
    RUN[fault](run)
    check_resumed(run)


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_checkpoint_is_of_another_run(name: str, check_resumed: Any, stopped: Path, stranger: Path, tmp_path) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "runs" / stopped.name))
    shutil.copy(stranger / f"{name}.ckpt", run / f"{name}.ckpt")
    check_resumed(run)


BEST = {"damaged": flip, "gone": os.unlink}


@pytest.mark.parametrize("fault", BEST)
def test_the_best_weights_and_no_checkpoint_to_mend_them_from(
    fault: str, check_resumed: Any, stopped_twice: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(stopped_twice, tmp_path / "runs" / stopped_twice.name))
    BEST[fault](run / "best.ckpt")
    check_resumed(run)


@pytest.mark.parametrize("fault", BEST)
def test_the_best_weights_of_a_run_that_only_lacks_its_test(
    fault: str, check_resumed: Any, killed_in_the_test: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(killed_in_the_test, tmp_path / "runs" / killed_in_the_test.name))
    BEST[fault](run / "best.ckpt")
    check_resumed(run)


def test_the_best_weights_are_damaged_while_the_run_trains(
    promised: Any, stopped: Path, trained: Any, unbroken: Any, tiny: list[str], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "runs" / stopped.name))
    plant = At("specvit.training.checkpoint.save", partial(flip, run / "best.ckpt"), call=4, after=True)
    ended = trained([*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"], plant)
    assert ended.code == 0, ended.said
    promised.kept(state=state_of(run), said=ended.said)
    promised.whole(run, unbroken([*tiny, *STEADY]))


@pytest.mark.parametrize(("name", "damage"), [("last.ckpt", "missing"), ("best.ckpt", "truncated")])
def test_files_that_come_to_harm_before_the_final_test_cost_no_result(
    name: str, damage: str, unbroken: Any, tiny: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    whole, real, harmed = unbroken([*tiny, *STEADY]), train_network.fit, []

    def fit(*arguments: Any) -> str:
        ended = real(*arguments)
        if not harmed:
            harmed.append(DAMAGES[damage][0](only_run(tmp_path / "runs") / name))
        return ended

    monkeypatch.setattr(train_network, "fit", fit)
    result = run_here(build_config(compose([*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"])))
    assert harmed and result.state == "completed"
    for file in ("metrics.jsonl", "predictions.csv", "summary.json"):
        assert (result.folder / file).read_bytes() == (whole / file).read_bytes()
    assert ("note: best.ckpt" in capsys.readouterr().out) == (name == "best.ckpt")


def test_best_weights_that_are_harmed_again_and_again_are_one_sentence(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_network, "faults_of_best", lambda *_: "best.ckpt is missing")
    result = run_here(build_config(compose([*tiny, "train.epochs=1", f"tracking.folder={tmp_path / 'runs'}"])))
    status = RunFolder(result.folder, "").status()
    assert (result.state, result.exit_code, status["traceback"]) == ("crashed", 1, "")
    assert (
        status["cause"]
        == f"{result.folder}: best.ckpt is missing; check the disk, then run the same command again to resume."
    )


def test_weights_to_start_from_are_damaged(
    promised: Any, stopped: Path, tiny: list[str], refused: Any, tmp_path
) -> None:
    weights = Path(shutil.copy(stopped / "best.ckpt", tmp_path / "weights.ckpt"))
    flip(weights)
    promised.kept(state="refused", said=refused([*tiny, *STEADY, f"train.init_from={weights}"]))


def edit(path: Path, **parts: Any) -> None:
    """Change parts of a checkpoint."""
    checkpoint.save(path, {**checkpoint.load(path), **parts})


EVALUATED: dict[str, Callable[[Path], Any]] = {
    "best damaged": lambda run: flip(run / "best.ckpt"),
    "best missing": lambda run: (run / "best.ckpt").unlink(),
    "best of another run": lambda run: edit(run / "best.ckpt", run_id="00000000"),
    "incomplete: a part missing": lambda run: edit(run / "best.ckpt", flux_mean_P=None),
    "incomplete: another type": lambda run: edit(run / "best.ckpt", wave_P="text"),
    "config damaged": lambda run: (run / "config.yaml").write_text("model: [a"),
}


@pytest.mark.parametrize("fault", EVALUATED)
def test_evaluate_finds(fault: str, promised: Any, stopped: Path, tmp_path: Path, capsys: Any) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / stopped.name))
    EVALUATED[fault](run)
    assert evaluate.main([str(run)]) == 2
    promised.kept(state="refused", said=capsys.readouterr().err)
