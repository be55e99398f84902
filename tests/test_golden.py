"""Everything that commit 0e0e6c1 wrote is read, named, continued and computed alike today: golden/README.md."""

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from golden.make import canary, digest_of_run, versions
from whole_runs import same_content

from specvit.analysis.archive import unpack
from specvit.commands import evaluate
from specvit.commands.analysis import main as analysis
from specvit.commands.sweep import main as sweep
from specvit.commands.track import main as track_command
from specvit.commands.track import runs_in
from specvit.commands.train import main as train
from specvit.config.build import build_config
from specvit.config.compose import Composer
from specvit.data.splits import open_split
from specvit.run import evaluation
from specvit.run.context import locate
from specvit.run.predictor import load_predictor
from specvit.run.run import run
from specvit.run_folder.folder import DONE, RunFolder
from specvit.study.store import WAITING, StudyFolder
from specvit.tracking.run_record import read_record
from specvit.training import checkpoint
from specvit.utils.files import read_json, write_json

GOLDEN = Path(__file__).parent / "golden"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text())
RUNS: dict[str, dict[str, Any]] = EXPECTED["runs"]
FINISHED = [name for name, facts in RUNS.items() if facts["state"] in DONE and name != "exploded"]
"""A run that exploded was a plateau then, and is judged again: it is diverged."""
RENAMED = {"c1d_overlap_rope": 3}
"""Runs whose numbers changed since, in 16 bits, with the numerics version that they have now."""
DIGESTS: dict[str, dict[str, Any]] = EXPECTED["digests"]
CHANGED = {"c1d_overlap BF16": "1fd4df1caf10f09d", "c1d_overlap FP16": "196bad3a2144396a"}
"""Today's digests of what changed since, as the run ids of the same kind of run (`RENAMED`)."""
GENERATOR_VERSION = 3
"""That of the corpus' built-in spectra, which are not made any more."""
BUILTIN = {"builtin", "synth"}
QUICK = {"c1d 32", "sw_overlap BF16", "cnn FP16", "ridge 32", "lightgbm 32"}
"""One of each kind of model, and each precision, is fast; the others are slow."""


def silent(*_: Any) -> None:
    """Report nothing."""


def unpacked(name: str, place: Path, under: str = "") -> None:
    """Unpack what lies in a folder of a part of the corpus, or all of it."""
    with tarfile.open(GOLDEN / f"{name}.tar.xz") as packed:
        packed.extractall(place, [info for info in packed if info.name.startswith(under)], filter="data")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with the spectra; built-in ones have the version that names the corpus' runs."""
    monkeypatch.setattr("specvit.data.synthetic.GENERATOR_VERSION", GENERATOR_VERSION)
    unpacked("runs", tmp_path, "data")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def runs(data: None) -> None:
    """Work in a folder with data, outputs and unbroken."""
    unpacked("runs", Path())


@pytest.fixture
def studies(data: None) -> None:
    """Work in a folder with data, sweeps, multirun and the outputs of the studies."""
    unpacked("studies", Path())


def folder_of(name: str) -> RunFolder:
    folder = RUNS[name]["folder"]
    return RunFolder(Path("outputs", folder), folder[-8:])


def records(path: Path) -> list[Any]:
    """Return the objects of a JSON file, or of each line."""
    text = path.read_text()
    return [json.loads(line) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])]


def older_part(now: Any, then: Any) -> Any:
    """Return `now` without the keys that `then` lacks: metrics that were added to specvit since."""
    if isinstance(now, dict) and isinstance(then, dict):
        return {key: older_part(value, then[key]) for key, value in now.items() if key in then}
    if isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
        return [older_part(*pair) for pair in zip(now, then, strict=True)]
    return now


def where_bits_differ() -> str:
    """Return why numbers cannot be compared bit for bit here, or ""."""
    changed = [name for name, version in versions().items() if version != EXPECTED["versions"][name]]
    if changed:
        return f"the corpus was made with another {', '.join(changed)}"
    return "" if canary() == EXPECTED["canary"] else "this processor rounds otherwise than the one of the corpus"


