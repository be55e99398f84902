"""From the points of a spectrum to the pixels of another grid: smoothed, then the mean over each pixel.

A point stands for the mean of its own bin, which reaches half-way to its neighbours, so that flux is conserved; where
bins are not much narrower than pixels, points are put between them first. What a pixel takes of each point is a sparse
matrix, made once for spectra of the same wavelengths.

Shape suffixes: X points of a spectrum, P pixels, W entries of a sparse matrix.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import ndtr

Wave = NDArray[np.float64]

CUT = 4.0
"""Standard deviations at which the Gaussian ends; what lies beyond, 6e-5 of it, is shared out over the rest."""
FWHM = np.sqrt(8 * np.log(2))
"""Full width at half maximum of a Gaussian, in standard deviations."""
FINE = 0.25
"""Greatest step between points, in pixels: means over wider bins would make lines of R = 5000 over 0.1 % wider."""
TOLERANCE = 0.01
"""Part of a pixel by which a spectrum may end too early."""


@dataclass(frozen=True)
class Target:
    """The pixels to come to: centres (P,) in vacuum Angstrom, and the Gaussian to smooth with, (P,) or None."""

    wave_P: Wave
    sigma_P: Wave | None = None

    @property
    def needed(self) -> tuple[float, float]:
        """Least and greatest wavelength that a spectrum has to reach, Angstrom."""
        edges_Q = edges(self.wave_P)
        margin = (0.0, 0.0) if self.sigma_P is None else (CUT * self.sigma_P[0], CUT * self.sigma_P[-1])
        return float(edges_Q[0] - margin[0]), float(edges_Q[-1] + margin[1])


def smoothing(wave_P: Wave, source: float, target: float) -> Wave | None:
    """Return the standard deviation (P,), Angstrom, of the Gaussian that takes resolution `source` to `target`.

    Resolution is wavelength over full width at half maximum, widths add in quadrature. None if there is nothing to do;
    `source` is not below `target`.
    """
    width = np.sqrt(max(0.0, target**-2 - source**-2))
    return wave_P * (width / FWHM) if width > 1e-9 else None


def edges(wave_X: Wave) -> Wave:
    """Return the edges of bins around rising points, shape (X + 1,): half-way between, the ends as far out as in."""
    middle = 0.5 * (wave_X[1:] + wave_X[:-1])
    return np.concatenate(([2 * wave_X[0] - middle[0]], middle, [2 * wave_X[-1] - middle[-1]]))


def is_same(wave_X: Wave, target: Target) -> bool:
    """Say whether points are the pixels already, to a ten-thousandth of one, and nothing is to be smoothed."""
    if target.sigma_P is not None or len(wave_X) != len(target.wave_P):
        return False
    return bool((np.abs(wave_X - target.wave_P) <= 1e-4 * np.diff(edges(target.wave_P))).all())


def weights(wave_X: Wave, target: Target) -> sparse.csr_array:
    """Return the matrix (P, X) whose rows add up to 1; the points have to reach over `Target.needed`."""
    bins = edges(wave_X)
    pixels = edges(target.wave_P)
    left_P, right_P = pixels[:-1], pixels[1:]
    reach_P = np.zeros(len(left_P)) if target.sigma_P is None else CUT * target.sigma_P
    first_P = np.clip(np.searchsorted(bins, left_P - reach_P, side="right") - 1, 0, len(wave_X) - 1)
    last_P = np.clip(np.searchsorted(bins, right_P + reach_P, side="left"), first_P + 1, len(wave_X))
    count_P = last_P - first_P
    pixel_W = np.repeat(np.arange(len(left_P)), count_P)
    bin_W = np.arange(count_P.sum()) - np.repeat(np.cumsum(count_P) - count_P - first_P, count_P)
    pair_W = left_P[pixel_W], right_P[pixel_W]
    sigma_W = None if target.sigma_P is None else target.sigma_P[pixel_W]
    weight_W = _below(bins[bin_W + 1], *pair_W, sigma_W) - _below(bins[bin_W], *pair_W, sigma_W)
    weight_W /= np.bincount(pixel_W, weight_W)[pixel_W]
    return sparse.csr_array((weight_W, (pixel_W, bin_W)), shape=(len(left_P), len(wave_X)))


def refined(wave_X: Wave, target: Target) -> tuple[Wave, sparse.csr_array] | None:
    """Return points `FINE` pixels apart (Y,), and the matrix (Y, X) that gives their flux; None for points that are.

    Each lies on the cubic through the four points around it, which on even points conserves the flux.
    """
    pixel = float(np.diff(edges(target.wave_P)).min())
    parts = int(np.ceil(np.median(np.diff(wave_X)) / (FINE * pixel)))
    if parts < 2 or len(wave_X) < 4:
        return None
    bins = edges(wave_X)
    fine_Y = (bins[:-1, None] + np.diff(bins)[:, None] * (np.arange(parts) + 0.5) / parts).ravel()
    inside_Y = np.clip(fine_Y, wave_X[0], wave_X[-1])
    first_Y = np.clip(np.searchsorted(wave_X, inside_Y) - 2, 0, len(wave_X) - 4)
    nodes_Y4 = first_Y[:, None] + np.arange(4)
    at_Y4, weight_Y4 = wave_X[nodes_Y4], np.ones((len(fine_Y), 4))
    for one, other in itertools.permutations(range(4), 2):
        weight_Y4[:, one] *= (inside_Y - at_Y4[:, other]) / (at_Y4[:, one] - at_Y4[:, other])
    row_Y4 = np.broadcast_to(np.arange(len(fine_Y))[:, None], nodes_Y4.shape)
    entries = weight_Y4.ravel(), (row_Y4.ravel(), nodes_Y4.ravel())
    return fine_Y, sparse.csr_array(entries, shape=(len(fine_Y), len(wave_X)))


def _below(edge_W: Wave, left_W: Wave, right_W: Wave, sigma_W: Wave | None) -> Wave:
    """Return the part of a smoothed pixel that lies below an edge: the mean of a Gaussian's integral over the pixel."""
    if sigma_W is None:
        return np.clip((edge_W - left_W) / (right_W - left_W), 0, 1)
    high_W, low_W = (edge_W - left_W) / sigma_W, (edge_W - right_W) / sigma_W
    return (_second_integral(high_W) - _second_integral(low_W)) / (high_W - low_W)


def _second_integral(u_W: Wave) -> Wave:
    """Return the integral of the normal distribution's integral, up to u."""
    return u_W * ndtr(u_W) + np.exp(-0.5 * u_W**2) / np.sqrt(2 * np.pi)
