"""What tests of whole studies share: a study's file, its command, and what the command leaves behind."""

import contextlib
import io
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from planted import Act
from processes import Child

from specvit.commands.train import main
from specvit.run_folder.folder import DONE, RunFolder
from specvit.study.store import StudyFolder, Trial
from specvit.utils.files import read_json_lines

LOCAL = ["hydra/launcher=local", "hydra.launcher.slots=2", "hydra.launcher.cpus_per_job=1"]
ONE_SLOT = [*LOCAL, "hydra.launcher.slots=1"]
NUMBERS = itertools.count()
"""Of commands in processes of their own."""


class Study:
    """A study in a folder of its own, and the commands given there."""

    def __init__(self, place: Path, definition: dict[str, Any], settings: dict[str, Any], name: str = "toy") -> None:
        """Write `place/sweeps/NAME.yaml`; `settings` are those of all its runs."""
        self.place, self.name, self.folder = place, name, StudyFolder(place / "multirun" / name)
        self.drivers: list[Child] = []
        definition = {**definition, "overrides": {**settings, **definition.get("overrides", {})}}
        (place / "sweeps").mkdir(parents=True, exist_ok=True)
        (place / "sweeps" / f"{name}.yaml").write_text(yaml.safe_dump(definition, sort_keys=False))

    def start(self, *words: str, launcher: Sequence[str] = (), plants: Sequence[Act] = ()) -> Child:
        """Give the command in a process forked for it, with faults planted there."""
        output = self.place.with_name(f"{self.place.name}-command-{next(NUMBERS)}.txt")  # not on a disk that is full
        with contextlib.chdir(self.place):
            self.drivers.append(Child([f"sweeps={self.name}", *words, *launcher], plants, output))
        return self.drivers[-1]

    def run(self, *words: str, launcher: Sequence[str] = (), seconds: float = 240.0) -> tuple[int, str]:
        """Give the command and return how it ended: in this process, unless a launcher is named."""
        if launcher:
            driver = self.start(*words, launcher=launcher)
            return driver.wait(seconds), driver.said
        with contextlib.ExitStack() as within:
            output = within.enter_context(contextlib.redirect_stdout(io.StringIO()))
            within.enter_context(contextlib.redirect_stderr(output))
            within.enter_context(contextlib.chdir(self.place))
            within.enter_context(patch.object(sys, "argv", ["specvit train"]))
            code = main([f"sweeps={self.name}", *words])
        return code, output.getvalue()

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return what the study's diary has of a kind."""
        file = self.folder.file("events.jsonl")
        lines = file.read_text().splitlines() if file.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def jobs(self) -> list[dict[str, Any]]:
        """Return which SLURM jobs were submitted for which slots."""
        return read_json_lines(self.folder.file("jobs.jsonl"))

    def trial(self, number: int) -> Trial:
        """Return a trial that there is."""
        trial = self.folder.trial(number)
        assert trial is not None
        return trial

    def states(self) -> dict[int, str]:
        """Return the state of each trial."""
        return {trial.number: self.folder.state(trial) for trial in self.folder.trials()}

    def is_done(self, trials: int) -> bool:
        """Say whether there are so many trials, all finished."""
        states = list(self.states().values())
        return len(states) == trials and set(states) <= set(DONE)

    def is_at_work(self, runs: int = 1) -> bool:
        """Say whether so many runs train and have an epoch on file."""
        trials = self.folder.trials()
        return sum(t.run.file("metrics.jsonl").exists() and t.run.state() == "running" for t in trials) >= runs

    def starts(self) -> list[int]:
        """Return how often each run was started."""
        return [starts_of(trial.run) for trial in self.folder.trials()]

    def workers(self) -> list[int]:
        """Return the pids of the workers that live."""
        pids = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode().split("\0") if entry.name.isdigit() else []
                if "specvit.sweep" in words and "work" in words and str(self.folder.path) in words:
                    pids.append(int(entry.name))
        return sorted(pids)

    def kill_a_worker(self) -> None:
        """Kill one -9."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.workers()[0], signal.SIGKILL)

    def kill_the_driver(self) -> None:
        """Kill the latest command -9."""
        self.drivers[-1].send(signal.SIGKILL)
        self.drivers[-1].wait()

    def close(self) -> None:
        """End whatever still lives."""
        while self.drivers:
            self.drivers.pop().close()
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def settings_of(overrides: Sequence[str]) -> dict[str, Any]:
    """Return overrides as settings of a study's file."""
    return {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in overrides)}


def starts_of(run: RunFolder) -> int:
    """Return how often a run was started."""
    return sum(attempt["event"] == "start" for attempt in run.attempts())


def until(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Wait until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never came: {what}"
        time.sleep(0.02)
