"""The SLURM jobs of a study, by its logs and by SLURM's answers. Imports neither submitit nor torch."""

from dataclasses import dataclass
from typing import Any

from specvit.cluster import queue
from specvit.cluster.queue import ClusterJob, ended_jobs, jobs_named
from specvit.run_folder.folder import RESUMABLE
from specvit.study.store import StudyFolder
from specvit.utils.files import read_json_lines

JOBS = "jobs.jsonl"
"""The job submitted for each slot; only the command that drives the study writes it."""


def job_name(study: StudyFolder, about: dict[str, Any]) -> str:
    """Return the name that all jobs of a study have in SLURM, and no others."""
    return f"specvit-{study.name}-{about['key'][:8]}"


@dataclass(frozen=True)
class JobLog:
    """What the logs of a study say about its jobs."""

    job_of_slot: dict[int, str]
    """The latest job of each slot."""
    trial_of_slot: dict[int, int]
    """The trial that each slot's worker is running, or has to resume."""
    started: frozenset[str]
    """Jobs whose worker started."""
    fruitful: frozenset[str]
    """Jobs that ended a trial."""


def read_job_log(study: StudyFolder) -> JobLog:
    """Read the logs of a study."""
    jobs = {line["slot"]: line["job"] for line in read_json_lines(study.file(JOBS)) if "slot" in line}
    at: dict[int, int] = {}
    started, fruitful = set(), set()
    for event in read_json_lines(study.file("events.jsonl")):
        slot, kind = int(event.get("slot", -1)), event.get("event")
        if kind == "worker starts":
            started.add(event.get("job"))
        elif kind == "begins":
            at = {other: number for other, number in at.items() if number != event["trial"]}
            at[slot] = event["trial"]
        elif kind == "ends" and event["state"] not in RESUMABLE:
            at.pop(slot, None)
            fruitful.add(event.get("job"))
    return JobLog(jobs, at, frozenset(started - {None}), frozenset(fruitful - {None}))


def jobs_in_queue(study: StudyFolder, about: dict[str, Any]) -> dict[str, ClusterJob] | None:
    """Return the jobs of a study that the queue still knows; None if SLURM does not answer."""
    if (about.get("launcher") or {}).get("kind") != "slurm" and not study.file(JOBS).exists():
        return {}
    return jobs_named(job_name(study, about)) if queue.has_slurm() else {}


def waiting_jobs(study: StudyFolder, about: dict[str, Any]) -> list[ClusterJob]:
    """Return a study's jobs that wait in the queue."""
    return [job for job in (jobs_in_queue(study, about) or {}).values() if job.waits]


def jobs_of_trials(
    study: StudyFolder, about: dict[str, Any], queued: dict[str, ClusterJob] | None
) -> dict[int, ClusterJob]:
    """Return the latest job of each trial that has one; `queued` is what the queue knows."""
    log = read_job_log(study)
    if not log.job_of_slot or queued is None:
        return {}
    gone = [job for job in log.job_of_slot.values() if job not in queued or not queued[job].alive]
    known = {**queued, **ended_jobs(gone)}
    grid = about["kind"] == "grid"
    found = {}
    for slot, job in log.job_of_slot.items():
        trial = slot if grid else log.trial_of_slot.get(slot)
        if trial is not None and job in known:
            found[trial] = known[job]
    return found
