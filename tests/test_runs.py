"""Whole runs in this process, from configuration to test score, on small files."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import mean_absolute_error, r2_score

from specvit.commands import evaluate
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.folders import conf_dir
from specvit.run.run import Result, run
from specvit.run_folder.folder import RunFolder
from specvit.training import checkpoint, loop
from specvit.utils.files import read_json


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(tiny: list[str], *overrides: str) -> Result:
    return run(build_config(compose([*tiny, *overrides])))


def score_of(folder: Path) -> float:
    """Return R² on the test set."""
    return read_json(folder / "summary.json")["test_r2"]


LEARNS = ("train.epochs=40", "opt.lr=3e-3", "noise.noise_level=0.2")


def test_a_run_learns_and_leaves_its_whole_record(tiny, reference_run) -> None:
    folder = reference_run([*tiny, *LEARNS])
    assert RunFolder(folder, "").state() == "completed"
    assert read_json(folder / "summary.json")["test_r2"] > 0.5
    names = {
        "run.json",
        "config.yaml",
        "status.json",
        "attempts.jsonl",
        "metrics.jsonl",
        "timing.jsonl",
        "summary.json",
    }
    names |= {"predictions.csv", "last.ckpt", "best.ckpt", "log.txt", "figures"}
    assert names <= {path.name for path in folder.iterdir()}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 41))
    assert {"train_loss", "train_r2", "train_mae", "val_loss", "val_r2", "val_mae", "lr", "grad_norm_tokenizer"} <= set(
        rows[0]
    )


def test_summary_equals_scikit_learn_on_the_predictions(tiny, reference_run) -> None:
    folder = reference_run(tiny)
    table, summary = pd.read_csv(folder / "predictions.csv"), read_json(folder / "summary.json")
    assert len(table) == 64
    assert summary["test_r2"] == pytest.approx(r2_score(table["true_log_g"], table["pred_log_g"]), abs=1e-12)
    assert summary["test_mae"] == pytest.approx(mean_absolute_error(table["true_log_g"], table["pred_log_g"]))


@pytest.mark.slow
def test_a_run_draws_its_figures(tiny, drawn_figures) -> None:
    figures = list((train(tiny).folder / "figures").iterdir())
    assert {path.name for path in figures} == {"curves.png", "predictions.png", "residuals.png", "by_snr.png"}
    assert min(path.stat().st_size for path in figures) > 5000


def test_the_test_score_is_that_of_the_best_epoch_not_the_last(tiny, monkeypatch) -> None:
    real, calls = loop.evaluate, []

    def worse_each_epoch(*arguments: Any) -> dict[str, float]:
        calls.append(1)
        return {**real(*arguments), "r2": 1.0 / len(calls)}

    monkeypatch.setattr(loop, "evaluate", worse_each_epoch)
    monitor = ["train.early_stopping.monitor=val_r2", "train.early_stopping.mode=max"]
    result = train(tiny, "train.epochs=4", "opt.lr=1e-2", *monitor)
    best, last = (checkpoint.load(result.folder / name) for name in ("best.ckpt", "last.ckpt"))
    assert result.summary["best_epoch"] == best["epoch"] == 1
    assert result.summary["best_val_r2"] == 1.0
    assert not best["model"]["head.weight"].equal(last["model"]["head.weight"])
    assert evaluate.main([str(result.folder)]) == 0
    assert (result.folder / "evaluate-test" / "predictions.csv").read_bytes() == (
        result.folder / "predictions.csv"
    ).read_bytes()


def test_asking_again_does_nothing_and_says_so(tiny, copied_run, capsys) -> None:
    first = copied_run(tiny)
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.name != ".lock"}
    again = train(tiny)
    assert "finished already" in capsys.readouterr().out
    assert (again.folder.resolve(), again.summary) == (first, read_json(first / "summary.json"))
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.name != ".lock"} == before


@pytest.mark.slow
def test_a_finished_run_is_found_without_importing_torch(tiny, copied_run) -> None:
    copied_run(tiny)
    code = "import sys; from specvit.train import main; sys.exit(main(sys.argv[1:]) or 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code, *tiny], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "finished already" in found.stdout


def test_rerun_repeats_a_finished_run_to_the_same_bytes(tiny, copied_run) -> None:
    first = copied_run([*tiny, "model.dropout=0.1"])
    metrics, predictions = ((first / name).read_bytes() for name in ("metrics.jsonl", "predictions.csv"))
    again = train(tiny, "model.dropout=0.1", "train.rerun=true")
    assert again.folder.resolve() == first
    assert (again.folder / "metrics.jsonl").read_bytes() == metrics
    assert (again.folder / "predictions.csv").read_bytes() == predictions
    attempts = (again.folder / "attempts.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in attempts] == ["start", "ready", "end"] * 2


def test_another_seed_is_another_run_with_the_same_test_noise(tiny, reference_run) -> None:
    one, other = reference_run(tiny), reference_run([*tiny, "train.seed=7"])
    assert one.name != other.name
    tables = [pd.read_csv(folder / "predictions.csv") for folder in (one, other)]
    assert (tables[0]["snr"] == tables[1]["snr"]).all()
    assert (tables[0]["pred_log_g"] != tables[1]["pred_log_g"]).all()


def test_c1d_and_sw_give_the_same_scores_from_the_same_seed(tiny, reference_run) -> None:
    c1d, sw = reference_run(tiny), reference_run([*tiny, "model.proj_fn=SW"])
    assert c1d.name != sw.name
    assert score_of(c1d) == pytest.approx(score_of(sw), abs=1e-3)


@pytest.mark.slow
def test_several_labels_are_scored_each(tiny) -> None:
    result = train(tiny, "data.param=log_g,T_eff", *LEARNS)
    table = pd.read_csv(result.folder / "predictions.csv")
    for label in ("log_g", "T_eff"):
        assert result.summary[f"test_r2_{label}"] == pytest.approx(
            r2_score(table[f"true_{label}"], table[f"pred_{label}"])
        )
    assert result.summary["test_r2"] == result.summary["test_r2_log_g"]
    assert table["pred_T_eff"].between(2000, 8000).all()


@pytest.mark.slow
def test_classes_are_learnt(tiny) -> None:
    settings = [
        "model.task_type=cls",
        "loss=ce",
        "data.class_edges=[2,3,4]",
        "train.early_stopping.monitor=val_accuracy",
    ]
    result = train(tiny, *settings, "train.early_stopping.mode=max", *LEARNS)
    table = pd.read_csv(result.folder / "predictions.csv")
    assert result.summary["test_accuracy"] == pytest.approx((table["true_class"] == table["pred_class"]).mean())
    assert result.summary["test_accuracy"] > 0.45


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_another(tiny, reference_run) -> None:
    first = reference_run([*tiny, *LEARNS])
    tuned = train(
        tiny,
        "train.epochs=1",
        "opt.lr=1e-5",
        "opt.eta_min=0",
        "noise.noise_level=0.2",
        f"train.init_from={first}",
    )
    assert tuned.summary["test_r2"] > 0.8 * score_of(first)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.slow
def test_mixed_precision_ends_near_float32(tiny, reference_run, precision: str) -> None:
    mixed = train(tiny, *LEARNS, f"train.precision={precision}")
    assert mixed.summary["test_r2"] == pytest.approx(score_of(reference_run([*tiny, *LEARNS])), abs=0.15)


def test_training_noise_differs_and_test_noise_does_not_depend_on_the_training_settings(tiny) -> None:
    one, other = (
        train(tiny, "opt.lr=1e-9", "opt.eta_min=0"),
        train(tiny, "opt.lr=1e-9", "opt.eta_min=0", "train.batch_size=24"),
    )
    # Weights hardly move at this rate, so equal predictions mean equal noisy spectra.
    tables = [pd.read_csv(result.folder / "predictions.csv")["pred_log_g"].to_numpy() for result in (one, other)]
    np.testing.assert_allclose(tables[0], tables[1], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((conf_dir() / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_trains_when_it_is_cut_down(path: Path, tiny) -> None:
    small = [
        "data.num_samples=-1",
        "data.val_samples=-1",
        "data.test_samples=-1",
        "train.epochs=1",
        "opt.warmup_epochs=0",
        "data.folds=0",
    ]
    result = train([f"experiment={path.stem}", *tiny], *small)
    assert result.state in ("completed", "plateau")
    assert result.folder.name.startswith(path.stem)
