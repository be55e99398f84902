"""What a study's command does about its SLURM jobs: whom it misses, and what it makes of how they ended."""

import os
from pathlib import Path

import pytest
from handmade import make_run, make_study
from handmade import study as definition_of

from specvit.cluster.queue import ClusterJob
from specvit.cluster.slurm_settings import SlurmConfig
from specvit.run_folder.folder import RunFolder
from specvit.study import slurm_slots
from specvit.study.job_log import read_job_log
from specvit.study.options import SweepOptions
from specvit.study.request import StudyRequest
from specvit.study.slurm_slots import GIVE_UP, SlurmSlots
from specvit.study.store import StudyFolder


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    """Return a grid of four runs: one done, one that was killed, two that never began."""
    outputs = tmp_path / "outputs"
    runs = [make_run(outputs / "toy-00000000", "completed", summary={"test_r2": 0.5})]
    runs += [make_run(outputs / "toy-00000001", "running")]
    runs += [RunFolder(outputs / f"toy-0000000{n}", f"0000000{n}") for n in (2, 3)]
    made = make_study(tmp_path / "multirun" / "toy", runs)
    for slot in (1, 2):
        made.log_event("submitted", file="jobs.jsonl", slot=slot, job=f"7_{slot}")
        made.log_event("worker starts", slot=slot, job=f"7_{slot}")
    return made


def slots_of(study: StudyFolder, *, at_once: int | None = None, jobs: int | None = None) -> SlurmSlots:
    order = StudyRequest(
        definition_of("grids: [{}]"), {}, SweepOptions(max_parallel=at_once), SlurmConfig(jobs=jobs), ()
    )
    return SlurmSlots(study, order)


def judge(slots: SlurmSlots, slot: int, state: str, exit_code: str = "0:0", job: str | None = None) -> bool:
    ended = ClusterJob(job or f"7_{slot}", state, nodes="node1", exit=exit_code)
    return slots._judge(slot, read_job_log(slots.study), ended)


def wanted(slots: SlurmSlots, busy: set[int]) -> list[int]:
    return slots._free_slots(busy, slots._wanted(busy))


def test_what_is_open_and_has_no_job_is_wanted(study: StudyFolder) -> None:
    assert wanted(slots_of(study), set()) == [1, 2, 3]
    assert wanted(slots_of(study), {2}) == [1, 3]
    assert wanted(slots_of(study, at_once=2), set()) == [1, 2, 3], "one array keeps to the limit by itself"
    assert wanted(slots_of(study, at_once=2), {2}) == [1]
    assert wanted(slots_of(study, jobs=2), {1, 2}) == []
    assert wanted(slots_of(study, at_once=1, jobs=3), {2}) == []
    study.file("cancelled").touch()
    assert wanted(slots_of(study), set()) == []
    assert slots_of(study)._wanted({1, 2}) == -2, "those that wait are not needed any more"


def search_of(place: Path, trials: int, **keys: int) -> SlurmSlots:
    return slots_of(make_study(place / "search", [], kind="search", trials=trials), **keys)


def test_a_search_has_as_many_workers_as_trials_are_left(tmp_path: Path) -> None:
    slots = search_of(tmp_path, 20)
    assert wanted(slots, set()) == list(range(8))
    assert wanted(slots, {0, 1, 2, 9}) == [3, 4, 5, 6]
    assert wanted(search_of(tmp_path / "few", 3), {1}) == [0, 2]
    assert wanted(search_of(tmp_path / "limited", 20, at_once=2), set()) == [0, 1]
    assert search_of(tmp_path / "crowd", 3)._wanted({0, 1, 2, 3, 4}) == -2


def test_a_worker_of_a_search_that_is_cancelled_is_not_replaced(tmp_path: Path) -> None:
    slots = search_of(tmp_path, 20, at_once=2)
    judge(slots, 0, "CANCELLED by 1000", job="7_0")
    assert wanted(slots, set()) == [1]
    assert wanted(slots, {1}) == []


def test_workers_that_find_nothing_to_do_are_not_replaced(tmp_path: Path) -> None:
    slots = search_of(tmp_path, 20, at_once=2)
    slots.study.log_event("worker starts", slot=0, job="7_0")
    judge(slots, 0, "COMPLETED", job="7_0")
    assert wanted(slots, {1}) == []


