"""How far a conversion is: a bar on a terminal, elsewhere a line now and then."""

import sys
import time
from typing import Any

from specvit.utils.text import unfiltered

SECONDS = 10.0
"""Between two lines where there is no bar."""
DOING = {"spectra": ("converting", "converted"), "MB": ("unpacking", "unpacked")}


class Progress:
    """Called with what is done, what there is in all, and of what. To be used as a context, which ends the bar."""

    def __init__(self) -> None:
        """Nothing is shown yet."""
        self.bar: Any = None
        self.task: Any = None
        self.unit = ""
        self.said = self.started = time.monotonic()
        self.first = 0

    def __enter__(self) -> "Progress":
        """Be ready."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the bar."""
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, done: int, total: int, unit: str = "spectra") -> None:
        """Show it, if it is time to."""
        begins, self.unit = unit != self.unit, unit
        if sys.stdout.isatty():
            self._show(done, total, begins=begins)
            return
        now, (doing, finished) = time.monotonic(), DOING[unit]
        if begins:
            self.first, self.started, self.said = done, now, now
            there = f"{done:,} of {total:,} {unit} are there already"
            print(there if done else f"{doing} {total:,} {unit}", flush=True)
        elif done == total or now - self.said >= SECONDS:
            self.said = now
            left = (total - done) * (now - self.started) / max(1, done - self.first)
            rest = f", about {left / 60:.1f} min left" if done < total else ""
            print(f"{finished} {done:,} of {total:,} {unit}{rest}", flush=True)

    def _show(self, done: int, total: int, *, begins: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        if self.bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            screen = Console(file=unfiltered(sys.stdout))
            self.bar = Bar(*columns, TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(), console=screen)
            self.bar.start()
        if begins:
            self.task = self.bar.add_task(self.unit, total=total)
        self.bar.update(self.task, completed=done)
