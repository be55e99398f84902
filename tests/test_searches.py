"""Searches by Optuna: what is asked, told and pruned, with any sampler, and what becomes of trials that are stopped."""

import csv
import json
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from planted import At, Stop
from studies import LOCAL, Study, until

from specvit.commands.analysis import main as analysis
from specvit.commands.sweep import main as sweep
from specvit.config.build import build_config
from specvit.run.run import run
from specvit.run_folder.folder import STATES
from specvit.study.optuna_study import open_storage
from specvit.study.results import outcome_of
from specvit.study.search_space import SAMPLERS
from specvit.study.store import WAITING
from specvit.study.trial_queue import GROUPS, group_of
from specvit.tracking.mlflow import mlflow_status
from specvit.tracking.run_record import read_record

pytestmark = pytest.mark.slow

LR = {"low": 1.0e-3, "high": 1.0e-2, "log": True}
SPACE = {"opt.lr": LR, "model/tokenizer": ["c1d", "sw"]}
ONE = {"space": SPACE, "metrics": {"val_r2": "maximize"}, "trials": 2, "sampler": "random"}
SHORT = {"train.epochs": 1}


def told(study: Study, url: str | None = None) -> list[Any]:
    """Return Optuna's own record of a study's trials."""
    storage = open_storage(study.folder, url)
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)


def states(study: Study) -> Counter[str]:
    return Counter(trial.state.name for trial in told(study))


# what is asked


@pytest.mark.nightly
def test_every_sampler_asks_and_learns(study) -> None:
    grid = {"opt.lr": [1.0e-3, 3.0e-3], "model/tokenizer": ["c1d", "sw"]}
    spaces = {"grid": grid, "cmaes": {"opt.lr": LR, "opt.weight_decay": {"low": 0.0, "high": 0.1}}}
    wrong = {}
    for sampler in SAMPLERS:
        section = {**ONE, "space": spaces.get(sampler, SPACE), "sampler": sampler, "trials": 4}
        toy = study({"search": section}, SHORT, sampler)
        code, said = toy.run()
        points = {tuple(trial.params.items()) for trial in told(toy)}
        if (code, states(toy), len(points)) != (0, Counter(COMPLETE=4), 4):
            wrong[sampler] = code, states(toy), points, said
    assert wrong == {}


def test_a_grid_sampler_asks_each_point_once(study) -> None:
    space = {"opt.lr": [1.0e-3, 3.0e-3], "model/tokenizer": ["c1d", "sw"]}
    forbid = [{"opt.lr": 1.0e-3, "model/tokenizer": "sw"}]
    toy = study({"search": {**ONE, "space": space, "sampler": "grid", "trials": 10, "forbid": forbid}}, SHORT)
    _, said = toy.run()
    points = [tuple(trial.factors.values()) for trial in toy.folder.trials()]
    assert sorted(points) == [(1.0e-3, "c1d"), (3.0e-3, "c1d"), (3.0e-3, "sw")], said


def test_start_points_conditions_and_what_is_forbidden(study) -> None:
    space = {
        **SPACE,
        "opt.warmup_epochs": {"low": 0.0, "high": 1.0, "when": {"model/tokenizer": "sw"}},
        "model.patch_size, model.stride_size": [[32, 32], [32, 16], [16, 32]],
    }
    start = [{"opt.lr": 0.002, "model/tokenizer": "sw", "model.patch_size, model.stride_size": [32, 16]}]
    forbid = [{"model.patch_size": 32, "model.stride_size": 32, "model/tokenizer": "c1d"}]
    toy = study({"search": {**ONE, "space": space, "start": start, "trials": 10, "forbid": forbid}}, SHORT)
    code, said = toy.run()
    assert code == 0, said
    trials = toy.folder.trials()
    assert len(trials) == 10
    assert trials[0].factors["opt.lr"] == 0.002 and trials[0].factors["model.stride_size"] == 16
    assert all(("opt.warmup_epochs" in trial.factors) == (trial.factors["model/tokenizer"] == "sw") for trial in trials)
    assert all(trial.factors["model.patch_size"] == 32 for trial in trials), "a stride above the patch is no run"
    assert not [t for t in trials if (t.factors["model/tokenizer"], t.factors["model.stride_size"]) == ("c1d", 32)]
    assert states(toy)["FAIL"] == len(told(toy)) - 10


