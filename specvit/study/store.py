"""The study folder: its files, which worker has which trial, and the state of each trial.

    multirun/<study>/
        study.json           format, key, kind, the definition with its digest, the working folder
        conf/                a snapshot of the configuration files, from which trials are composed
        trials/0007.json     one trial: settings, the frozen configuration, its run folder, and how it ended
        trials/0007.again    a retry of a failed trial is requested
        claims/0007.lock     held by the worker that has the trial
        slots/0.lock         held by the worker in that slot
        events.jsonl         starts and ends of workers and trials
        jobs.jsonl           the SLURM job submitted for each slot
        workers/0.log        output of the worker in that slot
        journal.log          Optuna's storage, for a search
        runs/                links to the run folders
        cancelled            no trial is started while this exists

Locks are `flock`: the kernel releases them when their process ends for any reason, so nothing has to be cleaned up.
"""

import contextlib
import os
import shlex
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from specvit.run_folder.folder import ALIVE, DONE, FAILED, RunFolder, hostname, now
from specvit.utils.errors import FolderError
from specvit.utils.files import append_line, is_locked, locked, read_json, read_json_lines, write_json
from specvit.utils.processes import start_ticks
from specvit.utils.text import hide_secrets, nearest

FORMAT = 1
REFUSED = "refused"
"""State of a trial without a run: its settings, data or device were refused. It counts as failed."""
LOOK_SECONDS = 0.05
"""How long a claim waits: `is_claimed` of another process holds the lock for a moment."""
WAITING = "waiting"
CANCELLED = "cancelled by `specvit sweep cancel`"
BROKEN_GPU = 3
"""Exit code of a worker whose GPU does not work; its trial stays open."""
SETTLED = (*DONE, *FAILED, REFUSED)


@dataclass(frozen=True)
class Trial:
    """One run of a study. `config` is resolved and frozen; `end` is how the run ended, once a worker has recorded it.

    `folder` is the absolute path of the run folder; the file holds it relative to the study.
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
        """Whether a worker has recorded a failure; that a run is done is read from its own folder."""
        return self.end is not None and self.end["state"] not in DONE

    @property
    def run(self) -> RunFolder:
        """The trial's run folder."""
        return RunFolder(Path(self.folder), self.run_id)


TRIAL_KEYS = {entry.name for entry in fields(Trial)} - {"end"}


