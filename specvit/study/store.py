"""The study folder: what lies in it, who works on what, and what became of each run.

    multirun/<study>/
        study.json           format, key, kind, the definition with its digest, where it was started
        conf/                the configuration files as they were; trials are composed from these
        trials/0007.json     one trial: settings, the frozen configuration, its run folder, and how it ended
        trials/0007.again    asks for another try of a failed trial
        claims/0007.lock     held by the worker that has the trial
        slots/0.lock         held by the worker in that slot
        events.jsonl         who began and ended what, and when
        jobs.jsonl           which SLURM job was submitted for which slot
        workers/0.log        what the worker in that slot printed
        journal.log          Optuna's storage, for a search
        runs/                links to the run folders
        cancelled            no trial is started while this exists

Locks are `flock`: the kernel lets go of them when their process dies, however it dies, so nothing has to be cleaned up.
"""

import contextlib
import os
import shlex
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from specvit.run_folder.folder import ALIVE, DONE, FAILED, RunFolder, hostname
from specvit.utils.errors import FolderError
from specvit.utils.files import append_line, is_locked, locked, read_json, read_json_lines, write_json
from specvit.utils.urls import hide_secrets

FORMAT = 1
REFUSED = "refused"
"""A trial that never became a run: its settings, data or device were refused. It counts as failed."""
LOOK_SECONDS = 0.05
"""How long a claim waits: somebody who only looks whether there is one holds its lock for a moment."""
WAITING = "waiting"
CANCELLED = "cancelled by `specvit sweep cancel`"
BROKEN_GPU = 3
"""Exit code of a worker whose GPU does not work; the trial it had stays open."""
SETTLED = (*DONE, *FAILED, REFUSED)


@dataclass(frozen=True)
class Trial:
    """One run of a study. `config` is resolved and frozen, `end` how it ended once a worker has seen that.

    `folder` is the run's, whole; in the file it is relative to the study.
    """

    number: int
    name: str
    factors: dict[str, Any]
    cell: str
    config: dict[str, Any]
    run_id: str
    folder: str
    end: dict[str, Any] | None = None

    @property
    def failed(self) -> bool:
        """Whether a worker has seen it end otherwise than well; that a run is done, its own folder says."""
        return self.end is not None and self.end["state"] not in DONE

    @property
    def run(self) -> RunFolder:
        """The trial's run folder."""
        return RunFolder(Path(self.folder), self.run_id)


TRIAL_KEYS = {field.name for field in fields(Trial)} - {"end"}


