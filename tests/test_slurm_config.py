"""What is asked of SLURM, its cost, and which job makes which run: all that needs no cluster."""

import importlib
import io
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from handmade import config, epochs, make_run, make_study
from refusals import unlike

from specvit.cluster.queue import ClusterJob
from specvit.cluster.slurm_settings import SlurmConfig, minutes_of, read_slurm
from specvit.cluster.submit import Call, parameters, submit
from specvit.config.launcher import compose_launcher
from specvit.run_folder import heartbeat
from specvit.run_folder.folder import FolderError, RunFolder, hostname, job_here
from specvit.study import forecast
from specvit.study.job_log import read_job_log
from specvit.study.store import StudyFolder, stops_without_progress
from specvit.utils.errors import ConfigError


def test_a_time_limit_is_counted_in_whole_minutes() -> None:
    limits = {"4:00:00": 240, "1-12:00:00": 2160, "0:00:30": 1, "0:01:30": 2, "2-0": 2880, "100:00:00": 6000}
    assert {time: minutes_of(time) for time in limits} == limits


def test_what_could_be_read_in_two_ways_is_no_time_limit() -> None:
    times = ("30", "30:00", "4h", "", "4:61:00", "-1:00:00", "1-1-1")
    assert (
        unlike(
            [(time, f"hydra.launcher.time: {time!r} is not [days-]hours:minutes:seconds") for time in times], minutes_of
        )
        == []
    )


def test_the_file_holds_what_the_code_does() -> None:
    assert read_slurm(compose_launcher(["hydra/launcher=slurm"])) == SlurmConfig()


