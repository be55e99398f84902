"""The state of SLURM jobs: from the queue, or from accounting once they have left it. Does not need submitit.

Every query has a time limit. A cluster that does not answer gives None, not an exception: callers ask again, and the
jobs continue meanwhile.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

ANSWER_SECONDS = 20.0
WAITING_STATES = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD", "REQUEUE_FED")
ALIVE_STATES = (*WAITING_STATES, "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT")
ARGUMENTS = 500
"""Job ids in one query."""
USER_SETTINGS = re.compile(r"(SQUEUE|SACCT|SCANCEL)_|SLURM_CLUSTERS$|SLURM_TIME_FORMAT$")
"""Environment variables by which users change the output of these commands."""


@dataclass(frozen=True)
class ClusterJob:
    """One job, or one task of an array, as SLURM has it."""

    id: str
    state: str
    reason: str = ""
    nodes: str = ""
    exit: str = ""

    @property
    def alive(self) -> bool:
        """Whether it waits or runs, or will again."""
        return self.state in ALIVE_STATES

    @property
    def waits(self) -> bool:
        """Whether it is in the queue to start, for the first time or again."""
        return self.state in WAITING_STATES

    def __str__(self) -> str:
        """Return the state, reason and node as text."""
        if self.waits:
            return f"job {self.id}: {self.state}" + (f" ({self.reason})" if self.reason else "")
        if self.alive:
            return f"job {self.id} on {self.nodes or 'its node'}"
        how = _how(self.exit) or (f" ({self.reason})" if self.reason else "")
        return f"job {self.id}: {self.state}{how}{f' on {self.nodes}' if self.nodes else ''}"


def has_slurm() -> bool:
    """Return True if this machine has SLURM's commands."""
    return shutil.which("squeue") is not None


def jobs_named(name: str) -> dict[str, ClusterJob] | None:
    """Return this user's jobs with a name that the queue still knows, ended ones too; None if it does not answer."""
    words = ["squeue", "--me", "--noheader", "--array", "--states=all", f"--name={name}", "--format=%i|%T|%r|%N"]
    answer = _query(words)
    if answer is None:
        return None
    jobs = {}
    for line in answer.splitlines():
        job, state, reason, nodes = line.strip().split("|", 3)
        jobs[job] = ClusterJob(job, state, "" if reason == "None" else reason, nodes)
    return jobs


def ended_jobs(ids: Iterable[str]) -> dict[str, ClusterJob]:
    """Return what accounting knows of jobs; empty where there is none, or it does not answer."""
    wanted, jobs = list(ids), {}
    for start in range(0, len(wanted), ARGUMENTS):
        chosen = ",".join(wanted[start : start + ARGUMENTS])
        words = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,State,ExitCode,NodeList"]
        answer = _query([*words, f"--jobs={chosen}"])
        for line in (answer or "").splitlines():
            job, state, exit_code, nodes = line.split("|", 3)
            place = "" if nodes == "None assigned" else nodes
            jobs[job] = ClusterJob(job, state, nodes=place, exit=exit_code)
    return jobs


def cancel(ids: Iterable[str], *, signal: str | None = None) -> bool:
    """Cancel jobs, or send them a signal; return True if SLURM accepted it."""
    wanted = list(ids)
    words = ["scancel", *([f"--signal={signal}"] if signal else [])]
    return all(_query([*words, *wanted[n : n + ARGUMENTS]]) is not None for n in range(0, len(wanted), ARGUMENTS))


def _query(words: list[str]) -> str | None:
    plain = {name: value for name, value in os.environ.items() if not USER_SETTINGS.match(name)}
    try:
        done = subprocess.run(words, env=plain, capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _how(code: str) -> str:
    """Return how a process ended: `3:0` is exit code 3, `0:9` signal 9."""
    status, _, number = code.partition(":")
    if number not in ("", "0"):
        return f", signal {number}"
    return f", exit code {status}" if status not in ("", "0") else ""
