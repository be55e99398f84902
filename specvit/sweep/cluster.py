"""Keeps SLURM jobs at work on a study. It holds nothing that they need: stopped, it leaves them to themselves.

Of a grid each open run has a job of its own, all of them one array; a search has workers that pull trials. A job that
comes to its time limit, or is preempted, saves and goes to the queue again by itself. What dies otherwise is submitted
again here, and goes on from its last checkpoint.
"""

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

from specvit.config.folder import ALIVE
from specvit.errors import ConfigError, FolderError, Interrupted
from specvit.launch.queue import ClusterJob, ended_jobs, jobs_named
from specvit.launch.slurm_config import SlurmConfig
from specvit.launch.submit import Call, submit
from specvit.sweep.folder import WAITING, StudyFolder, Trial, now
from specvit.sweep.forecast import is_work_left
from specvit.sweep.jobs import Diary, job_name, read_diary
from specvit.sweep.order import Order
from specvit.sweep.plan import relative
from specvit.sweep.source import is_over
from specvit.sweep.watch import Watch

BATCH = 1000
"""Jobs of one array; SLURM takes no more unless a site has raised MaxArraySize."""
SEARCHERS = 8
"""Workers of a search that does not say how many: its sampler learns from those that have ended."""
GIVE_UP = 10
"""A slot is left alone after so many jobs in a row that died there before they ended a run."""
SILENCE_SECONDS = 1800.0
"""So long SLURM may be silent (its controller restarts) before this command leaves."""
OLDER_WORKER_SECONDS = 90
"""A requeued job waits so long for the process that it had on a node given up by SLURM."""
BLOCKED = ("held", "partitiondown", "badconstraints", "never", "timelimit", "inactive", "invalid", "maxnodeperaccount")
"""Words in the reasons for which a job waits until somebody does something."""


