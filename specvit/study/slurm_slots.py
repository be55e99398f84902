"""Submits the SLURM jobs of a study and replaces those that die. The jobs do not depend on this process.

In a grid each open run has its own job, all of them in one array; in a search, workers pull trials. A job that reaches
its time limit, or is preempted, saves and requeues itself. A job that dies otherwise is submitted again here, and its
run resumes from the last checkpoint.
"""

import contextlib
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

from specvit.cluster import queue
from specvit.cluster.queue import ClusterJob, ended_jobs, jobs_named
from specvit.cluster.slurm_settings import SlurmConfig
from specvit.cluster.submit import Call, submit
from specvit.run_folder.folder import ALIVE, now
from specvit.study.job_log import JOBS, JobLog, job_name, read_job_log
from specvit.study.local_slots import SIGNALS
from specvit.study.plan import code_folder, relative
from specvit.study.request import StudyRequest
from specvit.study.status import StudyMonitor
from specvit.study.store import WAITING, StudyFolder, Trial
from specvit.study.trial_queue import has_open_trials, stop_reason
from specvit.training.signals import signal_handlers
from specvit.utils.errors import ConfigError, FolderError, Interrupted

BATCH = 1000
"""Jobs of one array; SLURM accepts no more unless a site has raised MaxArraySize."""
SEARCHERS = 8
"""Default number of workers of a search: its sampler learns only from trials that have ended."""
GIVE_UP = 10
"""After this many jobs in a row that ended no run a slot is given up; if none even started, the whole study."""
SILENCE_SECONDS = 1800.0
"""How long SLURM may not answer, or refuse (its controller restarts), before this command ends."""
GONE_SECONDS = 30.0
"""How long a job may be in neither the queue nor accounting before it counts as gone: both may be late."""
OLDER_WORKER_SECONDS = 90
"""How long a requeued job waits for its former process on a node that SLURM has given up."""
BLOCKED = ("held", "partitiondown", "badconstraints", "never", "timelimit", "inactive", "invalid", "maxnodeperaccount")
"""Words in the reasons of jobs that wait until somebody intervenes."""


