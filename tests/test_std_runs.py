"""Whole runs with `loss=gaussian` and `loss=laplace`: what they write, and what reads it."""

import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scored_runs import LABELS, THREE_LABELS, summary_of
from torch import nn
from whole_runs import STEADY, assert_same_run, only_run, whole_and_stopped

import specvit
from specvit.analysis.attribution import attribution
from specvit.commands import evaluate
from specvit.commands.train import main
from specvit.config.build import build_config
from specvit.config.compose import Composer
from specvit.data.batches import eval_data
from specvit.data.splits import open_split
from specvit.run.predictor import load_predictor
from specvit.utils.errors import ConfigError
from specvit.utils.files import read_json_lines

BEST_NLL = ["train.early_stopping.monitor=val_nll", "train.early_stopping.mode=min"]


@pytest.fixture(scope="session")
def gaussian(reference_run: Any, scored: list[str]) -> Path:
    """Return a finished run of three labels; read only."""
    return reference_run([*scored, THREE_LABELS, "loss=gaussian", *BEST_NLL])


def known_scores(table: pd.DataFrame, label: str) -> float:
    """Return the nll of a label by its columns."""
    columns = (table[f"{kind}_{label}"] for kind in ("true", "pred", "std"))
    return float(np.mean(-stats.norm.logpdf(*columns)))


def test_a_run_writes_deviations_and_scores_them(gaussian: Path) -> None:
    table, summary = pd.read_csv(gaussian / "predictions.csv"), summary_of(gaussian)
    assert list(table)[4:] == [f"{kind}_{label}" for label in LABELS for kind in ("true", "pred", "std")]
    assert (table[[f"std_{label}" for label in LABELS]] > 0).all(axis=None)
    for label in LABELS:
        assert summary[f"test_nll_{label}"] == pytest.approx(known_scores(table, label), rel=1e-9)
        for metric in ("nll", "crps"):
            low, value, high = (summary[f"test_{metric}_{label}{end}"] for end in ("_low", "", "_high"))
            assert low < value < high
    for row in summary["test_by_snr"]:
        inside = table[(table["snr"] >= row["low"]) & (table["snr"] < (row["high"] or np.inf))]
        assert row["nll"] == pytest.approx(known_scores(inside, row["label"]), rel=1e-9)
    rows = read_json_lines(gaussian / "metrics.jsonl")
    assert summary["best_val_nll"] == min(row["val_nll"] for row in rows)
    assert all(row["val_nll"] == row["val_nll_log_g"] and row["val_crps_M_H"] > 0 for row in rows)


def test_it_is_evaluated_again_and_predicts_with_others(
    gaussian: Path, reference_run: Any, scored: list[str], tmp_path: Path, toy_sets: Path, stars: Any
) -> None:
    run = Path(shutil.copytree(gaussian, tmp_path / gaussian.name))
    assert evaluate.main([str(run), "--data", str(toy_sets / "val" / "dataset.h5"), "--noise", "0"]) == 0
    table = pd.read_csv(run / "evaluate-val-dataset-noise0" / "predictions.csv")
    content = stars(48, seed=2)  # those of the validation set
    flux_NP = np.maximum(content["flux_NP"], 0).astype(np.float32)
    found = specvit.load(run).predict(flux_NP)
    for label in LABELS:
        np.testing.assert_array_equal(found[label], table[f"pred_{label}"])
    other = reference_run([*scored, THREE_LABELS])  # with squared errors: half as many outputs
    alone, both = specvit.load(other).predict(flux_NP), specvit.load(run, other).predict(flux_NP)
    np.testing.assert_allclose(both["T_eff"], (alone["T_eff"] + found["T_eff"]) / 2, rtol=1e-12)


def test_attribution_is_that_of_the_location(gaussian: Path) -> None:
    """The log scales depend on other pixels here."""
    config = evaluate.read_config(gaussian)
    trained = load_predictor(gaussian / "best.ckpt", config, torch.device("cpu"), gaussian.name[-8:])
    pixels = len(trained.wave_P)
    model = nn.Linear(pixels, 6)
    with torch.no_grad():
        model.weight.zero_()
        for k in range(6):
            model.weight[k, 10 * k] = 1.0 + k
    object.__setattr__(trained, "model", model)
    spectra = open_split(config.data, "test", lambda *_: None)
    view = eval_data(spectra, "test", config, trained.coder, trained.flux_norm, torch.device("cpu"))
    for k, label in enumerate(LABELS):
        found = attribution(trained, view, label, 5)
        assert np.flatnonzero(found.gradient_P).tolist() == np.flatnonzero(found.share_P).tolist() == [10 * k]


def test_what_has_no_deviation_refuses_its_scores() -> None:
    compose = Composer()
    for metric in ("val_nll", "val_crps"):
        monitor = [f"train.early_stopping.monitor={metric}", "train.early_stopping.mode=min"]
        assert build_config(compose(["loss=laplace", *monitor])).train.early_stopping.monitor == metric
        words = f"train.early_stopping.monitor: {metric} is a score of predicted standard deviations, and loss=l1 has"
        with pytest.raises(ConfigError, match=re.escape(words)):
            build_config(compose(["loss=l1", *monitor]))
    classes = ["model.task_type=cls", "data.class_edges=[3]", "loss=gaussian"]
    with pytest.raises(ConfigError, match="gaussian does not go with"):
        build_config(compose(classes))


def test_weights_of_a_run_with_another_number_of_outputs_are_refused(
    gaussian: Path, scored: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*scored, THREE_LABELS, f"train.init_from={gaussian}", f"tracking.folder={tmp_path}"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1 and "head.weight" in said and "labels and kind of loss of the run that saved it" in said
    )


@pytest.mark.nightly
def test_a_run_that_is_stopped_ends_as_the_whole_one(tiny: list[str], tmp_path: Path) -> None:
    def words(folder: str) -> list[str]:
        return [*tiny, *STEADY, "loss=laplace", "train.precision=bf16-mixed", f"tracking.folder={tmp_path / folder}"]

    assert "resuming from step" in whole_and_stopped(words, signal.SIGTERM, "epoch 2/4")
    assert_same_run(only_run(tmp_path / "stopped"), only_run(tmp_path / "whole"))