def test_old_configurations_and_commands_name_the_same_runs(runs: None) -> None:
    compose = Composer()
    for name, facts in RUNS.items():
        folder = Path("outputs", facts["folder"])
        configs = [yaml.safe_load((folder / "config.yaml").read_text())]
        configs += (
            [] if name in FINISHED else [compose(facts["overrides"])]
        )  # those of others are asked for again below
        for config in configs:
            located = locate(build_config(config), silent)
            expected = read_json(folder / "run.json")["identity"]
            if name in RENAMED:
                assert located.identity == expected | {"numerics_version": RENAMED[name]}, name
            else:
                assert (located.folder.path, located.identity) == (folder, expected), name


def test_states_attempts_and_records_are_read(runs: None) -> None:
    recorded = {name: facts["state"] for name, facts in RUNS.items()}
    assert {name: folder_of(name).state() for name in RUNS} == {**recorded, "exploded": "diverged"}
    records = {folder.path.name: read_record(folder) for folder in runs_in([Path("outputs")])}
    assert len(records) == len(list(Path("outputs").iterdir()))
    for name, facts in RUNS.items():
        record = records[facts["folder"]]
        assert record.params["data.kind"] in ("hdf5", "builtin", "synth") and record.tags["attempts"] == "1", name
        assert record.tags["commit"] == EXPECTED["commit"] and record.started > 0, name
        if name in FINISHED:
            assert {"test_loss"} <= {point.name for point in record.results} and len(record.rows) > 0, name


@pytest.mark.slow
def test_finished_runs_are_finished_already(runs: None, capsys: pytest.CaptureFixture[str]) -> None:
    compose = Composer()
    for name in sorted(set(FINISHED) - set(RENAMED)):
        result = run(build_config(compose(RUNS[name]["overrides"])))
        assert "finished already" in capsys.readouterr().out, name
        assert (result.state, result.folder.name) == (RUNS[name]["state"], RUNS[name]["folder"])


def test_trained_models_predict_what_they_did(runs: None) -> None:
    for name in sorted(set(FINISHED) - BUILTIN):
        folder = folder_of(name)
        config = build_config(yaml.safe_load(folder.file("config.yaml").read_text()))
        trained = load_predictor(folder.file("best.ckpt"), config, torch.device("cpu"), folder.run_id)
        scored = evaluation.score(trained, open_split(config.data, "test", silent), "test", torch.device("cpu"))
        before = pd.read_csv(folder.file("predictions.csv"))
        assert list(scored.predictions.columns) == list(before.columns), name
        for column in before.select_dtypes("number"):
            np.testing.assert_allclose(scored.predictions[column], before[column], rtol=1e-4, atol=1e-4, err_msg=name)
        summary = read_json(folder.file("summary.json"))
        scores = {f"test_{key}": value for key, value in scored.scores.items()}
        recorded = [
            key for key, value in summary.items() if re.match("test_(?!rows)", key) and isinstance(value, float)
        ]
        assert "test_loss" in recorded
        for key in recorded:
            assert summary[key] == pytest.approx(scores[key], rel=1e-3, abs=1e-3), (name, key)


@pytest.mark.slow
def test_an_old_run_is_evaluated(runs: None) -> None:
    path = folder_of("three_labels").path
    assert evaluate.main([str(path), "--data", "data/val/dataset.h5"]) == 0
    assert read_json(path / "evaluate-val-dataset" / "summary.json")["test_rows"] == 48


def test_old_studies_are_read(studies: None, capsys: pytest.CaptureFixture[str]) -> None:
    for name, facts in EXPECTED["studies"].items():
        trials = StudyFolder(Path("multirun", name).absolute()).trials()
        assert [trial.run_id for trial in trials] == facts["run_ids"]
        said = {}
        for words in (["status", name], ["table", name], ["why", name], ["why", trials[0].run_id]):
            assert sweep(words) == 0, words
            said[words[0]] = capsys.readouterr().out
        assert f"study {name}: {len(trials)} runs: " in said["status"]
        assert trials[0].name in said["why"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["scaling", "report"])
def test_an_old_study_is_analysed(command: str, studies: None) -> None:
    assert analysis([command, "multirun/grid", "--out", "made"]) == 0
    assert {path.name for path in Path("made").iterdir()} >= {"scaling": {"scaling.csv"}, "report": {"report.md"}}[
        command
    ]