def test_a_sites_own_file_lies_over_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one on the page, as one would copy it."""
    page = (Path(__file__).parents[1] / "docs" / "slurm.md").read_text()
    block = next(block for block in re.findall(r"\n\n((?:    .*\n)+)", page) if "mycluster.yaml" in block)
    place = tmp_path / "conf" / "hydra" / "launcher"
    place.mkdir(parents=True)
    (place / "mycluster.yaml").write_text(textwrap.dedent(block))
    monkeypatch.chdir(tmp_path)
    found = read_slurm(compose_launcher(["hydra/launcher=mycluster", "hydra.launcher.jobs=3"]))
    assert (found.partition, found.account, found.jobs, found.time) == ("gpu", "astro", 3, "4:00:00")
    assert found.setup[-1] == "source /project/astro/venv/bin/activate"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"timeout_min": 60}, "timeout_min: unknown key; write hydra.launcher.time="),
    ({"mem_gb": 16}, "mem_gb: unknown key; write hydra.launcher.memory=16G"),
    ({"submitit_folder": "x"}, "submitit_folder: unknown key; leave it out"),
    ({"n_jobs": 2}, "n_jobs: unknown key; "),
    ({"partitoin": "gpu"}, "partitoin: unknown key; did you mean partition?"),
    ({"time": 14400}, "time: '14400' is not [days-]hours:minutes:seconds; write \"4:00:00\""),
    ({"time": "0:01:00"}, "time: is 0:01:00, no longer than the 120 seconds that a job has to save"),
    ({"gpus_per_job": -1}, "gpus_per_job: expects a whole number of at least 0, not -1"),
    ({"gpus_per_job": None}, "gpus_per_job: expects a whole number of at least 0, not None"),
    ({"cpus_per_job": 2.5}, "cpus_per_job: expects a whole number of at least 1, not 2.5"),
    ({"jobs": True}, "jobs: expects a whole number of at least 1, not True"),
    ({"memory": "16 gigabytes"}, "memory: expects a size such as 16G, not '16 gigabytes'"),
    ({"requeue": "yes"}, "requeue: expects true or false, not 'yes'"),
    ({"setup": "module load cuda"}, "setup: expects a list, not 'module load cuda'"),
    ({"setup": [None]}, "setup: expects text, not None"),
    ({"extra": ["a"]}, "extra: expects keys with values, not ['a']"),
    (
        {"extra": {"cpus_per_task": 3}},
        "extra.cpus_per_task: is not an extra parameter; set hydra.launcher.cpus_per_job",
    ),
    ({"extra": {"output": "x"}}, "extra.output: is not an extra parameter; drop it: specvit sets it itself"),
    ({"extra": {"exclude": ["a"]}}, "extra.exclude: expects an sbatch parameter with one value"),
    ({"extra": {"ex clude": "a"}}, "extra.ex clude: expects an sbatch parameter with one value"),
]


def test_what_no_job_can_ask_for_is_one_sentence() -> None:
    cases = [(plain, f"hydra.launcher.{words}") for plain, words in BAD]
    assert unlike(cases, lambda plain: read_slurm({"kind": "slurm", **plain})) == []


def test_what_is_left_open_is_left_to_the_cluster() -> None:
    bare = parameters(SlurmConfig(gpus_per_job=0), "name")
    assert not {"partition", "account", "qos", "constraint", "mem", "gpus_per_node"} & bare.keys()
    assert (bare["time"], bare["signal_delay_s"], bare["additional_parameters"]) == (240, 120, {"requeue": True})
    full = parameters(read_slurm({"partition": "gpu", "memory": "16G", "requeue": False, "setup": ["x"],
                                  "extra": {"exclude": "n7"}}), "name")  # fmt: skip
    assert (full["partition"], full["mem"], full["gpus_per_node"], full["setup"][2]) == ("gpu", "16G", 1, "x")
    assert full["additional_parameters"] == {"no-requeue": True, "exclude": "n7"}


def test_without_slurm_nothing_is_submitted_and_that_is_one_sentence(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r'hydra/launcher=slurm: was refused .*"srun"'):
        submit(SlurmConfig(), tmp_path / "%j", "name", [Call("specvit.cluster.probe", (), requeue=True)])


# cost


def trials_of(tmp_path: Path, count: int, seconds: float | None) -> list[Any]:
    settings = config(data={"num_samples": 1000}, train={"epochs": 4}, tracking={"folder": str(tmp_path / "outputs")})
    if seconds:
        rows, each = epochs(val_r2=[0.1] * 4), [seconds / 4] * 4
        make_run(
            tmp_path / "outputs" / "timed-f", "completed", rows=rows, seconds=each, summary={"a": 1}, settings=settings
        )
    runs = [RunFolder(tmp_path / "outputs" / f"toy-0000000{n}", f"0000000{n}") for n in range(count)]
    study = make_study(tmp_path / "multirun" / "toy", runs)
    return [type(t)(**{**vars(t), "config": settings}) for t in study.trials()]


def test_gpu_hours_are_those_of_the_runs_that_were_timed(tmp_path: Path) -> None:
    total, line = forecast.gpu_hours(trials_of(tmp_path, 3, 7200.0), SlurmConfig(gpus_per_job=2, jobs=2))
    assert total == pytest.approx(12.0)
    assert line.startswith("GPU-hours: about 12.0 by runs timed here; through about ")
    assert "if 2 jobs can run at once" in line


def test_without_a_timed_run_the_time_limits_stand_for_it(tmp_path: Path) -> None:
    total, line = forecast.gpu_hours(trials_of(tmp_path, 3, None), SlurmConfig())
    assert total == 12.0
    assert line == (
        "GPU-hours: unknown until a run has finished here; up to 12.0 (3 jobs of 4:00:00 with 1 GPU) before a job is "
        "queued again"
    )
    assert forecast.gpu_hours([], SlurmConfig()) == (0.0, "GPU-hours: none")


def test_gpus_are_counted_wherever_they_are_asked_for() -> None:
    cases: list[tuple[dict[str, Any], int]] = [
        ({}, 1), ({"gres": "gpu:a100:2"}, 3), ({"gres": "gpu:3"}, 4), ({"gpus": 2}, 3), ({"gpus": "a100:4"}, 1 + 4),
     ({"gres": "gpu"}, 2), ({"gpus_per_task": 1}, 2), ({"gres": "tmpdisk:5"}, 1), ({"exclude": "n1"}, 1)
    ]  # fmt: skip
    assert [SlurmConfig(extra=extra).gpus for extra, _ in cases] == [gpus for _, gpus in cases]


class Terminal(io.StringIO):
    """Somebody who types."""

    def isatty(self) -> bool:
        """Return True."""
        return True


@pytest.mark.parametrize(("answer", "taken"), [("y\n", True), ("yes\n", True), ("\n", False), ("n\n", False)])
def test_above_the_budget_somebody_has_to_agree(answer: str, taken: bool, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)  # away from the runs of whoever tests
    trials_of(tmp_path, 3, None)
    study = StudyFolder(tmp_path / "multirun" / "toy")
    trials = forecast.open_trials(study, study.trials())
    forecast.confirm(SlurmConfig(max_gpu_hours=12), trials)
    forecast.confirm(SlurmConfig(max_gpu_hours=None), trials)
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    if taken:
        forecast.confirm(SlurmConfig(max_gpu_hours=11.5), trials)
    else:
        with pytest.raises(ConfigError, match=r"would be about 12\.0, above 11\.5, so nothing was submitted"):
            forecast.confirm(SlurmConfig(max_gpu_hours=11.5), trials)
    assert "submit? [y/N]" in capsys.readouterr().out


def test_without_a_terminal_nobody_can_agree(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    trials_of(tmp_path, 3, None)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.max_gpu_hours: would be about 12"):
        forecast.confirm(SlurmConfig(max_gpu_hours=0), StudyFolder(tmp_path / "multirun" / "toy").trials())


# which job makes which run


def test_the_diary_says_which_slot_makes_what(tmp_path: Path) -> None:
    study = make_study(tmp_path / "toy", [RunFolder(tmp_path / "a-00000001", "00000001")])
    for slot, job in ((0, "7_0"), (1, "7_1"), (2, "7_2")):
        study.log_event("submitted", file="jobs.jsonl", slot=slot, job=job)
        study.log_event("worker starts", slot=slot, job=job)
        study.log_event("begins", slot=slot, trial=3 + slot, job=job)
    study.log_event("ends", slot=0, trial=3, state="completed", job="7_0")
    study.log_event("ends", slot=2, trial=5, state="preempted", job="7_2")
    study.log_event("submitted", file="jobs.jsonl", slot=1, job="8")
    study.log_event("worker starts", slot=9, job=None)  # of this machine
    diary = read_job_log(study)
    assert diary.job_of_slot == {0: "7_0", 1: "8", 2: "7_2"}
    assert diary.trial_of_slot == {1: 4, 2: 5}, "one that was stopped goes on"
    assert (diary.started, diary.fruitful) == ({"7_0", "7_1", "7_2"}, {"7_0"})
    study.log_event("begins", slot=0, trial=4)  # taken over
    assert read_job_log(study).trial_of_slot == {0: 4, 2: 5}


def test_a_job_says_what_slurm_says() -> None:
    assert str(ClusterJob("7_3", "PENDING", "Priority")) == "job 7_3: PENDING (Priority)"
    assert str(ClusterJob("7_3", "RUNNING", nodes="node1")) == "job 7_3 on node1"
    assert str(ClusterJob("7", "FAILED", nodes="node1", exit="0:9")) == "job 7: FAILED, signal 9 on node1"
    assert str(ClusterJob("7", "FAILED", exit="3:0")) == "job 7: FAILED, exit code 3"
    assert str(ClusterJob("7", "COMPLETED", exit="0:0")) == "job 7: COMPLETED"
    assert str(ClusterJob("7", "FAILED", "NonZeroExitCode", "node1")) == "job 7: FAILED (NonZeroExitCode) on node1"
    alive = {s: ClusterJob("7", s).alive for s in ("PENDING", "RUNNING", "COMPLETING", "FAILED", "CANCELLED by 0")}
    assert alive == {"PENDING": True, "RUNNING": True, "COMPLETING": True, "FAILED": False, "CANCELLED by 0": False}


def test_a_job_knows_its_own_name(monkeypatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    assert job_here() is None
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    assert job_here() == "9"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert job_here() == "7_2"


@pytest.mark.parametrize(("job", "taken"), [("7", True), ("8", False), (None, False)])
def test_a_job_that_was_requeued_to_another_node_takes_its_run_at_once(
    job: str | None, taken: bool, tmp_path: Path, monkeypatch
) -> None:
    run = make_run(tmp_path / "toy-00000001", "completed")
    run.set_status("running", host=f"not-{hostname()}", pid=1, job=job)
    run.file(".heartbeat").touch()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", -0.45)
    if taken:
        with run.claimed():
            pass
    else:
        with pytest.raises(FolderError, match="is working on this run"), run.claimed():
            pass


def test_stops_are_counted_until_the_run_gets_further(tmp_path: Path) -> None:
    run = make_run(tmp_path / "toy-00000001", "completed")
    for step in (0, 5, 5, 5):
        run.record_attempt(event="start")
        run.record_attempt(event="ready", step=step)
        run.record_attempt(event="end", state="preempted")
    assert stops_without_progress(run) == 2, "how far the latest got is not known yet"
    run.record_attempt(event="start")
    assert stops_without_progress(run) == 3, "this one did not even come to its first step"
    run.record_attempt(event="ready", step=8)
    assert stops_without_progress(run) == 0
    run.record_attempt(event="end", state="preempted")
    assert stops_without_progress(run) == 0
    for _ in range(3):
        run.record_attempt(event="start")
    assert stops_without_progress(run) == 3
    study = make_study(tmp_path / "study", [run])
    study.request_retry(study.trials()[0])
    assert stops_without_progress(run) == 0


PICKLED_BY_0_1 = (
    b"\x80\x04\x95t\x00\x00\x00\x00\x00\x00\x00\x8c\x15specvit.launch.submit\x94\x8c\x04Call\x94\x93\x94)\x81\x94}\x94("
    b"\x8c\x06module\x94\x8c\x16specvit.sweep.__main__\x94\x8c\x05words\x94\x8c\x06status\x94\x8c\x07nowhere\x94\x86\x94"
    b"\x8c\x07requeue\x94\x88ub."
)
"""`Call("specvit.sweep.__main__", ("status", "nowhere"), True)`, as version 0.1 pickled it for SLURM."""


def test_a_job_that_version_0_1_queued_still_starts() -> None:
    code = f"import pickle; pickle.loads({PICKLED_BY_0_1!r})()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, "/nowhere: " in ended.stderr) == (2, True), ended.stderr
    for module in ("specvit.launch.probe", "specvit.sweep.__main__"):
        assert callable(importlib.import_module(module).main)
