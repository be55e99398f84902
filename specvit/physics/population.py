"""The stars of the built-in data: one row is a pure function of (seed, split, row), drawn by the million.

Shape suffixes: N rows, S columns of `STAR_COLUMNS`.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from specvit.utils.seeding import key

STAR_COLUMNS = ("T_eff", "log_g", "M_H", "a_M", "C_M", "redshift", "mag", "throughput")
"""K, four in dex, v/c; for the exposure the AB magnitude (of the mean F_nu over the arm, in place of HSC i) and the
relative throughput, see `THROUGHPUT`."""

RANGES: dict[str, tuple[float, float]] = {
    "T_eff": (3750.0, 6000.0),
    "log_g": (1.0, 5.0),
    "M_H": (-2.5, 0.75),
    "a_M": (-0.25, 0.5),
    "C_M": (-0.75, 0.5),
    "mag": (20.5, 22.5),
}
"""Uniform ranges of the reference set: labels of the BOSZ library (Meszaros et al. 2024, A&A 688, A197)."""

NODE_STEPS = {"T_eff": 250.0, "log_g": 0.5, "M_H": 0.25, "a_M": 0.25, "C_M": 0.25}
"""Distance between the nodes of the BOSZ library, the first of which is at the low end of the range.

The reference set was not drawn uniformly: of a star's five labels one, chosen at random, is uniform and the others are
moved to the nearest node (Subaru-PFS-GA/ga_pfsspec_stellar: `interpolate_model_spline` with a random `interp_param`).
Two published counts agree. Of 1,000 true log g (ViskaWei/SpecViT-web, predictions.json) 83 123 128 131 99 112 135 189
are in the half dex from 1 to 5: 75, 125 six times and 175 are expected. Of 10^6 training stars 88,666 are cooler than
4500 K with -2 <= [M/H] < -1 (ViskaWei/Physics_Informed_AI, oracle_moe_noise1): 88,889 expected, 102,564 if uniform.
"""
FREE_LABEL_SHARE = 1 / len(NODE_STEPS)
"""Share of the stars in which a label is not at a node."""

THROUGHPUT = (1.13, 0.15)
"""Median, and scatter of the natural logarithm, of the light in the fibre, over the exposure time calculator's."""

BLOCK_ROWS = 256
"""Rows drawn together; those not requested are discarded."""
DRAWS = len(STAR_COLUMNS)
"""64-bit draws per row."""
DRAWS_PER_COUNT = 4
"""64-bit draws of Philox per value of its counter."""


def draw_stars(
    seed: int,
    split: str,
    rows: NDArray[np.integer],
    *,
    max_redshift: float = 0.0,
    label_prior: str = "uniform",
) -> NDArray[np.float64]:
    """Return the stars of `rows`, any rows in any order, shape (N, S).

    The redshift is uniform between -`max_redshift` and `max_redshift`; no other column depends on it. `label_prior`
    is "uniform" in `RANGES`, or "published": the same stars with all labels but one at nodes, see `NODE_STEPS`.
    """
    assert label_prior in ("uniform", "published")
    rows_N = np.asarray(rows, dtype=np.int64)
    uniform_NS = _uniforms(key(seed, "builtin", split), rows_N, DRAWS)
    stars_NS = np.empty_like(uniform_NS)
    for column, name in enumerate(STAR_COLUMNS):
        u_N = uniform_NS[:, column]
        if name == "redshift":
            stars_NS[:, column] = (2 * u_N - 1) * max_redshift + 0.0  # no negative zero
        elif name == "throughput":
            median, scatter = THROUGHPUT
            stars_NS[:, column] = median * np.exp(scatter * ndtri(u_N))
        else:
            low, high = RANGES[name]
            stars_NS[:, column] = low + (high - low) * u_N
    if label_prior == "published":
        free_N = _uniforms(key(seed, "builtin", split, "free label"), rows_N, 1)[:, 0] * len(NODE_STEPS)
        for place, (name, step) in enumerate(NODE_STEPS.items()):
            column, low = STAR_COLUMNS.index(name), RANGES[name][0]
            node_N = low + step * np.rint((stars_NS[:, column] - low) / step)
            stars_NS[:, column] = np.where(free_N.astype(np.int64) == place, stars_NS[:, column], node_N)
    return stars_NS


def label_variance(name: str, span: float, label_prior: str) -> float:
    """Return the variance over the population of a label, or of the redshift, whose range is `span` wide."""
    variance = span**2 / 12
    if label_prior == "published" and name in NODE_STEPS:
        # Moved to the nearest node (those at the ends are half as frequent), uniform values vary by step^2 / 6 more.
        variance += (1 - FREE_LABEL_SHARE) * NODE_STEPS[name] ** 2 / 6
    return variance


def _uniforms(stream: int, rows_N: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    """Return numbers strictly between 0 and 1, shape (N, draws): row r has draws r*draws, ... of a Philox stream."""
    assert rows_N.ndim == 1 and (rows_N.size == 0 or rows_N.min() >= 0)
    uniform_NS = np.empty((len(rows_N), draws))
    order_N = np.argsort(rows_N, kind="stable")
    blocks, starts = np.unique(rows_N[order_N] // BLOCK_ROWS, return_index=True)
    for block, start, stop in zip(blocks.tolist(), starts, np.append(starts, len(rows_N))[1:], strict=True):
        members = order_N[start:stop]
        generator = np.random.Philox(key=stream).advance(block * BLOCK_ROWS * draws // DRAWS_PER_COUNT)
        drawn = np.random.Generator(generator).random((BLOCK_ROWS, draws))
        uniform_NS[members] = drawn[rows_N[members] - block * BLOCK_ROWS]
    return np.maximum(uniform_NS, 2.0**-54)
