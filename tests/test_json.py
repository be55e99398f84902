"""`--json` in all commands: one document, as docs/json.md says, and nothing else on standard output."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from json_schemas import Schemas
from scored_runs import CLASSES
from studies import until

from specvit.cli import main as cli
from specvit.utils.quantities import FLUX

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
    exploded = ask("train", *scored, "opt.lr=10", "opt.name=sgd", "train.gradient_clip=null", code=1)
    assert exploded["state"] == "diverged" and exploded["cause"] and exploded["summary"] is None
    assert exploded["remedy"].startswith("try opt.lr=")
    assert schemas.unseen("specvit.train/1") == set()


@pytest.mark.slow
def test_train_stopped_by_ctrl_c(tiny: list[str], schemas: Schemas, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "specvit.train", *tiny, "train.epochs=100000", "--json"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as run:
        until(lambda: list(tmp_path.glob("outputs/*/metrics.jsonl")), "a validation")
        run.send_signal(signal.SIGINT)
        document = json.loads(run.communicate(timeout=60)[0])
    schemas.check(document)
    assert run.returncode == 130
    assert (document["state"], document["cause"], document["summary"]) == ("preempted", "stopped by SIGINT", None)
