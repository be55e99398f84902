"""Final scores in a run's record, against scikit-learn on its predictions."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scored_runs import LABELS, summary_of
from sklearn import metrics as sk

from specvit.commands import train
from specvit.tracking import figures
from specvit.training import checkpoint
from specvit.utils.quantities import MAG_BIN_EDGES, SNR_BIN_EDGES


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def labels_run(trained_labels: Path) -> Path:
    return trained_labels


@pytest.fixture
def classes_run(trained_classes: Path) -> Path:
    return trained_classes


def expected_scores(table: pd.DataFrame, label: str) -> dict[str, float]:
    """Return scores of one label by scikit-learn and NumPy."""
    true_N, predicted_N = table[f"true_{label}"], table[f"pred_{label}"]
    return {
        "r2": sk.r2_score(true_N, predicted_N),
        "mae": sk.mean_absolute_error(true_N, predicted_N),
        "rmse": sk.root_mean_squared_error(true_N, predicted_N),
        "bias": np.median(predicted_N - true_N),
        "p90": np.quantile(np.abs(predicted_N - true_N), 0.9),
        "slope": np.polyfit(true_N, predicted_N, 1)[0],
    }


def test_summary_equals_scikit_learn_for_each_label(labels_run: Path) -> None:
    summary, table = summary_of(labels_run), pd.read_csv(labels_run / "predictions.csv")
    scale = checkpoint.load(labels_run / "best.ckpt")["coder"]["scale"]
    for k, label in enumerate(LABELS):
        expected = expected_scores(table, label)
        expected["mae_norm"] = expected["mae"] / scale[k]
        for metric, value in expected.items():
            assert summary[f"test_{metric}_{label}"] == pytest.approx(value, rel=1e-6), (metric, label)
            low, high = (summary[f"test_{metric}_{label}_{end}"] for end in ("low", "high"))
            assert low < high
            if k == 0:
                plain = [summary[f"test_{metric}{end}"] for end in ("", "_low", "_high")]
                assert plain == [summary[f"test_{metric}_{label}"], low, high]
        assert summary[f"test_r2_{label}_low"] < summary[f"test_r2_{label}"] < summary[f"test_r2_{label}_high"]
    assert summary["label"] == "log_g"


@pytest.mark.parametrize(("column", "edges"), [("snr", SNR_BIN_EDGES), ("mag", MAG_BIN_EDGES)])
def test_bins_of_the_summary_equal_scikit_learn_for_each_label(labels_run: Path, column: str, edges: Any) -> None:
    table = pd.read_csv(labels_run / "predictions.csv")
    rows = summary_of(labels_run)[f"test_by_{column}"]
    cut = pd.cut(table[column], edges, right=False, labels=False)
    counts = cut.value_counts()
    filled = [number for number in range(len(edges) - 1) if counts.get(number, 0) >= 2]
    assert len(filled) >= 3
    assert [row["label"] for row in rows] == [label for label in LABELS for _ in filled]
    for row, number in zip(rows, filled * len(LABELS), strict=True):
        inside = table[cut == number]
        bounds = [edge if np.isfinite(edge) else None for edge in edges[number : number + 2]]
        assert [row["low"], row["high"], row["rows"]] == [*bounds, len(inside)]
        for metric, value in expected_scores(inside, row["label"]).items():
            assert row[metric] == pytest.approx(value, rel=1e-6)
            ends = [row[f"{metric}_{end}"] for end in ("low", "high")]
            assert ends == [None, None] if len(inside) < 10 else ends[0] < ends[1]
    assert {row["rows"] < 10 for row in rows} == {True, False}
    assert sum(row["rows"] for row in rows) <= len(LABELS) * (64 - table[column].isna().sum())


def test_classes_of_the_summary_equal_scikit_learn(classes_run: Path) -> None:
    summary, table = summary_of(classes_run), pd.read_csv(classes_run / "predictions.csv")
    true_N, predicted_N = table["true_class"], table["pred_class"]
    assert summary["test_accuracy"] == pytest.approx(sk.accuracy_score(true_N, predicted_N))
    balanced = sk.balanced_accuracy_score(true_N, predicted_N)
    assert summary["test_balanced_accuracy"] == pytest.approx(balanced)
    assert summary["test_accuracy_low"] < summary["test_accuracy"] < summary["test_accuracy_high"]
    assert summary["test_balanced_accuracy_low"] < balanced < summary["test_balanced_accuracy_high"]
    assert summary["classes"] == ["< 2", "2 to 3", "3 to 4", "≥ 4"]
    assert summary["test_confusion"] == sk.confusion_matrix(true_N, predicted_N, labels=range(4)).tolist()
    for column, edges in (("snr", SNR_BIN_EDGES), ("mag", MAG_BIN_EDGES)):
        rows = summary[f"test_by_{column}"]
        assert len(rows) >= 3
        for row in rows:
            low = -np.inf if row["low"] is None else row["low"]
            high = np.inf if row["high"] is None else row["high"]
            assert (low, high) in itertools.pairwise(edges)
            inside = (table[column] >= low) & (table[column] < high)
            assert row["accuracy"] == pytest.approx((true_N == predicted_N)[inside].mean())
            if row["rows"] >= 10:
                assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
    assert {path.name for path in (classes_run / "figures").iterdir()} == {"confusion.png", "by_snr.png", "curves.png"}


def test_a_monitor_of_balanced_accuracy_chooses_the_best_epoch(classes_run: Path) -> None:
    rows = [json.loads(line) for line in (classes_run / "metrics.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: row["val_balanced_accuracy"])
    assert summary_of(classes_run)["best_epoch"] == best["epoch"]
    assert summary_of(classes_run)["best_val_balanced_accuracy"] == best["val_balanced_accuracy"]


def test_epochs_have_no_intervals(labels_run: Path, classes_run: Path) -> None:
    for run in (labels_run, classes_run):
        names = set(json.loads((run / "metrics.jsonl").read_text().splitlines()[0]))
        assert {"val_loss", "train_loss"} < names
        assert not [name for name in names if name.endswith(("_low", "_high"))]


@pytest.mark.slow
def test_a_rerun_writes_the_same_summary(scored: list[str], copied_run: Any) -> None:
    folder = copied_run(scored)
    before = (folder / "summary.json").read_bytes()
    assert train.main([*scored, f"tracking.folder={folder.parent}", "train.rerun=true"]) == 0
    assert (folder / "summary.json").read_bytes() == before


def test_the_last_line_of_a_run_has_the_interval(reference_run: Any, scored: list[str]) -> None:
    folder = reference_run(scored)
    summary = summary_of(folder)
    ends = f"[{summary['test_r2_low']:.3f}, {summary['test_r2_high']:.3f}]"
    line = f"test R² {summary['test_r2']:.4f} {ends}, MAE {summary['test_mae']:.4f} dex (log_g, 64 spectra)"
    assert f": {line}  {folder}" in (folder / "log.txt").read_text()


@pytest.mark.slow
def test_a_run_whose_figures_fail_is_finished(scored: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    def broken(*_: Any) -> None:
        raise ImportError("no matplotlib")

    monkeypatch.setattr(figures, "canvas", broken)
    monkeypatch.setattr(figures, "canvas", broken)
    assert train.main([*scored, f"tracking.folder={tmp_path / 'outputs'}"]) == 0
    (folder,) = (tmp_path / "outputs").iterdir()
    assert capsys.readouterr().out.count("could not be drawn (ImportError: no matplotlib)") == 4
    assert summary_of(folder)["test_rows"] == 64
    assert not (folder / "figures").exists() or not list((folder / "figures").iterdir())