def test_jobs_that_never_begin_to_work_end_the_study(study: StudyFolder, capsys) -> None:
    slots = slots_of(study)
    for death in range(GIVE_UP):
        assert wanted(slots, set()) == [1, 2, 3], death
        judge(slots, 1 + death % 3, "FAILED", "127:0", job=f"9_{death}")
    assert wanted(slots, set()) == []
    assert f"{GIVE_UP} in a row never started, so none is submitted any more: see" in capsys.readouterr().out


def test_a_job_is_judged_when_its_run_no_longer_looks_alive(study: StudyFolder) -> None:
    slots, run = slots_of(study), study.trials()[1].run
    run.set_status("running", host="elsewhere", job="7_1")
    run.file(".heartbeat").touch()
    assert not judge(slots, 1, "OUT_OF_MEMORY") and not slots.judged
    os.utime(run.file(".heartbeat"), (1, 1))
    assert judge(slots, 1, "OUT_OF_MEMORY")
    assert run.state() == "oom"


@pytest.mark.parametrize(
    ("state", "code", "end", "cause"),
    [
        ("OUT_OF_MEMORY", "0:125", "oom", "job 7_1: OUT_OF_MEMORY, signal 125 on node1"),
        ("CANCELLED by 1000", "0:0", "cancelled", "job 7_1: CANCELLED by 1000 on node1"),
    ],
)
def test_what_would_only_happen_again_is_left_alone(state: str, code: str, end: str, cause: str, study) -> None:
    slots = slots_of(study)
    judge(slots, 1, state, code)
    trial = study.trial(1)
    assert study.state(trial) == trial.run.state() == end
    assert trial.run.status()["cause"] == trial.end["cause"] == cause
    assert trial.run.status()["remedy"]
    assert wanted(slots, set()) == [2, 3]
    study.request_retry(trial)
    assert wanted(slots, set()) == [1, 2, 3], "the same command takes it up"


def test_a_waiting_job_that_is_cancelled_takes_its_run_along(study: StudyFolder) -> None:
    slots = slots_of(study)
    judge(slots, 2, "CANCELLED by 1000")
    trial = study.trial(2)
    assert trial and study.state(trial) == "cancelled"
    assert not trial.run.path.exists()


@pytest.mark.parametrize("state", ["FAILED", "NODE_FAIL", "TIMEOUT", "COMPLETED", "BOOT_FAIL"])
def test_what_died_is_wanted_again_a_number_of_times(state: str, study: StudyFolder, capsys) -> None:
    slots = slots_of(study)
    for death in range(GIVE_UP):
        assert wanted(slots, {2, 3}) == [1], death
        judge(slots, 1, state, "137:0")
    assert wanted(slots, {2, 3}) == []
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"job 7_1: {state}, exit code 137 on node1; its run resumes  toy-00000001"
    assert len(said) == GIVE_UP and f"{GIVE_UP} in a row ended no run, so this one is left alone" in said[-1]


def test_a_job_that_nobody_knows_holds_its_slot_for_a_while(study: StudyFolder, capsys, monkeypatch) -> None:
    slots, diary = slots_of(study), read_job_log(study)
    assert slots._judge_ended({1: "7_1"}, diary, {}) == {1}
    assert not slots.judged and not capsys.readouterr().out
    monkeypatch.setattr(slurm_slots, "GONE_SECONDS", 0.0)
    assert slots._judge_ended({1: "7_1"}, diary, {}) == set()
    assert slots.judged == {"7_1"} and "job 7_1: GONE" in capsys.readouterr().out
    assert slots._judge_ended({1: "7_1"}, diary, {}) == set()
    assert not capsys.readouterr().out


def test_a_job_that_waits_for_somebody_is_reported_once(study: StudyFolder, capsys) -> None:
    slots = slots_of(study)
    jobs = [ClusterJob("7_1", "PENDING", "JobHeldUser"), ClusterJob("7_2", "PENDING", "JobHeldUser")]
    for _ in range(2):
        slots._print_blocked([*jobs, ClusterJob("7_3", "PENDING", "Priority")])
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "job 7_1: PENDING (JobHeldUser); it stays in the queue" in said
