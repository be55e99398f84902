"""The stars of the built-in data: which they are depends on seed, split and row alone."""

import subprocess
import sys

import numpy as np
from scipy.stats import chisquare, kstest

from specvit.physics.population import (
    BLOCK_ROWS,
    NODE_STEPS,
    RANGES,
    STAR_COLUMNS,
    THROUGHPUT,
    draw_stars,
    label_variance,
)

MANY = np.arange(20_000)
EXPECTED = (
    4351.214404180032,
    1.5157414064108907,
    -0.5105573959442278,
    0.34753783029722185,
    -0.4439215776144497,
    0.0008881451235281905,
    21.465730416071118,
    1.2771824287298885,
)


def column(stars_NS: np.ndarray, name: str) -> np.ndarray:
    return stars_NS[:, STAR_COLUMNS.index(name)]


def test_rows_in_any_order_are_the_rows_of_the_whole() -> None:
    whole_NS = draw_stars(3, "train", np.arange(5 * BLOCK_ROWS))
    rows = np.random.default_rng(0).integers(0, len(whole_NS), 300)  # some of them twice
    np.testing.assert_array_equal(draw_stars(3, "train", rows), whole_NS[rows])
    for row in (0, BLOCK_ROWS - 1, BLOCK_ROWS, 4 * BLOCK_ROWS + 7):
        np.testing.assert_array_equal(draw_stars(3, "train", np.array([row]))[0], whole_NS[row])
    assert len(np.unique(column(whole_NS, "T_eff"))) == len(whole_NS)


def test_rows_far_away_and_none_at_all() -> None:
    far = 10**12
    pair_NS = draw_stars(0, "train", np.array([far, far + 1]))
    np.testing.assert_array_equal(draw_stars(0, "train", np.array([far + 1]))[0], pair_NS[1])
    assert draw_stars(0, "train", np.array([], dtype=int)).shape == (0, len(STAR_COLUMNS))


def test_another_seed_or_split_has_other_stars() -> None:
    drawn = [STAR_COLUMNS.index(name) for name in STAR_COLUMNS if name != "redshift"]
    stars_NS = draw_stars(0, "train", MANY[:500])[:, drawn]
    for other in ((1, "train"), (0, "test"), (0, "val")):
        assert not np.isin(stars_NS, draw_stars(*other, MANY[:500])[:, drawn]).any(), other


def test_stars_do_not_change_between_versions() -> None:
    """Numbers of runs in published tables rest on these; a change needs a new GENERATOR_VERSION."""
    found_S = draw_stars(0, "train", np.array([12345]), max_redshift=0.001)[0]
    np.testing.assert_allclose(found_S, EXPECTED, rtol=1e-12)


def test_labels_fill_their_ranges_evenly_and_independently() -> None:
    stars_NS = draw_stars(0, "train", MANY, max_redshift=0.001)
    ranges = RANGES | {"redshift": (-0.001, 0.001)}
    for name, (low, high) in ranges.items():
        share_N = (column(stars_NS, name) - low) / (high - low)
        assert share_N.min() >= 0 and share_N.max() <= 1
        assert kstest(share_N, "uniform").pvalue > 1e-3, name
    correlation = np.corrcoef(stars_NS.T) - np.eye(len(STAR_COLUMNS))
    assert np.abs(correlation).max() < 5 / np.sqrt(len(MANY))
    neighbours = [np.corrcoef(stars_NS[:-1, i], stars_NS[1:, i])[0, 1] for i in range(len(STAR_COLUMNS))]
    assert np.abs(neighbours).max() < 5 / np.sqrt(len(MANY))


def test_throughput_is_log_normal() -> None:
    median, scatter = THROUGHPUT
    standard_N = np.log(column(draw_stars(0, "train", MANY), "throughput") / median) / scatter
    assert kstest(standard_N, "norm").pvalue > 1e-3


def test_the_redshift_changes_no_other_column() -> None:
    still_NS, moving_NS = (draw_stars(0, "train", MANY[:100], max_redshift=z) for z in (0.0, 0.001))
    at = STAR_COLUMNS.index("redshift")
    np.testing.assert_array_equal(np.delete(still_NS, at, 1), np.delete(moving_NS, at, 1))
    assert (still_NS[:, at] == 0).all() and not np.signbit(still_NS[:, at]).any()
    np.testing.assert_allclose(draw_stars(0, "train", MANY[:100], max_redshift=0.0005)[:, at], moving_NS[:, at] / 2)


