"""Fisher information of spectra about their labels, by forward-mode autograd, and the Cramér–Rao bound it sets.

A spectrum is flux(labels) + sigma(labels) * unit Gaussian noise, pixel by pixel. Labels are given as coordinates of a
box, each from 0 to 1, so that numbers are comparable whatever a label's unit.

Shape suffixes: N stars, B stars of a chunk, L coordinates, P pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Observe = Callable[[Tensor, NDArray[np.int64]], tuple[Tensor, Tensor]]
"""Takes coordinates (B, L) and the indices (B,) of their stars; returns flux (B, P) and sigma, (B, P) or (B, 1). A row
must depend on its own coordinates only."""

CHUNK = 32
"""Stars per chunk: some 200 MB in float64 with 4096 pixels."""
SINGULAR = 1e-12
"""Eigenvalues of a matrix of unit diagonal below this fraction of the largest count as no information."""
MAX_UNKNOWN = 1e-10
"""Squared component of a coordinate along directions without information, above which its bound is infinite."""


@dataclass(frozen=True)
class Information:
    """Fisher information of N spectra about their L coordinates, in float64; matrices are symmetric."""

    flux_NLL: NDArray[np.float64]
    """From the flux: sum over pixels of d flux_i d flux_j / sigma^2."""
    noise_NLL: NDArray[np.float64]
    """From the noise, whose size also depends on the labels: sum of 2 d ln sigma_i d ln sigma_j."""
    cross_NL: NDArray[np.float64]
    """Between the labels and a factor on the whole flux: sum of d flux_i flux / sigma^2."""
    amplitude_N: NDArray[np.float64]
    """About that factor: sum of (flux / sigma)^2."""

    def free_amplitude(self) -> NDArray[np.float64]:
        """Return the flux's information about the L coordinates and an unknown amplitude, (N, L + 1, L + 1)."""
        whole = np.empty((len(self.flux_NLL), *(np.array(self.flux_NLL.shape[1:]) + 1)))
        whole[:, :-1, :-1] = self.flux_NLL
        whole[:, :-1, -1] = whole[:, -1, :-1] = self.cross_NL
        whole[:, -1, -1] = self.amplitude_N
        return whole


def information(observe: Observe, place_NL: Tensor, *, chunk: int = CHUNK) -> Information:
    """Return the information of the spectra at `place_NL` (float64), `chunk` stars at a time.

    Derivatives are exact, in the precision of `observe`. Elements that are not finite stay so, see `cramer_rao`.
    """
    cuts = np.split(np.arange(len(place_NL)), range(chunk, len(place_NL), chunk))
    parts = [_of_chunk(observe, rows_B, place_NL[rows_B]) for rows_B in cuts]
    return Information(*(torch.cat(part).double().numpy() for part in zip(*parts, strict=True)))


def _of_chunk(observe: Observe, rows_B: NDArray[np.int64], place_BL: Tensor) -> tuple[Tensor, ...]:
    """Return the four arrays of `Information` for one chunk."""
    scaled_BP, slope_BLP, growth_BLP = slopes(observe, rows_B, place_BL)
    return (
        slope_BLP @ slope_BLP.mT,
        2 * growth_BLP @ growth_BLP.mT,
        (slope_BLP @ scaled_BP[:, :, None])[:, :, 0],
        scaled_BP.square().sum(1),
    )


def slopes(observe: Observe, rows_B: NDArray[np.int64], place_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return flux / sigma (B, P), and for each coordinate d flux / sigma and d ln sigma, (B, L, P) each."""
    axes_LL = torch.eye(place_BL.shape[1], dtype=place_BL.dtype)
    tangents_LBL = axes_LL[:, None, :].expand(-1, len(place_BL), -1)

    def expanded(place_BL: Tensor) -> tuple[Tensor, Tensor]:
        flux_BP, sigma = observe(place_BL, rows_B)
        return flux_BP, sigma.expand_as(flux_BP)

    def along(tangent_BL: Tensor) -> tuple[Tensor, Tensor]:
        (_, sigma_BP), (dflux_BP, dsigma_BP) = torch.func.jvp(expanded, (place_BL,), (tangent_BL,))[:2]
        return dflux_BP / sigma_BP, dsigma_BP / sigma_BP

    with torch.no_grad():
        flux_BP, sigma_BP = expanded(place_BL)
        slope_BLP, growth_BLP = (x.transpose(0, 1) for x in torch.func.vmap(along)(tangents_LBL))
        return flux_BP / sigma_BP, slope_BLP, growth_BLP


def cramer_rao(matrix_NLL: NDArray[np.float64], column: int) -> NDArray[np.float64]:
    """Return the least variance (N,) of an unbiased estimate of coordinate `column`, with the others unknown, too.

    It is the element of the inverse, from the eigenvectors of the matrix scaled to unit diagonal. Directions without
    information (`SINGULAR`) are left out if the coordinate has no component along them. If it has, and where the matrix
    is not finite, there is no bound and the variance is infinite. Never NaN.
    """
    variance_N = np.full(len(matrix_NLL), np.inf)
    finite_N = np.isfinite(matrix_NLL).all(axis=(1, 2))
    matrix_nLL = matrix_NLL[finite_N]
    diagonal_nL = np.diagonal(matrix_nLL, axis1=1, axis2=2)
    scale_nL = np.where(diagonal_nL > 0, diagonal_nL, 1.0) ** -0.5
    value_nL, vector_nLL = np.linalg.eigh(matrix_nLL * scale_nL[:, :, None] * scale_nL[:, None, :])
    share_nL = vector_nLL[:, column] ** 2
    known_nL = value_nL > SINGULAR * value_nL[:, -1:]
    variance_n = np.divide(share_nL, value_nL, out=np.zeros_like(value_nL), where=known_nL).sum(1)
    unbounded_n = np.where(known_nL, 0.0, share_nL).sum(1) > MAX_UNKNOWN
    variance_N[finite_N] = np.where(unbounded_n, np.inf, variance_n * scale_nL[:, column] ** 2)
    return variance_N
