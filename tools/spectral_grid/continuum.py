"""Continuous absorption of cool stars: H-, H I and scattering. J layers, W wavelengths in Angstrom; other units cgs.

H- contributes nine tenths at 8000 Angstrom for 3750-6000 K. Metals, H2- and He- are left out.
"""

import numpy as np

from tools.spectral_grid.constants import BOLTZMANN_EV, EV_ANGSTROM, SECOND_RADIATION, Array

ROSSELAND_WAVE = np.array([4500.0, 6000.0, 8000.0, 10000.0, 13000.0, 16000.0])
ROSSELAND_WEIGHT = np.array([0.12, 0.20, 0.25, 0.20, 0.13, 0.10])
"""A harmonic mean over six wavelengths approximates the Rosseland mean of a cool star; the weights are our choice."""
TIO_MEAN = np.array([1e-17, 5e-17, 1.5e-17, 5e-18, 0.0, 0.0])
WATER_MEAN = np.array([0.0, 0.0, 3e-23, 1e-21, 6e-21, 6e-21])
"""cm^2 per molecule at those wavelengths, between its lines, which dominate a harmonic mean; orders of magnitude, ours.

Without them a dwarf of 3800 K has three times as much gas above tau = 0.3, sodium lines three times as wide as
BT-Settl's, and so much TiO that its bands have to be weakened tenfold."""
PASCHEN_LIMIT, PASCHEN_28 = 8205.8, 8301.1
"""Vacuum Angstrom: the limit of the Paschen series and its line from n = 28."""
THOMSON = 6.652e-25  # cm^2 per electron

H_MINUS_BF = (152.519, 49.534, -118.858, 92.536, -34.194, 4.982)
H_MINUS_FF = (
    (2483.346, 285.827, -2054.291, 2827.776, -1341.537, 208.952),
    (-3449.889, -1158.382, 8746.523, -11485.632, 5303.609, -812.939),
    (2200.040, 2427.719, -13651.105, 16755.524, -7510.494, 1132.738),
    (-696.271, -1841.400, 8624.970, -10051.530, 4400.067, -655.020),
    (88.283, 444.517, -1863.864, 2095.288, -901.788, 132.985),
)
"""John (1988, A&A 193, 189): bound-free C_1..C_6; free-free (A, B, C, D, E, F) of n = 2..6."""


def planck(wave_W: Array, temperature_J: Array) -> Array:
    """Return B_lambda of shape (J, W) in units of 1e14 erg s^-1 cm^-2 cm^-1 sr^-1."""
    return 1.191043e9 / wave_W**5 * 1e12 / np.expm1(SECOND_RADIATION / (wave_W * temperature_J[:, None]))


def h_minus_free_free(wave: Array | float, temperature: Array | float) -> Array:
    """Return the H- free-free absorption in cm^4/dyn per H atom; arguments broadcast."""
    micron, theta = np.asarray(wave) * 1e-4, 5040 / np.asarray(temperature, dtype=np.float64)
    powers = (micron**2, 1.0, 1 / micron, 1 / micron**2, 1 / micron**3, 1 / micron**4)
    rows = (sum(c * p for c, p in zip(row, powers, strict=True)) for row in H_MINUS_FF)
    return 1e-29 * sum((theta ** ((n + 3) / 2) * row for n, row in enumerate(rows)), start=np.zeros(()))


def h_minus(wave: Array | float, temperature: Array | float) -> Array:
    """Return the H- absorption, bound-free plus free-free, in cm^4/dyn per H atom (John 1988); arguments broadcast."""
    micron = np.asarray(wave) * 1e-4
    temperature = np.asarray(temperature, dtype=np.float64)
    inverse = np.clip(1 / micron - 1 / 1.6419, 0.0, None)
    cross_section = 1e-18 * micron**3 * sum(c * inverse ** (1.5 + n / 2) for n, c in enumerate(H_MINUS_BF))
    stimulated = 1 - np.exp(-1.439e4 / (micron * temperature))
    bound_free = 0.750 * temperature**-2.5 * np.exp(1.439e4 / (1.6419 * temperature)) * stimulated * cross_section
    return bound_free + h_minus_free_free(wave, temperature)


def neutral_hydrogen(wave: Array | float, temperature: Array | float) -> Array:
    """Return H I bound-free from n = 3 and 4, cm^2 per H atom (Kramers, Gaunt factor 1); arguments broadcast.

    The Paschen edge lies inside the band; the lines above P28, which are not in the line table, merge there,
    so the edge is a slope from P28 to the limit of the series.
    """
    wave = np.asarray(wave, dtype=np.float64)
    frequency = 2.99792458e18 / wave
    kt = BOLTZMANN_EV * np.asarray(temperature)
    shares = ((3, np.clip((PASCHEN_28 - wave) / (PASCHEN_28 - PASCHEN_LIMIT), 0, 1)), (4, 1.0))
    bound_free = sum(2.815e29 * n**-3.0 / frequency**3 * np.exp(-13.598 * (1 - n**-2.0) / kt) * s for n, s in shares)
    return bound_free * -np.expm1(-EV_ANGSTROM / (wave * kt))


def rayleigh(wave_W: Array) -> tuple[Array, Array, Array]:
    """Return the scattering cross-sections of H I, He I and H2, each (W,), cm^2 (Dalgarno, in Kurucz 1970)."""
    inverse_W = wave_W**-2.0
    hydrogen_W = 5.799e-13 * inverse_W**2 + 1.422e-6 * inverse_W**3 + 2.784 * inverse_W**4
    molecule_W = 8.14e-13 * inverse_W**2 + 1.28e-6 * inverse_W**3 + 1.61 * inverse_W**4
    return hydrogen_W, 5.484e-14 * inverse_W**2, molecule_W


def rosseland_mean(opacity_JW: Array) -> Array:
    """Return the mean, shape (J,), of opacities at `ROSSELAND_WAVE`."""
    return 1 / (1 / opacity_JW @ ROSSELAND_WEIGHT)
