"""What SLURM says about jobs: its queue first, its accounting for those that have left it. Needs no submitit.

Every question is bounded in time; a cluster that does not answer is None, never an exception: whoever asks goes on
asking, and the jobs go on without us.
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
"""So many job ids are asked for at once."""
TASTE = re.compile(r"(SQUEUE|SACCT|SCANCEL)_|SLURM_CLUSTERS$|SLURM_TIME_FORMAT$")
"""A user's own settings of these commands, under which their answers would read otherwise."""


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
        """Whether it is to start, for the first time or again."""
        return self.state in WAITING_STATES

    def __str__(self) -> str:
        """Say what SLURM says, for people."""
        if self.waits:
            return f"job {self.id}: {self.state}" + (f" ({self.reason})" if self.reason else "")
        if self.alive:
            return f"job {self.id} on {self.nodes or 'its node'}"
        how = _how(self.exit) or (f" ({self.reason})" if self.reason else "")
        return f"job {self.id}: {self.state}{how}{f' on {self.nodes}' if self.nodes else ''}"


def has_slurm() -> bool:
    """Say whether this machine has SLURM's commands."""
    return shutil.which("squeue") is not None


def jobs_named(name: str) -> dict[str, ClusterJob] | None:
    """Return this user's jobs of a name that the queue still knows, ended ones too; None if it does not answer."""
    words = ["squeue", "--me", "--noheader", "--array", "--states=all", f"--name={name}", "--format=%i|%T|%r|%N"]
    said = _ask(words)
    if said is None:
        return None
    found = {}
    for line in said.splitlines():
        job, state, reason, nodes = line.strip().split("|", 3)
        found[job] = ClusterJob(job, state, "" if reason == "None" else reason, nodes)
    return found


def ended_jobs(ids: Iterable[str]) -> dict[str, ClusterJob]:
    """Return what accounting knows of jobs; empty where there is none, or it does not answer."""
    wanted, found = list(ids), {}
    for start in range(0, len(wanted), ARGUMENTS):
        chosen = ",".join(wanted[start : start + ARGUMENTS])
        words = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,State,ExitCode,NodeList"]
        said = _ask([*words, f"--jobs={chosen}"])
        for line in (said or "").splitlines():
            job, state, exit_code, nodes = line.split("|", 3)
            place = "" if nodes == "None assigned" else nodes
            found[job] = ClusterJob(job, state, nodes=place, exit=exit_code)
    return found


def cancel(ids: Iterable[str], *, signal: str | None = None) -> bool:
    """Have jobs leave the queue, or send them a signal; say whether SLURM took it."""
    wanted = list(ids)
    words = ["scancel", *([f"--signal={signal}"] if signal else [])]
    return all(_ask([*words, *wanted[n : n + ARGUMENTS]]) is not None for n in range(0, len(wanted), ARGUMENTS))


def _ask(words: list[str]) -> str | None:
    plain = {name: value for name, value in os.environ.items() if not TASTE.match(name)}
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
