"""Ways to do harm to a run at a chosen moment, and to what it left."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from specvit.tracking.metric_files import FileTracker, StatusTracker


def rewrite(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def damage(path: Path) -> None:
        content = torch.load(path)
        change(content)
        torch.save(content, path)

    return damage


def flip(path: Path) -> None:
    """Flip one bit of the weights."""
    content = bytearray(path.read_bytes())
    weight = next(value for value in torch.load(path)["model"].values() if value.unique().numel() > 8)
    content[bytes(content).index(weight.numpy().tobytes()) + 9] ^= 0x08
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (Path.unlink, "is missing"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-2000]), "cannot be read as a checkpoint"),
    "bit flipped": (flip, "cannot be read as a checkpoint"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read as a checkpoint"),
    "zeros": (lambda path: path.write_bytes(bytes(path.stat().st_size)), "cannot be read as a checkpoint"),
    "foreign": (rewrite(lambda content: content.update(run_id="other")), "belongs to run other"),
    "format": (rewrite(lambda content: content.update(format=99)), "is not a specvit checkpoint of this format"),
    "partial": (rewrite(lambda content: content.pop("model")), "lacks model"),
}


def before_metrics(fault: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    real = FileTracker.metrics

    def metrics(self: FileTracker, row: dict[str, Any]) -> None:
        if row["epoch"] == 3:
            fault()
        real(self, row)

    monkeypatch.setattr(FileTracker, "metrics", metrics)


def spoil(path: Path, name: str, row: int, value: float) -> None:
    with h5py.File(path, "r+") as file:
        file[name][row, 100] = value


def stop_at(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a signal come at the end of an epoch."""
    real = StatusTracker.metrics

    def metrics(self: StatusTracker, row: dict[str, Any]) -> None:
        real(self, row)
        if row["epoch"] == epoch:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StatusTracker, "metrics", metrics)
