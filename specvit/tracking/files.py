"""The run folder's own record: `metrics.jsonl` is the truth that every table and every tracker is fed from."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any


class FileTracker:
    """Appends one line an epoch to `metrics.jsonl` (reproducible to the bit) and `timing.jsonl` (wall clock)."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the run folder."""
        self.folder = folder

    def metrics(self, row: dict[str, Any]) -> None:
        """Append one epoch's scores."""
        _append(self.folder / "metrics.jsonl", row)

    def timing(self, row: dict[str, Any]) -> None:
        """Append one epoch's wall-clock figures."""
        _append(self.folder / "timing.jsonl", row)

    def progress(self, step: int, loss: Callable[[], float]) -> None:
        """Write nothing between epochs."""


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's `metrics.jsonl`."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def finite_or_none(row: dict[str, Any]) -> dict[str, Any]:
    """Return `row` with NaN and infinities as None, which JSON can hold."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _append(path: Path, row: dict[str, Any]) -> None:
    with open(path, "a") as stream:
        stream.write(json.dumps(finite_or_none(row)) + "\n")