class ClusterSlots:
    """The jobs of one study."""

    def __init__(self, study: StudyFolder, order: Order) -> None:
        """Submit nothing yet."""
        assert isinstance(order.launcher, SlurmConfig)
        self.study, self.config = study, order.launcher
        self.about = study.about()
        self.name = job_name(study, self.about)
        self.limit = order.options.max_parallel or self.config.jobs
        self.left: set[int] = set()
        self.deaths: dict[int, int] = {}
        self.judged: set[str] = set()
        self.said: set[str] = set()
        self.silent: float | None = None

    def run(self) -> int:
        """Submit what is open, tell what comes of it, submit again what died, until nothing is open."""
        watch = Watch(self.study)
        self._forget_older_ends()
        with self._leaving():
            while self._round():
                watch.say_news()
                time.sleep(self.config.poll_seconds)
            watch.say_news()
        return 0

    def _round(self) -> bool:
        """Look at the queue once and act; say whether there is something to wait for."""
        queue = jobs_named(self.name)
        if queue is None:
            self._note_silence()
            return True
        self.silent = None
        diary = read_diary(self.study)
        alive = {slot for slot, job in diary.job_of_slot.items() if job in queue and queue[job].alive}
        ended = {slot: job for slot, job in diary.job_of_slot.items() if slot not in alive and job not in self.judged}
        accounts = ended_jobs(ended.values())
        for slot, job in ended.items():
            account = accounts.get(job)  # it knows more, but some seconds later
            if account is None or account.alive:
                account = queue.get(job) or ClusterJob(job, "GONE")
            self._judge(slot, diary, account)
        self._say_blocked([queue[diary.job_of_slot[slot]] for slot in alive])
        busy = alive | set(self.study.slots_at_work())
        wanted = self._wanted(busy)
        if wanted:
            self._submit(wanted, alone=not alive)
        return bool(wanted or busy) or any(self.study.state(trial) in ALIVE for trial in self.study.trials())

    def _wanted(self, busy: set[int]) -> list[int]:
        """Return the slots in which a job is missing."""
        if is_over(self.study, self.study.about()):
            return []
        room = (self.limit or BATCH) if busy else BATCH  # one array keeps to the limit by itself
        room -= len(busy)
        if self.about["kind"] == "grid":
            open_runs = [trial.number for trial in self.study.trials() if self.study.state(trial) == WAITING]
            return [number for number in open_runs if number not in busy | self.left][: max(0, room)]
        if not is_work_left(self.study):
            return []
        settled = sum(trial.end is not None and self.study.state(trial) != WAITING for trial in self.study.trials())
        count = min(self.limit or SEARCHERS, self.about["trials"] - settled) - len(busy)
        free = (slot for slot in range(10**6) if slot not in busy | self.left)
        return [next(free) for _ in range(count)] if len(self.left) < GIVE_UP else []

    def _submit(self, slots: list[int], *, alone: bool) -> None:
        calls = [self._call(slot) for slot in slots]
        jobs = submit(self._settings(), self.study.file("jobs") / "%j", self.name, calls, at_once=self.limit)
        for slot, job in zip(slots, jobs, strict=True):
            self.study.note("submitted", slot=slot, job=job)
        array = f"array {jobs[0].partition('_')[0]}, " if len(jobs) > 1 else ""
        limit = f", {self.limit} at a time" if alone and self.limit and self.limit < len(jobs) else ""
        count = f"{len(jobs)} jobs" if len(jobs) > 1 else f"job {jobs[0]}"
        print(f"submitted {count} ({array}{self.config.time} each{limit})", flush=True)

    def _call(self, slot: int) -> Call:
        words = ["work", str(self.study.path), "--slot", str(slot), "--patience", str(OLDER_WORKER_SECONDS)]
        words += ["--trial", str(slot)] if self.about["kind"] == "grid" else []
        return Call("specvit.sweep.__main__", tuple(words), self.config.requeue)

    def _settings(self) -> SlurmConfig:
        """Return what jobs ask for; a copy of the code comes before the installed one."""
        code = self.study.file("code")
        first = f'export PYTHONPATH="{code}${{PYTHONPATH:+:$PYTHONPATH}}"'
        return replace(self.config, setup=(*self.config.setup, first)) if code.is_dir() else self.config

    def _forget_older_ends(self) -> None:
        """What ended before this command began is no news: what is open is submitted again, whatever became of it."""
        queue = jobs_named(self.name) or {}
        jobs = read_diary(self.study).job_of_slot.values()
        self.judged |= {job for job in jobs if job not in queue or not queue[job].alive}

    def _judge(self, slot: int, diary: Diary, job: ClusterJob) -> None:
        """Take note of a job's end, once: by then its run has ended well, or is submitted again, or was cancelled."""
        if job.state == "GONE" and job.id not in self.said:
            self.said.add(job.id)  # accounting comes later than the queue forgets: look once more
            return
        self.judged.add(job.id)
        self.deaths[slot] = 0 if diary.ended_of_slot.get(slot) else self.deaths.get(slot, 0) + 1
        number = slot if self.about["kind"] == "grid" else diary.trial_of_slot.get(slot)
        trial = self.study.trial(number) if number is not None else None
        if self.study.is_cancelled or trial is None or self.study.state(trial) != WAITING:
            return
        if job.state.startswith("CANCELLED"):
            self.left.add(slot)
            self._settle(trial, "cancelled", f"{job}", f"specvit sweep retry {self.study.name}")
        elif job.state == "OUT_OF_MEMORY":
            self._settle(trial, "oom", f"{job}", "raise hydra.launcher.memory, or lower train.batch_size")
        elif self.deaths[slot] >= GIVE_UP:
            self.left.add(slot)
            print(f"slot {slot} is left empty: {GIVE_UP} jobs in a row died there before they ended a run", flush=True)
        else:
            print(f"{job}; its run goes on  {trial.name}", flush=True)

    def _settle(self, trial: Trial, state: str, cause: str, remedy: str) -> None:
        """Write the end of a run whose job SLURM has ended for good."""
        with self.study.claim(trial.number) as mine:
            if not mine:
                return
            if trial.run.state():
                with contextlib.suppress(FolderError), trial.run.claimed():
                    trial.run.set_status(state, cause=cause, remedy=remedy)
            self.study.take_again(trial.number)
            self.study.write_trial(
                replace(trial, end={"state": state, "cause": cause, "remedy": remedy, "time": now()})
            )

    def _say_blocked(self, jobs: list[ClusterJob]) -> None:
        """Say once of each reason that a job waits for somebody to do something."""
        for job in jobs:
            if job.waits and any(word in job.reason.lower() for word in BLOCKED) and job.reason not in self.said:
                self.said.add(job.reason)
                print(f"{job}; it stays in the queue until that is mended (`scontrol show job {job.id}`)", flush=True)

    def _note_silence(self) -> None:
        if self.silent is None:
            self.silent = time.monotonic()
            print("SLURM does not answer; the jobs go on, and this command asks again", flush=True)
        elif time.monotonic() - self.silent > SILENCE_SECONDS:
            remedy = "the same command comes back to them"
            raise ConfigError("does not answer; jobs that run go on", where="squeue", remedy=remedy)

    @contextlib.contextmanager
    def _leaving(self) -> Iterator[None]:
        """Have Ctrl-C end this command and no job."""

        def handle(number: int, frame: object) -> None:
            raise Interrupted(signal.Signals(number).name, number)

        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {n: signal.signal(n, handle) for n in wanted if signal.getsignal(n) is not signal.SIG_IGN}
        try:
            yield
        except Interrupted:
            name = self.study.name
            print(f"\njobs go on: `specvit sweep status {name}` shows them, `cancel` stops them", flush=True)
            print(f"logs: {relative(self.study.file('jobs'))}", flush=True)
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
