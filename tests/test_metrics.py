"""Scores against scikit-learn, over whole splits, by bin and from running sums."""

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
from specvit.metrics.metrics import REGRESSION
from specvit.metrics.scores import (
    all_label_scores,
    class_rows,
    class_scores,
    confusion_matrix,
    flat_scores,
    label_rows,
    regression_scores,
    rows_by,
)
from specvit.training.task import Classification, Regression
from specvit.utils.quantities import MAG_BIN_EDGES, SNR_BIN_EDGES

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


@given(st.sampled_from([SNR_BIN_EDGES, MAG_BIN_EDGES]), st.data())
@settings(max_examples=150, deadline=None)
def test_bins_hold_every_row_exactly_once(edges: tuple[float, ...], data: st.DataObject) -> None:
    inside = st.floats(0, 60) | st.sampled_from(edges) | st.just(math.nan)
    values_N = np.array(data.draw(st.lists(inside.filter(lambda value: value != -math.inf), max_size=60)))
    bin_N = np.where(np.isnan(values_N), -1, np.searchsorted(edges[1:-1], values_N, side="right"))
    expected = [
        {"label": name, "low": low, "high": high, "members": np.flatnonzero(bin_N == number).tolist()}
        for name in NAMES
        for number, (low, high) in enumerate(itertools.pairwise(edges))
        if (bin_N == number).sum() >= 2
    ]
    assert rows_by(values_N, edges, lambda n: [{"label": name, "members": n.tolist()} for name in NAMES]) == expected


def test_a_bin_is_scored_like_a_set_of_its_own() -> None:
    true_NK, predicted_NK = labels()
    snr_N = np.linspace(0.0, 30.0, len(true_NK))

    def rows_of(index_n: np.ndarray) -> list[dict]:
        return label_rows(true_NK[index_n], predicted_NK[index_n], NAMES, SCALE)

    rows = rows_by(snr_N, SNR_BIN_EDGES, rows_of)
    assert [row["label"] for row in rows] == ["T_eff"] * 7 + ["log_g"] * 7
    for row in rows:
        inside, k = (snr_N >= row["low"]) & (snr_N < row["high"]), NAMES.index(row["label"])
        assert row["rows"] == inside.sum()
        scores = regression_scores(true_NK[inside, k], predicted_NK[inside, k], scale=SCALE[k])
        assert {name: row[name] for name in scores} == scores
        assert all(row[f"{name}_low"] < row[f"{name}_high"] for name in scores)
        assert row["r2_low"] < row["r2"] < row["r2_high"]


def test_flat_names_of_intervals_end_in_low_and_high() -> None:
    true_NK, predicted_NK = labels()
    rows = label_rows(true_NK, predicted_NK, NAMES, SCALE)
    flat = flat_scores(rows)
    assert flat["r2"] == flat["r2_T_eff"] == rows[0]["r2"]
    assert flat["mae_norm_high"] == flat["mae_norm_T_eff_high"] == rows[0]["mae_norm_high"]
    assert (flat["r2_log_g_low"], flat["r2_log_g"]) == (rows[1]["r2_low"], rows[1]["r2"])
    assert len(flat) == 3 * sum(not metric.needs for metric in REGRESSION.values()) * (1 + len(NAMES))
    assert flat.items() >= all_label_scores(true_NK, predicted_NK, NAMES, SCALE).items()
    assert flat_scores(rows[:1]).keys() == {name for name in flat if not any(label in name for label in NAMES)}


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
    balanced = sk.balanced_accuracy_score(target_N, output_NK.argmax(axis=1))
    assert scores == pytest.approx({"loss": loss, "accuracy": right, "balanced_accuracy": balanced}, rel=1e-6)
    sums = sum(
        task.sums(torch.from_numpy(output), torch.from_numpy(target))
        for output, target in zip(np.array_split(output_NK, 3), np.array_split(target_N, 3), strict=True)
    )
    assert task.running_scores(sums) == {"accuracy": pytest.approx(right)}
    assert task.loss(torch.from_numpy(output_NK), torch.from_numpy(target_N)).item() == pytest.approx(loss, rel=1e-5)


def test_balanced_accuracy_is_the_mean_recall_over_the_classes_that_are_there() -> None:
    true_N, predicted_N = np.array([0, 0, 0, 0, 2, 5]), np.array([0, 0, 0, 1, 2, 0])
    assert class_scores(true_N, predicted_N)["balanced_accuracy"] == pytest.approx((0.75 + 1 + 0) / 3)
    rng = np.random.default_rng(2)
    for _ in range(20):
        true_N, predicted_N = rng.choice(6, size=(2, 40), p=[0.5, 0.3, 0.1, 0.05, 0.03, 0.02])
        predicted_N = np.where(np.isin(predicted_N, true_N), predicted_N, true_N)
        expected = sk.balanced_accuracy_score(true_N, predicted_N)
        assert class_scores(true_N, predicted_N)["balanced_accuracy"] == pytest.approx(expected)


def test_confusion_has_true_classes_as_rows_and_a_line_for_every_class() -> None:
    np.testing.assert_array_equal(confusion_matrix(np.array([0, 0, 2]), np.array([1, 1, 2]), 4)[0], [0, 2, 0, 0])
    target_N, output_NK = classes()
    predicted_N = output_NK.argmax(axis=1)
    np.testing.assert_array_equal(
        confusion_matrix(target_N, predicted_N, 6), sk.confusion_matrix(target_N, predicted_N, labels=range(6))
    )


def test_classes_have_intervals_around_both_accuracies() -> None:
    target_N, output_NK = classes()
    (row,) = class_rows(target_N, output_NK.argmax(axis=1), "class")
    assert (row["label"], row["rows"]) == ("class", len(target_N))
    for metric, value in class_scores(target_N, output_NK.argmax(axis=1)).items():
        assert row[metric] == value
        assert value - 0.1 < row[f"{metric}_low"] < value < row[f"{metric}_high"] < value + 0.1


def test_label_smoothing_is_in_the_loss_of_every_split_and_in_no_other_score() -> None:
    target_N, output_NK = classes()
    sharp, smooth = (Classification(LossConfig(name="ce", label_smoothing=share)) for share in (0.0, 0.3))
    outputs, targets = torch.from_numpy(output_NK), torch.from_numpy(target_N)
    for task in (sharp, smooth):  # training and evaluation report one and the same loss
        scores = task.scores(output_NK, target_N)
        assert task.loss(outputs, targets).item() == pytest.approx(scores["loss"], rel=1e-5)
    by_share = [task.scores(output_NK, target_N) for task in (sharp, smooth)]
    assert by_share[1]["loss"] > by_share[0]["loss"] + 0.1
    assert {**by_share[0], "loss": 0} == {**by_share[1], "loss": 0}