@dataclass(frozen=True)
class StudyFolder:
    """Paths and records of one study; holding one creates nothing."""

    path: Path

    @property
    def name(self) -> str:
        """The study's name."""
        return self.path.name

    def file(self, name: str) -> Path:
        """Return the path of a file in the folder."""
        return self.path / name

    def about(self) -> dict[str, Any]:
        """Return `study.json`; raises `FolderError` where there is no study, or one of another format."""
        found = read_json(self.file("study.json"))
        if isinstance(found, dict):
            if (version := found.get("format")) == FORMAT:
                return found
            what = f"has format {version}, this specvit reads {FORMAT}"
            raise FolderError(what, where=str(self.path), remedy="move it away, or use the specvit that made it")
        there = sorted(path.parent.name for path in self.path.parent.glob("*/study.json"))
        remedy = f"there are {', '.join(there)}" if there else "start one with `specvit train sweeps=NAME`"
        raise FolderError("is no study", where=str(self.path), remedy=remedy)

    def make_folders(self) -> None:
        """Make the folders for what belongs to the study."""
        for name in ("trials", "claims", "slots", "workers", "runs"):
            self.file(name).mkdir(parents=True, exist_ok=True)

    def create(self, **facts: Any) -> None:
        """Write `study.json`; its key stays as it was."""
        self.make_folders()
        before = read_json(self.file("study.json"), {})
        key = before.get("key") or uuid.uuid4().hex
        started = before.get("started") or now()
        write_json(self.file("study.json"), {"format": FORMAT, "key": key, "started": started, **facts})

    def trials(self) -> list[Trial]:
        """Return all trials by number."""
        found = [
            self._read(path) for path in sorted(self.file("trials").glob("*.json"), key=lambda path: int(path.stem))
        ]
        return [trial for trial in found if trial]

    def lost_records(self, trials: list[Trial]) -> list[Path]:
        """Return the files of trials that have begun, or that are there, without a record that can be read."""
        files = {int(path.stem) for path in self.file("trials").glob("*.json")}
        about, begun = self.about(), {event["trial"] for event in self.events("begins")}
        if about.get("kind") == "grid":  # a changed definition may have had more
            begun = {number for number in begun if number < about["trials"]}
        return [self._trial_file(number) for number in sorted((files | begun) - {trial.number for trial in trials})]

    def trial(self, number: int) -> Trial | None:
        """Return one trial, if it is there."""
        return self._read(self._trial_file(number))

    def record_stamps(self) -> dict[int, tuple[int, ...]]:
        """Return for each trial what changes whenever its record is written; opens no file."""
        files = sorted(self.file("trials").glob("*.json"), key=lambda path: int(path.stem))
        stats = {int(path.stem): path.stat() for path in files}
        return {number: (stat.st_ino, stat.st_mtime_ns, stat.st_size) for number, stat in stats.items()}

    def write_trial(self, trial: Trial) -> None:
        """Write a trial, and the link to its run."""
        folder = os.path.realpath(trial.folder)  # either may lie behind a link, where ".." leads elsewhere
        plain = {**asdict(trial), "folder": os.path.relpath(folder, self.path.resolve())}  # both may be moved together
        write_json(self._trial_file(trial.number), plain)
        link = self.file("runs") / Path(folder).name
        with contextlib.suppress(FileExistsError):
            link.symlink_to(os.path.relpath(folder, link.parent.resolve()))

    def remove_trials_from(self, number: int) -> None:
        """Remove the trials of this number and above, which a changed definition does not have."""
        for path in self.file("trials").glob("*.json"):
            if int(path.stem) >= number:
                path.unlink()

    @contextlib.contextmanager
    def claim(self, number: int) -> Iterator[bool]:
        """Hold a trial while the block runs; yields False if another worker holds it."""
        with locked(self._claim_file(number), seconds=LOOK_SECONDS) as mine:
            yield mine

    def is_claimed(self, number: int) -> bool:
        """Say whether a worker has the trial."""
        return is_locked(self._claim_file(number))

    def ask_again(self, trial: Trial) -> None:
        """Ask for another try of a trial that failed; processes that died over it are counted anew."""
        if died(trial.run) or stops_at_one_step(trial.run):
            trial.run.record_attempt(event="end", state="lost")
        self._again_file(trial.number).touch()

    def take_again(self, number: int) -> None:
        """Forget that another try was asked for: it has come to its end."""
        self._again_file(number).unlink(missing_ok=True)

    def state(self, trial: Trial) -> str:
        """Return what became of a trial: a run's state, `refused`, or `waiting`, for a stopped one, too: it goes on."""
        state = trial.run.state()
        if state in ALIVE:
            return state
        if self.is_again(trial.number):
            return WAITING
        if state in DONE:
            return state
        if trial.failed:
            return trial.end["state"] if trial.end else state
        return state if has_failed(trial.run, state) else WAITING

    def ask_cancel(self, number: int) -> None:
        """Have the worker that has this trial stop it, and go on with others."""
        self._claim_file(number).with_suffix(".cancel").touch()

    def is_to_stop(self, number: int) -> bool:
        """Say whether a trial at work is to stop, alone or with the whole study."""
        return self._claim_file(number).with_suffix(".cancel").exists() or self.is_cancelled

    def take_cancel(self, number: int) -> bool:
        """Say whether a trial was to be cancelled, and forget it."""
        file = self._claim_file(number).with_suffix(".cancel")
        asked = file.exists()
        file.unlink(missing_ok=True)
        return asked

    def is_again(self, number: int) -> bool:
        """Say whether another try was asked for."""
        return self._again_file(number).exists()

    def asked_again(self) -> list[int]:
        """Return the trials for which another try was asked."""
        return [int(path.stem) for path in self.file("trials").glob("*.again")]

    def note(self, event: str, *, file: str = "events.jsonl", **facts: Any) -> None:
        """Append to the study's diary; raises `OSError` where that cannot be written."""
        append_line(self.file(file), {"time": round(time.time(), 3), "event": event, "host": hostname(), **facts})

    def events(self, kind: str, slot: int | None = None) -> list[dict[str, Any]]:
        """Return what the diary has of a kind, from one slot if it is given."""
        found = read_json_lines(self.file("events.jsonl"))
        return [event for event in found if event.get("event") == kind and slot in (None, event.get("slot"))]

    def begun(self) -> dict[int, dict[str, Any]]:
        """Return the diary's last word on each trial that has begun, and not ended since."""
        at: dict[int, dict[str, Any]] = {}
        for event in read_json_lines(self.file("events.jsonl")):
            if event.get("event") == "begins":
                at[event["trial"]] = event
            elif event.get("event") == "ends":
                at.pop(event["trial"], None)
        return at

    def slots_at_work(self) -> list[int]:
        """Return the numbers of slots in which a worker lives."""
        return sorted(int(path.stem) for path in self.file("slots").glob("*.lock") if is_locked(path))

    @property
    def is_cancelled(self) -> bool:
        """Whether nothing is to be started."""
        return self.file("cancelled").exists()

    def _read(self, path: Path) -> Trial | None:
        plain = read_json(path)
        if not (isinstance(plain, dict) and plain.keys() >= TRIAL_KEYS):
            return None
        known = {name: plain[name] for name in (*TRIAL_KEYS, "end") if name in plain}  # a newer version may have more
        return Trial(**{**known, "folder": self._place(plain["folder"])})

    def _place(self, folder: str) -> str:
        """Return a run's folder, whole. Studies behind a link once had it relative to the link."""
        real, by_link = (os.path.normpath(path / folder) for path in (self.path.resolve(), self.path))
        return by_link if os.path.isdir(os.path.dirname(by_link)) and not os.path.isdir(os.path.dirname(real)) else real

    def _trial_file(self, number: int) -> Path:
        return self.path / "trials" / f"{number:04d}.json"

    def _again_file(self, number: int) -> Path:
        return self.path / "trials" / f"{number:04d}.again"

    def _claim_file(self, number: int) -> Path:
        return self.path / "claims" / f"{number:04d}.lock"


