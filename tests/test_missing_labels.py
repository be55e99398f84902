"""Rows that lack one of several labels (NaN): loss, statistics, scores, estimators, refusals.

Legend: N rows, K labels.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.schema import LossConfig
from specvit.data.labels import fit_scaler
from specvit.data.splits import missing_labels
from specvit.data.views import open_spectra
from specvit.metrics.scores import label_rows
from specvit.run.context import locate
from specvit.run.run import run
from specvit.training.task import Regression
from specvit.utils.errors import DataError

LABELS = "data.param=log_g,M_H"
SEEDS = {"train_0": 0, "train_1": 1, "val": 2, "test": 3}
NAMES = ("log_g", "M_H")


def write_gaps(sets: Path, write_set: Any, stars: Any, **lacking: Any) -> None:
    """Write the toy sets again; `lacking` are the rows of a set that lack M_H."""
    for name, rows in lacking.items():
        count = {"val": 48, "test": 64}.get(name, 96)
        values = stars(count, seed=SEEDS[name])["labels"]["M_H"].to_numpy(copy=True)
        values[rows] = np.nan
        (sets / name / "dataset.h5").unlink()
        write_set(sets / name, count, seed=SEEDS[name], M_H=values)


@pytest.fixture
def gaps(sets: Path, write_set: Any, stars: Any) -> Path:
    """Return toy sets most of whose first half of the training rows, and some other rows, lack M_H."""
    write_gaps(sets, write_set, stars, train_0=np.arange(90), val=[0, 7], test=np.arange(40))
    return sets


def overrides(tiny: list[str], root: Path, folder: Path, *more: str) -> list[str]:
    return [*tiny, f"data.root={root}", f"tracking.folder={folder}", LABELS, *more]


def trained(tiny: list[str], root: Path, folder: Path, *more: str) -> Path:
    result = run(build_config(compose(overrides(tiny, root, folder, *more))))
    assert result.exit_code == 0
    return result.folder


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["mse", "l1", "huber"])
def test_a_missing_label_adds_nothing_to_loss_or_gradient(name: str) -> None:
    """As if the loss had been summed by hand over the labels that are known, however a step is cut into pieces."""
    task = Regression(LossConfig(name=name), NAMES, (0.0, 0.0), (1.0, 1.0), partial=True)
    output_BK = torch.randn(12, 2, generator=torch.Generator().manual_seed(1))
    target_BK = torch.randn(12, 2, generator=torch.Generator().manual_seed(2))
    target_BK[:5, 1] = torch.nan
    target_BK[[0, 9], [1, 0]] = torch.nan
    known_BK = ~target_BK.isnan()
    count = task.count(target_BK)
    assert count is not None
    assert count.item() == 18
    losses, gradients = [], []
    for pieces in (1, 4):
        output = output_BK.clone().requires_grad_()
        loss = sum(task.loss(o, t, count) for o, t in zip(output.chunk(pieces), target_BK.chunk(pieces), strict=True))
        loss.backward()
        losses.append(loss.item())
        gradients.append(output.grad)
    plain = Regression(LossConfig(name=name), NAMES, (0.0, 0.0), (1.0, 1.0))
    by_hand = torch.stack([plain.loss(o, t) for o, t in zip(output_BK[known_BK], target_BK[known_BK], strict=True)])
    assert losses == pytest.approx([by_hand.mean().item()] * 2, rel=1e-6)
    assert torch.equal(gradients[0], gradients[1])
    assert (gradients[0][~known_BK] == 0).all()
    assert (gradients[0][known_BK] != 0).all()
    sums = task.sums(output_BK, target_BK)
    error_B = (output_BK - target_BK)[known_BK[:, 0], 0]
    assert sums[:2].tolist() == pytest.approx([11, error_B.square().sum().item()], rel=1e-6)
    assert task.scores(output_BK.numpy(), target_BK.numpy())["loss"] == pytest.approx(losses[0], rel=1e-6)


def test_accumulation_changes_nothing(tiny: list[str], gaps: Path, tmp_path: Path) -> None:
    runs = [
        rows_of(
            trained(tiny, gaps, tmp_path / str(pieces), "model.dropout=0", f"train.batch_size={16 // pieces}", more)
        )
        for pieces, more in ((1, "train.accumulate=1"), (4, "train.accumulate=4"))
    ]
    for one, four in zip(*runs, strict=True):
        for name in ("train_loss", "train_r2", "grad_norm", "val_loss", "val_r2", "val_r2_M_H"):
            assert four[name] == pytest.approx(one[name], rel=2e-4, abs=1e-6), name


def test_statistics_and_scores_are_over_the_rows_that_have_a_label() -> None:
    rng = np.random.default_rng(0)
    true_NK, error_NK = rng.normal(3, 2, (50, 2)), rng.normal(0, 0.1, (50, 2))
    true_NK[:20, 1] = np.nan
    scaler = fit_scaler(true_NK, NAMES, "standard")
    assert scaler.offset == pytest.approx((true_NK[:, 0].mean(), true_NK[20:, 1].mean()))
    assert scaler.scale == pytest.approx((true_NK[:, 0].std(), true_NK[20:, 1].std()))
    assert fit_scaler(true_NK, NAMES, "minmax").scale[1] == np.ptp(true_NK[20:, 1])
    whole, part = label_rows(true_NK, true_NK + error_NK, NAMES, scaler.scale)
    [alone] = label_rows(true_NK[20:, 1:], (true_NK + error_NK)[20:, 1:], ["M_H"], scaler.scale[1:])
    assert part == alone
    assert (whole["rows"], part["rows"]) == (50, 30)
    none = label_rows(np.full((50, 1), np.nan), true_NK[:, :1], ["M_H"], [1.0])
    assert none[0]["rows"] == 0
    assert np.isnan(none[0]["r2"])


@pytest.mark.slow
def test_a_run_says_what_is_missing_and_leaves_it_out(
    tiny: list[str], gaps: Path, toy_sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained(tiny, gaps, tmp_path / "out")
    words = "M_H in 90 of 192 training rows; M_H in 2 of 48 validation rows; M_H in 40 of 64 test rows"
    assert f"note: missing labels (NaN) are left out of loss and scores: {words}" in capsys.readouterr().out
    table, summary = pd.read_csv(folder / "predictions.csv"), json.loads((folder / "summary.json").read_text())
    assert table["true_M_H"].isna().tolist() == [True] * 40 + [False] * 24
    assert table["pred_M_H"].notna().all()
    error_n = (table.pred_M_H - table.true_M_H)[40:]
    assert summary["test_mae_M_H"] == pytest.approx(error_n.abs().mean())
    assert [row["rows"] for row in summary["test_by_mag"] if row["label"] == "M_H"] == [24]
    assert all((folder / "figures" / name).exists() for name in ("predictions.png", "residuals.png", "by_snr.png"))
    ids = [
        locate(build_config(compose(overrides(tiny, root, tmp_path))), lambda *_: None).folder.run_id
        for root in (gaps, toy_sets)
    ]
    assert ids[0] != ids[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ridge", "template"])
def test_an_estimator_learns_a_label_from_the_rows_that_have_it(
    kind: str, tiny: list[str], sets: Path, write_set: Any, stars: Any, tmp_path: Path
) -> None:
    """Its predictions of M_H are those of a fit on the 60 rows with M_H; those of log_g are those of a fit on all."""
    write_gaps(sets, write_set, stars, train_0=np.arange(60, 96), train_1=np.arange(96))
    base = [text for text in tiny if not text.startswith("model.")]
    more = [f"model={kind}", "data.flux_norm=none", "data.label_norm=none"]
    more += ["model.alpha_range=[10,10]", "model.num_alphas=1"] if kind == "ridge" else []
    both, first, log_g = (
        pd.read_csv(trained(base, sets, tmp_path / name, *more, key) / "predictions.csv")
        for name, key in (("both", LABELS), ("first", "data.num_samples=60"), ("log_g", "data.param=log_g"))
    )
    np.testing.assert_allclose(both.pred_log_g, log_g.pred_log_g, rtol=1e-4)
    np.testing.assert_allclose(both.pred_M_H, first.pred_M_H, rtol=1e-4, atol=1e-5)
    assert not np.allclose(both.pred_log_g, first.pred_log_g, rtol=1e-3)


def test_rows_without_any_label_and_infinite_ones_are_refused(
    tiny: list[str], sets: Path, write_set: Any, stars: Any, refused: Any, tmp_path: Path
) -> None:
    write_gaps(sets, write_set, stars, train_1=[3, 5])
    path = sets / "train_1" / "dataset.h5"
    assert missing_labels(open_spectra([path], -1), NAMES) == "M_H in 2 of 96"
    arguments = overrides(tiny, sets, tmp_path / "out")
    assert f"{path} row 3: label M_H is nan, as in 2 rows" in refused([*arguments, "data.param=M_H"])
    values = stars(96, seed=1)["labels"]["log_g"].to_numpy(copy=True)
    values[5] = np.nan
    for last, words in ((np.nan, "has none of the labels log_g, M_H"), (np.inf, "label log_g is inf")):
        values[5], gone = last, stars(96, seed=1)["labels"]["M_H"].to_numpy(copy=True)
        gone[5] = np.nan
        path.unlink()
        write_set(path.parent, 96, seed=1, log_g=values, M_H=gone)
        assert f"row 5: {words}" in refused(arguments)


def test_a_label_that_no_training_or_validation_row_has_is_refused(
    tiny: list[str], sets: Path, write_set: Any, stars: Any, refused: Any, tmp_path: Path
) -> None:
    write_gaps(sets, write_set, stars, val=np.arange(48))
    arguments = overrides(tiny, sets, tmp_path / "out")
    said = refused([*arguments, "data.param=M_H,log_g"])
    assert "no validation row has the label M_H, so val_r2 is undefined" in said
    write_gaps(sets, write_set, stars, train_0=np.arange(96), train_1=np.arange(96))
    assert "label M_H: is missing (NaN) in every training row" in refused(arguments)
    with pytest.raises(DataError, match="every training row"):
        fit_scaler(np.array([[1.0, np.nan], [2.0, np.nan]]), NAMES, "none")
