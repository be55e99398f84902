"""The pixels of the instrument: the Subaru PFS medium-resolution red arm, vacuum Angstrom. P pixels, Q padded ones."""

import numpy as np
from numpy.typing import NDArray

from specvit.quantities import NUM_PIXELS

FIRST_EDGE, STEP = 7100.0, 0.427246
"""Vacuum Angstrom of the blue edge of the first pixel, and Angstrom a pixel."""
RESOLUTION = 5000.0
"""Wavelength over the full width at half maximum of the instrument's profile, a Gaussian."""
PAD = 24
"""Pixels beyond each end that the forward model also knows, so that a spectrum can be shifted by `MAX_REDSHIFT`."""
MAX_REDSHIFT = 0.001
"""Largest redshift, either way (300 km/s, 20.7 pixels at the red end)."""


def wavelength() -> NDArray[np.float64]:
    """Return the vacuum wavelength of the pixel centres, shape (P,), in Angstrom."""
    return FIRST_EDGE + STEP * (np.arange(NUM_PIXELS, dtype=np.float64) + 0.5)


def padded_wavelength() -> NDArray[np.float64]:
    """Return the same with `PAD` more pixels on each side, shape (Q,), Q = P + 2 PAD."""
    return FIRST_EDGE + STEP * (np.arange(-PAD, NUM_PIXELS + PAD, dtype=np.float64) + 0.5)
