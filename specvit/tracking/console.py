"""Output for the user: messages, and a progress bar on a terminal or plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from specvit.utils.files import drop_unwritten
from specvit.utils.text import printable, unfiltered

REFRESH_SECONDS = 0.5


class _PatientConsole(RichConsole):
    """Prints nothing once the reader has closed the pipe (`specvit train ... | head`); the run and its log continue."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class _PatientStream:
    """A stream whose write errors (disk full, terminal closed) are ignored, so that they never end the run."""

    def __init__(self, stream: Any) -> None:
        """`stream` is where the lines go."""
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """Delegate everything else to the stream."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, if that is possible."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush, if that is possible."""
        self._try(self._stream.flush)

    def _try(self, action: Callable[..., object], *arguments: str) -> None:
        try:
            action(*arguments)
        except BrokenPipeError:
            raise
        except OSError:
            drop_unwritten(self._stream)


class Console:
    """Prints lines to the terminal and, once a run folder exists, to its `log.txt`; shows progress as asked.

    `style` is `bar`, `lines`, `none`, or `auto`: a bar on a terminal and lines elsewhere.
    """

    def __init__(self, style: str) -> None:
        """Nothing is shown yet."""
        self.rich = _PatientConsole(
            file=cast(IO[str], _PatientStream(unfiltered(sys.stdout))), highlight=False, soft_wrap=True
        )
        self.style = ("bar" if self.rich.is_terminal else "lines") if style == "auto" else style
        self.log: Path | None = None
        self._next_generation_line = 0.0

    def say(self, text: str) -> None:
        """Print one line, and log it; neither can fail a run."""
        text = printable(text)
        self.rich.print(text, markup=False)
        if self.log is not None:
            with contextlib.suppress(OSError), open(self.log, "a") as stream:
                stream.write(f"{time.strftime('%H:%M:%S')} {text}\n")

    def show_generation(self, split: str, done: int, total: int) -> None:
        """Show the progress of computing built-in spectra, every few seconds and at the end."""
        now = time.monotonic()
        if self.style != "none" and (now >= self._next_generation_line or done == total):
            self._next_generation_line = now + 5.0
            self.say(f"making built-in spectra: {split} {done:,} of {total:,}")


def progress_bar(console: Console, *facts: str) -> Progress:
    """Return the bar of all commands, not started: done of total, `facts` as templates of rich, elapsed and ETA."""
    left = (TextColumn("{task.description}"), BarColumn(bar_width=16), MofNCompleteColumn(), *map(TextColumn, facts))
    return Progress(*left, TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(), console=console.rich)


class ProgressTracker:
    """Follows one run on a `Console`. `epochs`, `steps_per_epoch` and `step_rows` size the bar and the rates."""

    def __init__(
        self, console: Console, *, epochs: int, steps_per_epoch: int, step_rows: int, start_step: int, score: str
    ) -> None:
        """`score` is the validation metric to show; `start_step` is where a resumed run continues."""
        self.console, self.epochs, self.steps_per_epoch = console, epochs, steps_per_epoch
        self.step_rows, self.start_step, self.score = step_rows, start_step, score
        self.latest: dict[str, Any] = {}
        self.started = self.shown = time.monotonic()
        self.bar: Progress | None = None

    def __enter__(self) -> "ProgressTracker":
        """Start the bar, if there is to be one."""
        if self.console.style == "bar":
            self.bar = progress_bar(self.console, "{task.fields[facts]}")
            total = self.epochs * self.steps_per_epoch
            self.task = self.bar.add_task("epoch", total=total, completed=self.start_step, facts="")
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """End the bar."""
        if self.bar is not None:
            self.bar.stop()

    def progress(self, step: int, loss: Callable[[], float]) -> None:
        """Move the bar, at most every `REFRESH_SECONDS`, so that a step never waits for the terminal."""
        now = time.monotonic()
        if self.bar is None or now - self.shown < REFRESH_SECONDS:
            return
        self.shown = now
        facts = (
            f"loss {loss():.4f}"
            + (f"  val {self.score} {self.latest[f'val_{self.score}']:.3f}" if self.latest else "")
            + f"  {self._rate(step, now):,.0f} spectra/s"
        )
        epoch = min(step // self.steps_per_epoch + 1, self.epochs)
        self.bar.update(self.task, completed=step, description=f"epoch {epoch}/{self.epochs}", facts=facts)

    def metrics(self, row: dict[str, Any]) -> None:
        """Print the line of a validation; a progress bar replaces it."""
        self.latest = row
        scores = [f"val loss {row['val_loss']:.4f}", f"val {self.score} {row[f'val_{self.score}']:.4f}"]
        self._print(row, row["train_loss"], scores, row["grad_norm"])

    def log(self, row: dict[str, Any]) -> None:
        """Print a line between two validations; a progress bar replaces it."""
        self._print(row, row["running_loss"], [], row["running_grad_norm"])

    def _print(self, row: dict[str, Any], loss: float, scores: list[str], grad_norm: float) -> None:
        if self.console.style == "none" or self.bar is not None:
            return
        now, step = time.monotonic(), row["step"]
        left = (self.epochs * self.steps_per_epoch - step) * (now - self.started) / max(1, step - self.start_step)
        parts = [f"epoch {row['epoch']}/{self.epochs}", f"loss {loss:.4f}", *scores]
        parts += [f"lr {row['lr']:.2e}", f"gradient {grad_norm:.2f}"]
        parts += [f"{self._rate(step, now):,.0f} spectra/s", f"ETA {int(left) // 60}:{int(left) % 60:02d}"]
        self.console.say("  ".join(parts))

    def timing(self, row: dict[str, Any]) -> None:
        """Show nothing: the rate is in the validation's line."""

    def _rate(self, step: int, now: float) -> float:
        return (step - self.start_step) * self.step_rows / max(now - self.started, 1e-9)
