"""Parameters of a star -> clean spectrum and its noise: all of the built-in data as one torch module.

Shape suffixes: B batch, S columns of a star, P pixels.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from specvit.physics.forward import LABEL_COLUMNS, ForwardModel
from specvit.physics.instrument import BACKGROUND_VARIANCE, ELECTRONS_AT_18, noise_table, wavelength
from specvit.physics.population import STAR_COLUMNS

MAG, THROUGHPUT = STAR_COLUMNS.index("mag"), STAR_COLUMNS.index("throughput")
assert STAR_COLUMNS[: len(LABEL_COLUMNS)] == LABEL_COLUMNS


class PixelNoise(nn.Module):
    """Flux, magnitude and throughput -> 1 sigma error of each pixel. Differentiable in all three.

    With electrons = flux * response * exposure and variance = electrons + background, error = flux * sqrt(variance)
    / electrons; the flux cancels where it divides itself.
    """

    response_P: Tensor
    """Electrons per unit of flux per wavelength, up to one factor per star."""
    background_P: Tensor
    """Variance without a star, electrons squared."""
    photon_P: Tensor
    """Weights of the pixels in the mean of F_nu, to which F_lambda wavelength^2 is proportional."""

    def __init__(self) -> None:
        """Read the noise table."""
        super().__init__()
        signal_P, background_P = noise_table()
        photon_P = wavelength() ** 2 / (wavelength() ** 2).mean()
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


class Simulator(nn.Module):
    """Stars (B, S) in `STAR_COLUMNS` -> flux (B, P) and its 1 sigma error (B, P); any device, differentiable.

    A star outside the ranges of the grid gives NaN, see `ForwardModel`. With `redshifted=False` the redshift column is
    ignored and taken as 0, which saves the resampling.
    """

    def __init__(self, redshifted: bool = True) -> None:
        """Read the packaged grid and the noise table."""
        super().__init__()
        self.model = ForwardModel(redshifted=redshifted)
        self.noise = PixelNoise()

    def forward(self, stars_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return flux and error in the precision of the module, whatever that of the stars."""
        stars_BS = stars_BS.to(self.model.mean.dtype)
        flux_BP = self.model(stars_BS[:, : len(LABEL_COLUMNS)])
        return flux_BP, self.noise(flux_BP, stars_BS[:, MAG], stars_BS[:, THROUGHPUT])


@lru_cache(maxsize=2)
def host_simulator(redshifted: bool) -> Simulator:
    """Return the simulator on the CPU, built once per process; do not move it to another device."""
    with torch.inference_mode(False):  # the first caller may be in it, and others need gradients
        return Simulator(redshifted).requires_grad_(False).eval()
