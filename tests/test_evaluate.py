"""`specvit evaluate` on other files and at other noise levels."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scored_runs import LABELS, summary_of

from specvit.commands import evaluate
from specvit.config.build import build_config
from specvit.config.schema import NoiseConfig
from specvit.data.noise import evaluation_noise
from specvit.data.shards import write_shard
from specvit.data.views import open_spectra
from specvit.models import build_model
from specvit.run import evaluation
from specvit.training import checkpoint


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def labels_run(trained_labels: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may write into."""
    return Path(shutil.copytree(trained_labels, tmp_path / trained_labels.name))


@pytest.fixture
def classes_run(trained_classes: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may write into."""
    return Path(shutil.copytree(trained_classes, tmp_path / trained_classes.name))


def test_evaluate_gives_the_scores_and_figures_of_the_run(labels_run: Path, classes_run: Path) -> None:
    for run in (labels_run, classes_run):
        assert evaluate.main([str(run)]) == 0
        again, first = summary_of(run / "evaluate-test"), summary_of(run)
        scored = {name: value for name, value in first.items() if name.startswith("test_") or name == "classes"}
        assert scored.items() <= again.items()
        figures = {path.name for path in (run / "figures").iterdir()} - {"curves.png"}
        assert {path.name for path in (run / "evaluate-test" / "figures").iterdir()} == figures


@pytest.mark.slow
def test_noise_levels_are_scored_each_in_a_folder_and_all_in_one_table(labels_run: Path, capsys) -> None:
    assert evaluate.main([str(labels_run), "--noise", "0,0.5, 2,0.50"]) == 0
    said = capsys.readouterr().out
    folders = {level: labels_run / f"evaluate-test-noise{level}" for level in ("0", "0.5", "2")}
    own = (labels_run / "predictions.csv").read_bytes()  # the run's level is 0.5
    assert (folders["0.5"] / "predictions.csv").read_bytes() == own
    tables = {level: pd.read_csv(folder / "predictions.csv") for level, folder in folders.items()}
    np.testing.assert_allclose(tables["2"]["snr"], tables["0.5"]["snr"] / 4)
    assert np.isinf(tables["0"]["snr"]).all()
    rows = pd.read_csv(labels_run / "evaluate-test-by_noise" / "by_noise.csv")
    assert list(zip(rows["noise_level"], rows["label"], strict=True)) == [(e, n) for e in (0, 0.5, 2) for n in LABELS]
    for row in rows.to_dict("records"):
        summary = summary_of(folders[f"{row['noise_level']:g}"])
        assert summary["noise_level"] == row["noise_level"]
        for metric in ("r2", "r2_low", "r2_high", "mae", "slope_high"):
            base, end = metric.partition("_")[::2]
            assert row[metric] == summary[f"test_{base}_{row['label']}" + (f"_{end}" if end else "")]
        ends = f"[{row['r2_low']:.3f}, {row['r2_high']:.3f}]"
        assert f"noise {row['noise_level']:g}: R² {row['r2']:.4f} {ends}, MAE {row['mae']:.4f}" in said
    (clean,) = [row for row in summary_of(folders["0"])["test_by_snr"] if row["label"] == "log_g"]
    assert (clean["low"], clean["high"], clean["rows"]) == (18.0, None, 64)


def test_one_level_makes_no_table_and_prints_the_bins(labels_run: Path, capsys) -> None:
    assert evaluate.main([str(labels_run), "--noise", "1"]) == 0
    assert (labels_run / "evaluate-test-noise1" / "summary.json").exists()
    assert not (labels_run / "evaluate-test-by_noise").exists()
    (row, *_) = [r for r in summary_of(labels_run / "evaluate-test-noise1")["test_by_mag"] if r["low"] == 21.0]
    assert row["rows"] >= 10
    ends = f"[{row['r2_low']:.3f}, {row['r2_high']:.3f}]"
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["21", "to", "21.5", "log_g", "[dex]", str(row["rows"]), f"{row['r2']:.3f}", *ends.split()] in [
        line[:9] for line in lines
    ]


@pytest.mark.slow
def test_a_row_has_the_same_unit_noise_at_every_level(labels_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs: list[np.ndarray] = []
    real = evaluation.predict

    def spy(module: Any, view: Any) -> Any:
        inputs.append(torch.cat([batch.flux_BP for batch in view.batches()]).cpu().numpy())
        return real(module, view)

    monkeypatch.setattr(evaluation, "predict", spy)
    assert evaluate.main([str(labels_run), "--noise", "0,0.5,3"]) == 0
    clean, half, triple = inputs
    noise = evaluation_noise(np.arange(64), clean.shape[1], seed=42, split="test")
    config, saved = evaluate.read_config(labels_run), checkpoint.load(labels_run / "best.ckpt")
    _, error_NP = open_spectra([Path(config.data.test_path[0])], -1).gather(np.arange(64))
    for level, noisy in ((0.5, half), (3, triple)):
        np.testing.assert_allclose((noisy - clean) * saved["flux_scale"], level * error_NP * noise, atol=2e-5)


def test_nothing_is_fitted_to_the_file_that_is_scored(labels_run: Path, stars: Any) -> None:
    """A file with all fluxes and labels shifted is read with the checkpoint's mean spectrum, scales and offsets."""
    shifted = stars(40, seed=8)
    shifted["flux_NP"] = 0.7 * shifted["flux_NP"] + 0.4
    shifted["labels"][["log_g", "T_eff"]] += [3.0, 900.0]
    write_shard(Path("shifted/dataset.h5"), **shifted)
    assert evaluate.main([str(labels_run), "--data", "shifted/dataset.h5", "--noise", "0"]) == 0
    folder = labels_run / "evaluate-shifted-dataset-noise0"
    table = pd.read_csv(folder / "predictions.csv")
    saved, config = checkpoint.load(labels_run / "best.ckpt"), evaluate.read_config(labels_run)
    model = build_model(config.model, num_pixels=256, num_outputs=3, seed=0).eval()
    model.load_state_dict(saved["model"])
    flux_NP = torch.from_numpy(shifted["flux_NP"].astype(np.float32).clip(min=0.0))
    with torch.no_grad():
        output_NK = model((flux_NP - saved["flux_mean_P"]) / saved["flux_scale"]).double().numpy()
    expected = output_NK * saved["coder"]["scale"] + saved["coder"]["offset"]
    np.testing.assert_allclose(table[[f"pred_{label}" for label in LABELS]], expected, rtol=1e-4)
    np.testing.assert_allclose(table["true_log_g"], shifted["labels"]["log_g"])
    summary = summary_of(folder)
    assert summary["test_mae_norm"] == pytest.approx(summary["test_mae"] / saved["coder"]["scale"][0])


def test_a_bad_noise_level_is_one_sentence(labels_run: Path, capsys) -> None:
    before = sorted(labels_run.rglob("*"))
    for levels in ("one", "-1", "-0.5,1", "0,,1", "nan", "inf", "1;2", "0.5,1e400"):
        assert evaluate.main([str(labels_run), f"--noise={levels}"]) == 2, levels
        heard = capsys.readouterr().err
        assert heard.startswith("specvit: --noise: ") and heard.endswith("such as 0,0.5,1.\n"), heard
        assert heard.count("\n") == 1, heard
    assert sorted(labels_run.rglob("*")) == before


def test_a_command_line_that_cannot_be_read_is_one_sentence(capsys) -> None:
    for arguments in ([], ["run", "--nois"], ["run", "more"], ["run", "--noise"], ["--data", "a"]):
        assert evaluate.main(arguments) == 2, arguments
        heard = capsys.readouterr().err
        assert heard.startswith("specvit: specvit evaluate: ") and heard.count("\n") == 1, heard


def test_a_single_spectrum_is_scored_without_intervals(labels_run: Path, stars: Any, capsys) -> None:
    write_shard(Path("single/star.h5"), **stars(1))
    assert evaluate.main([str(labels_run), "--data", "single/star.h5"]) == 0
    summary = summary_of(labels_run / "evaluate-single-star")
    assert summary["test_r2"] is summary["test_r2_low"] is summary["test_mae_low"] is None
    assert summary["test_by_snr"] == []
    said = capsys.readouterr().out
    assert f"R² undefined, MAE {summary['test_mae']:.4f} dex (log_g, 1 spectrum)" in said


def test_levels_are_read_once_each_and_zero_has_no_sign() -> None:
    assert evaluate.read_levels("1, 1.0,0.25,-0.0,2e-5") == [1.0, 0.25, 0.0, 2e-5]
    assert str(evaluate.read_levels("-0")[0]) == "0.0"


def test_a_run_without_noise_is_scored_at_the_errors_of_the_pixels() -> None:
    clean = NoiseConfig(noise_type="none")
    assert evaluate.at_level(clean, 0.5) == NoiseConfig(noise_level=0.5, noise_type="heteroscedastic")
    even = NoiseConfig(noise_type="homoscedastic", eval_seed=7)
    assert evaluate.at_level(even, 2.0) == dataclasses.replace(even, noise_level=2.0)


def test_a_run_recorded_by_the_first_version_is_still_scored(labels_run: Path) -> None:
    """Keys of `config.yaml` as of commit 7bf206c, before there were intervals; what came later is left out."""
    config = yaml.safe_load((labels_run / "config.yaml").read_text())
    first = yaml.safe_load(FIRST_KEYS)
    kept = {section: {key: config[section][key] for key in keys.split()} for section, keys in first.items()}
    (labels_run / "config.yaml").write_text(yaml.safe_dump(kept))
    old = {"run_id": "x", "test_r2": 0.5, "test_mae": 0.3, "test_rows": 64, "label": "log_g", "unit": "dex"}
    (labels_run / "summary.json").write_text(json.dumps(old))
    assert build_config(kept) == dataclasses.replace(evaluate.read_config(labels_run))
    assert evaluate.main([str(labels_run), "--noise", "0.5"]) == 0
    table = (labels_run / "evaluate-test-noise0.5" / "predictions.csv").read_bytes()
    assert table == (labels_run / "predictions.csv").read_bytes()


FIRST_KEYS = """
model: kind task_type patch_size stride_size hidden_size num_hidden_layers num_attention_heads intermediate_size dropout
  proj_fn pos_encoding_type pool qkv_bias init
data: kind root file_path val_path test_path num_samples val_samples test_samples subset subset_seed param class_edges
  label_norm flux_norm order builtin_seed resident storage
noise: noise_level noise_type eval_seed
loss: name huber_delta label_smoothing
opt: type lr weight_decay betas momentum lr_sch eta_min warmup_epochs step_epochs factor plateau_patience
train: epochs batch_size accumulate precision gradient_clip early_stopping save_every init_from device threads seed
  deterministic compile checkpoint_blocks rerun
tracking: experiment uri name tags notes folder progress
"""


def test_a_figure_that_cannot_be_drawn_costs_itself_alone(labels_run: Path, monkeypatch, capsys) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no fonts\nat all")

    assert evaluate.main([str(labels_run)]) == 0
    out = labels_run / "evaluate-test"
    before = (out / "summary.json").read_bytes()
    capsys.readouterr()
    monkeypatch.setattr(evaluation, "draw_residuals", broken)
    assert evaluate.main([str(labels_run)]) == 0
    said = capsys.readouterr().out
    assert "note: figures/residuals.png could not be drawn (RuntimeError: no fonts)\n" in said
    assert {path.name for path in (out / "figures").iterdir()} == {"predictions.png", "by_snr.png"}
    assert (out / "summary.json").read_bytes() == before


def test_a_checkpoint_that_lacks_a_part_or_has_another_type_there_is_named(
    labels_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = labels_run / "best.ckpt"
    whole = checkpoint.load(path)
    coder, model = whole["coder"], whole["model"]
    wrong: dict[str, list[Any]] = {
        "run_id": [None, 7, "00000000"],
        "coder": [None, [], {}, {**coder, "kind": "x"}, {**coder, "scale": ["a"]}, {**coder, "offset": [1.0]}],
        "flux_mean_P": [None, 1.0, whole["flux_mean_P"][:-1], whole["flux_mean_P"][None]],
        "flux_scale": [None, "a", [1.0]],
        "wave_P": [None, "a", whole["wave_P"][1:]],
        "epoch": [None, "a"],
        "model": [None, [], {}, {**model, 7: 1}, {**model, next(iter(model)): "a"}],
    }
    for name, values in wrong.items():
        for value in values:
            checkpoint.save(path, {**whole, name: value})
            assert evaluate.main([str(labels_run)]) == 2, (name, value)
            said = capsys.readouterr().err
            assert said.startswith(f"specvit: {path}: ") and said.count("\n") == 1, (name, said)
    checkpoint.save(path, whole)
    (labels_run / "run.json").write_text("torn")
    assert evaluate.main([str(labels_run)]) == 0
    assert evaluate.main([str(labels_run), "--data", ""]) == 2
    assert "empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "more"), [("ridge", []), ("lightgbm", ["model.min_leaf_rows=9", "model.num_trees=3"])]
)
def test_a_fitted_model_that_lacks_a_part_is_named(
    kind: str, more: list[str], scored: list[str], copied_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in scored if not word.startswith(("model.", "train.", "opt."))]
    run = copied_run([*words, f"model={kind}", *more])
    whole = checkpoint.load(run / "best.ckpt")
    for value in ({}, dict.fromkeys(whole["model"], 1), {**whole["model"], "text": "x", "weight": torch.zeros(3)}):
        checkpoint.save(run / "best.ckpt", {**whole, "model": value})
        assert evaluate.main([str(run)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"specvit: {run / 'best.ckpt'}: ") and "model." in said, said
