"""Where a worker's next trial comes from, and which states count as finished, failed or open."""

import contextlib
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from specvit.run_folder.folder import ALIVE, DONE, FAILED
from specvit.run_folder.verdict import LEARNT
from specvit.study.store import StudyFolder, Trial, has_failed
from specvit.training.protocols import Pruner
from specvit.utils.text import counted

FAILED_STATES = (*(state for state in FAILED if state != "pruned"), "refused", "lost", "timeout")
"""States in which a trial counts as failed."""
CLOSED_STATES = (*DONE, "pruned", *FAILED_STATES)
"""States in which a trial is not started or resumed unless a retry is requested."""
ORDER = ("running", "queued", "requeued", "waiting", *DONE, "pruned")


class TrialSource(ABC):
    """The queue of a grid, or a search. A claim is held while the trial runs, and is released if its worker dies."""

    @abstractmethod
    def claimed(self) -> contextlib.AbstractContextManager[Trial | None]:
        """Claim the next open trial while the block runs; None if this worker can take none."""

    def skipped_trials(self) -> bool:
        """Return True if the last claim skipped trials that a process outside the study is running."""
        return False

    def pruner(self, trial: Trial) -> Pruner | None:
        """Return what may end the trial early."""
        return None

    def has_pruned(self, trial: Trial) -> bool:
        """Return True if this study pruned the trial's run; one that another study pruned is resumed."""
        return False

    def tell(self, trial: Trial, state: str) -> dict[str, Any]:
        """Report the end of a trial; return what is to be recorded with it, beside what the run folder has."""
        return {}


class TrialQueue(TrialSource):
    """The trials of a grid, in order. Their states are read from the run folders, so no copy can be out of date."""

    def __init__(self, study: StudyFolder, only: int | None = None) -> None:
        """List the trials; with `only`, that one alone is taken."""
        self.study, self.only = study, only
        self._open = [trial.number for trial in study.trials() if only in (None, trial.number)]
        self._skipped = False

    @contextlib.contextmanager
    def claimed(self) -> Iterator[Trial | None]:
        """Claim the first open trial that no other worker has."""
        self._skipped = False
        retries = [number for number in self.study.requested_retries() if self.only in (None, number)]
        for number in sorted({*self._open, *retries}):
            with self.study.claim(number) as mine:
                trial = self.study.trial(number) if mine else None
                if trial is None:
                    continue
                if is_open(self.study, trial):
                    yield trial
                    return
                if trial.run.state() in ALIVE and not trial.failed:
                    self._skipped = True
                elif number in self._open:
                    self._open.remove(number)
        yield None

    def skipped_trials(self) -> bool:
        """Return True if another study or a single command is running one of the trials."""
        return self._skipped


def is_open(study: StudyFolder, trial: Trial) -> bool:
    """Return True if a trial of a grid is to be started or resumed; the caller must hold its claim.

    A run that another study pruned is open. One that failed, alone or in another study, stays failed until a retry is
    requested.
    """
    if study.retry_requested(trial.number):
        return True
    state = trial.run.state()
    return not trial.failed and state not in ALIVE + DONE and not has_failed(trial.run, state)


def stop_reason(study: StudyFolder, about: dict[str, Any]) -> str:
    """Return why no further trial starts, or ""."""
    if study.is_cancelled:
        return "it was cancelled"
    if (deadline := about.get("deadline")) and time.time() > deadline:
        return "the time budget is spent (sweep.hours)"
    if (limit := about.get("failures")) is not None:
        failed = sum(trial.failed and study.state(trial) in FAILED_STATES for trial in study.trials())
        if failed >= limit:
            return f"{counted(failed, 'run')} failed, which is the budget (sweep.failures)"
    return ""


GROUPS = ("finished", "learnt nothing", "failed", "pruned", "open")
"""What states count as; waiting, running and resumable trials are open."""


def group_of(state: str) -> str:
    """Return the group of a state, the same in all tables and sentences."""
    if state in LEARNT:
        return "finished"
    if state == "plateau":
        return "learnt nothing"
    return "pruned" if state == "pruned" else "failed" if state in FAILED_STATES else "open"


def group_counts(states: Iterable[str]) -> str:
    """Return the number of runs in each group: `14 runs: 5 finished, 2 learnt nothing, 4 failed, 2 pruned, 1 open`."""
    counts = Counter(map(group_of, states))
    total = counts.total()
    parts = ", ".join(f"{counts[name]} {name}" for name in GROUPS if counts[name])
    return f"{counted(total, 'run')}: {parts}"


def count_states(study: StudyFolder, states: dict[int, str] | None = None) -> Counter[str]:
    """Return the number of trials in each state; `states` by number take precedence over what the folder says."""
    trials = study.trials()
    counts = Counter((states or {}).get(trial.number) or study.state(trial) for trial in trials)
    counts["waiting"] += max(0, study.about()["trials"] - len(trials))
    return counts


def state_counts(study: StudyFolder) -> str:
    """Return `count_states` as text."""
    return counts_line(count_states(study))


def counts_line(counts: Counter[str]) -> str:
    """Return the number of trials in each state as text: `12 runs: 1 running, 3 waiting, 8 completed`."""
    known = [name for name in ORDER if counts[name]]
    rest = sorted(name for name in counts if name not in ORDER and counts[name])
    parts = ", ".join(f"{counts[name]} {name}" for name in known + rest)
    return f"{counted(counts.total(), 'run')}: {parts}"


def has_open_trials(study: StudyFolder) -> bool:
    """Return True while a trial is to be started, resumed or waited for."""
    trials = study.trials()
    return len(trials) < study.about()["trials"] or any(study.state(trial) not in CLOSED_STATES for trial in trials)
