"""Which SLURM jobs a study has, by its diary and by what SLURM says of them. Needs neither submitit nor torch."""

from dataclasses import dataclass
from typing import Any

from specvit.files import read_json_lines
from specvit.launch.queue import ClusterJob, ended_jobs, jobs_named
from specvit.sweep.folder import StudyFolder


def job_name(study: StudyFolder, about: dict[str, Any]) -> str:
    """Return the name that all jobs of a study have in SLURM, and no others."""
    return f"specvit-{study.name}-{about['key'][:8]}"


@dataclass(frozen=True)
class Diary:
    """What the study's diary has of jobs: the latest one of each slot, and what each slot's worker is at."""

    job_of_slot: dict[int, str]
    trial_of_slot: dict[int, int]
    ended_of_slot: dict[int, bool]
    """Whether the slot's latest worker has ended a trial."""

    def slot_of(self, trial: int, kind: str) -> int | None:
        """Return the slot whose job makes a trial, or is to make it: of a grid each trial has its own."""
        if kind == "grid":
            return trial if trial in self.job_of_slot else None
        return next((slot for slot, number in self.trial_of_slot.items() if number == trial), None)


def read_diary(study: StudyFolder) -> Diary:
    """Read the study's diary."""
    jobs: dict[int, str] = {}
    at: dict[int, int] = {}
    ended: dict[int, bool] = {}
    for event in read_json_lines(study.file("events.jsonl")):
        slot, kind = event.get("slot"), event.get("event")
        if slot is None:
            continue
        if kind == "submitted":
            jobs[slot], ended[slot] = event["job"], False
        elif kind == "begins":
            at = {other: number for other, number in at.items() if number != event["trial"]}
            at[slot] = event["trial"]
        elif kind == "ends":
            at.pop(slot, None)
            ended[slot] = True
    return Diary(jobs, at, ended)


def jobs_of_trials(study: StudyFolder, about: dict[str, Any]) -> dict[int, ClusterJob] | None:
    """Return the latest job of each trial that has one; None if SLURM does not answer."""
    diary = read_diary(study)
    if not diary.job_of_slot:
        return {}
    queue = jobs_named(job_name(study, about))
    if queue is None:
        return None
    gone = [job for job in diary.job_of_slot.values() if job not in queue or not queue[job].alive]
    known = {**queue, **ended_jobs(gone)}
    trials = diary.job_of_slot if about["kind"] == "grid" else diary.trial_of_slot
    pairs = ((slot if about["kind"] == "grid" else diary.trial_of_slot[slot], slot) for slot in trials)
    return {
        trial: known[diary.job_of_slot[slot]]
        for trial, slot in pairs
        if slot in diary.job_of_slot and diary.job_of_slot[slot] in known
    }
