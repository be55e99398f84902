"""Makes the packaged grid of synthesised spectra: principal components of the logarithm of the flux.

The error of a logarithm is the relative error of the flux, so the components with the least squared error of the one
have that of the other. Shape suffixes: N nodes, K components, Q padded pixels.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from specvit.physics.package import Grid, Rows16


def compress(
    axes: Mapping[str, Sequence[float]], flux_NQ: NDArray, components: int, *, kinds: dict[str, str], fingerprint: str
) -> Grid:
    """Return the grid of spectra at the nodes of `axes`, with at most as many components as there are nodes."""
    log_NQ = np.log(flux_NQ)
    mean_Q = log_NQ.mean(axis=0, dtype=np.float64).astype(np.float32)
    log_NQ -= mean_Q
    basis_KQ = Rows16.of(principal(log_NQ, min(components, len(log_NQ))), axis=0)
    # The scores of the rounded basis, which is no longer exactly orthonormal.
    rounded_KQ = basis_KQ.matrix()
    scores_KN = np.linalg.solve(rounded_KQ @ rounded_KQ.T, (log_NQ @ rounded_KQ.astype(np.float32).T).T)
    nodes = {name: tuple(float(node) for node in places) for name, places in axes.items()}
    return Grid(nodes, kinds, fingerprint, mean_Q, basis_KQ, Rows16.of(scores_KN.T, axis=1))


def principal(centred_NQ: NDArray, components: int) -> NDArray[np.float64]:
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
    """Return rows @ rows.T in double precision, some columns at a time."""
    total = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], 2048):
        part = rows[:, start : start + 2048].astype(np.float64)
        total += part @ part.T
    return total
