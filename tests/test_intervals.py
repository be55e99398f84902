"""Intervals against drawing the rows one by one, their coverage, and what must not change them."""

import math
import tracemalloc
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from specvit.metrics import intervals as bootstrap
from specvit.metrics.intervals import count_matrices, intervals, percentile_interval
from specvit.metrics.scores import class_rows, class_scores, label_rows, regression_scores
from specvit.metrics.statistics import ClassRows, RegressionRows


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def labels(rows: int, seed: int = 0, step: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return true and predicted labels (rows,); rounded to `step`, so that many are equal."""
    rng = np.random.default_rng(seed)
    true_N = rng.uniform(3750.0, 6000.0, rows)
    predicted_N = 400.0 + 0.9 * true_N + 300.0 * rng.standard_normal(rows)
    return (true_N, predicted_N) if not step else (step * np.round(true_N / step), step * np.round(predicted_N / step))


def drawn(rows: int) -> np.ndarray:
    """Return all counts (RESAMPLES, rows)."""
    return np.concatenate(list(count_matrices(rows)))


def scored(rows: RegressionRows | ClassRows, counts_RN: np.ndarray) -> dict[str, np.ndarray]:
    """Return all metrics of the resamples, (R,) each."""
    return {name: metric.function(rows.resampled(counts_RN)) for name, metric in rows.metrics.items()}


def same(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("step", [0.0, 500.0])
@pytest.mark.parametrize("rows", [1, 2, 3, 14, 25, 51, 150])
def test_resampled_scores_equal_those_of_rows_drawn_one_by_one(rows: int, step: float) -> None:
    true_N, predicted_N = labels(rows, step=step)
    counts_RN = drawn(rows)[::9]
    found = scored(RegressionRows(true_N, predicted_N, scale=7.0), counts_RN)
    index_RN = [np.repeat(np.arange(rows), counts_N) for counts_N in counts_RN]
    naive = [regression_scores(true_N[index_N], predicted_N[index_N], scale=7.0) for index_N in index_RN]
    assert list(found) == list(naive[0])
    for metric, value_R in found.items():
        same(value_R, np.array([scores[metric] for scores in naive]))
    for metric in ("bias", "p90"):  # order statistics involve no sums, so these are equal to the last bit
        np.testing.assert_array_equal(found[metric], [scores[metric] for scores in naive])


@pytest.mark.parametrize("rows", [1, 5, 60])
def test_resampled_classes_equal_those_of_rows_drawn_one_by_one(rows: int) -> None:
    rng = np.random.default_rng(3)
    true_N, predicted_N = rng.choice(5, size=(2, rows), p=[0.5, 0.3, 0.1, 0.07, 0.03])
    counts_RN = drawn(rows)[::9]
    found = scored(ClassRows(true_N, predicted_N), counts_RN)
    index_RN = [np.repeat(np.arange(rows), counts_N) for counts_N in counts_RN]
    naive = [class_scores(true_N[index_N], predicted_N[index_N]) for index_N in index_RN]
    for metric, value_R in found.items():
        same(value_R, np.array([scores[metric] for scores in naive]))
    warnings.simplefilter("ignore")  # scikit-learn warns of classes that are predicted but not there
    expected = [balanced_accuracy_score(true_N[index_N], predicted_N[index_N]) for index_N in index_RN]
    same(found["balanced_accuracy"], np.array(expected))


def test_an_interval_is_the_middle_95_percent_of_the_resamples() -> None:
    true_N, predicted_N = labels(40)
    scores = [
        regression_scores(np.repeat(true_N, counts_N), np.repeat(predicted_N, counts_N)) for counts_N in drawn(40)
    ]
    (found,) = intervals([RegressionRows(true_N, predicted_N)])
    assert len(scores) == 1000
    for metric, interval in found.items():
        assert interval == pytest.approx(np.percentile([one[metric] for one in scores], (2.5, 97.5)), rel=1e-9)
    assert percentile_interval(np.random.default_rng(0).permutation(np.arange(1001.0))) == (25.0, 975.0)


def test_every_resample_draws_as_many_rows_as_there_are_each_alike_often() -> None:
    counts_RN = drawn(50)
    assert counts_RN.shape == (1000, 50)
    assert (counts_RN.sum(axis=1) == 50).all()
    # Each row is drawn 1000 times on average, with a standard deviation of 31; variance of one count: 1 - 1/50.
    assert abs(counts_RN.sum(axis=0) - 1000).max() < 5 * 31
    assert counts_RN.var() == pytest.approx(0.98, abs=0.03)
    assert len(np.unique(counts_RN, axis=0)) == 1000


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000, 5000])
def test_chunks_change_nothing(chunk: int) -> None:
    true_N, predicted_N = labels(333)
    sets = [RegressionRows(true_N, predicted_N), ClassRows(true_N > 5000, predicted_N > 5000)]
    assert intervals(sets, chunk=chunk) == intervals(sets)


def test_the_same_seed_gives_the_same_intervals_and_another_seed_others(monkeypatch: pytest.MonkeyPatch) -> None:
    true_N, predicted_N = labels(100)
    first, again = (intervals([RegressionRows(true_N, predicted_N)]) for _ in range(2))
    assert first == again
    monkeypatch.setattr(bootstrap, "SEED", 1)
    (other,) = intervals([RegressionRows(true_N, predicted_N)])
    for metric, (low, high) in first[0].items():
        assert other[metric] != (low, high)
        assert other[metric] == pytest.approx((low, high), abs=0.3 * (high - low))


def test_labels_share_their_resamples() -> None:
    true_N, predicted_N = labels(80)
    together = intervals([RegressionRows(true_N, predicted_N), RegressionRows(2 * true_N, 2 * predicted_N)])
    assert together[0] == intervals([RegressionRows(true_N, predicted_N)])[0]
    assert together[1]["mae"] == pytest.approx(np.multiply(together[0]["mae"], 2))
    assert together[1]["r2"] == pytest.approx(together[0]["r2"])


@pytest.mark.parametrize("value", [0.0, 0.1, 5777.1])
def test_a_constant_label_has_intervals_but_for_r2_and_slope(value: float) -> None:
    (row,) = label_rows(np.full((30, 1), value), value + labels(30)[1][:, None], ("a",), (1.0,))
    undefined = {name for name, number in row.items() if name != "label" and math.isnan(number)}
    assert undefined == {f"{metric}{end}" for metric in ("r2", "slope") for end in ("", "_low", "_high")}


@pytest.mark.parametrize(
    ("rows", "value", "other"), [(10, 5777.1, 5777.2), (11, 1.32, 3.83), (13, 1.26, 3.75), (15, 0.87, 2.16)]
)
def test_constant_resamples_do_not_count_and_hardly_constant_ones_do(rows: int, value: float, other: float) -> None:
    """Of the last three sets the mean of equal labels is not their value, by rounding."""
    true_N = np.array([value] * (rows - 1) + [other])  # a third of the resamples miss the last row
    predicted_N = true_N + np.arange(rows) / 10
    value_R = scored(RegressionRows(true_N, predicted_N), drawn(rows))["r2"]
    constant_R = drawn(rows)[:, -1] == 0
    assert 250 < constant_R.sum() < 450
    np.testing.assert_array_equal(np.isnan(value_R), constant_R)
    low, high = percentile_interval(value_R)
    assert (low, high) == tuple(np.percentile(value_R[~constant_R], (2.5, 97.5)))


def test_constant_predictions_and_perfect_ones() -> None:
    true_N, _ = labels(25)
    (flat,), (perfect,) = (intervals([RegressionRows(true_N, guess)]) for guess in (np.full(25, 5000.0), true_N))
    assert flat["slope"] == (0.0, 0.0)
    assert flat["r2"][1] <= 0.0
    assert perfect["r2"] == (1.0, 1.0)
    assert perfect["mae"] == perfect["p90"] == (0.0, 0.0)


def test_a_prediction_that_is_no_number_leaves_no_interval() -> None:
    true_N, predicted_N = labels(25)
    predicted_N[7] = np.nan
    (found,) = intervals([RegressionRows(true_N, predicted_N)])
    assert all(math.isnan(end) for interval in found.values() for end in interval)


def test_ten_thousand_rows_stay_within_bounded_memory() -> None:
    rng = np.random.default_rng(0)
    classes_N = rng.integers(4, size=(2, 10_000))
    tracemalloc.start()
    label_rows(*rng.normal(size=(2, 10_000, 2)), ("a", "b"), (1.0, 1.0))
    class_rows(*classes_N, "class")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * 2**20  # all counts at once would take 80 MB, as often as there are temporaries


@pytest.mark.slow
def test_intervals_hold_the_true_score_about_as_often_as_they_say() -> None:
    """Errors 0.1 + 0.5 N(0, 1) on labels uniform in 0..4: every population score is known in closed form."""
    rows, sets, rng = 200, 500, np.random.default_rng(5)
    shift, sigma = 0.1, 0.5
    size = stats.foldnorm(shift / sigma, scale=sigma)
    truth = {"r2": 1 - (shift**2 + sigma**2) / (16 / 12), "mae": size.mean(), "rmse": (shift**2 + sigma**2) ** 0.5}
    truth |= {"bias": shift, "p90": size.ppf(0.9), "slope": 1.0}
    true_SN = rng.uniform(0.0, 4.0, (sets, rows))
    predicted_SN = true_SN + shift + sigma * rng.standard_normal((sets, rows))
    found = intervals([RegressionRows(*one) for one in zip(true_SN, predicted_SN, strict=True)])
    for metric, value in truth.items():
        hits = sum(low <= value <= high for low, high in (one[metric] for one in found))
        # The true coverage of percentile intervals at 200 rows lies in 92 to 96 %; beyond it only chance, 1 in 1000.
        assert stats.binom.ppf(5e-4, sets, 0.92) <= hits <= stats.binom.ppf(1 - 5e-4, sets, 0.96), (metric, hits / sets)


def test_classes_are_covered_as_well() -> None:
    """Three classes in shares .6 .3 .1 with recalls .9 .7 .5."""
    rows, sets, rng = 300, 300, np.random.default_rng(6)
    share, recall = np.array([0.6, 0.3, 0.1]), np.array([0.9, 0.7, 0.5])
    true_SN = rng.choice(3, size=(sets, rows), p=share)
    predicted_SN = np.where(rng.random((sets, rows)) < recall[true_SN], true_SN, (true_SN + 1) % 3)
    found = intervals([ClassRows(*one) for one in zip(true_SN, predicted_SN, strict=True)])
    for metric, value in (("accuracy", share @ recall), ("balanced_accuracy", recall.mean())):
        hits = sum(low <= value <= high for low, high in (one[metric] for one in found))
        assert stats.binom.ppf(5e-4, sets, 0.92) <= hits <= stats.binom.ppf(1 - 5e-4, sets, 0.96), (metric, hits / sets)
