"""Studies and runs made by hand: definitions to change, and folders whose files nobody trained for."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from processes import ready_process

from specvit.config.build import build_config, to_plain
from specvit.config.compose import compose
from specvit.run_folder.folder import RunFolder, hostname
from specvit.study.schema import Definition, Table, definition_of
from specvit.study.store import StudyFolder, Trial
from specvit.utils.files import write_json

GRID = """
overrides: {data: builtin, opt.weight_decay: 1e-4}
grids:
  - overrides: {model.dropout: 0.0}
    cells:
      plain: {}
      wide: {model.hidden_size: 128}
    axes:
      model/tokenizer: [c1d, sw]
      model.patch_size: {values: [16, 32], when: {model/tokenizer: sw}}
    forbid:
      - {model.hidden_size: 128, model.patch_size: [32, 64]}
seeds: [1, 2]
"""
SEARCH = """
search:
  space:
    model/tokenizer: [c1d, sw]
    model.patch_size: {choices: [16, 32], when: {model/tokenizer: sw}}
    opt.lr: {low: 1e-5, high: 1.0e-2, log: true}
    model.num_hidden_layers: {low: 2, high: 8, step: 2, whole: true}
    model.hidden_size, model.intermediate_size: [[64, 256], [128, 512]]
  metrics: {val_r2: maximize}
  trials: 20
  sampler: {name: tpe, multivariate: true}
  pruner: {name: median, n_startup_trials: 3, warmup_steps: 100}
  start: [{opt.lr: 1e-4, "model.hidden_size, model.intermediate_size": [64, 256]}]
  forbid: [{model/tokenizer: sw, model.patch_size: 32}]
"""
HOLDER = """
import contextlib, os, sys, time
from pathlib import Path
from specvit.run_folder.folder import hostname
from specvit.utils.files import locked
from specvit.study.store import StudyFolder
study, number = StudyFolder(Path(sys.argv[1])), int(sys.argv[2])
run = study.trial(number).run
with contextlib.ExitStack() as held:
    if "claim" in sys.argv:
        held.enter_context(locked(study.file("slots") / "3.lock"))
        held.enter_context(study.claim(number))
    held.enter_context(run.claimed())
    run.set_status("running", pid=os.getpid(), host=hostname())
    print("ready", flush=True)
    time.sleep(60)
"""


def study(text: str) -> Definition:
    """Return the study `toy` that a YAML text describes."""
    return definition_of(yaml.safe_load(text), "toy", where="toy.yaml")


@cache
def _default() -> dict[str, Any]:
    return to_plain(build_config(compose()))


def config(**changes: Any) -> dict[str, Any]:
    """Return the default configuration with changes by section: `config(model={"patch_size": 8})`."""
    plain = deepcopy(_default())
    for section, values in changes.items():
        plain[section] |= values
    return plain


def epochs(**curves: list[Any]) -> list[dict[str, Any]]:
    """Return one row an epoch of ten steps: `epochs(val_r2=[0.1, 0.4])`."""
    rows = [dict(zip(curves, values, strict=True)) for values in zip(*curves.values(), strict=True)]
    return [{"step": 10 * n, "epoch": n, **row} for n, row in enumerate(rows, 1)]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one object a line."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def make_run(
    path: Path,
    state: str = "",
    *,
    rows: list[dict[str, Any]] | None = None,
    seconds: list[float] | None = None,
    summary: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    identity: dict[str, Any] | None = None,
    **facts: Any,
) -> RunFolder:
    """Write a run's folder, whose name ends in its id; `seconds` are those of its epochs."""
    run = RunFolder(path, path.name[-8:])
    path.mkdir(parents=True, exist_ok=True)
    run.create(identity or {"data": {}}, yaml.safe_dump(settings or config()))
    if state:
        run.set_status(state, pid=os.getpid(), host=hostname(), **facts)
    if rows:
        write_lines(run.file("metrics.jsonl"), rows)
    if seconds:
        times = [{"epoch": n, "train_seconds": time, "val_seconds": 0.0} for n, time in enumerate(seconds, 1)]
        write_lines(run.file("timing.jsonl"), times)
    if summary:
        write_json(run.file("summary.json"), summary)
    return run


@contextlib.contextmanager
def at_work(run: RunFolder, **facts: Any) -> Iterator[None]:
    """Let this process work on a run."""
    with run.claimed():
        run.set_status("running", pid=os.getpid(), host=hostname(), **facts)
        yield


def make_study(
    path: Path, runs: list[RunFolder], factors: list[dict[str, Any]] | None = None, **facts: Any
) -> StudyFolder:
    """Write a grid's folder with a trial for each run."""
    made = StudyFolder(path)
    known = {"kind": "grid", "table": asdict(Table()), "metrics": None, "trials": len(runs), "cwd": str(path)}
    made.create(**{**known, "command": ["specvit", "train", f"sweeps={path.name}"], **facts})
    for number, run in enumerate(runs):
        chosen = factors[number] if factors else {}
        made.write_trial(trial_of(number, run, chosen))
    return made


def trial_of(number: int, run: RunFolder, factors: dict[str, Any], **facts: Any) -> Trial:
    """Return the trial of a run; a factor called `cell` is its cell."""
    others = {key: value for key, value in factors.items() if key != "cell"}
    plain = yaml.safe_load(run.file("config.yaml").read_text()) if run.path.exists() else config()
    return Trial(number, run.path.name, others, factors.get("cell", ""), plain, run.run_id, str(run.path), **facts)


def ended(study: StudyFolder, number: int, state: str, **facts: Any) -> None:
    """Write how a trial ended, as its worker would."""
    trial = study.trial(number)
    assert trial is not None
    end = {"state": state, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "seconds": 75.2, **facts}
    study.write_trial(Trial(**{**asdict(trial), "end": end}))


def mixed_study(place: Path) -> StudyFolder:
    """Write a study of four seeds: one run done, one failed, one stopped, one that never began."""
    rows = epochs(train_loss=[1.0, 0.5], val_r2=[0.1, 0.4])
    runs = [
        make_run(
            place / "outputs" / "toy-aaaa0000", "completed", rows=rows, seconds=[2.0, 2.0], summary={"test_r2": 0.5}
        ),
        make_run(place / "outputs" / "toy-aaaa0001", "crashed", rows=rows, cause="the folder's cause"),
        make_run(place / "outputs" / "toy-aaaa0002", "preempted", rows=rows),
        RunFolder(place / "outputs" / "toy-aaaa0003", "aaaa0003"),
    ]
    made = make_study(place / "multirun" / "toy", runs, [{"train.seed": seed} for seed in range(4)])
    ended(made, 0, "completed")
    ended(made, 1, "crashed", cause="it broke")
    return made


def run_of(study: StudyFolder, number: int) -> RunFolder:
    """Return a trial's run."""
    trial = study.trial(number)
    assert trial is not None
    return trial.run


@contextlib.contextmanager
def holder(study: StudyFolder, number: int, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """Let a process of its own work on a trial's run; with `claim` as a worker of the study, in slot 3."""
    with ready_process(HOLDER, str(study.path), str(number), *words) as child:
        yield child
