"""How a run ends is one state, one cause and one remedy; what went wrong once costs nothing.

Whole runs have four epochs of twelve steps: numbers that are no longer finite, rates that are wrong, memory that is
short, and bugs. The same command tries again from the last good checkpoint.
"""

import errno
import json
import math
import operator
import os
import resource
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import by_day
from planted import At, Changed, Fail, limit
from studies import until
from torch import Tensor
from whole_runs import STEADY, only_run, state_of

from specvit.config.schema import Config
from specvit.run.outcome import RunOutcome, outcome_of_error, record_outcome
from specvit.run_folder.folder import RunFolder
from specvit.tracking.metric_files import read_metrics
from specvit.training import checkpoint, signals
from specvit.utils.errors import DataError, explain, os_fault

LOSS, VALIDATION = "specvit.training.task.Regression.loss", "specvit.training.loop.evaluate"
STEP, GATHER = "specvit.training.step.Learner.step", "specvit.data.batches.SpectraStore.gather"
FULL = OSError(errno.ENOSPC, "No space left on device")


# what an exception means


@pytest.mark.parametrize(
    ("number", "words", "remedy"),
    [
        (errno.ENOSPC, "the disk is full", "free some space"),
        (errno.EDQUOT, "the disk quota is used up", "free some space"),
        (errno.EIO, "input/output error", "check the disk"),
        (errno.ESTALE, "the file server no longer knows an open file", "check the disk"),
        (errno.EROFS, "the file system is read-only", "name a folder elsewhere"),
        (errno.EMFILE, "too many files are open", "type `ulimit"),
    ],
)
@pytest.mark.parametrize("hidden", [False, True])
def test_what_the_system_refuses_is_one_sentence_with_its_own_remedy(
    number: int, words: str, remedy: str, hidden: bool, tmp_path: Path
) -> None:
    try:
        refuse(number, hidden)
    except (OSError, RuntimeError) as problem:
        end = outcome_of_error(problem, Config(), RunFolder(tmp_path, ""))
    assert (end.state, end.cause, end.code, end.trace) == ("crashed", f"{words} ({tmp_path})", 1, "")
    assert end.remedy.startswith(remedy)


def refuse(number: int, hidden: bool) -> None:
    """Raise an error of the system, or what torch raises in its place when it writes a checkpoint."""
    try:
        raise OSError(number, os.strerror(number))
    except OSError:
        if hidden:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0") from None
        raise


def test_a_place_outside_the_run_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", "")
    inside = OSError(errno.ENOSPC, "full", str(tmp_path / "run" / ".last.ckpt.x.tmp"))
    outside = OSError(errno.EIO, "bad block", "/data/train.h5")
    assert outcome_of_error(inside, Config(), folder).cause == f"the disk is full ({tmp_path / 'run'})"
    assert outcome_of_error(outside, Config(), folder).cause == "input/output error (/data/train.h5)"


@pytest.mark.parametrize(
    ("problem", "end"),
    [
        (KeyboardInterrupt(), RunOutcome("preempted", "stopped by Ctrl-C", code=130)),
        (
            DataError("flux is not finite", where="a.h5 row 3"),
            RunOutcome("crashed", "a.h5 row 3: flux is not finite.", code=1),
        ),
    ],
)
def test_ends_without_a_trace(problem: BaseException, end: RunOutcome, tmp_path: Path) -> None:
    assert outcome_of_error(problem, Config(), RunFolder(tmp_path, "")) == end


