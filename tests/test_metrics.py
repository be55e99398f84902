"""Scores against scikit-learn, over whole splits, by S/N and from running sums."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.linear_model import LinearRegression

from specvit.config.schema import LossConfig
from specvit.engine.task import Classification, Regression
from specvit.quantities import SNR_BIN_EDGES
from specvit.scores.metrics import accuracy, all_label_scores, regression_scores, scores_by_snr

NAMES, OFFSET, SCALE = ("T_eff", "log_g"), (5000.0, 3.0), (800.0, 1.3)


def labels(rows: int = 301, num_labels: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return normalised targets (N, K) and predictions that are skewed and off by some, float32."""
    rng = np.random.default_rng(seed)
    target_NK = rng.normal(size=(rows, num_labels))
    output_NK = 0.8 * target_NK + 0.1 + 0.3 * rng.exponential(size=(rows, num_labels))
    return target_NK.astype(np.float32), output_NK.astype(np.float32)


def regression(name: str = "mse", **changes) -> Regression:
    """Return the task of two labels."""
    return Regression(LossConfig(name=name, **changes), NAMES, OFFSET, SCALE)


def classes(rows: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Return class numbers (N,) and outputs (N, 4), float32."""
    rng = np.random.default_rng(1)
    target_N = rng.integers(4, size=rows)
    return target_N, (rng.normal(size=(rows, 4)) + 1.5 * np.eye(4)[target_N]).astype(np.float32)


@pytest.mark.parametrize("offset", [0.0, 5000.0])
def test_regression_scores_match_scikit_learn(offset: float) -> None:
    target_NK, output_NK = labels()
    true, predicted = 700 * target_NK[:, 0] + offset, 700 * output_NK[:, 0].astype(np.float64) + offset
    scores = regression_scores(true, predicted, scale=700.0)
    true = true.astype(np.float64)
    line = LinearRegression().fit(true[:, None], predicted)
    expected = {
        "r2": sk.r2_score(true, predicted),
        "mae": sk.mean_absolute_error(true, predicted),
        "rmse": sk.root_mean_squared_error(true, predicted),
        "bias": np.median(predicted - true),
        "p90": np.quantile(np.abs(true - predicted), 0.9),
        "slope": line.coef_[0],
        "mae_norm": sk.mean_absolute_error(true, predicted) / 700,
    }
    assert scores == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, 4.44, 5777.1])
@pytest.mark.parametrize("rows", [2, 3, 10, 1000])
def test_constant_label_has_neither_r2_nor_slope(value: float, rows: int) -> None:
    scores = regression_scores(np.full(rows, value), np.full(rows, value) + np.arange(rows))
    assert math.isnan(scores["r2"])
    assert math.isnan(scores["slope"])
    assert scores["mae"] == pytest.approx((rows - 1) / 2)


def test_perfect_and_mean_predictions_score_one_and_zero() -> None:
    true = np.array([4.0, 4.5, 2.0, 1.0])
    assert regression_scores(true, true)["r2"] == 1.0
    assert regression_scores(true, np.full(4, true.mean()))["r2"] == 0.0


def test_first_label_has_the_plain_names_and_each_its_own() -> None:
    true, predicted = labels()
    scores = all_label_scores(true, predicted, NAMES, SCALE)
    for k, name in enumerate(NAMES):
        of_label = regression_scores(true[:, k], predicted[:, k], scale=SCALE[k])
        assert {metric: scores[f"{metric}_{name}"] for metric in of_label} == of_label
    assert {metric: scores[metric] for metric in of_label} == regression_scores(
        true[:, 0], predicted[:, 0], scale=SCALE[0]
    )
    assert all_label_scores(true[:, :1], predicted[:, :1], NAMES[:1], SCALE[:1]).keys() == of_label.keys()


@given(st.lists(st.floats(0, 60) | st.sampled_from([*SNR_BIN_EDGES]), max_size=60))
@settings(max_examples=150, deadline=None)
def test_snr_bins_hold_every_row_exactly_once(snr: list[float]) -> None:
    snr_N = np.array(snr)
    rng = np.random.default_rng(len(snr))
    true_N, predicted_N = rng.normal(size=(2, len(snr)))
    bin_N = np.searchsorted(SNR_BIN_EDGES[1:-1], snr_N, side="right")
    counts = np.bincount(bin_N, minlength=len(SNR_BIN_EDGES) - 1)
    bins = scores_by_snr(true_N, predicted_N, snr_N)
    expected = [
        {
            "snr_low": low,
            "snr_high": high,
            "rows": int(counts[number]),
            "r2": sk.r2_score(true_N[bin_N == number], predicted_N[bin_N == number]),
            "mae": sk.mean_absolute_error(true_N[bin_N == number], predicted_N[bin_N == number]),
        }
        for number, (low, high) in enumerate(itertools.pairwise(SNR_BIN_EDGES))
        if counts[number] >= 2
    ]
    assert bins == [pytest.approx(row) for row in expected]


@pytest.mark.parametrize("pieces", [1, 7])
def test_running_scores_from_sums_equal_whole_split_scores(pieces: int) -> None:
    task = regression()
    target_NK, output_NK = labels()
    pairs = zip(np.array_split(output_NK, pieces), np.array_split(target_NK, pieces), strict=True)
    sums = sum(task.sums(torch.from_numpy(output), torch.from_numpy(target)) for output, target in pairs)
    assert sums.shape == (task.num_sums,)
    whole = task.scores(output_NK, target_NK)
    assert task.running_scores(sums) == pytest.approx({name: whole[name] for name in ("r2", "mae")}, rel=1e-6)


def test_regression_scores_are_in_label_units() -> None:
    target_NK, output_NK = labels()
    scores = regression().scores(output_NK, target_NK)
    error_NK = output_NK.astype(np.float64) - target_NK
    assert scores["mae_T_eff"] == pytest.approx(800 * np.abs(error_NK[:, 0]).mean(), rel=1e-6)
    assert scores["mae_log_g"] == pytest.approx(1.3 * np.abs(error_NK[:, 1]).mean(), rel=1e-6)
    assert scores["mae_norm_log_g"] == pytest.approx(np.abs(error_NK[:, 1]).mean(), rel=1e-6)
    decoded_NK = regression().decode(np.array([[0.0, 1.0]], dtype=np.float32))
    np.testing.assert_allclose(decoded_NK, [[5000.0, 4.3]])


@pytest.mark.parametrize("name", ["mse", "l1", "huber"])
def test_regression_losses_by_definition(name: str) -> None:
    target_NK, output_NK = labels()
    error_NK = np.abs(output_NK.astype(np.float64) - target_NK)
    huber_NK = np.where(error_NK < 0.4, 0.5 * error_NK**2, 0.4 * (error_NK - 0.2))
    expected = {"mse": error_NK**2, "l1": error_NK, "huber": huber_NK}[name].mean()
    task = regression(name, huber_delta=0.4)
    loss = task.loss(torch.from_numpy(output_NK), torch.from_numpy(target_NK))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert task.scores(output_NK, target_NK)["loss"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_classification_scores_match_scikit_learn(smoothing: float) -> None:
    target_N, output_NK = classes()
    task = Classification(LossConfig(name="ce", label_smoothing=smoothing))
    logits_NK = output_NK.astype(np.float64)
    share_NK = np.exp(logits_NK) / np.exp(logits_NK).sum(axis=1, keepdims=True)
    uniform = -np.log(share_NK).mean()
    loss = (1 - smoothing) * sk.log_loss(target_N, share_NK, labels=range(4)) + smoothing * uniform
    scores = task.scores(output_NK, target_N)
    right = sk.accuracy_score(target_N, output_NK.argmax(axis=1))
    assert 0.3 < right < 0.95
    assert scores == pytest.approx({"loss": loss, "accuracy": right}, rel=1e-6)
    sums = sum(
        task.sums(torch.from_numpy(output), torch.from_numpy(target))
        for output, target in zip(np.array_split(output_NK, 3), np.array_split(target_N, 3), strict=True)
    )
    assert task.running_scores(sums) == {"accuracy": pytest.approx(right)}
    assert task.loss(torch.from_numpy(output_NK), torch.from_numpy(target_N)).item() == pytest.approx(loss, rel=1e-5)


def test_accuracy_is_the_share_of_right_rows() -> None:
    assert accuracy(np.array([0, 1, 2, 2]), np.array([0, 2, 2, 2])) == 0.75
