"""The noise of the instrument: photons of the star and the sky, and the read-out, per pixel."""

from functools import lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from specvit.physics.synthesis import wavelength

ELECTRONS_AT_18 = 9592.0
"""Electrons of a star of AB magnitude 18 in the pixel of median S/N (Subaru PFS exposure time calculator)."""
BACKGROUND_VARIANCE = 2453.0
"""Variance in that pixel without a star: sky, dark current and read-out, electrons squared."""


@lru_cache(maxsize=1)
def noise_table() -> NDArray[np.float64]:
    """Return signal and background variance of each pixel, shape (2, P), relative to the two constants above.

    Background over its median; signal such that signal / sqrt(background) has median 1, so that the constants
    belong to the pixel with the median S/N (sky lines sit where the signal is strong, so medians do not commute).
    """
    text = files("specvit.physics").joinpath("pfs_mr_noise.csv").read_text(encoding="utf-8")
    rows = [line.split(",") for line in text.splitlines() if not line.startswith("#")][1:]
    signal_P, background_P = np.array(rows, dtype=np.float64).T
    return np.stack((signal_P / np.median(signal_P / np.sqrt(background_P)), background_P))


def pixel_error(flux_P: NDArray, mag: float, throughput: float) -> NDArray[np.float32]:
    """Return the 1 sigma error of each pixel, shape (P,), in the unit of `flux_P` (per unit wavelength).

    `mag` is the AB magnitude; `throughput` multiplies the electrons of the star (seeing, fibre losses).
    """
    signal_P, background_P = noise_table()
    photon_flux_P = flux_P.astype(np.float64) * wavelength() ** 2  # proportional to F_nu
    relative_P = photon_flux_P / photon_flux_P.mean()
    electrons_P = signal_P * ELECTRONS_AT_18 * 10 ** (-0.4 * (mag - 18)) * relative_P * throughput
    variance_P = electrons_P + BACKGROUND_VARIANCE * background_P
    return (flux_P * np.sqrt(variance_P) / electrons_P).astype(np.float32)