@pytest.mark.slow
def test_an_old_archive_is_read(data: None) -> None:
    study = StudyFolder(unpack(GOLDEN / "archive.tar.xz", Path("elsewhere").absolute()))
    facts = EXPECTED["studies"]["grid"]
    assert [trial.run_id for trial in study.trials()] == facts["run_ids"]
    assert [study.state(trial) for trial in study.trials()] == facts["states"]
    assert analysis(["ablation", str(study.path), "--out", "made"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["preempted", "killed"])
def test_old_stopped_runs_come_to_the_same_end(name: str, runs: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(RUNS[name]["overrides"]) == 0
    assert "resuming from step" in capsys.readouterr().out
    ended, unbroken = folder_of(name).path, Path("unbroken", RUNS[name]["folder"])
    assert len((ended / "metrics.jsonl").read_text().splitlines()) == 60
    if reason := where_bits_differ():
        pytest.skip(reason)
    assert (ended / "predictions.csv").read_bytes() == (unbroken / "predictions.csv").read_bytes()
    for file in ("metrics.jsonl", "summary.json"):
        pairs = list(zip(records(ended / file), records(unbroken / file), strict=True))
        if all(older_part(now, then) == now for now, then in pairs):  # no metric was added since: the very bytes
            assert (ended / file).read_bytes() == (unbroken / file).read_bytes(), file
        assert [json.dumps(older_part(now, then)) for now, then in pairs] == [json.dumps(then) for _, then in pairs]
    ours, theirs = (checkpoint.load(path / "last.ckpt") for path in (ended, unbroken))
    for key in ("model", "optimizer", "scaler"):
        assert same_content(ours[key], theirs[key]), key
    assert not [key for key in ("step", "best_value", "best_epoch") if ours["state"][key] != theirs["state"][key]]


@pytest.mark.nightly
def test_old_studies_go_on_to_their_end(studies: None) -> None:
    for name, more in (("stopped", []), ("search", ["sweep.trials=9"])):
        train([*EXPECTED["studies"][name]["overrides"], *more])
        study = StudyFolder(Path("multirun", name).absolute())
        trials = study.trials()
        assert [trial.run_id for trial in trials][: len(EXPECTED["studies"][name]["run_ids"])] == (
            EXPECTED["studies"][name]["run_ids"]
        )
        assert WAITING not in [study.state(trial) for trial in trials]
    assert len(trials) == 9


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in DIGESTS]
)
def test_thirty_steps_lead_to_the_same_parameters(name: str, data: None) -> None:
    if reason := where_bits_differ():
        pytest.skip(reason)
    result = run(build_config(Composer()([*DIGESTS[name]["overrides"], "tracking.folder=again"])))
    assert digest_of_run(result.folder) == CHANGED.get(name, DIGESTS[name]["digest"])


def test_what_a_newer_specvit_wrote_is_refused_in_one_sentence(
    runs: None, studies: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def newer(path: Path) -> None:
        write_json(path, {**read_json(path), "format": 2})

    run_folder = folder_of("c1d").path
    newer(run_folder / "run.json")
    newer(Path("multirun/grid/study.json"))
    commands = [
        *((train, words) for words in (RUNS["c1d"]["overrides"], EXPECTED["studies"]["grid"]["overrides"])),
        *((sweep, [*words]) for words in (["status", "grid"], ["table", "grid"], ["why", "grid"])),
        *((analysis, [word, "multirun/grid"]) for word in ("scaling", "ablation", "curves", "report")),
        *((analysis, [word, str(run_folder)]) for word in ("scaling", "ablation", "attention")),
        (sweep, ["why", str(run_folder)]),
        (track_command, ["sync", "--uri", "sqlite:///tracked.db", str(run_folder)]),
        (evaluate.main, [str(run_folder)]),
    ]
    for command, words in commands:
        assert command(list(words)) == 2, words
        said = capsys.readouterr().err
        assert re.fullmatch(r"specvit: \S+: has format 2, this specvit \w+ 1; move it away, .+ made it\.\n", said)
