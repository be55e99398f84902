"""Interpolation along one axis of the grid, by the weight that each node has at a given place.

A spline through values is linear in them, so it is the sum of the values times the *cardinal* splines, each 1 at its
own node and 0 at the others. Shape suffixes: N nodes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

KINDS = ("not-a-knot", "natural")
"""What the cubic pieces do at the ends: the outer two are one polynomial, or the curvature vanishes."""


def cardinal_splines(nodes: Sequence[float], kind: str) -> CubicSpline:
    """Return the function place -> weights (N,) of at least two nodes; a parabola through three, a line through two."""
    return CubicSpline(np.asarray(nodes), np.eye(len(nodes)), bc_type=kind if len(nodes) > 3 else "not-a-knot")


def spline_pieces(nodes: Sequence[float], kind: str) -> NDArray[np.float64]:
    """Return the polynomials between neighbouring nodes, shape (N - 1, 4, N): powers 3 to 0 of (place - left node)."""
    return np.ascontiguousarray(cardinal_splines(nodes, kind).c.swapaxes(0, 1))
