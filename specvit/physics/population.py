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

THROUGHPUT = (1.13, 0.15)
"""Median, and scatter of the natural logarithm, of the light in the fibre, over the exposure time calculator's."""

BLOCK_ROWS = 256
"""Rows drawn together; those not requested are discarded."""
DRAWS = len(STAR_COLUMNS)
"""64-bit draws per row."""
DRAWS_PER_COUNT = 4
"""64-bit draws of Philox per value of its counter."""


def draw_stars(seed: int, split: str, rows: NDArray[np.integer], *, max_redshift: float = 0.0) -> NDArray[np.float64]:
    """Return the stars of `rows`, any rows in any order, shape (N, S).

    The redshift is uniform between -`max_redshift` and `max_redshift`; no other column depends on it.
    """
    uniform_NS = _uniforms(seed, split, np.asarray(rows, dtype=np.int64))
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
    return stars_NS


def _uniforms(seed: int, split: str, rows_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return numbers strictly between 0 and 1, shape (N, DRAWS): row r has draws r*DRAWS, ... of one Philox stream."""
    assert rows_N.ndim == 1 and (rows_N.size == 0 or rows_N.min() >= 0)
    stream = key(seed, "builtin", split)
    uniform_NS = np.empty((len(rows_N), DRAWS))
    order_N = np.argsort(rows_N, kind="stable")
    blocks, starts = np.unique(rows_N[order_N] // BLOCK_ROWS, return_index=True)
    for block, start, stop in zip(blocks.tolist(), starts, np.append(starts, len(rows_N))[1:], strict=True):
        members = order_N[start:stop]
        generator = np.random.Philox(key=stream).advance(block * BLOCK_ROWS * DRAWS // DRAWS_PER_COUNT)
        drawn = np.random.Generator(generator).random((BLOCK_ROWS, DRAWS))
        uniform_NS[members] = drawn[rows_N[members] - block * BLOCK_ROWS]
    return np.maximum(uniform_NS, 2.0**-54)
