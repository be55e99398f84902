"""The Subaru PFS medium-resolution red arm: pixels, resolution and noise table. Needs no torch.

Shape suffixes: P pixels, Q padded pixels. Wavelengths are in vacuum Angstrom.
"""

from functools import lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from specvit.utils.quantities import NUM_PIXELS

FIRST_EDGE, STEP = 7100.0, 0.427246
"""Blue edge of the first pixel, and Angstrom per pixel."""
RESOLUTION = 5000.0
"""Wavelength over the full width at half maximum of the line-spread function, a Gaussian."""
PAD = 24
"""Extra pixels at each end of the packaged spectra, so that they can be shifted by `MAX_REDSHIFT`."""
MAX_REDSHIFT = 0.001
"""Largest redshift in either direction (300 km/s, 20.7 pixels at the red end)."""
ELECTRONS_AT_18 = 9592.0
"""Electrons of a star of AB magnitude 18 in the pixel of median S/N (Subaru PFS exposure time calculator)."""
BACKGROUND_VARIANCE = 2453.0
"""Variance in that pixel without a star: sky, dark current and read-out, electrons squared."""


def wavelength() -> NDArray[np.float64]:
    """Return the wavelengths of the pixel centres, shape (P,)."""
    return FIRST_EDGE + STEP * (np.arange(NUM_PIXELS, dtype=np.float64) + 0.5)


def padded_wavelength() -> NDArray[np.float64]:
    """Return the same with `PAD` more pixels on each side, shape (Q,), Q = P + 2 PAD."""
    return FIRST_EDGE + STEP * (np.arange(-PAD, NUM_PIXELS + PAD, dtype=np.float64) + 0.5)


@lru_cache(maxsize=1)
def noise_table() -> NDArray[np.float64]:
    """Return signal and background variance of each pixel, shape (2, P), relative to the two constants above.

    The background is divided by its median, the signal such that signal / sqrt(background) has median 1: the constants
    then belong to the pixel of median S/N (sky lines lie where the signal is strong, so medians do not commute).
    """
    text = files("specvit.physics").joinpath("pfs_mr_noise.csv").read_text(encoding="utf-8")
    rows = [line.split(",") for line in text.splitlines() if not line.startswith("#")][1:]
    signal_P, background_P = np.array(rows, dtype=np.float64).T
    return np.stack((signal_P / np.median(signal_P / np.sqrt(background_P)), background_P))
