"""Conformal intervals: ranks by hand, and the share of planted labels that they hold."""

import math

import numpy as np
import pytest

from specvit.metrics.conformal import (
    BIN_ROWS,
    MAX_BINS,
    Residuals,
    bin_edges,
    cross_interval,
    rank,
    residuals,
    rows_needed,
    together,
)
from specvit.metrics.distributions import NORMAL, Uncertainty
from specvit.metrics.scores import label_rows

LEVELS = (0.68, 0.9, 0.95)
NO_SNR = np.full(9, np.nan)


def test_ranks_are_those_of_the_formula() -> None:
    """ceil((n + 1) level), by hand; a product that rounding puts above a whole number does not count as more."""
    by_hand = {(4, 0.68): 4, (9, 0.9): 9, (8, 0.9): 9, (19, 0.95): 19, (18, 0.95): 19, (99, 0.07): 7, (100, 0.68): 69}
    assert {case: rank(*case) for case in by_hand} == by_hand
    assert rank(9, 1e-12) == 1, "the least error, however low the level"
    for level, least in ((0.68, 3), (0.9, 9), (0.95, 19), (0.99, 99), (0.5, 1)):
        assert rows_needed(level) == least
        assert rank(least, level) <= least and rank(least - 1, level) > least - 1


def test_half_widths_of_a_few_rows_are_their_order_statistics() -> None:
    error_n = np.array([5.0, 1.0, 4.0, 2.0, 3.0, 3.0, 9.0, 7.0, 8.0])
    found = residuals(np.zeros(9), error_n, NO_SNR)
    assert found.at(0.9).overall == 9 and found.at(0.5).overall == 4 and found.at(0.68).overall == 7
    assert found.at(0.4).overall == found.at(0.3).overall == 3, "of two equal errors either is the third and the fourth"
    assert found.at(0.91).overall == math.inf
    np.testing.assert_array_equal(found.at(0.91).of(np.array([1.0, np.nan])), [math.inf] * 2)


def test_rows_without_the_label_do_not_count_and_rows_without_a_prediction_widen() -> None:
    true_n = np.array([np.nan, 0, 0, 0, 0])
    found = residuals(true_n, np.array([50.0, 1, 2, np.nan, 4]), NO_SNR[:5], np.array([1.0, 1, 2, 1, 0]))
    np.testing.assert_array_equal(np.sort(found.error_n), [1, 1, math.inf, math.inf])
    assert residuals(true_n[:1], true_n[:1], NO_SNR[:1]).at(0.5).overall == math.inf, "no row has the label"