@pytest.mark.parametrize(
    ("problem", "state", "cause"),
    [
        (SystemExit(0), "crashed", "SystemExit: 0"),
        (SystemExit(3), "crashed", "SystemExit: 3"),
        (OSError(errno.ENOTEMPTY, "Directory not empty"), "crashed", "OSError: [Errno 39] Directory not empty"),
        (ZeroDivisionError(), "crashed", "ZeroDivisionError: no message"),
        (MemoryError(), "oom", "MemoryError: no message"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "oom", "OSError: [Errno 12] Cannot allocate memory"),
        (torch.OutOfMemoryError("CUDA"), "oom", "OutOfMemoryError: CUDA"),
        (RuntimeError("CUDA error: out of memory\nmore"), "oom", "RuntimeError: CUDA error: out of memory"),
    ],
)
def test_ends_with_a_trace(problem: BaseException, state: str, cause: str, tmp_path: Path) -> None:
    end = outcome_of_error(problem, Config(), RunFolder(tmp_path, ""))
    assert (end.state, end.cause, end.code) == (state, cause, 1)
    assert type(problem).__name__ in end.trace
    assert bool(end.remedy) == (state == "oom")


def test_an_error_that_was_raised_while_the_disk_was_no_issue_is_not_the_disks() -> None:
    assert os_fault(ValueError("bad")) is None
    assert os_fault(OSError(errno.ENOENT, "no file")) is None
    looped = RuntimeError("a")
    looped.__cause__ = looped
    assert os_fault(looped) is None
    assert explain(FULL, "") == ("the disk is full", "free some space there, then run the same command again to resume")


def test_an_end_is_put_on_file(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "")
    folder.set_status("running")
    assert record_outcome(RunOutcome("crashed", "a cause", "a remedy", "a trace", 1), folder).code == 1
    assert json.loads((tmp_path / "status.json").read_text())["traceback"] == "a trace"
    assert (tmp_path / "log.txt").read_text() == "a trace"
    assert [attempt["event"] for attempt in folder.attempts()] == ["end"]
    (tmp_path / "log.txt").unlink()
    (tmp_path / "log.txt").mkdir()
    assert record_outcome(RunOutcome("oom", "a cause", "a remedy", "a trace", 1), folder).state == "oom"


def test_what_is_asked_for_elsewhere_stops_a_run_as_a_signal_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "POLL_SECONDS", 0.01)
    asked: list[bool] = []
    faults = [OSError(errno.ESTALE, "of the file server")]

    def is_asked() -> bool:
        if faults:
            raise faults.pop()
        return bool(asked)

    with signals.SignalStop(is_asked).installed() as stop, stop.deferred():
        time.sleep(0.1)
        assert not stop.requested()
        asked.append(True)
        until(stop.requested, "the stop", 5.0)
    assert stop.received == signal.SIGTERM
    assert "stop asked for" not in {thread.name for thread in threading.enumerate()}


# whole runs


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    by_day(
        ONCE,
        "NaN loss",
        "infinite gradient at the last steps",
        "out of memory: torch",
        "bug in the model",
        "a library leaves",
        "a library's own Ctrl-C",
    ),
)
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


