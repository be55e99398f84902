"""Which SLURM jobs a study has, by its diary and by what SLURM says of them. Needs neither submitit nor torch."""

from dataclasses import dataclass
from typing import Any

from specvit.cluster import queue
from specvit.cluster.queue import ClusterJob, ended_jobs, jobs_named
from specvit.run_folder.folder import RESUMABLE
from specvit.study.store import StudyFolder
from specvit.utils.files import read_json_lines

JOBS = "jobs.jsonl"
"""Which job was submitted for which slot; only the study's command writes it."""


def job_name(study: StudyFolder, about: dict[str, Any]) -> str:
    """Return the name that all jobs of a study have in SLURM, and no others."""
    return f"specvit-{study.name}-{about['key'][:8]}"


@dataclass(frozen=True)
class JobLog:
    """What a study has on file of its jobs."""

    job_of_slot: dict[int, str]
    """The latest job of each slot."""
    trial_of_slot: dict[int, int]
    """The trial that each slot's worker is at, or has to go on with."""
    started: frozenset[str]
    """Jobs whose worker began to work."""
    fruitful: frozenset[str]
    """Jobs that brought a trial to its end."""


def read_job_log(study: StudyFolder) -> JobLog:
    """Read what the study has on file."""
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
    """Return a study's jobs that the queue still knows; none where it has none, None if SLURM does not answer."""
    if (about.get("launcher") or {}).get("kind") != "slurm" and not study.file(JOBS).exists():
        return {}
    return jobs_named(job_name(study, about)) if queue.has_slurm() else {}


def waiting_jobs(study: StudyFolder, about: dict[str, Any]) -> list[ClusterJob]:
    """Return a study's jobs that wait in the queue."""
    return [job for job in (jobs_in_queue(study, about) or {}).values() if job.waits]


def jobs_of_trials(
    study: StudyFolder, about: dict[str, Any], there: dict[str, ClusterJob] | None
) -> dict[int, ClusterJob]:
    """Return the latest job of each trial that has one; `there` is what the queue knows."""
    diary = read_job_log(study)
    if not diary.job_of_slot or there is None:
        return {}
    gone = [job for job in diary.job_of_slot.values() if job not in there or not there[job].alive]
    known = {**there, **ended_jobs(gone)}
    grid = about["kind"] == "grid"
    found = {}
    for slot, job in diary.job_of_slot.items():
        trial = slot if grid else diary.trial_of_slot.get(slot)
        if trial is not None and job in known:
            found[trial] = known[job]
    return found