@dataclass(frozen=True)
class StudyFolder:
    """Paths and records of one study; holding one creates nothing."""

    path: Path
    _cache: dict[Path, tuple[tuple[int, ...], Trial | None]] = field(default_factory=dict, compare=False, repr=False)
    """Trial records with inode, time and size of their files: a study may have hundreds, looked at every second."""

    @property
    def name(self) -> str:
        """The study's name."""
        return self.path.name

    def file(self, name: str) -> Path:
        """Return the path of a file in the folder."""
        return self.path / name

    def about(self) -> dict[str, Any]:
        """Return `study.json`; raises `FolderError` where there is no study, or one of another format."""
        about = read_json(self.file("study.json"))
        if isinstance(about, dict):
            if (version := about.get("format")) == FORMAT:
                return about
            what = f"has format {version}, this specvit reads {FORMAT}"
            raise FolderError(what, where=str(self.path), remedy="move it away, or use the specvit that made it")
        names = sorted(path.parent.name for path in self.path.parent.glob("*/study.json"))
        known = f"{nearest(self.name, names)}there are {', '.join(names)}"
        remedy = known if names else "start one with `specvit train sweeps=NAME`"
        raise FolderError("is not a study", where=str(self.path), remedy=remedy)

    def make_folders(self) -> None:
        """Create the subfolders."""
        for name in ("trials", "claims", "slots", "workers", "runs"):
            self.file(name).mkdir(parents=True, exist_ok=True)

    def create(self, **facts: Any) -> None:
        """Write `study.json`; the key and the start time of an existing one stay."""
        self.make_folders()
        before = read_json(self.file("study.json"), {})
        key = before.get("key") or uuid.uuid4().hex
        started = before.get("started") or now()
        write_json(self.file("study.json"), {"format": FORMAT, "key": key, "started": started, **facts})

    def trials(self) -> list[Trial]:
        """Return all trials by number. An unchanged record is the same object each time, read from disk once."""
        files = sorted(self.file("trials").glob("*.json"), key=lambda path: int(path.stem))
        return [trial for trial in map(self._read, files) if trial]

    def lost_records(self, trials: list[Trial]) -> list[Path]:
        """Return the files of trials that started, or that have a file, but have no readable record."""
        files = {int(path.stem) for path in self.file("trials").glob("*.json")}
        about, begun = self.about(), {event["trial"] for event in self.events("begins")}
        if about.get("kind") == "grid":  # a changed definition may have had more
            begun = {number for number in begun if number < about["trials"]}
        return [self._trial_file(number) for number in sorted((files | begun) - {trial.number for trial in trials})]

    def trial(self, number: int) -> Trial | None:
        """Return one trial as it is on disk now; None without a readable record."""
        return self._parse(read_json(self._trial_file(number)))

    def write_trial(self, trial: Trial) -> None:
        """Write a trial, and the link to its run."""
        folder = os.path.realpath(trial.folder)  # either may be behind a link, where ".." leads elsewhere
        plain = {**asdict(trial), "folder": os.path.relpath(folder, self.path.resolve())}  # both may be moved together
        write_json(self._trial_file(trial.number), plain)
        link = self.file("runs") / Path(folder).name
        with contextlib.suppress(FileExistsError):
            link.symlink_to(os.path.relpath(folder, link.parent.resolve()))

    def remove_trials_from(self, number: int) -> None:
        """Remove the trials from `number` on, which a changed definition no longer has."""
        for path in self.file("trials").glob("*.json"):
            if int(path.stem) >= number:
                path.unlink()

    @contextlib.contextmanager
    def claim(self, number: int) -> Iterator[bool]:
        """Claim a trial while the block runs; yields False if another worker has it."""
        with locked(self._claim_file(number), seconds=LOOK_SECONDS) as mine:
            yield mine

    def is_claimed(self, number: int) -> bool:
        """Return True if a worker has the trial."""
        return is_locked(self._claim_file(number))

    def request_retry(self, trial: Trial) -> None:
        """Request a retry of a failed trial; the count of processes that died in it starts again at 0."""
        if deaths_without_progress(trial.run) or stops_without_progress(trial.run):
            trial.run.record_attempt(event="end", state="lost")
        self._retry_file(trial.number).touch()

    def clear_retry(self, number: int) -> None:
        """Remove the request for a retry, which has ended."""
        self._retry_file(number).unlink(missing_ok=True)

    def state(self, trial: Trial) -> str:
        """Return a trial's state: that of its run, `refused`, or `waiting`; stopped runs wait, since they resume."""
        state = trial.run.state()
        if state in ALIVE:
            return state
        if self.retry_requested(trial.number):
            return WAITING
        if state in DONE:
            return state
        if trial.failed:
            return trial.end["state"] if trial.end else state
        return state if has_failed(trial.run, state) else WAITING

    def request_cancel(self, number: int) -> None:
        """Ask the worker that has this trial to stop it and to continue with others."""
        self._claim_file(number).with_suffix(".cancel").touch()

    def should_stop(self, number: int) -> bool:
        """Return True if a running trial is to stop, alone or with the whole study."""
        return self._claim_file(number).with_suffix(".cancel").exists() or self.is_cancelled

    def clear_cancel(self, number: int) -> bool:
        """Remove a request to cancel a trial; return True if there was one."""
        file = self._claim_file(number).with_suffix(".cancel")
        requested = file.exists()
        file.unlink(missing_ok=True)
        return requested

    def retry_requested(self, number: int) -> bool:
        """Return True if a retry of the trial is requested."""
        return self._retry_file(number).exists()

    def requested_retries(self) -> list[int]:
        """Return the numbers of the trials of which a retry is requested."""
        return [int(path.stem) for path in self.file("trials").glob("*.again")]

    def log_event(self, event: str, *, file: str = "events.jsonl", **facts: Any) -> None:
        """Append to the study's event log; raises `OSError` where that cannot be written."""
        append_line(self.file(file), {"time": round(time.time(), 3), "event": event, "host": hostname(), **facts})

    def events(self, kind: str, slot: int | None = None) -> list[dict[str, Any]]:
        """Return the logged events of a kind, of one slot if it is given."""
        events = read_json_lines(self.file("events.jsonl"))
        return [event for event in events if event.get("event") == kind and slot in (None, event.get("slot"))]

    def running_trials(self) -> dict[int, dict[str, Any]]:
        """Return the start event of each trial whose end is not logged."""
        starts: dict[int, dict[str, Any]] = {}
        for event in read_json_lines(self.file("events.jsonl")):
            if event.get("event") == "begins":
                starts[event["trial"]] = event
            elif event.get("event") == "ends":
                starts.pop(event["trial"], None)
        return starts

    def busy_slots(self) -> list[int]:
        """Return the numbers of the slots that have a running worker."""
        return sorted(int(path.stem) for path in self.file("slots").glob("*.lock") if is_locked(path))

    @property
    def is_cancelled(self) -> bool:
        """Whether the study is cancelled, so that no trial starts."""
        return self.file("cancelled").exists()

    def _read(self, path: Path) -> Trial | None:
        """Return a record, parsed again only when its file has changed.

        Opened, not just looked at: a network file system asks its server only then (see `run_folder.heartbeat`).
        """
        try:
            with open(path, "rb") as stream:
                stat = os.fstat(stream.fileno())
        except OSError:
            return None
        stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)  # each write replaces the file, so its inode changes
        if path not in self._cache or self._cache[path][0] != stamp:
            self._cache[path] = stamp, self._parse(read_json(path))
        return self._cache[path][1]

    def _parse(self, plain: Any) -> Trial | None:
        if not (isinstance(plain, dict) and plain.keys() >= TRIAL_KEYS):
            return None
        known = {name: plain[name] for name in (*TRIAL_KEYS, "end") if name in plain}  # a newer version may have more
        return Trial(**{**known, "folder": self._absolute(plain["folder"])})

    def _absolute(self, folder: str) -> str:
        """Return a run folder's absolute path. Studies behind a link used to store it relative to the link."""
        real, by_link = (os.path.normpath(path / folder) for path in (self.path.resolve(), self.path))
        return by_link if os.path.isdir(os.path.dirname(by_link)) and not os.path.isdir(os.path.dirname(real)) else real

    def _trial_file(self, number: int) -> Path:
        return self.path / "trials" / f"{number:04d}.json"

    def _retry_file(self, number: int) -> Path:
        return self.path / "trials" / f"{number:04d}.again"

    def _claim_file(self, number: int) -> Path:
        return self.path / "claims" / f"{number:04d}.lock"


def living_pid(events: list[dict[str, Any]]) -> int | None:
    """Return the process that the latest of events started; None unless it is on this host and alive."""
    latest = events[-1] if events else {}
    pid, born = latest.get("pid"), latest.get("born")
    if latest.get("host") != hostname() or not isinstance(pid, int) or born is None or start_ticks(pid) != born:
        return None
    return pid


def command_of(study: StudyFolder) -> str:
    """Return the command that starts or resumes the study, quoted for a shell."""
    words = study.about().get("command") or ["specvit", "train", f"sweeps={study.name}"]
    return shlex.join(hide_secrets(str(word)) for word in words)  # older studies may have a password there


def has_failed(run: RunFolder, state: str) -> bool:
    """Return True if a run failed for every study: not by a fault of the disk, nor pruned by another study."""
    return state in FAILED and state != "pruned" and not run.status().get("passing")


def deaths_without_progress(run: RunFolder) -> int:
    """Return how many processes in a row died in a run without recording an end, at the same step as the first."""
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


def stops_without_progress(run: RunFolder) -> int:
    """Return how many processes in a row were stopped by a signal without the run having advanced by a step.

    The progress of the latest one is unknown until the next is ready, so it counts only if it never reached a step.
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