def test_several_objectives(study) -> None:
    metrics = {"val_r2": "maximize", "train_seconds": "minimize"}
    toy = study({"search": {**ONE, "metrics": metrics, "sampler": "nsga2", "trials": 3}}, SHORT)
    code, said = toy.run()
    assert code == 0, said
    assert all(len(trial.values) == 2 and trial.values[1] > 0 for trial in told(toy))


def test_a_search_does_not_change_its_choices(study) -> None:
    toy = study({"search": ONE}, SHORT)
    assert toy.run()[0] == 0
    changed = {**ONE, "space": {**SPACE, "model/tokenizer": ["c1d", "sw", "linear"]}}
    code, said = study({"search": changed}, SHORT).run("sweep.extend=true")
    assert code == 2
    assert said.startswith("specvit: search.space.model/tokenizer: has other choices than the trials that are there")


# what is told


def test_a_trial_that_diverges_is_recorded_as_failed_and_counts(study) -> None:
    section = {**ONE, "space": {"opt.lr": {**LR, "high": 1.0e30}}, "trials": 4}
    section["start"] = [{"opt.lr": 3.0e-3}, {"opt.lr": 1.0e30}]
    toy = study({"search": section}, {"train.epochs": 2, "opt.lr_sch": "constant", "opt.weight_decay": 0})
    code, said = toy.run()
    counts = states(toy)
    assert (code, sum(counts.values())) == (1, 4), said
    assert counts["FAIL"] >= 1 and counts["COMPLETE"] >= 1, said
    assert list(toy.states().values()).count("diverged") == counts["FAIL"]
    toy.run()
    assert sum(states(toy).values()) == 4, "the same command finds nothing to do"
    toy.run("sweep.retry=true", "sweep.trials=5")
    assert sum(states(toy).values()) == 5, "failed ones fail again, and one more is asked for"


def test_a_pruned_run_is_final_for_its_study_alone(study, tmp_path: Path, monkeypatch) -> None:
    section = {**ONE, "space": {"opt.lr": {**LR, "low": 1.0e-5}}, "trials": 8, "seed": 2}
    section["pruner"] = {"name": "median", "n_startup_trials": 2}
    toy = study({"search": section}, {"train.epochs": 6})
    code, said = toy.run(launcher=LOCAL)
    assert code == 0, said
    assert {event["slot"] for event in toy.events("begins")} == {0, 1}
    pruned = [trial for trial in toy.folder.trials() if toy.folder.state(trial) == "pruned"]
    assert pruned and states(toy)["PRUNED"] == len(pruned)
    for trial in pruned:
        outcome = outcome_of(trial.run)
        assert 0 < len(outcome.rows) < 6
        assert not outcome.summary
        assert "is not among the better ones (median)" in (trial.end or {})["cause"]
    monkeypatch.chdir(tmp_path)
    result = run(build_config(pruned[0].config))
    assert result.state in ("completed", "plateau")
    assert len(pruned[0].run.steps_on_file()) == 6


def test_what_another_search_pruned_is_finished_here(study) -> None:
    section = {**ONE, "pruner": {"name": "median", "n_startup_trials": 5}}
    toy = study({"search": section}, {"train.epochs": 2})
    assert toy.run()[0] == 0
    toy.trial(0).run.set_status("pruned", cause="by another study")
    shutil.rmtree(toy.folder.path)
    code, said = toy.run()
    assert (code, toy.is_done(2)) == (0, True), said
    curves = [[row["val_r2"] for row in outcome_of(trial.run).rows] for trial in toy.folder.trials()]
    assert [list(trial.intermediate_values.values()) for trial in told(toy)] == curves, "also what was there before"


def test_nothing_is_pruned_before_the_warm_up(study) -> None:
    pruner = {"name": "percentile", "percentile": 1.0, "n_startup_trials": 1, "warmup_steps": 36}
    toy = study({"search": {**ONE, "pruner": pruner, "trials": 6}}, {"train.epochs": 6})
    toy.run()
    pruned = [trial for trial in toy.folder.trials() if toy.folder.state(trial) == "pruned"]
    assert pruned
    assert min(outcome_of(trial.run).rows[-1]["step"] for trial in pruned) >= 36


# trials that are stopped


