"""The learning rate over a run."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import FREE, Toy, toy_run

from specvit.config.schema import OptConfig
from specvit.training.schedule import Schedule, build_schedule

SCHEDULES = ["cosine", "onecycle", "step", "constant", "none", "plateau"]


def schedule(kind: str, *, epochs: int = 10, steps_per_epoch: int = 20, **changes) -> Schedule:
    """Return a schedule that rises to 1."""
    opt = OptConfig(**({"lr": 1.0, "lr_sch": kind, "eta_min": 0.01, "step_epochs": 3.0} | changes))
    return build_schedule(opt, epochs=epochs, steps_per_epoch=steps_per_epoch)


def rates(kind: str, **changes) -> np.ndarray:
    """Return the learning rate of every step of a run."""
    built = schedule(kind, **changes)
    return np.array([built.lr(step) for step in range(built.total_steps)])


@pytest.mark.parametrize("kind", SCHEDULES)
def test_learning_rate_stays_between_floor_and_top(kind: str) -> None:
    for warmup, eta_min in itertools.product((0.0, 0.5, 2.0), (0.0, 0.01)):
        rate = rates(kind, warmup_epochs=warmup, eta_min=eta_min)
        assert len(rate) == 200
        assert np.all(rate > 0)
        assert rate.max() == pytest.approx(1.0, abs=1e-3)
        assert rate[-1] >= eta_min


@pytest.mark.parametrize("kind", SCHEDULES)
def test_warmup_is_linear_to_the_top(kind: str) -> None:
    for steps in (10, 40):
        rate = rates(kind, warmup_epochs=steps / 20)
        np.testing.assert_allclose(rate[:steps], np.arange(1, steps + 1) / steps)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_rate_does_not_drop_when_warmup_ends(kind: str) -> None:
    rate = rates(kind, warmup_epochs=1.0)
    assert rate[20] == pytest.approx(rate[19], rel=0.05)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
@pytest.mark.parametrize("epochs", [2, 10])
def test_cosine_falls_from_top_to_floor_in_the_runs_own_length(epochs: int, warmup: float) -> None:
    rate = rates("cosine", epochs=epochs, warmup_epochs=warmup)[int(20 * warmup) :]
    assert rate[0] == 1.0
    assert np.all(np.diff(rate) < 0)
    assert rate[-1] == pytest.approx(0.01, abs=2.5 / len(rate) ** 2)
    assert rate[len(rate) // 2] == pytest.approx((1 + 0.01) / 2)


def test_onecycle_follows_torchs() -> None:
    optimizer = torch.optim.SGD(Toy(0.0).parameters(), lr=1.0)
    # torch's own curve ends at its last step, this one would end at the next.
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=2001, pct_start=0.3, div_factor=25.0, final_div_factor=4.0
    )
    expected = []
    for _ in range(2000):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    np.testing.assert_allclose(rates("onecycle", epochs=100), expected, atol=3e-3)


def test_onecycle_rises_then_falls() -> None:
    rate = rates("onecycle")
    assert rate[0] == pytest.approx(1 / 25)
    top = int(rate.argmax())
    assert top == 60
    assert np.all(np.diff(rate[: top + 1]) > 0)
    assert np.all(np.diff(rate[top:]) < 0)
    assert rate[-1] == pytest.approx(0.01, abs=1e-3)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_step_halves_every_few_epochs(warmup: float) -> None:
    rate = rates("step", warmup_epochs=warmup)[int(20 * warmup) :]
    np.testing.assert_allclose(rate, 0.5 ** (np.arange(len(rate)) // 60))


@pytest.mark.parametrize("kind", ["none", "constant", "plateau"])
def test_constant_stays(kind: str) -> None:
    assert np.all(rates(kind, warmup_epochs=1.0)[20:] == 1.0)


def test_plateau_multiplies_its_factor_in_down_to_the_floor() -> None:
    built = schedule("plateau")
    assert [built.lr(50, factor) for factor in (1.0, 0.5, 0.02, 0.001)] == pytest.approx([1.0, 0.5, 0.02, 0.01])
    assert schedule("none").lr(50, 0.5) == 1.0


def test_learner_sets_the_rate_of_the_step(tmp_path: Path) -> None:
    opt = dataclasses.replace(FREE, lr_sch="cosine", lr=0.1)
    run = toy_run(tmp_path, opt=opt, epochs=2)
    run.fit()
    logged = [row["lr"] for row in run.recorder.rows]
    assert logged == [run.learner.schedule.lr(step) for step in (3, 7)]
    assert run.learner.optimizer.lr == run.learner.schedule.lr(7)