@pytest.mark.slow
def test_the_gpu_dies(promised: Any, trained: Any, unbroken: Any, tiny: list[str], tmp_path: Path) -> None:
    arguments = [*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"]
    error = Fail(RuntimeError("CUDA error: an illegal memory access was encountered"))
    dead = Changed("specvit.run.outcome._gpu_fault", "CUDA error: unspecified launch failure".__add__, lasting=True)
    ended = trained(arguments, At(STEP, error, call=31), dead)
    assert ended.code == 1, ended.said
    run = only_run(tmp_path / "runs")
    promised.kept(state=state_of(run), said=ended.said)
    again = trained(arguments)
    assert "this run was lost before; resuming" in again.said
    promised.whole(run, unbroken([*tiny, *STEADY]))


@pytest.mark.slow
def test_a_bug_leaves_its_traceback(promised: Any, trained: Any, unbroken: Any, tiny: list[str], tmp_path) -> None:
    arguments = [*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"]
    ended = trained(arguments, At("specvit.run.evaluation.predict", Fail(ZeroDivisionError("planted"))))
    run = only_run(tmp_path / "runs")
    promised.kept(state=state_of(run), said=ended.said)
    for trace in (RunFolder(run, "").status()["traceback"], (run / "log.txt").read_text()):
        assert "in predict_split" in trace and "ZeroDivisionError: planted" in trace
    assert "this run ended as crashed before: ZeroDivisionError: planted; trying again" in trained(arguments).said
    promised.whole(run, unbroken([*tiny, *STEADY]))


WIDE = ["model.patch_size=1", "model.hidden_size=512", "model.intermediate_size=8192", "train.batch_size=96"]


@pytest.mark.slow
def test_the_process_may_take_no_more_memory(promised: Any, trained: Any, tiny: list[str], tmp_path: Path) -> None:
    plant = At(STEP, partial(limit, resource.RLIMIT_AS, 512 * 2**20))
    ended = trained([*tiny, *STEADY, *WIDE, f"tracking.folder={tmp_path / 'runs'}"], plant)
    assert ended.code == 1, ended.said
    promised.kept(state=state_of(only_run(tmp_path / "runs")), said=ended.said)


FP16 = ["train.precision=16-mixed"]
SPOILT = {"NaN losses": partial(operator.mul, math.nan), "infinite gradients": infinite_gradient}


@pytest.mark.slow
@pytest.mark.parametrize("fault", by_day(SPOILT, "infinite gradients"))
def test_a_short_fit_in_fp16(fault: str, promised: Any, trained: Any, tiny: list[str], tmp_path: Path) -> None:
    plants = [Changed(LOSS, SPOILT[fault], call=call) for call in range(14, 19)]
    ended = trained([*tiny, *STEADY, *FP16, f"tracking.folder={tmp_path / 'runs'}"], *plants)
    assert ended.code == 0, ended.said
    run = only_run(tmp_path / "runs")
    promised.kept(state=state_of(run), said=ended.said)
    rows = read_metrics(run)
    assert rows[-1]["skipped_steps"] - rows[0]["skipped_steps"] == 5
    assert math.isfinite(rows[1]["train_loss"])


@pytest.mark.slow
def test_one_validation_is_not_finite(promised: Any, trained: Any, tiny: list[str], tmp_path: Path) -> None:
    plant = Changed(VALIDATION, not_finite, call=2)
    ended = trained([*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"], plant)
    assert ended.code == 0, ended.said
    run = only_run(tmp_path / "runs")
    promised.kept(state=state_of(run), said=ended.said)
    assert [row["val_mae"] is None for row in read_metrics(run)] == [False, True, False, False]


@pytest.mark.slow
def test_no_validation_is_finite(promised: Any, trained: Any, tiny: list[str], tmp_path: Path) -> None:
    plant = Changed(VALIDATION, not_finite, lasting=True)
    ended = trained([*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"], plant)
    assert ended.code == 1, ended.said
    promised.kept(state=state_of(only_run(tmp_path / "runs")), said=ended.said)


SETTINGS: dict[str, list[str]] = {
    "rate far too high": ["opt.lr=1e20", "opt.type=SGD", "train.gradient_clip=null", "opt.lr_sch=constant"],
    "rate far too high in fp16": ["opt.lr=1e4", "opt.type=SGD", "train.gradient_clip=null", *FP16],
    "rate too high, but finite": ["opt.lr=10", "opt.lr_sch=constant"],
    "rate far too low": ["opt.lr=1e-9", "opt.eta_min=0"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", by_day(SETTINGS, "rate far too high", "rate too high, but finite", "rate far too low")
)
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


@pytest.mark.slow
def test_the_figures_cannot_be_drawn(promised: Any, trained: Any, unbroken: Any, tiny: list[str], tmp_path) -> None:
    plant = At("specvit.tracking.figures.draw_curves", Fail(ValueError("no fonts")))
    ended = trained([*tiny, *STEADY, f"tracking.folder={tmp_path / 'runs'}"], plant)
    assert ended.code == 0
    run = only_run(tmp_path / "runs")
    promised.kept(state=state_of(run), said=ended.said)
    figures = {path.name for path in (unbroken([*tiny, *STEADY]) / "figures").iterdir()}
    assert {path.name for path in (run / "figures").iterdir()} == figures - {"curves.png"}
