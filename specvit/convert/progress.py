"""Progress of a conversion or prediction: a bar on a terminal, elsewhere a line now and then."""

import time

from specvit.tracking.console import Console, progress_bar

SECONDS = 10.0
"""Between two lines where there is no bar."""
VERBS = {"spectra": ("converting", "converted"), "MB": ("unpacking", "unpacked")}


class Progress:
    """Called with what is done, what there is in all, and of what. To be used as a context, which ends the bar."""

    def __init__(self, verbs: dict[str, tuple[str, str]] = VERBS) -> None:
        """Nothing is shown yet; `verbs` say what is done to each unit, and what was."""
        self.console, self.verbs = Console("auto"), verbs
        self.bar = progress_bar(self.console)
        self.unit = ""

    def __enter__(self) -> "Progress":
        """Be ready."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the bar."""
        if self.console.style == "bar":
            self.bar.stop()

    def __call__(self, done: int, total: int, unit: str = "spectra") -> None:
        """Show it, if it is time to."""
        now, (doing, finished) = time.monotonic(), self.verbs[unit]
        if begins := unit != self.unit:
            self.unit, self.first, self.started, self.said = unit, done, now, now
            self.task = self.bar.add_task(unit, total=total)
        if self.console.style == "bar":
            self.bar.start()
            self.bar.update(self.task, completed=done)
        elif begins:
            there = f"{done:,} of {total:,} {unit} are there already"
            self.console.say(there if done else f"{doing} {total:,} {unit}")
        elif done == total or now - self.said >= SECONDS:
            self.said = now
            left = (total - done) * (now - self.started) / max(1, done - self.first)
            rest = f", about {left / 60:.1f} min left" if done < total else ""
            self.console.say(f"{finished} {done:,} of {total:,} {unit}{rest}")
