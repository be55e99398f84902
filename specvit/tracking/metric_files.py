"""Metrics in the run folder: `metrics.jsonl` is the source of every table and of MLflow."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from specvit.run_folder.folder import RunFolder
from specvit.training.protocols import Tracker
from specvit.utils.files import append_line, finite


class FileTracker:
    """Appends a line at each validation to `metrics.jsonl` (reproducible to the bit) and `timing.jsonl` (wall clock).

    `training.jsonl` has those between, with the time of day.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is the run folder."""
        self.folder = folder

    def metrics(self, row: dict[str, Any]) -> None:
        """Append the scores of a validation."""
        # Durable, so that no later checkpoint is on disk without this row.
        append_line(self.folder / "metrics.jsonl", finite(row), durable=True)

    def timing(self, row: dict[str, Any]) -> None:
        """Append wall-clock figures and the time of day, in seconds since 1970."""
        append_line(self.folder / "timing.jsonl", finite(_timed(row)), durable=True)

    def log(self, row: dict[str, Any]) -> None:
        """Append a line between two validations."""
        append_line(self.folder / "training.jsonl", finite(_timed(row)))

    def progress(self, step: int, loss: Callable[[], float]) -> None:
        """Write nothing at a step."""


def _timed(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "time": round(time.time(), 3)}


class StatusTracker:
    """Keeps `status.json` up to date: step, epoch, latest validation loss, and when the run is expected to end."""

    def __init__(self, folder: RunFolder, *, start_step: int, total_steps: int) -> None:
        """`start_step` is where this process began."""
        self.folder, self.start_step, self.total_steps = folder, start_step, total_steps
        self.started = time.monotonic()

    def metrics(self, row: dict[str, Any]) -> None:
        """Write step, epoch, validation loss and the expected end."""
        self._note(row, val_loss=row["val_loss"])

    def log(self, row: dict[str, Any]) -> None:
        """Write step, epoch and the expected end."""
        self._note(row)

    def _note(self, row: dict[str, Any], **facts: float) -> None:
        elapsed, step = time.monotonic() - self.started, row["step"]
        left = elapsed * (self.total_steps - step) / max(1, step - self.start_step)
        forecast = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() + left))
        self.folder.note_progress(**finite({"step": step, "epoch": row["epoch"], **facts, "forecast": forecast}))

    def timing(self, row: dict[str, Any]) -> None:
        """Write nothing."""

    def progress(self, step: int, loss: Callable[[], float]) -> None:
        """Write nothing at a step."""


class CompositeTracker:
    """Forwards everything to several trackers, in order."""

    def __init__(self, *trackers: Tracker) -> None:
        """`trackers` are called in this order: the run folder's files come first."""
        self.trackers = trackers

    def metrics(self, row: dict[str, Any]) -> None:
        """Forward the scores of a validation."""
        for tracker in self.trackers:
            tracker.metrics(row)

    def timing(self, row: dict[str, Any]) -> None:
        """Forward wall-clock times."""
        for tracker in self.trackers:
            tracker.timing(row)

    def log(self, row: dict[str, Any]) -> None:
        """Forward a line between two validations."""
        for tracker in self.trackers:
            tracker.log(row)

    def progress(self, step: int, loss: Callable[[], float]) -> None:
        """Forward the step count."""
        for tracker in self.trackers:
            tracker.progress(step, loss)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's `metrics.jsonl`."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
