"""Studies on a real SLURM: deaths of jobs, nodes, the controller and the driver. Nothing is lost."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cluster as slurm
import pytest
from slurm_jobs import JOBS, LONG, all_at_work, epochs_of, jobs_of, process_of, ready_of
from studies import until

from specvit.commands import doctor
from specvit.commands import sweep as command
from specvit.run_folder.folder import DONE
from specvit.utils.files import read_json_lines

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]


def test_a_killed_job_and_a_restarted_controller(cluster_study, cluster: slurm.Cluster) -> None:
    toy = cluster_study({"grids": [{}], "seeds": [1, 2]}, LONG)
    driver = toy.start(launcher=JOBS)
    until(lambda: all_at_work(toy), "two runs at work")
    killed = toy.folder.trials()[1]
    os.kill(process_of(killed), signal.SIGKILL)
    until(lambda: len(jobs_of(toy)) == 3, "another job", 30.0)
    assert [line["slot"] for line in toy.jobs()] == [0, 1, 1]
    cluster.controller.terminate()
    cluster.controller.wait()
    time.sleep(3)
    cluster.start_controller()
    assert driver.wait(240) == 0, driver.said
    told = next(line for line in driver.said.splitlines() if line.startswith(f"job {jobs_of(toy)[1]}: FAILED"))
    assert re.search(r"exit code|signal|NonZeroExitCode", told) and "its run resumes" in told, told
    assert set(toy.states().values()) <= set(DONE)
    assert (ready_of(toy.folder.trials()[0].run), ready_of(killed.run)) == (1, 2)


def test_a_cancelled_job_is_a_cancelled_run_until_it_is_asked_for_again(
    cluster_study, cluster: slurm.Cluster, capsys
) -> None:
    toy = cluster_study({"grids": [{}], "seeds": [1, 2]}, LONG)
    driver = toy.start(launcher=JOBS)
    until(lambda: all_at_work(toy), "two runs at work")
    cluster.run("scancel", jobs_of(toy)[1])
    assert driver.wait(240) == 1, driver.said
    states = toy.states()
    assert states[0] in DONE and states[1] == "cancelled"
    status = toy.folder.trials()[1].run.status()
    assert status["cause"].startswith(f"job {jobs_of(toy)[1]}: CANCELLED") and "retry" in status["remedy"]
    code, _ = toy.run(launcher=JOBS)
    assert code == 1 and len(jobs_of(toy)) == 2, "it stays as it is"
    code, said = toy.run("sweep.retry=true", launcher=JOBS)
    assert code == 0, said
    assert ready_of(toy.folder.trials()[1].run) == 2 and set(toy.states().values()) <= set(DONE)


def test_a_node_that_goes_down_costs_its_runs_their_last_minutes_at_most(cluster_study, cluster: slurm.Cluster) -> None:
    toy = cluster_study({"grids": [{}], "seeds": [1]}, LONG)
    driver = toy.start(launcher=JOBS)
    until(lambda: all_at_work(toy), "a run at work")
    (trial,) = toy.folder.trials()
    node = cluster.run("squeue", "-h", "-o", "%N").strip()
    crash(cluster, node, process_of(trial))
    assert driver.wait(240) == 0, driver.said
    assert ready_of(trial.run) == 2
    assert set(toy.states().values()) <= set(DONE)
    cluster.start_node(int(node.removeprefix("node")))
    until(lambda: "down" not in cluster.run("sinfo", "-h", "-N", "-o", "%t"), "the node to be back")


def crash(cluster: slurm.Cluster, node: str, worker: int) -> None:
    """Kill all that runs on a node at once: its daemon, its jobs' steps, and what they run."""
    daemon = cluster.nodes[node]
    for pid in (daemon.pid, *cluster.steps(), worker):
        os.kill(pid, signal.SIGKILL)
    daemon.wait()


def test_a_killed_driver_comes_back_to_its_jobs(cluster_study) -> None:
    toy = cluster_study({"grids": [{}], "seeds": [1, 2, 3]}, LONG)
    toy.start("sweep.max_parallel=2", launcher=JOBS)
    until(lambda: sum(epochs_of(toy)) >= 4, "runs at work")
    toy.kill_the_driver()
    code, said = toy.run("sweep.max_parallel=2", launcher=JOBS)
    assert code == 0, said
    assert len(jobs_of(toy)) == 3, "none is submitted twice"
    assert [ready_of(trial.run) for trial in toy.folder.trials()] == [1, 1, 1]


def test_ctrl_c_leaves_the_jobs_and_cancel_stops_them(cluster_study, cluster: slurm.Cluster, capsys) -> None:
    toy = cluster_study({"grids": [{}], "seeds": [1, 2, 3]}, LONG)
    driver = toy.start("sweep.max_parallel=2", launcher=JOBS)
    until(lambda: sum(epoch >= 2 for epoch in epochs_of(toy)) == 2, "two runs at work")
    driver.send(signal.SIGINT)
    assert driver.wait(30) == 130 and "jobs continue" in driver.said
    assert command.main(["status", "toy"]) == 0
    shown = capsys.readouterr().out
    assert "2 running, 1 queued" in shown and "JobArrayTaskLimit" in shown and " on node" in shown
    cluster.run("scancel", jobs_of(toy)[0])
    until(lambda: toy.folder.trials()[0].run.state() == "preempted", "a job cancelled while nobody watches")
    assert command.main(["cancel", "toy"]) == 0
    until(lambda: not cluster.queue(), "an empty queue")
    states = [trial.run.state() for trial in toy.folder.trials()]
    assert states[:2] == ["preempted", "preempted"] and states[2] in ("", "preempted")  # a place was free for it
    capsys.readouterr()
    code, said = toy.run(launcher=JOBS)
    assert code == 0, said
    assert [ready_of(trial.run) for trial in toy.folder.trials()][:2] == [2, 2]


