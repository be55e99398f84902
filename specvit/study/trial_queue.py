"""Where a worker's next trial comes from. A claim is held while the trial is worked on and dies with its worker."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from specvit.run_folder.folder import ALIVE, DONE, FAILED
from specvit.run_folder.verdict import LEARNT
from specvit.study.store import StudyFolder, Trial, has_failed
from specvit.training.protocols import Pruner


class TrialSource(Protocol):
    """A grid's queue or a search."""

    def claimed(self) -> contextlib.AbstractContextManager[Trial | None]:
        """Hold the next open trial while the block runs; None if there is none that this worker could take."""
        ...

    def skipped_trials(self) -> bool:
        """Say whether the last claim found trials that somebody outside the study makes just now."""
        ...

    def pruner(self, trial: Trial) -> Pruner | None:
        """Return what may end the trial early."""
        ...

    def has_pruned(self, trial: Trial) -> bool:
        """Say whether it was this study that pruned the trial's run."""
        ...

    def tell(self, trial: Trial, state: str) -> dict[str, Any]:
        """Take a trial's end, and return what is to be recorded with it."""
        ...


class TrialQueue:
    """The trials of a grid, in order. Their states are those of their run folders: nothing else can be out of date."""

    def __init__(self, study: StudyFolder, only: int | None = None) -> None:
        """Read which trials there are; `only` one of them is taken if it is given."""
        self.study, self.only = study, only
        self._open = [trial.number for trial in study.trials() if only in (None, trial.number)]
        self._elsewhere = False

    @contextlib.contextmanager
    def claimed(self) -> Iterator[Trial | None]:
        """Hold the first open trial that nobody else has."""
        self._elsewhere = False
        again = [number for number in self.study.requested_retries() if self.only in (None, number)]
        for number in sorted({*self._open, *again}):
            with self.study.claim(number) as mine:
                trial = self.study.trial(number) if mine else None
                if trial is None:
                    continue
                if is_open(self.study, trial):
                    yield trial
                    return
                if trial.run.state() in ALIVE and not trial.failed:
                    self._elsewhere = True
                elif number in self._open:
                    self._open.remove(number)
        yield None

    def skipped_trials(self) -> bool:
        """Say whether another study or a single command makes one of the trials."""
        return self._elsewhere

    def pruner(self, trial: Trial) -> Pruner | None:
        """Return None: a grid runs to its end."""
        return None

    def has_pruned(self, trial: Trial) -> bool:
        """Return False: what another study pruned is not finished for this one."""
        return False

    def tell(self, trial: Trial, state: str) -> dict[str, Any]:
        """Return nothing to record: the run folder has it all."""
        return {}


def is_open(study: StudyFolder, trial: Trial) -> bool:
    """Say whether a trial of a grid is still to be made, or to be gone on with; its claim must be held.

    What another study pruned is not finished for this one. What failed before, alone or in another study, stays as it
    is until somebody asks for another try.
    """
    if study.retry_requested(trial.number):
        return True
    state = trial.run.state()
    return not trial.failed and state not in ALIVE + DONE and not has_failed(trial.run, state)


def stop_reason(study: StudyFolder, about: dict[str, Any]) -> str:
    """Return why no further trial is to be started, or ""."""
    if study.is_cancelled:
        return "it was cancelled"
    if (deadline := about.get("deadline")) and time.time() > deadline:
        return "the time budget is spent (sweep.hours)"
    if (limit := about.get("failures")) is not None:
        failed = sum(trial.failed and study.state(trial) in failed_states() for trial in study.trials())
        if failed >= limit:
            return f"{failed} runs failed, which is the budget (sweep.failures)"
    return ""


def failed_states() -> tuple[str, ...]:
    """Return the states in which a trial counts as failed."""
    return (*(state for state in FAILED if state != "pruned"), "refused", "lost", "timeout")


GROUPS = ("finished", "learnt nothing", "failed", "pruned", "open")
"""What states count as; open is what waits, runs, or was stopped to go on."""


def group_of(state: str) -> str:
    """Return what a trial's state counts as, in all tables and sentences: one of `GROUPS`."""
    if state in LEARNT:
        return "finished"
    if state == "plateau":
        return "learnt nothing"
    return "pruned" if state == "pruned" else "failed" if state in failed_states() else "open"


def group_counts(states: Iterable[str]) -> str:
    """Return how many runs count as what: `14 runs: 5 finished, 2 learnt nothing, 4 failed, 2 pruned, 1 open`."""
    counts = Counter(map(group_of, states))
    total = counts.total()
    parts = ", ".join(f"{counts[name]} {name}" for name in GROUPS if counts[name])
    return f"{total} run{'s' if total != 1 else ''}: {parts}"
