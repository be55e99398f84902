"""Checkpoint files: whole or refused, and never code."""

import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import CPU, assert_identical

from specvit.training import checkpoint
from specvit.training.state import TrainState
from specvit.utils.errors import CheckpointError


def some_content() -> dict[str, Any]:
    """Return what a checkpoint may hold."""
    nested = {"list": [1, 2.5, None, "text", True], "tuple": (1, 2), "empty": {}}
    tensors = {
        "half": torch.randn(3, 2).half(),
        "whole": torch.arange(4),
        "double": torch.zeros(1, dtype=torch.float64),
    }
    return {"state": nested, "model": tensors}


def test_checkpoint_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path, content = tmp_path / "a.ckpt", some_content()
    checkpoint.save(path, content)
    found = checkpoint.load(path)
    assert_identical({name: found[name] for name in content}, content)
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_checkpoint_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.ckpt"
    checkpoint.save(path, some_content())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        checkpoint.load(path)


def test_no_flipped_bit_of_a_checkpoint_goes_unseen(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    content = {"run_id": "toy", "state": {"step": 7}, "model": {"weight": torch.arange(50.0)}}
    checkpoint.save(path, content)
    whole, seen = path.read_bytes(), 0
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        try:
            found = checkpoint.load(path)
        except checkpoint.CheckpointError:
            seen += 1
        else:  # padding, or a time stamp
            assert_identical({name: found[name] for name in content}, content)
    assert seen > len(whole) / 12


@pytest.mark.parametrize("foreign", [{"state_dict": {}}, [1, 2], {"format": 99, "model": {}}, torch.zeros(3)])
def test_foreign_checkpoint_is_refused(tmp_path: Path, foreign: Any) -> None:
    torch.save(foreign, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*format"):
        checkpoint.load(tmp_path / "a.ckpt")


@pytest.mark.parametrize("name", ["missing.ckpt", "folder"])
def test_missing_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(tmp_path / name)


class MakesFolder:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        """`folder` is what it makes."""
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "a.ckpt", tmp_path / "trace"
    checkpoint.save(path, {"model": MakesFolder(trace)})
    with pytest.raises(CheckpointError):
        checkpoint.load(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the file must be one that would have run code"


def test_failing_writer_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    checkpoint.save(path, some_content())
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(path, {"model": torch.zeros(1000), "not for a file": lambda: None})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_is_finite_looks_into_everything(bad: float) -> None:
    good = {"a": [torch.ones(2), {"b": torch.arange(3)}], "c": 1.0}
    assert checkpoint.is_finite(good)
    assert checkpoint.is_finite({"numbers": torch.arange(3)})
    assert not checkpoint.is_finite(good | {"d": ({"e": torch.tensor([0.0, bad]).half()},)})


def test_state_comes_back_from_its_plain_form() -> None:
    state = TrainState(5, 0.25, 2, 3, 0.5, 1, "completed")
    state.start_sums(task=5, norms=4, device=CPU)
    for value in state.sums.values():
        value += 3.0
    unset = [field.name for field in dataclasses.fields(state) if getattr(state, field.name) == field.default]
    assert unset == [], "a field at its default value shows nothing"
    again = TrainState.from_plain(state.to_plain())
    assert_identical(dataclasses.asdict(again), dataclasses.asdict(state))
