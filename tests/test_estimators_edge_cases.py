"""Estimators where something is odd: few rows, little patience, bad errors, other files, wrong weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_estimators import KINDS, configured, made, opened

from specvit.commands import evaluate
from specvit.config.schema import LightGBMConfig, LossConfig
from specvit.data.batches import eval_data
from specvit.data.noise import FluxNorm
from specvit.data.shards import write_shard
from specvit.run.predictor import load_predictor
from specvit.utils.errors import ConfigError, DataError


def looks(tiny: list[str], *overrides: str, values: list[float] | None = None) -> tuple[list[int], Any]:
    """Return the numbers of trees at which validation was looked at, and what was fitted; `values` may be told."""
    from specvit.estimators.lightgbm import fit_trees

    config = configured(tiny, "lightgbm", *overrides)
    assert isinstance(config.model, LightGBMConfig)
    splits = opened(config)
    norm, cpu = FluxNorm(torch.zeros(splits.train.num_pixels), 1.0), torch.device("cpu")
    train, val = (eval_data(getattr(splits, name), name, config, splits.coder, norm, cpu) for name in ("train", "val"))
    seen: list[int] = []

    def evaluate_trees(number: int, train_N: np.ndarray, val_N: np.ndarray) -> float:
        seen.append(number)
        own = float(np.mean((val_N - val.targets[:, 0].numpy()) ** 2))
        return values[len(seen) - 1] if values else own

    return seen, fit_trees(train, val, config.model, LossConfig(), seed=3, evaluate=evaluate_trees)


@pytest.mark.parametrize(
    ("patience", "expected"), [(5, [10, 20, 30]), (10, [10, 20, 30]), (15, [10, 20, 30, 40]), (None, [10, 20, 30, 40])]
)
def test_trees_are_kept_up_to_the_last_gain(tiny: list[str], patience: int | None, expected: list[int]) -> None:
    """Also with a patience shorter than the trees between two looks."""
    patience_said = f"model.patience={'null' if patience is None else patience}"
    seen, found = looks(tiny, patience_said, "model.num_trees=40", values=[0.9, 0.5, 0.6, 0.55])
    assert (seen, found.best_step, found.stopped_early) == (expected, 20, len(expected) < 4)


def test_no_number_of_trees_is_printed_twice(tiny: list[str]) -> None:
    """Where no leaf can be split any more right after a look."""
    seen, _ = looks(tiny, "model.num_trees=40", "model.min_leaf_rows=96", "model.learning_rate=1.0")
    assert len(seen) == len(set(seen)) > 0


def test_a_handful_of_rows_grow_trees_if_leaves_may_be_small(tiny: list[str]) -> None:
    seen, found = looks(tiny, "data.num_samples=30", "model.min_leaf_rows=5")
    assert seen and found.best_step > 0


def test_too_few_rows_for_a_tree_are_refused_before_anything_is_written(tiny: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as problem:
        made(tiny, tmp_path / "outputs", "lightgbm", "data.num_samples=20", "model.min_leaf_rows=15")
    assert "model.min_leaf_rows: is 15, but a tree splits the 20 training spectra in two" in str(problem.value)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_not_finite_is_named(kind: str, tiny: list[str], stars: Any, tmp_path: Path) -> None:
    made_of = stars(60)
    made_of["flux_NP"][33, 5] = np.nan
    write_shard(tmp_path / "bad" / "dataset.h5", **made_of)
    result = made(tiny, tmp_path, kind, f"data.file_path={tmp_path / 'bad' / 'dataset.h5'}")
    assert result.state == "crashed" and result.exit_code != 0
    status = json.loads((result.folder / "status.json").read_text())
    assert "row 33" in status["cause"]


@pytest.mark.parametrize("split", ["val", "test"])
def test_templates_need_errors_above_0(split: str, tiny: list[str], stars: Any, tmp_path: Path) -> None:
    made_of = stars(60)
    made_of["error_NP"][21, 5] = 0.0
    write_shard(tmp_path / "bad" / "dataset.h5", **made_of)
    config = configured(tiny, "template", f"data.{split}_path={tmp_path / 'bad' / 'dataset.h5'}")
    splits = opened(config)
    norm, cpu = FluxNorm(torch.zeros(splits.train.num_pixels), 1.0), torch.device("cpu")
    with pytest.raises(DataError, match=r"row 21.*error of 0"):
        list(eval_data(getattr(splits, split), split, config, splits.coder, norm, cpu).batches())


def test_templates_are_those_of_the_run_or_none(tiny: list[str], toy_sets: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_sets, tmp_path / "sets")
    result = made([*tiny, f"data.root={tmp_path / 'sets'}"], tmp_path, "template")
    config = evaluate.read_config(result.folder)
    load_predictor(result.folder / "best.ckpt", config, torch.device("cpu"), result.folder.name[-8:])
    shutil.copy(tmp_path / "sets" / "val" / "dataset.h5", tmp_path / "sets" / "train_0" / "dataset.h5")
    with pytest.raises(DataError, match="does not hold the run's templates"):
        load_predictor(result.folder / "best.ckpt", config, torch.device("cpu"), result.folder.name[-8:])


def test_templates_without_noise_are_refused(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = made(tiny, tmp_path, "template")
    assert evaluate.main([str(result.folder), "--noise", "1,0"]) == 2
    assert "--noise: 0 is among them, and model=template weights pixels by their noise" in capsys.readouterr().err
    assert not list(result.folder.glob("evaluate*"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lightgbm", "template"])
def test_no_network_starts_from_what_is_none(kind: str, tiny: list[str], tmp_path: Path) -> None:
    from specvit.config.build import build_config
    from specvit.config.compose import compose
    from specvit.run.run import run

    folder = made(tiny, tmp_path, kind).folder
    with pytest.raises(ConfigError, match="holds no network's weights"):
        run(build_config(compose([*tiny, f"train.init_from={folder}", f"tracking.folder={tmp_path}"])))
