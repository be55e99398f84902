"""`--json` in all commands: one document, as docs/json.md says, and nothing else on standard output."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from handmade import at_work, ended, epochs, make_run, mixed_study, run_of
from json_schemas import Schemas
from scored_runs import CLASSES
from studies import Study, until

from specvit.cli import main as cli
from specvit.cluster.queue import ClusterJob
from specvit.run_folder.folder import DONE
from specvit.study.status import Waiting
from specvit.study.store import StudyFolder
from specvit.utils.quantities import FLUX

EXPLODES = ["opt.lr=1e20", "opt.type=SGD", "train.gradient_clip=null", "opt.lr_sch=constant"]
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def schemas() -> Schemas:
    return Schemas()


@pytest.fixture
def ask(schemas: Schemas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Return `ask(*words, code=0)`: the document of a command in an empty folder, checked against its schema."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        assert cli([*words, "--json"]) == code
        shown = capsys.readouterr()
        document = json.loads(shown.out, parse_constant=pytest.fail)
        schemas.check(document)
        assert (document["schema"] == "specvit.error/1") == shown.err.startswith("specvit: ")
        return document

    return run


@pytest.fixture
def shard(toy_sets: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_sets / "val", tmp_path / "val")) / "dataset.h5"


def test_data_inspect(ask: Ask, shard: Path, schemas: Schemas) -> None:
    (sound,) = ask("data", "inspect", str(shard))["files"]
    flux = next(column for column in sound["columns"] if column["name"] == FLUX)
    assert sound["faults"] == [] and flux["shape"] == [48, 256] and 0 < flux["low"] < flux["high"]
    with h5py.File(shard, "r+") as file:
        file[FLUX][:] = float("nan")
    (dark,) = ask("data", "inspect", str(shard), code=1)["files"]
    assert dark["faults"] and next(column for column in dark["columns"] if column["name"] == FLUX)["low"] is None
    shard.write_bytes(b"")
    assert ask("data", "inspect", str(shard), code=1)["files"][0]["reading"] is None
    assert schemas.unseen("specvit.data.inspect/1") == {("file", "manifest", "string")}


def test_errors(ask: Ask, schemas: Schemas) -> None:
    assert ask("data", "inspect", "missing.h5", code=2)["error"] == {
        "what": "is not there",
        "where": "missing.h5",
        "remedy": "check the path",
        "faults": [],
    }
    several = ask("train", "opt.lr=-1", "train.epochs=-1", code=2)["error"]
    assert sorted(fault["where"] for fault in several["faults"]) == ["opt.lr", "train.epochs"]
    assert "nosuch" in ask("nosuch", code=2)["error"]["what"]
    assert ask("train", "--cfg", "job", code=2)["error"]["where"] == "--json"
    assert not schemas.unseen("specvit.error/1")


def test_an_error_hides_a_password(ask: Ask) -> None:
    uri = "tracking.uri=postgresql://me:geheim@host/x"
    assert "geheim" not in json.dumps(ask("train", uri, f"train.epochs={uri}", code=2))


@pytest.mark.slow
def test_train(ask: Ask, scored: list[str], schemas: Schemas) -> None:
    done = ask("train", *scored)
    assert done["state"] == "completed" and done["summary"]["test_rows"] == 64
    assert ask("train", *scored) == done  # it is finished already
    assert ask("train", *scored, *CLASSES)["summary"]["classes"] == ["< 2", "2 to 3", "3 to 4", "≥ 4"]
    exploded = ask("train", *scored, *EXPLODES, code=1)
    assert exploded["state"] == "diverged" and exploded["cause"] and exploded["summary"] is None
    assert exploded["remedy"].startswith("try opt.lr=")
    undefined = {("summary", "test_<score>", "null"), ("bin", "<score>", "null")}  # scores of few rows
    assert schemas.unseen("specvit.train/1") <= undefined


@pytest.mark.slow
def test_train_stopped_by_ctrl_c(tiny: list[str], schemas: Schemas, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "specvit.train", *tiny, "train.epochs=100000", "--json"]
    heard: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}

    def listen() -> None:  # a job in the background begins with Ctrl-C ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(words, cwd=tmp_path, preexec_fn=listen, **heard) as run:
        until(lambda: list(tmp_path.glob("outputs/*/metrics.jsonl")), "a validation")
        run.send_signal(signal.SIGINT)
        document = json.loads(run.communicate(timeout=60)[0])
    schemas.check(document)
    assert run.returncode == 130
    assert (document["state"], document["cause"], document["summary"]) == ("preempted", "stopped by SIGINT", None)


@pytest.fixture
def mixed(ask: Ask, tmp_path: Path) -> StudyFolder:
    return mixed_study(tmp_path)


def test_sweep_status(ask: Ask, mixed: StudyFolder, schemas: Schemas) -> None:
    run = make_run(run_of(mixed, 3).path, rows=epochs(val_r2=[0.0, 0.25], train_loss=[2.0, 1.0]))
    with at_work(run, forecast="2026-01-02T03:04:05+0000"):
        status = ask("sweep", "status", "toy")
    assert status["states"] == {"completed": 1, "crashed": 1, "waiting": 1, "running": 1}
    assert status["best"] == {"metric": "test_r2", "value": 0.5, "run": "toy-aaaa0000"}
    assert status["trials"][1]["cause"] == "it broke" and status["trials"][3]["progress"]["value"] == 0.25
    (run_of(mixed, 0).file("summary.json")).unlink()
    ridge = make_run(run_of(mixed, 2).path, rows=epochs(val_r2=[float("nan")], train_loss=[2.0]))
    trial = mixed.trials()[2]
    mixed.write_trial(dataclasses.replace(trial, config={**trial.config, "model": {"kind": "ridge"}}))
    with at_work(ridge):
        progress = ask("sweep", "status", "toy")["trials"][2]["progress"]
    assert progress["epochs"] is progress["value"] is progress["forecast"] is None
    assert ask("sweep", "status", "toy", "--watch", code=2)["error"]["where"] == "--json"
    for mixed_number in range(4):
        ended(mixed, mixed_number, "refused", remedy="take another")
        shutil.rmtree(run_of(mixed, mixed_number).path, ignore_errors=True)
    assert ask("sweep", "status", "toy")["best"] is None
    schemas.check_object(dataclasses.asdict(ClusterJob("7", "PENDING")), "job")
    schemas.check_object(dataclasses.asdict(Waiting("queued", "Resources", ["7"])), "waiting")
    assert schemas.unseen("specvit.sweep.status/1") == {("trial", "job", "job")}


def test_sweep_table(ask: Ask, mixed: StudyFolder, schemas: Schemas) -> None:
    (row,) = ask("sweep", "table", "toy")["rows"]
    assert (row["mean"], row["mean_of_finished"], row["sd"], row["finished"], row["runs"]) == (0.25, 0.5, None, 1, 4)
    run_of(mixed, 2).set_status("completed")
    (mixed.trials()[2].run.file("summary.json")).write_text('{"test_r2": 0.7}')
    assert ask("sweep", "table", "toy", "--metric", "test_r2")["rows"][0]["sd"] == pytest.approx(0.02**0.5)
    rows = ask("sweep", "table", "toy", "--by", "train.seed")["rows"]
    assert [row["factors"] for row in rows] == [{"train.seed": seed} for seed in range(4)]
    assert rows[3]["mean"] is None and rows[3]["states"] == {"waiting": 1}
    assert ask("sweep", "table", "toy", "--style", "csv", code=2)["error"]["where"] == "--json"
    assert schemas.unseen("specvit.sweep.table/1") == set()


def test_sweep_why_and_diff(ask: Ask, mixed: StudyFolder, schemas: Schemas) -> None:
    study = ask("sweep", "why", "toy")
    assert [(run["run"], run["cause"]) for run in study["runs"]] == [("toy-aaaa0001", "it broke")]
    assert study["states"] == {"completed": 1, "crashed": 1, "waiting": 2}
    assert ask("sweep", "why", "aaaa0003")["runs"][0]["state"] is None
    norms = epochs(train_loss=[float("inf"), 1.0], val_r2=[0.1, 0.2], grad_norm_head=[1.0, 2.0])
    run = make_run(run_of(mixed, 2).path, "preempted", rows=norms, cause="stopped by SIGINT", remedy="start it again")
    run.record_attempt(event="start", job="7")
    (found,) = ask("sweep", "why", "aaaa0002")["runs"]
    assert found["curves"]["train_loss"] == [None, 1.0] and found["steps"] == [10, 20]
    assert found["gradient_norms"] == {"head": 2.0} and found["attempts"]["silent"] == 1
    assert schemas.unseen("specvit.sweep.why/1") == set()
    diff = ask("sweep", "diff", "aaaa0000", "outputs/toy-aaaa0001")
    assert diff["settings"] == {} and diff["scores"]["state"] == ["completed", "crashed"]
    assert diff["scores"]["test_r2"] == [0.5, None]
    assert schemas.unseen("specvit.sweep.diff/1") == set()


@pytest.mark.slow
def test_plan_and_study(ask: Ask, study: Callable[..., Study], tiny: list[str], schemas: Schemas) -> None:
    study({"grids": [{"axes": {"opt.lr": [3e-3, 1e-3]}}]}, {"data.num_samples": 192})
    plan = ask("train", "sweeps=toy", "sweep.dry_run=true")
    assert (plan["wanted"], plan["left"], plan["sampler"], plan["cost"]["hours"]) == (2, 2, None, None)
    assert [run["factors"] for run in plan["runs"]] == [{"opt.lr": 3e-3}, {"opt.lr": 1e-3}]
    status = ask("train", "sweeps=toy")
    assert status["schema"] == "specvit.sweep.status/1" and {t["state"] for t in status["trials"]} <= set(DONE)
    done = ask("train", "sweeps=toy", "sweep.dry_run=true")
    assert (done["made"], done["left"], done["cost"]) == (2, 0, None)
    search = {"space": {"opt.lr": {"low": 1e-4, "high": 1e-2}}, "trials": 3, "metrics": {"val_r2": "maximize"}}
    study({"search": search}, {"data.num_samples": 192}, name="find")
    found = ask("train", "sweeps=find", "sweep.dry_run=true")
    assert (found["sampler"], found["space"], found["wanted"]) == ("tpe", ["opt.lr"], 3) and found["cost"]["hours"] > 0
    assert "--json" not in StudyFolder(Path("multirun/toy").absolute()).about()["command"]
    assert ask("train", "sweeps=find", "sweep.dry_run=true", "hydra/launcher=slurm")["gpu_hours"] > 0
    assert schemas.unseen("specvit.train.plan/1") == set()


@pytest.mark.slow
def test_evaluate_and_predict(
    ask: Ask, trained_labels: Path, trained_classes: Path, schemas: Schemas, shard: Path, tmp_path: Path
) -> None:
    runs = [str(shutil.copytree(run, tmp_path / run.name)) for run in (trained_labels, trained_classes)]
    own = ask("evaluate", runs[0])
    assert own["levels"][0]["summary"] == json.loads((Path(runs[0]) / "evaluate-test/summary.json").read_text())
    assert len(ask("evaluate", runs[1], "--noise", "0,1")["levels"]) == 2
    undefined = {("scores", "<split>_<score>", "null"), ("bin", "<score>", "null")}
    assert schemas.unseen("specvit.evaluate/1") <= undefined
    with h5py.File(shard, "r+") as file:
        file[FLUX][3, :] = float("nan")
    shown = ask("predict", runs[0], str(shard))
    assert shown["spectra"] == len(shown["predictions"]) == 48
    assert shown["predictions"][3]["log_g"] is None and shown["flags"]["not_finite"] == 1
    assert shown["masked_spectra"] == shown["masked_pixels"] == 0 and "row 3: 100 % of" in shown["first_fault"]
    assert isinstance(ask("predict", runs[1], str(shard))["predictions"][0]["log_g_class"], str)
    written = ask("predict", runs[0], str(shard), "--out", "labels.csv")
    assert (written["out"], written["predictions"]) == ("labels.csv", None)
    assert len(Path("labels.csv").read_text().splitlines()) == 49
    assert schemas.unseen("specvit.predict/1") <= {("specvit.predict/1", "first_fault", "null")}


@pytest.mark.slow
def test_doctor(ask: Ask, tiny: list[str], schemas: Schemas, monkeypatch: pytest.MonkeyPatch) -> None:
    against = ask("doctor", *tiny, "--against", "model/tokenizer=sw model.num_hidden_layers=2")
    assert against["rows"] == 16 and against["b"].startswith("model/tokenizer=sw")
    assert {"loss before the step"} <= {one["quantity"] for one in against["quantities"]}
    ask("doctor", *tiny, "model.num_hidden_layers=2", "--against", "model.num_hidden_layers=1")
    assert ask("doctor", *tiny, "--against", "opt.lr=1", "--style", "csv", code=2)["error"]["where"] == "--json"
    assert schemas.unseen("specvit.doctor.against/1") == set()
    monkeypatch.setattr("specvit.checks.training.RATE_SECONDS", 1e9)
    found = ask("doctor", *tiny, "model.init=legacy", "model/tokenizer=sw", "data.flux_norm=none", code=1)
    assert {one["rule"] for one in found["measures"] if not one["kept"]} >= {"token_scale", "input_mean"}
    assert found["network"]["components"]["head"] == 17 and found["spectra"]["train"] == 192
    assert ask("doctor", *(word for word in tiny if word.startswith("data")), "model=ridge")["network"] is None
    assert ask("doctor", *tiny, "--quick")["training"] is None
    assert ask("doctor", "model.hiden_size=8", code=2)["error"]["where"] == "model.hiden_size"
    never = {("stage", "rms", "null"), ("stage", "std", "null"), ("measure", "value", "null")}
    never |= {("training", "step_seconds", "null"), ("training", "hours", "null")}
    never |= {("training", "overfit_score", "null"), ("rate", "loss", "null")}
    assert schemas.unseen("specvit.doctor/1") == never
    monkeypatch.setenv("PATH", "")
    assert ask("doctor", "--cluster", code=1)["findings"][0]["kind"] == "FAIL"
    assert schemas.unseen("specvit.doctor.cluster/1") == set()


def test_every_document_has_a_test(schemas: Schemas) -> None:
    tested = set(re.findall(r'unseen\("(specvit[\w./]+)"\)', Path(__file__).read_text()))
    assert tested == {name for name in schemas.tables if name.startswith("specvit.")}
