"""What tests of whole studies share: commands in processes of their own, and what they leave behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from specvit.files import read_json_lines
from specvit.sweep.folder import StudyFolder

LOCAL = ["hydra/launcher=local", "hydra.launcher.slots=2", "hydra.launcher.cpus_per_job=1"]


class Study:
    """One study in a folder: gives its command, looks at what there is, kills what it is told to."""

    def __init__(self, place: Path, name: str, definition: dict[str, Any], overrides: list[str]) -> None:
        """Write its file into `place/sweeps`; `overrides` are those of all its runs."""
        self.place, self.name, self.overrides = place, name, []
        base = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in overrides)}
        definition = {**definition, "overrides": {**base, **definition.get("overrides", {})}}
        (place / "sweeps").mkdir(exist_ok=True)
        (place / "sweeps" / f"{name}.yaml").write_text(yaml.safe_dump(definition, sort_keys=False))
        self.folder = StudyFolder(place / "multirun" / name)
        self.drivers: list[subprocess.Popen[str]] = []

    def start(self, *more: str, launcher: list[str] | None = None) -> "subprocess.Popen[str]":
        """Give the command."""
        words = [sys.executable, "-m", "specvit.train", f"sweeps={self.name}", *self.overrides, *more]
        words += LOCAL if launcher is None else launcher
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            words,
            cwd=self.place,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.drivers.append(process)
        return process

    def run(self, *more: str, launcher: list[str] | None = None, seconds: float = 240.0) -> tuple[int, str]:
        """Give the command and wait for its end."""
        process = self.start(*more, launcher=launcher)
        said, _ = process.communicate(timeout=seconds)
        return process.returncode, said

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return what the study's diary has of a kind."""
        file = self.folder.file("events.jsonl")
        lines = file.read_text().splitlines() if file.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def jobs(self) -> list[dict[str, Any]]:
        """Return which SLURM jobs were submitted for which slots."""
        return read_json_lines(self.folder.file("jobs.jsonl"))

    def states(self) -> dict[int, str]:
        """Return the state of each trial."""
        return {trial.number: self.folder.state(trial) for trial in self.folder.trials()}

    def workers(self) -> list[int]:
        """Return the pids of the workers that live."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode().split("\0") if entry.name.isdigit() else []
                if "specvit.sweep" in words and "work" in words and str(self.folder.path) in words:
                    found.append(int(entry.name))
        return sorted(found)

    def kill_a_worker(self) -> None:
        """Kill one -9."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.workers()[0], signal.SIGKILL)

    def close(self) -> None:
        """End whatever still lives."""
        for process in self.drivers:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def until(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Wait until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never came: {what}"
        time.sleep(0.02)
