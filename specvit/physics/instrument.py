"""The noise of the instrument: photons of the star and the sky, and the read-out, per pixel."""

import math
from functools import lru_cache
from importlib.resources import files

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from specvit.physics.pixels import wavelength

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


class PixelNoise(nn.Module):
    """Flux, magnitude and throughput -> 1 sigma error of each pixel. Differentiable in all three.

    With electrons = flux * response * exposure and variance = electrons + background, error = flux * sqrt(variance)
    / electrons; the flux cancels where it divides itself.
    """

    response_P: Tensor
    """Electrons a unit of flux per wavelength, up to a factor a star."""
    background_P: Tensor
    """Variance without a star, electrons squared."""
    photon_P: Tensor
    """Weights of the pixels in the mean of F_nu, to which F_lambda wavelength^2 is proportional."""

    def __init__(self) -> None:
        """Read the table."""
        super().__init__()
        signal_P, background_P = noise_table()
        photon_P = wavelength() ** 2 / np.mean(wavelength() ** 2)
        for name, value_P in {
            "response_P": signal_P * photon_P,
            "background_P": BACKGROUND_VARIANCE * background_P,
            "photon_P": photon_P / len(photon_P),
        }.items():
            self.register_buffer(name, torch.tensor(value_P, dtype=torch.float32), persistent=False)

    def forward(self, flux_BP: Tensor, mag_B: Tensor, throughput_B: Tensor) -> Tensor:
        """Return the error, shape (B, P), in the unit of `flux_BP` (per unit wavelength).

        `mag_B` is the AB magnitude; `throughput_B` multiplies the electrons of the star (seeing, fibre losses).
        """
        at_mag_B = ELECTRONS_AT_18 * torch.exp(-0.4 * math.log(10.0) * (mag_B - 18))
        exposure_B1 = (at_mag_B * throughput_B / (flux_BP @ self.photon_P))[:, None]
        gain_BP = self.response_P * exposure_B1
        return torch.sqrt(torch.addcmul(self.background_P, flux_BP, gain_BP)) / gain_BP
