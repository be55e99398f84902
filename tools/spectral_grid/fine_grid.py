"""The fine wavelength grid of line formation, uniform in velocity, and its convolution to the instrument's pixels.

Shape suffixes: X points of the fine grid, Q padded pixels, W entries of a sparse matrix.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from specvit.physics.instrument import RESOLUTION, padded_wavelength
from tools.spectral_grid.constants import LIGHT, Array

FINE_STEP = 2.0
"""km/s, below the narrowest Doppler width (2.1); a sum over such a Gaussian is then exact to 1e-4."""
FINE_RANGE = (7084.0, 8866.0)
"""Angstrom: the padded pixels with a margin for the instrument's profile."""


@lru_cache(maxsize=1)
def fine_wavelength() -> Array:
    """Return the fine grid, shape (X,), in vacuum Angstrom."""
    size = int(np.log(FINE_RANGE[1] / FINE_RANGE[0]) * LIGHT / FINE_STEP) + 1
    return FINE_RANGE[0] * np.exp(np.arange(size) * (FINE_STEP / LIGHT))


def fine_index(wave: Array) -> Array:
    """Return fractional grid indices of wavelengths."""
    return np.log(wave / FINE_RANGE[0]) * (LIGHT / FINE_STEP)


def windows(centre_L: Array, half_L: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return, for all grid points within `half_L` points of a `centre_L`, the index of that centre and of the point."""
    size = len(fine_wavelength())
    spans = [
        np.arange(max(0, int(np.ceil(c - h))), min(size, int(np.floor(c + h)) + 1))
        for c, h in zip(centre_L, half_L, strict=True)
    ]
    return np.repeat(np.arange(len(spans)), [len(s) for s in spans]), np.concatenate(spans)


@lru_cache(maxsize=1)
def instrument_profile() -> sparse.csr_array:
    """Return the matrix (Q, X) that convolves with a Gaussian of `RESOLUTION` and samples the pixel centres."""
    sigma = LIGHT / RESOLUTION / np.sqrt(8 * np.log(2)) / FINE_STEP
    centre_Q = fine_index(padded_wavelength())
    pixel_W, point_W = windows(centre_Q, np.full(len(centre_Q), 4 * sigma))
    weight_W = np.exp(-0.5 * ((point_W - centre_Q[pixel_W]) / sigma) ** 2)
    weight_W /= np.bincount(pixel_W, weight_W)[pixel_W]
    shape = (len(centre_Q), len(fine_wavelength()))
    return sparse.csr_array((weight_W.astype(np.float32), (pixel_W, point_W)), shape=shape)