def test_bins_have_enough_rows_each() -> None:
    rng = np.random.default_rng(0)
    for rows in (0, 5, 99, 150, 250, 5000):
        snr_n = np.concatenate([rng.uniform(1, 50, rows), [np.nan] * 3])
        edges = bin_edges(snr_n, BIN_ROWS)
        assert len(edges) + 1 == max(1, min(MAX_BINS, rows // BIN_ROWS))
        if len(edges):
            assert np.histogram(snr_n, [0, *edges, 99])[0].min() >= BIN_ROWS
    ties_n = np.repeat([1.0, 2.0, 3.0, np.inf], [30, 500, 90, 300])
    edges = bin_edges(ties_n, BIN_ROWS)
    counts = np.bincount(np.searchsorted(edges, ties_n, side="right"))
    assert counts.tolist() == [620, 300], "30, then 90, are too few"
    assert bin_edges(np.full(1000, np.inf), BIN_ROWS).tolist() == [], "one S/N, one bin"


def test_a_high_level_merges_bins_until_it_has_rows() -> None:
    rng = np.random.default_rng(1)
    snr_n = rng.uniform(1, 50, 1000)
    found = Residuals(np.abs(rng.normal(size=1000)), snr_n)
    assert len(found.at(0.9).width_B) == 8 and len(found.at(0.996).width_B) == 4
    assert np.isfinite(found.at(0.996).width_B).all() and found.at(0.9999).width_B.tolist() == [math.inf]


def held(half_N: np.ndarray, error_N: np.ndarray, level: float, calibrated: int) -> None:
    """Check the share of rows inside against the level, to twice its standard deviation over both draws."""
    error = 2 * math.sqrt(level * (1 - level) * (1 / calibrated + 1 / len(error_N)))
    assert (np.abs(error_N) <= half_N).mean() == pytest.approx(level, abs=error)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("noise", ["normal", "laplace", "standard_cauchy"])
def test_the_share_inside_is_the_level_whatever_the_distribution(noise: str, level: float) -> None:
    """Over 200 draws of 150 calibration rows and 300 others."""
    rng, inside = np.random.default_rng(2), []
    for _ in range(200):
        error_n, error_N = getattr(rng, noise)(size=150), getattr(rng, noise)(size=300)
        half = Residuals(np.abs(error_n), np.full(150, np.nan)).at(level).of(np.full(300, np.nan))
        inside.append((np.abs(error_N) <= half).mean())
    error = 2 * math.sqrt(level * (1 - level) * (1 / 150 + 1 / 300))
    assert np.mean(np.abs(np.array(inside) - level) < error) > 0.9
    assert np.mean(inside) == pytest.approx(rank(150, level) / 151, abs=1.5 * error / math.sqrt(200)), "3 sigma"


@pytest.mark.parametrize("level", LEVELS)
def test_bins_cover_at_each_snr_where_one_width_does_not(level: float) -> None:
    rng = np.random.default_rng(3)
    snr_n, snr_N = rng.uniform(2, 40, 8000), rng.uniform(2, 40, 40_000)
    error_n, error_N = rng.normal(size=8000) / snr_n, rng.normal(size=40_000) / snr_N
    binned = Residuals(np.abs(error_n), snr_n).at(level)
    assert len(binned.width_B) == MAX_BINS and (np.diff(binned.width_B) < 0).all()
    bin_N = np.searchsorted(binned.edges, snr_N, side="right")
    off = []
    for number in range(MAX_BINS):
        here = bin_N == number
        held(binned.of(snr_N[here]), error_N[here], level, 1000)
        off.append((np.abs(error_N[here]) <= binned.overall).mean() - level)
    assert off[0] < -0.2 and off[-1] > 0.8 * (1 - level)
    np.testing.assert_array_equal(binned.of(np.array([np.nan])), binned.overall)


@pytest.mark.parametrize("level", LEVELS)
def test_a_predicted_std_is_scaled_until_it_is_right(level: float) -> None:
    """The predicted one is three times too small; what is calibrated follows each row's own noise."""
    rng = np.random.default_rng(4)
    std_n, std_N = rng.uniform(0.1, 3, 4000), rng.uniform(0.1, 3, 40_000)
    error_n, error_N = rng.normal(size=4000) * std_n, rng.normal(size=40_000) * std_N
    found = residuals(np.zeros(4000), error_n, np.full(4000, np.nan), std_n / 3).at(level)
    half_N = found.of(np.full(40_000, np.nan), std_N / 3)
    for low, high in ((0.1, 0.5), (0.5, 1.5), (1.5, 3)):
        here = (std_N >= low) & (std_N < high)
        held(half_N[here], error_N[here], level, 4000)
    assert (np.abs(error_N[std_N > 2]) <= np.quantile(np.abs(error_n), level)).mean() < level - 0.05, "without it"


def test_ends_of_cross_validation_by_hand() -> None:
    """Five errors: at 0.5 the third smallest of centre + error, and the third largest of centre - error."""
    centre_NF, fold_n, error_n = np.array([[10.0, 20.0]]), np.array([0, 0, 0, 1, 1]), np.array([1.0, 2, 3, 1, 9])
    low, high = cross_interval(centre_NF, fold_n, error_n, 0.5)
    assert (low[0], high[0]) == (9, 13), "of 9 8 7 19 11, and of 11 12 13 21 29"
    low, high = cross_interval(centre_NF, fold_n, error_n, 0.5, np.array([[2.0, 1.0]]))
    assert (low[0], high[0]) == (8, 16), "of 8 6 4 19 11, and of 12 14 16 21 29"
    assert cross_interval(centre_NF, fold_n, error_n, 0.9) == (-math.inf, math.inf)


def test_ends_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    centre_NF, fold_n, error_n = rng.normal(size=(50, 4)), rng.integers(4, size=60), rng.exponential(size=60)
    whole = cross_interval(centre_NF, fold_n, error_n, 0.8)
    monkeypatch.setattr("specvit.metrics.conformal.CHUNK_ELEMENTS", 400)
    np.testing.assert_array_equal(cross_interval(centre_NF, fold_n, error_n, 0.8), whole)


@pytest.mark.parametrize("level", [0.68, 0.9])
def test_a_cross_validation_covers_new_rows(level: float) -> None:
    """Least squares on 40 rows in 5 folds, 400 times: the share inside is at least 2 level - 1, and near the level."""
    rng, inside = np.random.default_rng(6), []
    fold_n = np.arange(40) % 5
    for _ in range(400):
        x_nD, x_ND = rng.normal(size=(40, 3)), rng.normal(size=(20, 3))
        y_n, y_N = x_nD.sum(axis=1) + rng.normal(size=40), x_ND.sum(axis=1) + rng.normal(size=20)
        fits_FD = [np.linalg.lstsq(x_nD[fold_n != fold], y_n[fold_n != fold])[0] for fold in range(5)]
        error_n = np.abs(y_n - np.einsum("nd,nd->n", x_nD, np.array(fits_FD)[fold_n]))
        low_N, high_N = cross_interval(x_ND @ np.array(fits_FD).T, fold_n, error_n, level)
        inside.append(((low_N <= y_N) & (y_N <= high_N)).mean())
    error = 2 * math.sqrt(level * (1 - level) * (1 / 40 + 1 / 20) / 400)
    assert level - error < np.mean(inside) < level + error + 0.03


def test_runs_together_have_the_std_of_their_mixture() -> None:
    """Against draws of the mixture of two normal distributions."""
    label_RNK, std_RNK = np.array([[[1.0]], [[4.0]]]), np.array([[[1.0]], [[2.0]]])
    mean_NK, std_NK = together(label_RNK, std_RNK)
    drawn = np.random.default_rng(7).normal([1, 4], [1, 2], (100_000, 2)).ravel()
    assert std_NK is not None
    assert mean_NK.item() == pytest.approx(drawn.mean(), abs=0.02)
    assert std_NK.item() == pytest.approx(drawn.std(), abs=0.02)
    assert together(label_RNK, None)[1] is None


def test_scores_of_intervals_are_shares_and_mean_widths() -> None:
    """Of two labels, with intervals from resamples; a label without finite intervals has none."""
    rng = np.random.default_rng(8)
    true_NK, error_NK = rng.normal(size=(400, 2)), rng.normal(size=(400, 2))
    half_NK = rng.uniform(0.5, 2, (400, 2))
    half_NK[0, 1] = math.inf
    uncertainty = Uncertainty(half_NK, NORMAL, half_68=half_NK, half_95=2 * half_NK)
    one, other = label_rows(true_NK, true_NK + error_NK, ("a", "b"), (1.0, 1.0), uncertainty)
    assert one["coverage_68"] == (np.abs(error_NK[:, 0]) <= half_NK[:, 0]).mean()
    assert one["coverage_95"] == (np.abs(error_NK[:, 0]) <= 2 * half_NK[:, 0]).mean()
    assert one["width"] == pytest.approx(2 * half_NK[:, 0].mean())
    for name in ("coverage_68", "coverage_95", "width"):
        assert one[f"{name}_low"] < one[name] < one[f"{name}_high"] and math.isnan(other[name])
    assert "width" not in label_rows(true_NK, true_NK, ("a", "b"), (1.0, 1.0), Uncertainty(half_NK, NORMAL))[0]