def test_one_run_is_cancelled_by_name_and_its_job_with_it(cluster_study, cluster: slurm.Cluster) -> None:
    toy = cluster_study({"grids": [{}], "seeds": [1, 2, 3]}, LONG)
    driver = toy.start("sweep.max_parallel=2", launcher=JOBS)
    until(lambda: sum(epoch >= 2 for epoch in epochs_of(toy)) == 2, "two runs at work")
    names = [trial.name for trial in toy.folder.trials()]
    assert command.main(["cancel", "toy", names[0], names[2]]) == 0
    assert driver.wait(240) == 1, driver.said
    states = toy.states()
    assert (states[0], states[2]) == ("cancelled", "cancelled") and states[1] in DONE
    assert ready_of(toy.folder.trials()[2].run) == 0


def test_a_search_replaces_a_dead_worker_and_needs_no_more_than_there_is_to_do(
    cluster_study, cluster: slurm.Cluster
) -> None:
    section = {
        "space": {"opt.lr": {"low": 1.0e-3, "high": 1.0e-2}},
        "metrics": {"val_r2": "maximize"},
        "trials": 6,
        "sampler": "random",
    }
    toy = cluster_study({"search": section}, {"train.epochs": 40})
    whole_node = [text.replace("cpus_per_job=1", f"cpus_per_job={slurm.CPUS}") for text in JOBS]
    driver = toy.start("sweep.max_parallel=3", launcher=whole_node)  # of which two fit
    until(lambda: any(t.run.state() == "running" for t in toy.folder.trials()), "a trial at work")
    os.kill(process_of(next(t for t in toy.folder.trials() if t.run.state() == "running")), signal.SIGKILL)
    assert driver.wait(240) == 0, driver.said
    assert len(toy.folder.trials()) == 6 and set(toy.states().values()) <= set(DONE)
    jobs = jobs_of(toy)
    assert len(jobs) == 4, "one died and was replaced"
    ends = cluster.run("sacct", "-X", "-n", "-P", "-o", "State", "-j", ",".join(jobs)).splitlines()
    assert sum(end.startswith("CANCELLED") for end in ends) == 1, "what waits is not waited for when all is done"
    assert Counter(event["trial"] for event in toy.events("ends")) == Counter(range(6))


def test_a_single_run_goes_where_the_launcher_says(cluster_study, cluster: slurm.Cluster, tmp_path: Path, tiny) -> None:
    (tmp_path / "clone" / "specvit").mkdir(parents=True)
    (tmp_path / "clone" / "specvit" / "__init__.py").write_text("raise SystemExit('other code')\n")
    (tmp_path / "statistics.py").write_text("raise SystemExit('the file of the folder')\n")
    words = [*tiny, "train.threads=1", *JOBS, "hydra.launcher.snapshot_code=true", "hydra.launcher.gpus_per_job=1"]
    words.append("train.device=cpu")  # the cluster's GPUs are none
    words += [f"hydra.launcher.setup=['export PYTHONPATH={tmp_path / 'clone'}']"]
    command = [sys.executable, "-P", "-m", "specvit.train", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs").iterdir()
    (log,) = (tmp_path / "multirun").glob("*/jobs/*/*log.out")
    (start,) = [row for row in read_json_lines(folder / "attempts.jsonl") if row["event"] == "start"]
    assert start["job"] == log.parent.name
    (copy,) = (tmp_path / "multirun").glob("*/code/*/specvit/__init__.py")
    (ready,) = [row for row in read_json_lines(folder / "attempts.jsonl") if row["event"] == "ready"]
    assert ready["made_by"]["code"] == copy.parent.parent.name


REFUSED = {
    "hydra.launcher.partition=nope": "invalid partition specified: nope",
    "hydra.launcher.gpus_per_job=9": "Requested node configuration is not available",
    "+hydra.launcher.extra.nonsense=1": "unrecognized option",
}


def test_what_sbatch_refuses_is_one_sentence(cluster_study) -> None:
    toy, wrong = cluster_study({"grids": [{}], "seeds": [1, 2]}), {}
    for setting, reason in REFUSED.items():
        code, said = toy.run(launcher=[*JOBS, "hydra.launcher.max_gpu_hours=null", setting])
        sentence = said.splitlines()[-1].startswith("specvit: hydra/launcher=slurm: was refused (")
        if (code, sentence, reason in said, "Traceback" in said) != (2, True, True, False):
            wrong[setting] = code, said
    assert wrong == {}


def test_the_doctor_looks_by_a_job(cluster_study, cluster: slurm.Cluster, capfd, tmp_path: Path) -> None:
    assert doctor.main(["--cluster", "hydra.launcher.gpus_per_job=0"]) == 0
    said = capfd.readouterr().out
    assert [line.split()[0] for line in said.splitlines()] == ["ok"] * 5 + ["note", "ok", "ok", "ok"]
    for words in ("accounting answers", "it ran on", "with torch", "a lock held here is seen", "is saved there in"):
        assert words in said
    assert doctor.main(["--cluster"]) == 1
    assert "FAIL  no GPU that works (CUDA_VISIBLE_DEVICES is '0', see partition and extra): " in capfd.readouterr().out
    assert doctor.main(["--cluster", "hydra.launcher.partition=nope"]) == 1
    said = capfd.readouterr().out.splitlines()
    assert said[-1].startswith("FAIL  hydra/launcher=slurm: was refused (invalid partition specified: nope")
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"
