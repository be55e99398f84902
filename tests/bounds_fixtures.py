"""Finished runs on built-in stars, and the command that puts them beside their ceilings."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specvit.analysis.bounds import r2_bounds as computing
from specvit.commands.analysis import main
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.run.run import run

ROWS = 160
SMALL = ["model.patch_size=256", "model.stride_size=256", "model.hidden_size=16", "model.num_hidden_layers=1"]
SMALL += ["model.num_attention_heads=2", "model.intermediate_size=32", "train.epochs=1", "train.batch_size=64"]
SMALL += ["train.precision=32", "tracking.progress=none", "tracking.live=false"]
BUILTIN = ["data=synth", "data.num_samples=128", "data.val_samples=32", f"data.test_samples={ROWS}"]


def trained(place: Path, *overrides: str) -> Path:
    return run(build_config(compose([*SMALL, *overrides, f"tracking.folder={place}"]))).folder


@pytest.fixture(scope="session")
def ceiling_trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return runs on built-in stars: two seeds of one setting, one of another."""
    place = tmp_path_factory.mktemp("trees") / "outputs"
    for more in ("train.seed=1", "train.seed=2", "model.proj_fn=SW"):
        trained(place, *BUILTIN, more)
    return place


@pytest.fixture
def ceiling_runs(ceiling_trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of them, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(computing, "FIXED_STARS", 20)
    return Path(shutil.copytree(ceiling_trees, tmp_path / "outputs")).relative_to(tmp_path)


@pytest.fixture
def ceiling_refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that gives the command's refusal: one sentence, exit code 2."""

    def give(*words: Any) -> str:
        assert main(["ceiling", *map(str, words)]) == 2
        heard = capsys.readouterr()
        assert re.fullmatch(r"specvit: [^\n]+[.?]\n", heard.err), heard.err
        return heard.err

    return give
