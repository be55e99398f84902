"""Numbers that are no longer finite, rates that are wrong, memory that is short, and bugs: how such runs end.

The run has four epochs of twelve steps. What goes wrong once and not again costs nothing: the same command tries again
from the last good checkpoint.
"""

import math
import operator
import resource
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import At, Changed, Fail, limit
from torch import Tensor
from whole_runs import STEADY, only_run, state_of

from specvit.config.folder import RunFolder
from specvit.engine import checkpoint
from specvit.tracking.files import read_metrics

pytestmark = pytest.mark.slow

LOSS, VALIDATION = "specvit.engine.task.Regression.loss", "specvit.engine.loop.evaluate"
STEP, GATHER = "specvit.engine.loop.Learner.step", "specvit.data.resident.Store.gather"


def infinite_gradient(loss: Tensor) -> Tensor:
    loss.register_hook(partial(operator.mul, math.inf))
    return loss


def not_finite(scores: dict[str, float]) -> dict[str, float]:
    return dict.fromkeys(scores, math.nan)


def assert_finite(run: Path) -> None:
    for path in run.glob("*.ckpt"):
        content = checkpoint.load(path)
        assert checkpoint.is_finite([content["model"], content.get("optimizer")]), path.name


ONCE: dict[str, Any] = {
    "NaN loss": Changed(LOSS, partial(operator.mul, math.nan), call=31),
    "NaN loss from the first step": Changed(LOSS, partial(operator.mul, math.nan), lasting=True),
    "infinite gradient": Changed(LOSS, infinite_gradient, call=31),
    "infinite gradient at the last steps": Changed(LOSS, infinite_gradient, call=46),
    "out of memory: torch": At(STEP, Fail(torch.OutOfMemoryError("CUDA out of memory. Tried to")), call=31),
    "out of memory: a driver": At(STEP, Fail(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling")), call=31),
    "out of memory: Python": At(GATHER, Fail(MemoryError()), call=31),
    "bug in the model": At("specvit.models.vit.ViT.forward", Fail(ZeroDivisionError("planted")), call=31),
    "a library leaves": At(STEP, Fail(SystemExit(3)), call=31),
    "a library's own Ctrl-C": At(STEP, Fail(KeyboardInterrupt()), call=31),
}


@pytest.mark.parametrize("fault", ONCE)
def test_goes_wrong_once(
    fault: str, promised: Any, trained: Any, unbroken: Any, tiny: list[str], tmp_path: Path
) -> None:
    arguments = [*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"]
    ended = trained(arguments, ONCE[fault])
    assert ended.code == (130 if fault == "a library's own Ctrl-C" else 1), ended.said
    assert "Traceback" not in ended.said
    run = only_run(tmp_path / "runs")
    promised.kept(state=state_of(run), said=ended.said)
    assert_finite(run)
    status = RunFolder(run, "").status()
    assert status["cause"] in ended.said and status["remedy"] in ended.said
    again = trained(arguments)
    assert again.code == 0, again.said
    promised.whole(run, unbroken([*tiny, *STEADY]))


def test_the_gpu_dies(promised: Any, trained: Any, unbroken: Any, tiny: list[str], tmp_path: Path) -> None:
    arguments = [*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"]
    error = Fail(RuntimeError("CUDA error: an illegal memory access was encountered"))
    dead = Changed("specvit.engine.failure._gpu_fault", "CUDA error: unspecified launch failure".__add__, lasting=True)
    ended = trained(arguments, At(STEP, error, call=31), dead)
    assert ended.code == 1, ended.said
    run = only_run(tmp_path / "runs")
    promised.kept(state=state_of(run), said=ended.said)
    again = trained(arguments)
    assert "this run was lost before; going on" in again.said
    promised.whole(run, unbroken([*tiny, *STEADY]))


def test_a_bug_leaves_its_traceback(promised: Any, trained: Any, unbroken: Any, tiny: list[str], tmp_path) -> None:
    arguments = [*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"]
    ended = trained(arguments, At("specvit.score.predict", Fail(ZeroDivisionError("planted"))))
    run = only_run(tmp_path / "runs")
    promised.kept(state=state_of(run), said=ended.said)
    for trace in (RunFolder(run, "").status()["traceback"], (run / "log.txt").read_text()):
        assert "in score" in trace and "ZeroDivisionError: planted" in trace
    assert "this run ended as crashed before: ZeroDivisionError: planted; trying again" in trained(arguments).said
    promised.whole(run, unbroken([*tiny, *STEADY]))


WIDE = ["model.patch_size=1", "model.hidden_size=512", "model.intermediate_size=8192", "train.batch_size=96"]


def test_the_process_may_take_no_more_memory(promised: Any, trained: Any, tiny: list[str], tmp_path: Path) -> None:
    plant = At(STEP, partial(limit, resource.RLIMIT_AS, 512 * 2**20))
    ended = trained([*tiny, *STEADY, *WIDE, f"tracking.folder={tmp_path / 'runs'}"], plant)
    assert ended.code == 1, ended.said
    promised.kept(state=state_of(only_run(tmp_path / "runs")), said=ended.said)


FP16 = ["train.precision=16-mixed"]
SPOILT = {"NaN losses": partial(operator.mul, math.nan), "infinite gradients": infinite_gradient}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_short_fit_in_fp16(fault: str, promised: Any, trained: Any, tiny: list[str], tmp_path: Path) -> None:
    plants = [Changed(LOSS, SPOILT[fault], call=call) for call in range(14, 19)]
    ended = trained([*tiny, *STEADY, *FP16, f"tracking.folder={tmp_path / 'runs'}"], *plants)
    assert ended.code == 0, ended.said
    run = only_run(tmp_path / "runs")
    promised.kept(state=state_of(run), said=ended.said)
    rows = read_metrics(run)
    assert rows[-1]["skipped_steps"] - rows[0]["skipped_steps"] == 5
    assert math.isfinite(rows[1]["train_loss"])


def test_one_validation_is_not_finite(promised: Any, trained: Any, tiny: list[str], tmp_path: Path) -> None:
    plant = Changed(VALIDATION, not_finite, call=2)
    ended = trained([*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"], plant)
    assert ended.code == 0, ended.said
    run = only_run(tmp_path / "runs")
    promised.kept(state=state_of(run), said=ended.said)
    assert [row["val_mae"] is None for row in read_metrics(run)] == [False, True, False, False]


def test_no_validation_is_finite(promised: Any, trained: Any, tiny: list[str], tmp_path: Path) -> None:
    plant = Changed(VALIDATION, not_finite, lasting=True)
    ended = trained([*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"], plant)
    assert ended.code == 1, ended.said
    promised.kept(state=state_of(only_run(tmp_path / "runs")), said=ended.said)


SETTINGS: dict[str, list[str]] = {
    "rate far too high": ["opt.lr=1e20", "opt.type=SGD", "train.gradient_clip=null", "opt.lr_sch=constant"],
    "rate far too high in fp16": ["opt.lr=1e4", "opt.type=SGD", "train.gradient_clip=null", *FP16],
    "rate too high, but finite": ["opt.lr=10"],
    "rate far too low": ["opt.lr=1e-9", "opt.eta_min=0"],
}


@pytest.mark.parametrize("fault", SETTINGS)
def test_a_setting_is_wrong(fault: str, promised: Any, trained: Any, tiny: list[str], tmp_path: Path) -> None:
    arguments = [*tiny, *STEADY, "train.epochs=8", *SETTINGS[fault], f"tracking.folder={tmp_path / 'runs'}"]
    ended = trained(arguments)
    run = only_run(tmp_path / "runs")
    promised.kept(state=state_of(run), said=ended.said)
    assert_finite(run)
    assert RunFolder(run, "").status()["remedy"] in ended.said
    assert "Traceback" not in ended.said
    again = trained(arguments)
    assert again.code == ended.code
    exploded = "it exploded" in ended.said
    outlook = "the same settings end the same way; train.rerun=true" if exploded else "trying again"
    assert ("finished already" if ended.code == 0 else outlook) in again.said


def test_the_figures_cannot_be_drawn(promised: Any, trained: Any, unbroken: Any, tiny: list[str], tmp_path) -> None:
    plant = At("specvit.tracking.figures.draw_curves", Fail(ValueError("no fonts")))
    ended = trained([*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"], plant)
    assert ended.code == 0
    run = only_run(tmp_path / "runs")
    promised.kept(state=state_of(run), said=ended.said)
    figures = {path.name for path in (unbroken([*tiny, *STEADY]) / "figures").iterdir()}
    assert {path.name for path in (run / "figures").iterdir()} == figures - {"curves.png"}
