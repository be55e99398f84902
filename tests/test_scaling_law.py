"""Laws of scores by training rows, and where one overtakes another, on numbers whose answer is known."""

import numpy as np
import pytest

from specvit.analysis.scaling import file_of
from specvit.analysis.scaling_law import crossover, fit_law, mean_over_seeds, slopes

ROWS = np.array([1000.0, 2000.0, 5000.0, 10_000.0, 50_000.0])


def test_a_law_gives_back_its_constants() -> None:
    truth = np.array([[0.8 - 30.0 * ROWS**-0.6], [0.5 - 2.0 * ROWS**-0.3]])[:, 0]
    law = fit_law(ROWS, truth)
    assert law is not None
    assert law.limit_R == pytest.approx([0.8, 0.5], abs=4e-3)
    assert law.exponent_R == pytest.approx([0.6, 0.3], rel=0.03)
    assert law.at(ROWS) == pytest.approx(truth, abs=2e-3)
    assert law.at(np.array([1e9])) == pytest.approx(law.limit_R[:, None], abs=0.02)


def test_a_law_is_the_best_of_all_that_are_tried_by_hand() -> None:
    rng = np.random.default_rng(0)
    noisy = (0.7 - 8.0 * ROWS**-0.4 + rng.normal(0, 0.01, 5))[None]
    law = fit_law(ROWS, noisy)
    assert law is not None
    least = np.sum((law.at(ROWS) - noisy) ** 2)
    for limit in np.linspace(0.5, 1.0, 26):
        for exponent in np.linspace(0.05, 2.0, 40):
            x = ROWS**-exponent
            scale = max(0.0, np.sum((limit - noisy[0]) * x) / np.sum(x * x))
            assert np.sum((limit - scale * x - noisy[0]) ** 2) > least - 1e-6


def test_a_limit_is_held_below_the_ceiling_and_a_falling_score_is_flat() -> None:
    rising = (0.1 * np.log10(ROWS))[None]  # without any limit of its own
    law = fit_law(ROWS, rising, top=0.6)
    assert law is not None and law.limit_R[0] == 0.6
    falling = fit_law(ROWS, (0.9 - 0.1 * np.log10(ROWS))[None])
    assert falling is not None and falling.scale_R[0] == 0.0
    assert falling.limit_R[0] == pytest.approx(np.mean(0.9 - 0.1 * np.log10(ROWS)))


def test_three_sizes_have_no_law() -> None:
    assert fit_law(ROWS[:3], np.ones((4, 3))) is None


def test_overtaking_lies_between_two_sizes_linear_in_the_logarithm() -> None:
    mean = np.array([-0.2, -0.1, -0.1, 0.1, 0.3])
    found = crossover(ROWS, mean, np.tile(mean, (100, 1)))
    assert found.rows == pytest.approx(np.sqrt(5000 * 10_000))
    assert (found.low, found.high) == (found.rows, found.rows)


def test_overtaking_is_for_good() -> None:
    back_and_forth = np.array([0.1, -0.1, 0.1, -0.1, 0.1])
    found = crossover(ROWS, back_and_forth, back_and_forth[None])
    assert 10_000 < found.rows < 50_000


def test_the_interval_may_reach_beyond_all_sizes() -> None:
    ahead, behind = np.full(5, 0.1), np.full(5, -0.1)
    crosses = np.array([-0.2, -0.1, -0.1, 0.1, 0.3])
    always = crossover(ROWS, ahead, np.tile(ahead, (50, 1)))
    assert (always.rows, always.low, always.high) == (0.0, 0.0, 0.0)
    unsure = crossover(ROWS, crosses, np.array([ahead] * 10 + [crosses] * 80 + [behind] * 10))
    assert unsure.low == 0.0 and np.isinf(unsure.high) and 5000 < unsure.rows < 10_000


def test_seeds_are_drawn_again() -> None:
    """Three seeds that differ by far more than their rows: the spread of the mean is theirs over the root of three."""
    seeds = [np.full(20_000, value) for value in (0.0, 3.0, 6.0)]
    mean_R = mean_over_seeds(seeds, np.random.default_rng(0))
    assert mean_R.mean() == pytest.approx(3.0, abs=0.05)
    assert mean_R.std() == pytest.approx(np.std([0.0, 3.0, 6.0]) / np.sqrt(3), rel=0.02)


def test_a_series_that_lists_many_settings_has_a_file_name_of_its_own() -> None:
    first, second = (file_of(f"vit ({'opt.lr=0.1, ' * 40}train.seed={seed})") for seed in (1, 2))
    assert first != second and max(len(first), len(second)) < 255
    assert file_of("vit c1d p8") == "scaling_vit_c1d_p8.json"


def test_the_difference_of_slopes_is_the_slope_of_the_difference_and_pairs_seeds() -> None:
    """Seeds shift both series alike: paired, their spread leaves the difference; unpaired it does not."""
    rng = np.random.default_rng(0)
    decades = np.log10(ROWS)
    shifts = {seed: 0.05 * (seed - 2) * decades for seed in (1, 2, 3)}  # a seed's own slope
    both = [
        [
            {seed: slope * at + shift[k] + rng.normal(0, 1e-4, 1000) for seed, shift in shifts.items()}
            for k, at in enumerate(decades)
        ]
        for slope in (0.10, 0.04)
    ]
    means = np.array([0.10 * decades, 0.04 * decades])
    paired = slopes(ROWS, means, both)
    assert (paired.ahead, paired.behind, paired.difference) == pytest.approx((0.10, 0.04, 0.06))
    assert paired.paired and 0.0595 < paired.low < 0.06 < paired.high < 0.0605
    others = [both[0], [{seed + 10: value for seed, value in of_size.items()} for of_size in both[1]]]
    unpaired = slopes(ROWS, means, others)
    assert not unpaired.paired and unpaired.difference == pytest.approx(0.06)
    # the mean of three seeds drawn again has a third of the variance of 0.05 (-1, 0, 1), in each of the two series
    assert unpaired.high - unpaired.low == pytest.approx(2 * 1.96 * np.sqrt(2 / 3 * 0.05**2 * 2 / 3), rel=0.15)


def test_slopes_are_those_of_a_line_through_the_means() -> None:
    means = np.array([[0.1, 0.3, 0.35, 0.5, 0.55], [0.2, 0.2, 0.4, 0.4, 0.5]])
    one_seed = [[{0: np.full(1000, value)} for value in row] for row in means]
    found = slopes(ROWS, means, one_seed)
    expected = [np.polyfit(np.log10(ROWS), row, 1)[0] for row in means]
    assert (found.ahead, found.behind) == pytest.approx(expected)
    assert (found.low, found.high) == pytest.approx((found.difference, found.difference))