class SlurmSlots:
    """The jobs of one study."""

    def __init__(self, study: StudyFolder, order: StudyRequest) -> None:
        """Submit nothing yet."""
        assert isinstance(order.launcher, SlurmConfig)
        self.study, self.config = study, order.launcher
        self.about = study.about()
        self.name = job_name(study, self.about)
        self.limit = order.options.max_parallel or self.config.jobs
        self.batch = BATCH
        self.given_up: set[int] = set()
        """Slots that get no further job: cancelled, given up, or of a search without further trials."""
        self.deaths: dict[int, int] = {}
        self.never_started = 0
        self.judged: set[str] = set()
        self.missing: dict[str, float] = {}
        self.reported: set[str] = set()
        self.silent_since: float | None = None

    def run(self) -> int:
        """Submit jobs for open runs, report news, replace jobs that died, until no run is open."""
        monitor = StudyMonitor(self.study)
        with self._interruptible():
            self._skip_ended_jobs()
            while self._round():
                monitor.print_news()
                time.sleep(self.config.poll_seconds)
            monitor.print_news()
        return 0

    def _skip_ended_jobs(self) -> None:
        """Skip jobs that ended before; cancel jobs of a command that was killed before it could log them."""
        there = jobs_named(self.name) or {}
        log = read_job_log(self.study)
        self.judged |= {job for job in log.job_of_slot.values() if job not in there or not there[job].alive}
        known = {*log.job_of_slot.values(), *log.started}
        if unknown := [job.id for job in there.values() if job.alive and job.id not in known]:
            queue.cancel(unknown)

    def _round(self) -> bool:
        """Check the queue once and act; return True while there is something to wait for."""
        there = jobs_named(self.name)
        if there is None:
            self._note_silence("SLURM does not answer; the jobs continue, and this command asks again")
            return True
        log = read_job_log(self.study)
        jobs = log.job_of_slot
        alive = {slot for slot, job in jobs.items() if job in there and there[job].alive}
        unsettled = self._judge_ended({s: j for s, j in jobs.items() if s not in alive}, log, there)
        waiting = [slot for slot in alive if there[jobs[slot]].waits]
        self._print_blocked([there[jobs[slot]] for slot in waiting])
        busy = alive | unsettled | set(self.study.busy_slots())
        wanted = self._wanted(busy)
        if wanted < 0 and (needless := {jobs[slot] for slot in waiting[wanted:]}):
            queue.cancel(needless)
            self.judged |= needless
        slots = self._free_slots(busy, wanted)
        if slots:
            self._try_to_submit(slots, alone=not busy)
        else:
            self.silent_since = None
        return bool(slots or busy) or any(self.study.state(trial) in ALIVE for trial in self.study.trials())

    def _wanted(self, busy: set[int]) -> int:
        """Return how many jobs are missing; if negative, how many waiting ones are no longer needed."""
        if (
            stop_reason(self.study, self.study.about())
            or self.never_started >= GIVE_UP
            or not has_open_trials(self.study)
        ):
            return -len(busy)
        if self.about["kind"] == "grid":
            room = self.limit if busy and self.limit else self.batch  # one array keeps to the limit by itself
            return max(0, room - len(busy))
        settled = sum(trial.end is not None and self.study.state(trial) != WAITING for trial in self.study.trials())
        return min(self.limit or SEARCHERS, self.about["trials"] - settled) - len(busy) - len(self.given_up - busy)

    def _free_slots(self, busy: set[int], count: int) -> list[int]:
        """Return slots for `count` jobs; in a grid each open run has its own."""
        if self.about["kind"] == "grid":
            open_runs = [trial.number for trial in self.study.trials() if self.study.state(trial) == WAITING]
            self.given_up -= {number for number in self.given_up if self.study.retry_requested(number)}
            return [number for number in open_runs if number not in busy | self.given_up][: max(0, count)]
        free = (slot for slot in range(10**6) if slot not in busy | self.given_up)
        return [next(free) for _ in range(count)]

    def _try_to_submit(self, slots: list[int], *, alone: bool) -> None:
        """Submit jobs. A first refusal is raised, a later one waited out; their limit is found by halving."""
        try:
            self._submit(slots, alone=alone)
            self.silent_since = None
        except ConfigError as refusal:
            if len(slots) > 1 and re.search(r"submit limit|job array", str(refusal)):
                self.batch = len(slots) // 2
                self._try_to_submit(slots[: self.batch], alone=alone)
            elif alone and not self.reported:
                raise
            else:
                self._note_silence(f"{refusal} Trying again.")

    def _submit(self, slots: list[int], *, alone: bool) -> None:
        calls = [self._call(slot) for slot in slots]
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # one in between would lose the job's number
        try:
            code = code_folder(self.study) if self.config.snapshot_code else None
            place = self.study.file("jobs") / "%j"
            jobs = submit(self.config, place, self.name, calls, at_once=self.limit, code=code)
            for slot, job in zip(slots, jobs, strict=True):
                self.study.log_event("submitted", file=JOBS, slot=slot, job=job)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self.reported.add("submitted")
        array = f"array {jobs[0].partition('_')[0]}, " if len(jobs) > 1 else ""
        limit = f", {self.limit} at a time" if alone and self.limit and self.limit < len(jobs) else ""
        count = f"{len(jobs)} jobs" if len(jobs) > 1 else f"job {jobs[0]}"
        print(f"submitted {count} ({array}{self.config.time} each{limit})", flush=True)

    def _call(self, slot: int) -> Call:
        words = ["work", str(self.study.path), "--slot", str(slot), "--patience", str(OLDER_WORKER_SECONDS)]
        words += ["--trial", str(slot)] if self.about["kind"] == "grid" else []
        return Call("specvit.sweep", tuple(words), self.config.requeue)

    def _judge_ended(self, ended: dict[int, str], log: JobLog, there: dict[str, ClusterJob]) -> set[int]:
        """Take note of ended jobs; return the slots of those whose end is not certain yet."""
        new = {slot: job for slot, job in ended.items() if job not in self.judged}
        accounts, unsettled = ended_jobs(new.values()) if new else {}, set()
        for slot, name in new.items():
            job = accounts.get(name)  # it knows more, but some seconds later
            if job is None or job.alive:
                job = there.get(name)
            first_missed = self.missing.setdefault(name, time.monotonic()) if job is None else 0.0
            early = job is None and time.monotonic() - first_missed < GONE_SECONDS
            if early or not self._judge(slot, log, job or ClusterJob(name, "GONE")):
                unsettled.add(slot)
        return unsettled

    def _judge(self, slot: int, log: JobLog, job: ClusterJob) -> bool:
        """Take note of a job's end, once: its run has ended as well, or is submitted again, or is given up.

        Return False while its run looks alive: on another host its heartbeat is valid for a minute more.
        """
        number = slot if self.about["kind"] == "grid" else log.trial_of_slot.get(slot)
        trial = self.study.trial(number) if number is not None else None
        if trial and trial.run.state() in ALIVE and trial.run.status().get("job") == job.id:
            return False
        self.judged.add(job.id)
        self.deaths[slot] = 0 if job.id in log.fruitful else self.deaths.get(slot, 0) + 1
        self.never_started = 0 if job.id in log.started else self.never_started + 1
        unfinished = trial is not None and self.study.state(trial) == WAITING
        if self.study.is_cancelled:
            return True
        if job.state.startswith("CANCELLED"):
            self.given_up.add(slot)
            self._settle(trial if unfinished else None, "cancelled", job, f"specvit sweep retry {self.study.name}")
        elif job.state == "OUT_OF_MEMORY" and unfinished:
            self._settle(trial, "oom", job, "raise hydra.launcher.memory, or lower train.batch_size")
        elif unfinished or (self.about["kind"] == "search" and self.deaths[slot]):
            self._print_death(slot, job, trial)
        return True

    def _print_death(self, slot: int, job: ClusterJob, trial: Trial | None) -> None:
        """Print that a job ended before its run did, and give up after too many in a row."""
        logs = relative(self.study.file("jobs"))
        if job.state == "COMPLETED" and trial is None:
            self.given_up.add(slot)  # a search's worker that found no trial to run
        elif self.never_started >= GIVE_UP:
            print(f"{job}; {GIVE_UP} in a row never started, so none is submitted any more: see {logs}", flush=True)
        elif self.deaths[slot] >= GIVE_UP:
            self.given_up.add(slot)
            print(f"{job}; {GIVE_UP} in a row ended no run, so this one is left alone: see {logs}", flush=True)
        else:
            print(f"{job}; {f'its run resumes  {trial.name}' if trial else 'another takes its place'}", flush=True)

    def _settle(self, trial: Trial | None, state: str, job: ClusterJob, remedy: str) -> None:
        """Record the end of a run whose job SLURM has ended for good."""
        if trial is None:
            return
        cause = str(job)
        with self.study.claim(trial.number) as mine:
            if not mine:
                return
            if trial.run.state():
                with contextlib.suppress(FolderError), trial.run.claimed():
                    trial.run.set_status(state, cause=cause, remedy=remedy)
            self.study.clear_retry(trial.number)
            self.study.write_trial(
                replace(trial, end={"state": state, "cause": cause, "remedy": remedy, "time": now()})
            )

    def _print_blocked(self, jobs: list[ClusterJob]) -> None:
        """Print once for each reason that a job waits until somebody intervenes."""
        for job in jobs:
            if job.waits and any(word in job.reason.lower() for word in BLOCKED) and job.reason not in self.reported:
                self.reported.add(job.reason)
                print(
                    f"{job}; it stays in the queue until that is corrected (`scontrol show job {job.id}`)", flush=True
                )

    def _note_silence(self, words: str) -> None:
        """Print a problem with SLURM once; raises `ConfigError` when it lasts."""
        if self.silent_since is None:
            self.silent_since = time.monotonic()
            print(words, flush=True)
        elif time.monotonic() - self.silent_since > SILENCE_SECONDS:
            remedy = "submitted jobs continue; run the same command again to watch them"
            raise ConfigError("has stopped answering", where="SLURM", remedy=remedy)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let Ctrl-C end this command, but no job."""

        def handle(number: int, frame: object) -> None:
            raise Interrupted(signal.Signals(number).name, number)

        try:
            with signal_handlers(SIGNALS, handle):
                yield
        except Interrupted:
            name = self.study.name
            print(f"\njobs continue: `specvit sweep status {name}` shows them, `cancel` stops them", flush=True)
            print(f"logs: {relative(self.study.file('jobs'))}", flush=True)
            raise