PUBLISHED_HALF_DEX = (83, 123, 128, 131, 99, 112, 135, 189)
"""True log g of the first 1,000 published test rows, counted by half dex from 1 to 5; 5 itself is in the last."""
PUBLISHED_BOXES = ((88_666, 89_050, 62_702), (102_801, 102_864, 71_516), (116_727, 115_778, 80_717))
"""Published training stars of a million by T_eff (from 3750, 4500, 5250 K) and [M/H] (from -2, -1, 0 up to 0.5)."""


def test_the_published_distribution_is_that_of_the_published_counts() -> None:
    """Not merely like it: the counts of 831,000 stars are met within chance, which a uniform distribution misses."""
    rows = np.arange(200_000)
    for prior, matches in (("published", True), ("uniform", False)):
        stars_NS = draw_stars(0, "train", rows, label_prior=prior)
        t_eff_N, log_g_N, m_h_N = (column(stars_NS, name) for name in ("T_eff", "log_g", "M_H"))
        share_8 = np.histogram(log_g_N, np.arange(1, 5.1, 0.5))[0] / len(rows)
        assert (chisquare(PUBLISHED_HALF_DEX, 1000 * share_8).pvalue > 1e-2) == matches
        boxes_33 = np.histogram2d(t_eff_N, m_h_N, ([3750, 4500, 5250, 6001], [-2, -1, 0, 0.501]))[0]
        off_33 = boxes_33 - np.array(PUBLISHED_BOXES) / 5
        assert (np.abs(off_33) < 5 * np.sqrt(1.2 * boxes_33)).all() == matches, off_33


def test_a_published_star_is_the_uniform_star_with_labels_at_nodes() -> None:
    """All but one of the five, in any order of rows; nothing else of the star changes; labels stay in their ranges."""
    options = {"max_redshift": 0.001}
    uniform_NS, whole_NS = (draw_stars(3, "test", MANY, **options, label_prior=p) for p in ("uniform", "published"))
    np.testing.assert_array_equal(uniform_NS, draw_stars(3, "test", MANY, **options))
    rows = np.random.default_rng(0).integers(0, len(MANY), 300)
    np.testing.assert_array_equal(draw_stars(3, "test", rows, **options, label_prior="published"), whole_NS[rows])
    labels = [STAR_COLUMNS.index(name) for name in NODE_STEPS]
    others = [place for place in range(len(STAR_COLUMNS)) if place not in labels]
    np.testing.assert_array_equal(uniform_NS[:, others], whole_NS[:, others])
    steps_L, (low_L, high_L) = np.array(list(NODE_STEPS.values())), np.array([RANGES[name] for name in NODE_STEPS]).T
    published_NL = whole_NS[:, labels]
    at_node_NL = np.isclose((published_NL - low_L) / steps_L % 1, 0)
    np.testing.assert_array_equal(at_node_NL.sum(1), 4)
    free_N = (~at_node_NL).argmax(1)
    assert chisquare(np.bincount(free_N, minlength=5)).pvalue > 1e-3
    np.testing.assert_array_equal((published_NL == uniform_NS[:, labels]).argmax(1), free_N)
    assert (np.abs(published_NL - uniform_NS[:, labels]) <= steps_L / 2 + 1e-9).all()
    assert (published_NL >= low_L).all() and (published_NL <= high_L).all()


def test_the_variance_of_each_label_is_that_of_the_population() -> None:
    for prior in ("uniform", "published"):
        stars_NS = draw_stars(0, "train", np.arange(200_000), max_redshift=0.001, label_prior=prior)
        for name, (low, high) in (RANGES | {"redshift": (-0.001, 0.001)}).items():
            expected = label_variance(name, high - low, prior)
            np.testing.assert_allclose(column(stars_NS, name).var(), expected, rtol=0.01, err_msg=name)
    assert round(label_variance("log_g", 4.0, "published") ** 0.5, 3) == 1.169  # the published training set has 1.1683


def test_stars_pixels_and_grid_need_no_torch() -> None:
    code = "import sys; from specvit.physics import grid, instrument, population; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
