"""The first moment of a study: what is refused leaves nothing, what is killed is written whole by the same command."""

import errno
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from studies import settings_of

from specvit.cluster import queue
from specvit.commands.train import main
from specvit.study import forecast, worker
from specvit.study.optuna_study import open_storage
from specvit.study.status import status_lines
from specvit.study.store import BROKEN_GPU, StudyFolder

SEARCH = {
    "metrics": {"val_r2": "maximize"},
    "sampler": "random",
    "trials": 3,
    "space": {"noise.noise_level": {"low": 0.1, "high": 0.9}, "model.num_alphas": [3, 5]},
    "start": [{"noise.noise_level": level, "model.num_alphas": count} for level, count in ((0.25, 3), (0.75, 5))],
}
KINDS = {"grid": {"grids": [{"axes": {"model.num_alphas": [3, 5, 7]}}]}, "search": {"search": SEARCH}}
Write = Callable[..., StudyFolder]


@pytest.fixture
def write(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return `write(definition)`, which writes a study of ridge regressions that take a moment each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["specvit train"])
    data = [text for text in tiny if text.startswith(("data", "tracking"))]

    def write(definition: dict[str, Any], name: str = "toy") -> StudyFolder:
        (tmp_path / "sweeps").mkdir(exist_ok=True)
        whole = {"overrides": {**settings_of(data), "model": "ridge"}, **definition}
        (tmp_path / "sweeps" / f"{name}.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
        return StudyFolder(tmp_path / "multirun" / name)

    return write


def written(study: StudyFolder) -> tuple[Any, ...]:
    """Return what a study has before its first run: its trials, its start points, its configuration files."""
    points = []
    if study.about()["kind"] == "search":
        found = optuna.load_study(study_name=None, storage=open_storage(study, None)).get_trials()
        points = [trial.system_attrs["fixed_params"] for trial in found]
    conf = {path.relative_to(study.file("conf")): path.read_bytes() for path in study.file("conf").rglob("*.yaml")}
    return study.trials(), points, conf


def killed_at(real: Any, call: int) -> Callable[..., Any]:
    """Return a function, or method, that stops the command in place of its call of this number."""
    left = [call]

    def kill(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    return kill


NOTHING_RUNS = "sweep.hours=1e-9"
MOMENTS = {
    "first file of conf/": ("search", shutil, "copyfile", 0),
    "in the middle of conf/": ("search", shutil, "copyfile", 30),
    "conf/ copied, not renamed": ("search", os, "replace", 0),
    "a trial": ("grid", StudyFolder, "write_trial", 1),
    "study.json": ("grid", StudyFolder, "create", 0),
    "Optuna's study": ("search", optuna, "create_study", 0),
    "Optuna's study, then extended": ("search", optuna, "create_study", 0),
    "a start point": ("search", optuna.Study, "enqueue_trial", 1),
}


@pytest.mark.nightly
def test_a_study_killed_while_it_is_written_is_written_whole_by_the_same_command(
    write: Write, tmp_path, capsys
) -> None:
    studies = {kind: write(definition, kind) for kind, definition in KINDS.items()}
    assert [main([f"sweeps={kind}", NOTHING_RUNS]) for kind in KINDS] == [1, 1]
    whole, wrong = {kind: written(study) for kind, study in studies.items()}, {}
    for moment, (kind, place, function, call) in MOMENTS.items():
        shutil.rmtree(studies[kind].path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, function, killed_at(getattr(place, function), call))
            codes = [main([f"sweeps={kind}", NOTHING_RUNS])]
        extended = ["sweep.extend=true"] if moment.endswith("extended") else []
        codes.append(main([f"sweeps={kind}", NOTHING_RUNS, *extended]))
        if codes != [130, 1] or written(studies[kind]) != whole[kind]:
            wrong[moment] = codes, capsys.readouterr().err
    assert wrong == {}


REFUSED = {
    "no such storage": (["sweep.storage=foo"], "sweep.storage: does not answer"),
    "an option that the sampler lacks": ([], "search.sampler: "),
    "no SLURM": (["hydra/launcher=slurm"], "hydra/launcher: needs SLURM's commands"),
    "over the GPU-hours": (
        ["hydra/launcher=slurm", "hydra.launcher.max_gpu_hours=1"],
        "hydra.launcher.max_gpu_hours: would be about 12.0",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("why", REFUSED)
def test_a_study_that_is_refused_leaves_nothing_and_changes_none(why: str, write: Write, monkeypatch, capsys) -> None:
    words, sentence = REFUSED[why]
    monkeypatch.setattr(queue, "has_slurm", lambda: why != "no SLURM")
    monkeypatch.setattr(forecast, "jobs_in_queue", lambda *_: {})
    section = {**SEARCH, "sampler": {"name": "random", "n": 1}} if "sampler" in why else SEARCH
    study = write({"search": section})
    assert main(["sweeps=toy", *words]) == 2
    assert f"specvit: {sentence}" in capsys.readouterr().err
    assert not study.path.exists()
    study = write({"search": SEARCH})
    assert main(["sweeps=toy", NOTHING_RUNS]) == 1
    before = {path: path.stat().st_mtime_ns for path in study.path.rglob("*") if path.is_file()}
    write({"search": section})
    assert main(["sweeps=toy", *words]) == 2
    assert {path: path.stat().st_mtime_ns for path in study.path.rglob("*") if path.is_file()} == before


def test_an_editors_lock_in_conf_is_not_copied_and_a_file_that_cannot_be_is_named(
    write: Write, tmp_path, capsys
) -> None:
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    (tmp_path / "conf" / "loss" / "mine.yaml").write_text("name: mse\n")
    (tmp_path / "conf" / ".#local.yaml").symlink_to("me@host.1234:5678")
    study = write(KINDS["grid"])
    assert main(["sweeps=toy", NOTHING_RUNS]) == 1
    assert study.file("conf/loss/mine.yaml").exists()
    assert not os.path.lexists(study.file("conf/.#local.yaml"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        assert main(["sweeps=toy", "sweep.name=other"]) == 2
    assert (
        capsys.readouterr().err
        == "specvit: the disk is full (copy); free some space there, then run the same command again to resume.\n"
    )


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "copy")


@pytest.mark.slow
def test_a_repeated_point_is_the_same_run_and_counts_once(write: Write, capsys) -> None:
    study = write(
        {"search": {**SEARCH, "sampler": "tpe", "trials": 6, "start": [], "space": {"model.num_alphas": [3, 5]}}}
    )
    assert main(["sweeps=toy"]) == 0
    assert "2 runs: 2 completed" in capsys.readouterr().out
    assert sorted(trial.factors["model.num_alphas"] for trial in study.trials()) == [3, 5]
    assert len({trial.run_id for trial in study.trials()}) == 2
    assert not study.file("tracking.log").exists()  # tracking.live=false


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_train_device_cpu_takes_a_study_off_a_gpu_that_does_not_work(kind: str, write: Write, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    study = write(KINDS[kind])
    assert main(["sweeps=toy"]) == BROKEN_GPU
    assert main(["sweeps=toy", "train.device=cpu", "sweep.extend=true"]) == 0
    before = [path.stat().st_ino for path in sorted(study.file("trials").iterdir())]
    assert [study.state(trial) for trial in study.trials()] == ["completed"] * 3
    assert main(["sweeps=toy", "train.device=cpu"]) == 0
    assert [
        path.stat().st_ino for path in sorted(study.file("trials").iterdir())
    ] == before  # the same command writes no record again


@pytest.mark.slow
def test_a_run_that_ends_as_it_is_cancelled_has_ended(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    study, real = write(KINDS["grid"]), worker.run

    def run(*arguments: Any, **named: Any) -> Any:
        result = real(*arguments, **named)
        (number,) = [trial.number for trial in study.trials() if trial.run.path == result.folder.absolute()]
        study.request_cancel(number)
        return replace(result, signal=signal.SIGTERM)

    monkeypatch.setattr(worker, "run", run)
    assert main(["sweeps=toy"]) == 0
    assert {trial.run.state() for trial in study.trials()} == {"completed"}
    assert [trial.end and trial.end["state"] for trial in study.trials()] == ["completed"] * 3


@pytest.mark.slow
def test_a_number_in_steps_has_the_decimals_of_its_step(write: Write, tmp_path) -> None:
    noise = {"noise.noise_level": {"low": 0.1, "high": 0.5, "step": 0.1}}
    study = write({"search": {**SEARCH, "trials": 6, "start": [], "space": noise}})
    assert main(["sweeps=toy"]) == 0
    levels = sorted(trial.factors["noise.noise_level"] for trial in study.trials())
    assert levels == [0.1, 0.2, 0.3, 0.4, 0.5]
    overrides = yaml.safe_load((tmp_path / "sweeps" / "toy.yaml").read_text())["overrides"]
    words = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    assert main(["-m", *words, "noise.noise_level=0.1,0.2,0.3,0.4,0.5", NOTHING_RUNS]) == 0
    (grid,) = [folder for folder in (tmp_path / "multirun").iterdir() if folder.name != "toy"]
    assert {t.run_id for t in StudyFolder(grid).trials()} == {t.run_id for t in study.trials()}


@pytest.mark.slow
def test_points_that_are_refused_keep_no_file_open_and_say_why(write: Write, capsys) -> None:
    space = {"train.seed": list(range(40)), "model.num_alphas": [3, *range(-10, 1)]}
    study = write({"search": {**SEARCH, "trials": 6, "start": [], "space": space}})
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, before[1]))
    try:
        assert main(["sweeps=toy"]) == 0, capsys.readouterr()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert [trial.factors["model.num_alphas"] for trial in study.trials()] == [3] * 6
    assert len(study.events("refused")) > 40
    assert any(
        f"{len(study.events('refused'))} points refused: model.num_alphas" in line for line in status_lines(study)
    )


DAMAGES = {
    "journal cut off": lambda study: cut(study.file("journal.log"), 20),
    "journal's last newline": lambda study: cut(study.file("journal.log"), 1),
    "record removed": lambda study: study.file("trials/0001.json").unlink(),
    "record empty": lambda study: study.file("trials/0001.json").write_text(""),
    "record torn": lambda study: cut(study.file("trials/0001.json"), 20),
    "record of another kind": lambda study: study.file("trials/0001.json").write_text("[1]"),
    "diary cut off": lambda study: cut(study.file("events.jsonl"), 20),
}


def cut(file: Path, count: int) -> None:
    file.write_bytes(file.read_bytes()[:-count])


@pytest.mark.slow
def test_damaged_records_of_a_search_are_written_again(write: Write, capsys) -> None:
    study = write({"search": SEARCH})
    assert main(["sweeps=toy"]) == 0
    whole, wrong = [replace(trial, end=None) for trial in study.trials()], {}
    for name, damage in DAMAGES.items():
        damage(study)
        capsys.readouterr()
        named = any("trials/0001.json; `specvit train sweeps=toy` writes it again" in s for s in status_lines(study))
        code, said = main(["sweeps=toy"]), capsys.readouterr()
        found = optuna.load_study(study_name=None, storage=open_storage(study, None)).get_trials()
        states = [trial.state.name for trial in found], [study.state(trial) for trial in study.trials()]
        ended = all(trial.end and len(trial.end["values"]) == 1 for trial in study.trials())
        same = [replace(trial, end=None) for trial in study.trials()] == whole
        if (named, code, states, ended, same) != (
            "record" in name,
            0,
            (["COMPLETE"] * 3, ["completed"] * 3),
            True,
            True,
        ):
            wrong[name] = named, code, states, ended, same, said
    assert wrong == {}
    lines = study.file("journal.log").read_bytes().splitlines(keepends=True)
    study.file("journal.log").write_bytes(b"".join([lines[0][:-20], *lines[1:]]))
    assert main(["sweeps=toy"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"specvit: {study.file('journal.log')}: line 1 is damaged; put back a copy of the file"), (
        said
    )
