"""A run that was stopped or killed and resumed ends bitwise as the uninterrupted one."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import FREE, LIVELY, OVERFLOW, Run, Shuffled, StopAfter, assert_identical, toy_run

from specvit.training import checkpoint


@pytest.mark.parametrize(("precision", "loss"), [("32", "mse"), ("16-mixed", "mse"), ("16-mixed", "gaussian")])
@pytest.mark.parametrize("stops", [[1], [2], [4], [7, 3], [13], [19], [1] * 19])
def test_interrupted_and_resumed_run_ends_bitwise_equal(
    tmp_path: Path, stops: list[int], precision: str, loss: str
) -> None:
    def start(saved: dict[str, Any] | None = None) -> Run:
        view = Shuffled(spoilt={2: OVERFLOW} if precision == "16-mixed" else None)
        changes = {"gradient_clip": 0.5, "accumulate": 2, "batch_size": 8, "save_every": 3}
        about = {"precision": precision, "loss": loss, "dropout": 0.3, "view": view}
        return toy_run(tmp_path, opt=LIVELY, saved=saved, **about, **changes)

    whole = start()
    ended = whole.fit()
    whole.checkpoints.last.unlink()
    run, kept_rows, done = start(), [], 0
    for steps in stops:
        assert run.fit(StopAfter(steps)) == "interrupted"
        kept_rows += run.recorder.rows
        run = start(checkpoint.load(run.checkpoints.last))
        done += steps
        assert run.state.step == done
    assert run.fit() == ended
    run.recorder.rows = kept_rows + run.recorder.rows
    assert_identical(run.everything(), whole.everything())


class Killed(BaseException):
    """The process dies."""


class DiesAt(StopAfter):
    """Dies after some steps, with nothing saved."""

    def requested(self) -> bool:
        """Raise when the time has come."""
        if super().requested():
            raise Killed
        return False


@pytest.mark.parametrize("died_at", [8, 11, 17])
def test_killed_run_resumes_from_its_last_checkpoint_bitwise_equal(tmp_path: Path, died_at: int) -> None:
    def start(saved: dict[str, Any] | None = None) -> Run:
        return toy_run(tmp_path, opt=LIVELY, dropout=0.3, saved=saved, save_every=2)

    whole = start()
    ended = whole.fit()
    whole.checkpoints.last.unlink()
    first = start()
    with pytest.raises(Killed):
        first.fit(DiesAt(died_at))
    run = start(checkpoint.load(first.checkpoints.last))
    assert run.state.step == died_at // 8 * 8
    kept_rows = [row for row in first.recorder.rows if row["step"] <= run.state.step]
    assert run.fit() == ended
    run.recorder.rows = kept_rows + run.recorder.rows
    assert_identical(run.everything(), whole.everything())


def test_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    run = toy_run(tmp_path, opt=LIVELY)
    ended = run.fit()
    again = toy_run(tmp_path, opt=LIVELY, saved=checkpoint.load(run.checkpoints.last))
    assert again.fit() == ended
    assert again.recorder.rows == []
    assert torch.equal(again.weights(), run.weights())


def test_stop_at_the_last_step_ends_the_run_rather_than_interrupting_it(tmp_path: Path) -> None:
    run = toy_run(tmp_path, opt=dataclasses.replace(FREE, lr=0.05))
    assert run.fit(StopAfter(20)) == "completed"


def test_training_ignores_and_leaves_the_global_generator(tmp_path: Path) -> None:
    weights = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        run = toy_run(tmp_path, opt=LIVELY, dropout=0.3, epochs=2)
        module_draws = torch.get_rng_state()
        run.fit()
        assert torch.equal(torch.get_rng_state(), module_draws)
        assert not torch.equal(before, module_draws), "torch's own initialisation draws; the check would see it"
        weights.append(run.weights())
    assert torch.equal(*weights)
