"""What a study's command does about its SLURM jobs: whom it misses, and what it makes of how they ended."""

from pathlib import Path

import pytest
from handmade import make_run, make_study
from handmade import study as definition_of

from specvit.config.folder import RunFolder
from specvit.launch.queue import ClusterJob
from specvit.launch.slurm_config import SlurmConfig
from specvit.sweep.cluster import GIVE_UP, ClusterSlots
from specvit.sweep.folder import StudyFolder
from specvit.sweep.jobs import read_diary
from specvit.sweep.options import SweepOptions
from specvit.sweep.order import Order


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    """Return a grid of four runs: one done, one that was killed, two that never began."""
    outputs = tmp_path / "outputs"
    runs = [make_run(outputs / "toy-00000000", "completed", summary={"test_r2": 0.5})]
    runs += [make_run(outputs / "toy-00000001", "running")]
    runs += [RunFolder(outputs / f"toy-0000000{n}", f"0000000{n}") for n in (2, 3)]
    made = make_study(tmp_path / "multirun" / "toy", runs)
    for slot in (1, 2):
        made.note("submitted", slot=slot, job=f"7_{slot}")
    return made


def slots_of(study: StudyFolder, *, at_once: int | None = None, jobs: int | None = None) -> ClusterSlots:
    order = Order(definition_of("grids: [{}]"), {}, SweepOptions(max_parallel=at_once), SlurmConfig(jobs=jobs), ())
    return ClusterSlots(study, order)


def judge(slots: ClusterSlots, slot: int, state: str, exit_code: str = "0:0") -> None:
    slots._judge(slot, read_diary(slots.study), ClusterJob(f"7_{slot}", state, nodes="node1", exit=exit_code))


def test_what_is_open_and_has_no_job_is_wanted(study: StudyFolder) -> None:
    assert slots_of(study)._wanted(set()) == [1, 2, 3]
    assert slots_of(study)._wanted({2}) == [1, 3]
    assert slots_of(study, at_once=2)._wanted(set()) == [1, 2, 3], "one array keeps to the limit by itself"
    assert slots_of(study, at_once=2)._wanted({2}) == [1]
    assert slots_of(study, jobs=2)._wanted({1, 2}) == []
    assert slots_of(study, at_once=1, jobs=3)._wanted({2}) == []
    study.file("cancelled").touch()
    assert slots_of(study)._wanted(set()) == []


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
    assert slots._wanted(set()) == [2, 3]
    study.ask_again(trial)
    assert slots_of(study)._wanted(set()) == [1, 2, 3]


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
        assert slots._wanted({2, 3}) == [1], death
        judge(slots, 1, state, "137:0")
    assert slots._wanted({2, 3}) == []
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"job 7_1: {state}, exit code 137 on node1; its run goes on  toy-00000001"
    assert len(said) == GIVE_UP and "slot 1 is left empty" in said[-1]


def test_a_job_that_nobody_knows_is_looked_for_once_more(study: StudyFolder, capsys) -> None:
    slots = slots_of(study)
    judge(slots, 1, "GONE")
    assert not slots.judged and not capsys.readouterr().out
    judge(slots, 1, "GONE")
    assert slots.judged == {"7_1"} and "job 7_1: GONE" in capsys.readouterr().out


def test_a_job_that_waits_for_somebody_is_told_once(study: StudyFolder, capsys) -> None:
    slots = slots_of(study)
    jobs = [ClusterJob("7_1", "PENDING", "JobHeldUser"), ClusterJob("7_2", "PENDING", "JobHeldUser")]
    for _ in range(2):
        slots._say_blocked([*jobs, ClusterJob("7_3", "PENDING", "Priority")])
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "job 7_1: PENDING (JobHeldUser); it stays in the queue" in said