def test_a_cancelled_trial_is_tried_again_however_often_that_is_interrupted(
    study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    toy, step = study({"search": ONE}), "specvit.training.step.Learner.step"  # of 24
    assert toy.start(plants=[At(step, Stop(signal.SIGTERM), call=6)]).wait() == 143
    assert sweep(["cancel", "toy", toy.trial(0).name]) == 0
    code, said = toy.run()
    assert (code, toy.states()[0], len(toy.states())) == (1, "cancelled", 2), said
    assert sweep(["retry", "toy"]) == 0
    assert toy.start(plants=[At(step, Stop(signal.SIGTERM), call=6)]).wait() == 143
    assert toy.start(plants=[At(step, Stop(signal.SIGKILL), call=6)]).wait() == -signal.SIGKILL
    code, said = toy.run()
    assert (code, toy.is_done(2)) == (0, True), said
    assert states(toy) == Counter(FAIL=1, COMPLETE=2)


# what is said


def counted(said: str) -> dict[str, int]:
    """Return the counts in a sentence such as `12 runs: 3 finished, 2 learnt nothing`, or `1 waiting, 3 completed`."""
    found: Counter[str] = Counter()
    for count, word in re.findall(r"(\d+) (learnt nothing|[a-z_]+)", said):
        if word in (*GROUPS, *STATES, WAITING):
            found[word if word in GROUPS else group_of(word)] += int(count)
    return dict(found)


def test_all_commands_count_the_runs_of_a_study_alike(
    study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three runs are good, four explode, two learn nothing, two are pruned in epoch 5, and one is interrupted."""
    settings = {"good": [3e-3, 8], "explodes": [10.0, 3], "learns nothing": [1e-9, 4], "pruned": [1e-9, 8]}
    counts = {"good": 3, "explodes": 4, "learns nothing": 2, "pruned": 2}
    points = [[*settings[name], seed] for name, count in counts.items() for seed in range(count)] + [[3e-3, 500, 0]]
    keys = "opt.lr, train.epochs, train.seed"
    section = {**ONE, "space": {keys: points}, "start": [{keys: point} for point in points], "trials": 11}
    section["pruner"] = {"name": "median", "n_startup_trials": 3, "warmup_steps": 60}
    toy = study({"search": section}, {"opt.lr_sch": "constant"})
    code, end = toy.run()
    stopped = toy.start("sweep.trials=12")
    until(lambda: toy.states().get(11) == "running", "the last run")
    stopped.send(signal.SIGINT)
    monkeypatch.chdir(tmp_path)

    def said(command: Callable[[list[str]], int], *words: str) -> str:
        assert command(list(words)) == 0
        return capsys.readouterr().out

    rows = csv.DictReader(said(sweep, "table", "toy", "--style", "csv").splitlines())
    others = [(row["runs"].split("/"), row["other"]) for row in rows]
    table = sum(
        (Counter(counted(other)) for _, other in others), Counter({"finished": sum(int(n) for (n, _), _ in others)})
    )
    ablation = said(analysis, "ablation", "multirun/toy", "--metric", "test_r2")
    records = [read_record(trial.run) for trial in toy.folder.trials()]
    found = {
        "status": counted(said(sweep, "status", "toy").splitlines()[0]),
        "table": dict(table),
        "why": counted(said(sweep, "why", "toy").splitlines()[-1]),
        "ablation": counted(ablation.splitlines()[0]),
        "report": counted(said(analysis, "report", "toy").splitlines()[0]),
        "MLflow": dict(Counter(group_of(record.state) for record in records)),
    }
    right = {"finished": 3, "learnt nothing": 2, "failed": 4, "pruned": 2, "open": 1}
    assert {name: counts for name, counts in found.items() if counts != right} == {}
    assert (code, stopped.wait(60)) == (1, 130)
    assert counted(end[end.rindex("11 runs:") :].splitlines()[0]) == {k: v for k, v in right.items() if k != "open"}
    (tally, *_) = json.loads(Path("multirun/toy/ablation/ablation.json").read_text())["tallies"]
    assert [tally[name] for name in ("finished", "unlearnt", "failed", "pruned", "open")] == list(right.values())
    assert states(toy) == {"COMPLETE": 5, "FAIL": 4, "PRUNED": 2, "RUNNING": 1}
    report = Path("multirun/toy/report/report.md").read_text()
    assert (
        "- **diverged**, 4: e.g. it exploded: " in report
        and "- **plateau**, 2: " in report
        and "**pruned**" not in report
    )
    assert Counter(mlflow_status(record.state) for record in records) == {"FINISHED": 5, "FAILED": 4, "KILLED": 3}
    assert all("it exploded" in record.notes for record in records if record.state == "diverged")
    assert "healthy" not in said(sweep, "why", "toy")
    assert said(sweep, "retry", "toy").splitlines()[:3] == [
        "2 learnt nothing, which another try would not change",
        "4 runs will be tried again",
        "4 of them exploded and will again: `specvit sweep why toy` names other settings",
    ]
