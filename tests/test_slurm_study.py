"""A study on a real SLURM, in less than a minute; `make test-nightly` has the deaths of jobs, nodes and controllers."""

import cluster as slurm
import pytest
from slurm_jobs import JOBS, LONG, epochs_of, jobs_of, ready_of
from studies import until

from specvit.run_folder.folder import DONE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_one_array_makes_a_study_in_which_one_run_diverges_and_one_is_preempted(
    cluster_study, cluster: slurm.Cluster
) -> None:
    cells = {"preempted": LONG, "good": {}, "bad": {"opt.lr": 1.0e30}}
    toy = cluster_study({"grids": [{"cells": cells}]})
    driver = toy.start("sweep.max_parallel=2", launcher=JOBS)
    until(lambda: toy.folder.trials() and epochs_of(toy)[0] >= 2, "the first run at work")
    jobs = jobs_of(toy)
    cluster.run("scancel", "--signal=USR2", jobs[0])
    assert driver.wait(200) == 1, driver.said
    states = toy.states()
    assert states[0] in DONE and states[1] in DONE and states[2] == "diverged", driver.said
    assert "submitted 3 jobs" in driver.said and "2 at a time" in driver.said
    assert len(set(jobs)) == 3 and len({job.partition("_")[0] for job in jobs}) == 1, "one array"
    runs = [trial.run for trial in toy.folder.trials()]
    assert [run.attempts()[0]["job"] for run in runs] == jobs
    assert [ready_of(run) for run in runs] == [2, 1, 1] and cluster.restarts(jobs[0]) == 1
    assert next(a["state"] for a in runs[0].attempts() if a["event"] == "end") == "preempted"
    code, said = toy.run(launcher=JOBS)
    assert (code, jobs_of(toy)) == (1, jobs), "what is settled is not submitted again"
    assert "1 diverged" in said
