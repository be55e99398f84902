"""How far the packaged grid is from the synthesis: what was lost in the compression and between the nodes.

All errors are of the flux relative to the synthesised flux. Shape suffixes: N nodes, M other labels, K components,
L labels, Q padded pixels.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from specvit.physics.package import Grid
from specvit.physics.splines import KINDS, cardinal_splines

CHUNK = 512
QUANTILES = {"median": 0.5, "95 %": 0.95, "max": 1.0}
"""Of the spectra's root mean squares over the pixels."""


def at_nodes(grid: Grid, flux_NQ: NDArray) -> dict[str, float]:
    """Return rms, 99.9 % and largest error of the nodes' pixels."""
    squares, largest, counts = 0.0, 0.0, np.zeros(4000, dtype=np.int64)
    edges = np.concatenate(([0], np.logspace(-7, 1, len(counts) - 1), [np.inf]))
    for error_BQ in _errors(grid, grid.coefficient_NK.matrix(), flux_NQ):
        squares, largest = squares + float(np.square(error_BQ).sum()), max(largest, float(error_BQ.max()))
        counts += np.histogram(error_BQ, edges)[0]
    above = np.searchsorted(np.cumsum(counts), 0.999 * flux_NQ.size)
    return {"rms": (squares / flux_NQ.size) ** 0.5, "99.9 %": float(min(edges[above + 1], largest)), "max": largest}


def left_out(grid: Grid, flux_NQ: NDArray, kind: str | None = None) -> dict[str, dict[str, float]]:
    """Return by axis how far the interpolation is off at each inner node when the spectra at that node are left out.

    Twice the distance of the real grid, so this is an upper bound: of a cubic spline by about 2^4. `kind` replaces the
    grid's own; an axis of two nodes has no inner ones.
    """
    shape = [len(nodes) for nodes in grid.axes.values()]
    coefficient = grid.coefficient_NK.matrix().reshape(*shape, -1)
    flux, found = flux_NQ.reshape(*shape, -1), {}
    for axis, (name, nodes) in enumerate(grid.axes.items()):
        root_mean_squares = []
        for left in range(1, len(nodes) - 1):
            spline = cardinal_splines(np.delete(nodes, left).tolist(), kind or grid.kinds[name])
            kept = np.delete(coefficient, left, axis=axis)
            guess_NK = np.tensordot(spline(nodes[left]), kept, axes=(0, axis)).reshape(-1, kept.shape[-1])
            truth_NQ = flux.take(left, axis=axis).reshape(len(guess_NK), -1)
            root_mean_squares += _root_mean_squares(grid, guess_NK, truth_NQ)
        if root_mean_squares:
            found[name] = _quantiles(root_mean_squares)
    return found


def best_kinds(grid: Grid, flux_NQ: NDArray) -> dict[str, str]:
    """Return for each axis the kind of spline with the least error at nodes left out."""
    found = {kind: left_out(grid, flux_NQ, kind) for kind in KINDS}
    return {name: min(KINDS, key=lambda kind: found[kind].get(name, {"median": 0.0})["median"]) for name in grid.axes}


def between_nodes(grid: Grid, labels_ML: NDArray, flux_MQ: NDArray) -> dict[str, float]:
    """Return how far the interpolation is off at labels anywhere in the box."""
    weight_MN = np.ones((len(labels_ML), 1))
    for column, (name, nodes) in enumerate(grid.axes.items()):
        weights = cardinal_splines(nodes, grid.kinds[name])(labels_ML[:, column])
        weight_MN = (weight_MN[:, :, None] * weights[:, None]).reshape(len(labels_ML), -1)
    return _quantiles(_root_mean_squares(grid, weight_MN @ grid.coefficient_NK.matrix(), flux_MQ))


def _root_mean_squares(grid: Grid, coefficient_NK: NDArray, flux_NQ: NDArray) -> list[float]:
    rows = [np.sqrt(np.square(error_BQ).mean(axis=1)) for error_BQ in _errors(grid, coefficient_NK, flux_NQ)]
    return np.concatenate(rows).tolist()


def _errors(grid: Grid, coefficient_NK: NDArray, flux_NQ: NDArray) -> Iterator[NDArray]:
    """Yield absolute relative errors of the flux, some rows at a time."""
    basis_KQ = grid.basis_KQ.matrix().astype(np.float32)
    for start in range(0, len(flux_NQ), CHUNK):
        part = slice(start, start + CHUNK)
        log_BQ = coefficient_NK[part].astype(np.float32) @ basis_KQ + grid.mean_Q
        yield np.abs(np.expm1(log_BQ - np.log(flux_NQ[part])))


def _quantiles(values: list[float]) -> dict[str, float]:
    return {name: float(np.quantile(values, share)) for name, share in QUANTILES.items()}