def command_of(study: StudyFolder) -> str:
    """Return the command that starts the study and goes on with it, to be pasted."""
    words = study.about().get("command") or ["specvit", "train", f"sweeps={study.name}"]
    return shlex.join(hide_secrets(str(word)) for word in words)  # older studies may have a password there


def has_failed(run: RunFolder, state: str) -> bool:
    """Say whether a run's state is an end for all studies: not if the disk's fault ended it, or another study."""
    return state in FAILED and state != "pruned" and not run.status().get("passing")


def died(run: RunFolder) -> int:
    """Return how many processes in a row died over a run without a word, and without getting further than the first."""
    count, step = 0, None
    for attempt in reversed(run.attempts()):
        if attempt.get("event") == "end":
            break
        if attempt.get("event") == "ready":
            if step is not None and attempt.get("step") != step:
                break
            step = attempt.get("step")
        count += attempt.get("event") == "start"
    return count


def stops_at_one_step(run: RunFolder) -> int:
    """Return how many processes in a row were told to stop before the run had got any further.

    How far the latest one got is not known before the next is ready, so it counts only if it never came to a step.
    """
    count: int = 0
    following: Any = None
    step: Any = None
    for attempt in reversed(run.attempts()):
        event = attempt.get("event")
        if event == "end" and attempt.get("state") not in ("preempted", "timeout"):
            break
        if event == "ready":
            step = attempt.get("step")
            if following is not None and step != following:
                break
            count += following is not None
            following = step
        elif event == "start":
            count += step is None
            step = None
    return count


def now() -> str:
    """Return the time of day as records have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
