"""Jobs that are stopped again and again on a real SLURM: the same run, to the bit, and none that fails."""

import os
import signal
import time

import cluster as slurm
import pytest
from slurm_jobs import JOBS, all_at_work, jobs_of, process_of, ready_of
from studies import settings_of, until
from whole_runs import STEADY, assert_same_run

from specvit.config.build import build_config
from specvit.run.run import run
from specvit.run_folder.folder import DONE

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]


def test_preempted_requeued_and_at_its_time_limit_it_is_the_same_run_to_the_bit(
    cluster_study, cluster, tmp_path
) -> None:
    settings = settings_of(STEADY) | {"train.epochs": 1000}
    toy = cluster_study({"grids": [{}]}, settings)
    driver = toy.start(launcher=[*JOBS, "hydra.launcher.time=0:01:30"])
    until(lambda: all_at_work(toy), "a run at work")
    (trial,) = toy.folder.trials()
    for number in range(4):
        before = ready_of(trial.run)
        if number == 1:
            cluster.run("scontrol", "requeue", *jobs_of(toy))
        else:
            cluster.run("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--time=1", "--wrap=sleep 1")
        until(lambda before=before: ready_of(trial.run) > before, f"stop {number} and another start")
    stopped = ready_of(trial.run)
    # A fast machine would end the run before its time limit. SLURM continues the process when it sends its signal.
    os.kill(process_of(trial), signal.SIGSTOP)
    until(lambda: ready_of(trial.run) > stopped, "the time limit", 150.0)
    assert driver.wait(300) == 0, driver.said
    assert len(jobs_of(toy)) == 1 and cluster.restarts(jobs_of(toy)[0]) >= 5
    ends = [attempt["state"] for attempt in trial.run.attempts() if attempt["event"] == "end"]
    assert ends[:-1] == ["preempted"] * (len(ends) - 1) and ends[-1] in DONE
    assert "came to its time limit, or another job takes its place" in trial.run.attempts()[2]["cause"]
    config = build_config({**trial.config, "tracking": {**trial.config["tracking"], "folder": str(tmp_path / "alone")}})
    alone = run(config)
    assert_same_run(trial.run.path, alone.folder)


def test_fifty_requeues_fail_no_run(cluster_study, cluster: slurm.Cluster) -> None:
    toy = cluster_study({"grids": [{}], "seeds": [1, 2, 3, 4]}, {"train.epochs": 100000})
    driver = toy.start(launcher=JOBS)
    until(lambda: all_at_work(toy), "four runs at work")
    jobs, told = jobs_of(toy), dict.fromkeys(jobs_of(toy), 0)
    end = time.monotonic() + 500
    while sum(map(cluster.restarts, jobs)) < 50:
        assert time.monotonic() < end and driver.process.is_alive()
        for trial, job in zip(toy.folder.trials(), jobs, strict=True):
            if trial.run.state() == "running" and ready_of(trial.run) > told[job]:
                told[job] = ready_of(trial.run)
                cluster.run("scancel", "--signal=USR2", job)
        time.sleep(0.3)
    assert set(toy.states().values()) <= {"running", "waiting"}
    assert jobs_of(toy) == jobs, "no job had to be submitted again"
    states = [a["state"] for t in toy.folder.trials() for a in t.run.attempts() if a["event"] == "end"]
    assert set(states) == {"preempted"} and len(states) >= 50
    accounts = cluster.run("sacct", "-X", "-n", "-P", "-D", "-o", "State", "-j", ",".join(jobs)).split()
    assert "FAILED" not in accounts and accounts.count("REQUEUED") >= 50
