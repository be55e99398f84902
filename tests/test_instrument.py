"""The noise of a pixel against the exposure time calculator, and as a torch module."""

import numpy as np
import pytest
import torch

from specvit.physics.instrument import BACKGROUND_VARIANCE, ELECTRONS_AT_18, noise_table, wavelength
from specvit.physics.simulator import PixelNoise


def wavy(rows: int) -> torch.Tensor:
    """Return flux with lines."""
    phase_BP = torch.arange(rows)[:, None] + torch.arange(len(wavelength())) / 50
    return 0.5 + 0.3 * torch.sin(phase_BP)


def test_signal_to_noise_by_magnitude() -> None:
    """The median pixel of a flat spectrum, as the exposure time calculator has it."""
    flat_BP = torch.tensor(wavelength() ** -2.0, dtype=torch.float32)[None]  # constant F_nu: the AB system's spectrum
    for mag, expected in ((18, 87), (20, 24), (21.5, 7.1), (22, 4.6), (22.5, 3.0), (23, 1.9)):
        error_BP = PixelNoise()(flat_BP, torch.tensor([float(mag)]), torch.ones(1))
        assert np.median(flat_BP / error_BP) == pytest.approx(expected, rel=0.02)


def test_error_is_that_of_the_photon_count() -> None:
    """The formula written out in double precision."""
    flux_BP, mag_B, throughput_B = wavy(3), torch.tensor([18.0, 20.5, 23.0]), torch.tensor([0.8, 1.13, 1.5])
    found_BP = PixelNoise()(flux_BP, mag_B, throughput_B)
    signal_P, background_P = noise_table()
    photons_BP = flux_BP.double().numpy() * wavelength() ** 2
    star_B = ELECTRONS_AT_18 * 10 ** (-0.4 * (mag_B.double().numpy() - 18)) * throughput_B.double().numpy()
    electrons_BP = signal_P * star_B[:, None] * photons_BP / photons_BP.mean(axis=1, keepdims=True)
    noise_BP = np.sqrt(electrons_BP + BACKGROUND_VARIANCE * background_P)
    np.testing.assert_allclose(found_BP, flux_BP.numpy() * noise_BP / electrons_BP, rtol=1e-5)


def test_error_scales_with_the_flux_and_falls_with_throughput() -> None:
    """The magnitude, not the flux, sets the electrons."""
    flux_BP, mag_B, one_B = wavy(2), torch.tensor([21.0, 22.0]), torch.ones(2)
    noise = PixelNoise()
    error_BP = noise(flux_BP, mag_B, one_B)
    torch.testing.assert_close(noise(7 * flux_BP, mag_B, one_B), 7 * error_BP, rtol=1e-5, atol=0)
    assert (noise(flux_BP, mag_B, 1.2 * one_B) < error_BP).all()


def test_gradients_are_exact() -> None:
    noise = PixelNoise().double()
    values = (wavy(1).double(), torch.tensor([21.0]).double(), torch.tensor([1.1]).double())
    inputs = [value.requires_grad_() for value in values]
    pixels = torch.arange(0, len(wavelength()), 301)
    direction_BP = torch.randn(1, len(wavelength()), dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def along(step: torch.Tensor, mag_B: torch.Tensor, through_B: torch.Tensor) -> torch.Tensor:
        return noise(inputs[0].detach() + step * direction_BP, mag_B, through_B)[:, pixels]

    assert torch.autograd.gradcheck(along, (torch.zeros(1, 1, dtype=torch.float64, requires_grad=True), *inputs[1:]))
