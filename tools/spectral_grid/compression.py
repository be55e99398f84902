"""Principal components of the spectra at the nodes, and what compression and interpolation lose.

Components are of the logarithm of the flux, whose error is the relative error of the flux. All errors are relative to
the synthesised flux. Shape suffixes: B rows of a chunk, N nodes, M other labels, K components, L labels, Q padded
pixels.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from specvit.physics.grid import SPLINE_KINDS, Grid, QuantizedMatrix, cardinal_splines

CHUNK = 512
QUANTILES = {"median": 0.5, "95 %": 0.95, "max": 1.0}
"""Of the root mean square errors of the spectra, each over its pixels."""


def compress(
    axes: Mapping[str, Sequence[float]], flux_NQ: NDArray, components: int, *, kinds: dict[str, str], fingerprint: str
) -> Grid:
    """Return the grid of spectra at the nodes of `axes`, with at most as many components as there are nodes."""
    log_NQ = np.log(flux_NQ)
    mean_Q = log_NQ.mean(axis=0, dtype=np.float64).astype(np.float32)
    log_NQ -= mean_Q
    basis_KQ = QuantizedMatrix.of(principal_components(log_NQ, min(components, len(log_NQ))), axis=0)
    coefficient_NK = QuantizedMatrix.of(project(log_NQ, basis_KQ), axis=1)
    nodes = {name: tuple(float(node) for node in places) for name, places in axes.items()}
    return Grid(nodes, kinds, fingerprint, mean_Q, basis_KQ, coefficient_NK)


def project(centred_NQ: NDArray, basis_KQ: QuantizedMatrix) -> NDArray:
    """Return the least-squares coefficients (N, K) in a quantized basis, which is no longer exactly orthonormal."""
    rounded_KQ = basis_KQ.dequantized()
    return np.linalg.solve(rounded_KQ @ rounded_KQ.T, (centred_NQ @ rounded_KQ.astype(np.float32).T).T).T


def principal_components(centred_NQ: NDArray, components: int) -> NDArray[np.float64]:
    """Return the first principal components as rows, shape (K, Q), each with its largest element positive."""
    nodes, pixels = centred_NQ.shape
    if nodes < pixels:
        _, vectors_NK = eigh(_gram(centred_NQ), subset_by_index=(nodes - components, nodes - 1))
        basis_KQ = vectors_NK.T[::-1] @ centred_NQ
        basis_KQ /= np.maximum(np.linalg.norm(basis_KQ, axis=1, keepdims=True), 1e-12)
    else:
        _, vectors_QK = eigh(_gram(centred_NQ.T), subset_by_index=(pixels - components, pixels - 1))
        basis_KQ = vectors_QK.T[::-1]
    largest_K = np.take_along_axis(basis_KQ, np.abs(basis_KQ).argmax(axis=1)[:, None], axis=1)
    return basis_KQ * np.where(largest_K < 0, -1.0, 1.0)


def _gram(rows: NDArray) -> NDArray[np.float64]:
    """Return rows @ rows.T in double precision, a block of columns at a time."""
    total = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], 2048):
        part = rows[:, start : start + 2048].astype(np.float64)
        total += part @ part.T
    return total


def compression_error(grid: Grid, flux_NQ: NDArray) -> dict[str, float]:
    """Return rms, 99.9 % quantile and maximum of the errors of the nodes' pixels."""
    squares, largest, counts = 0.0, 0.0, np.zeros(4000, dtype=np.int64)
    edges = np.concatenate(([0], np.logspace(-7, 1, len(counts) - 1), [np.inf]))
    for error_BQ in _errors(grid, grid.coefficient_NK.dequantized(), flux_NQ):
        squares, largest = squares + float(np.square(error_BQ).sum()), max(largest, float(error_BQ.max()))
        counts += np.histogram(error_BQ, edges)[0]
    above = np.searchsorted(np.cumsum(counts), 0.999 * flux_NQ.size)
    return {"rms": (squares / flux_NQ.size) ** 0.5, "99.9 %": float(min(edges[above + 1], largest)), "max": largest}


def leave_one_out_error(grid: Grid, flux_NQ: NDArray, kind: str | None = None) -> dict[str, dict[str, float]]:
    """Return for each axis the interpolation error at its inner nodes, each with the spectra of that node left out.

    An upper bound, since the nodes around have twice the distance of the real grid: for a cubic spline by about 2^4.
    `kind` replaces the grid's own splines; an axis of two nodes has no inner ones and is missing in the result.
    """
    shape = [len(nodes) for nodes in grid.axes.values()]
    coefficient = grid.coefficient_NK.dequantized().reshape(*shape, -1)
    flux, errors = flux_NQ.reshape(*shape, -1), {}
    for axis, (name, nodes) in enumerate(grid.axes.items()):
        root_mean_squares = []
        for omitted in range(1, len(nodes) - 1):
            spline = cardinal_splines(np.delete(nodes, omitted).tolist(), kind or grid.kinds[name])
            others = np.delete(coefficient, omitted, axis=axis)
            guess_NK = np.tensordot(spline(nodes[omitted]), others, axes=(0, axis)).reshape(-1, others.shape[-1])
            truth_NQ = flux.take(omitted, axis=axis).reshape(len(guess_NK), -1)
            root_mean_squares += _root_mean_squares(grid, guess_NK, truth_NQ)
        if root_mean_squares:
            errors[name] = _quantiles(root_mean_squares)
    return errors


def best_splines(grid: Grid, flux_NQ: NDArray) -> dict[str, str]:
    """Return for each axis the kind of spline with the least leave-one-out error."""
    errors = {kind: leave_one_out_error(grid, flux_NQ, kind) for kind in SPLINE_KINDS}
    return {
        name: min(SPLINE_KINDS, key=lambda kind: errors[kind].get(name, {"median": 0.0})["median"])
        for name in grid.axes
    }


def interpolation_error(grid: Grid, coordinate_ML: NDArray, flux_MQ: NDArray) -> dict[str, float]:
    """Return the error of the interpolated spectra at any coordinates inside the axes."""
    weight_MN = np.ones((len(coordinate_ML), 1))
    for column, (name, nodes) in enumerate(grid.axes.items()):
        weights = cardinal_splines(nodes, grid.kinds[name])(coordinate_ML[:, column])
        weight_MN = (weight_MN[:, :, None] * weights[:, None]).reshape(len(coordinate_ML), -1)
    return _quantiles(_root_mean_squares(grid, weight_MN @ grid.coefficient_NK.dequantized(), flux_MQ))


def _root_mean_squares(grid: Grid, coefficient_NK: NDArray, flux_NQ: NDArray) -> list[float]:
    rows = [np.sqrt(np.square(error_BQ).mean(axis=1)) for error_BQ in _errors(grid, coefficient_NK, flux_NQ)]
    return np.concatenate(rows).tolist()


def _errors(grid: Grid, coefficient_NK: NDArray, flux_NQ: NDArray) -> Iterator[NDArray]:
    """Yield absolute errors of the flux, `CHUNK` spectra at a time."""
    basis_KQ = grid.basis_KQ.dequantized().astype(np.float32)
    for start in range(0, len(flux_NQ), CHUNK):
        part = slice(start, start + CHUNK)
        log_BQ = coefficient_NK[part].astype(np.float32) @ basis_KQ + grid.mean_Q
        yield np.abs(np.expm1(log_BQ - np.log(flux_NQ[part])))


def _quantiles(values: list[float]) -> dict[str, float]:
    return {name: float(np.quantile(values, share)) for name, share in QUANTILES.items()}
