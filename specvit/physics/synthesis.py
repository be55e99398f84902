"""Line formation: labels -> clean flux on the pixels of the instrument.

Line and continuum opacity are summed on every layer on a grid even in velocity; the emergent flux is the Planck
function weighted by how much light escapes (Eddington's two-stream beam, secant 5/3), then smeared to R = 5000.

Shape suffixes: J layers, L lines, X points of the fine grid, C points of line cores, P pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import wofz

from specvit.physics.atmosphere import (
    ATOMIC_MASS,
    BOLTZMANN,
    LOG_TAU_J,
    PASCHEN_20,
    PASCHEN_LIMIT,
    ROSSELAND_WAVE,
    Array,
    Atmosphere,
    atmosphere,
    continuum,
    elements,
    planck,
    rosseland_mean,
)
from specvit.quantities import NUM_PIXELS

LIGHT = 299792.458  # km/s
MICROTURBULENCE = 2.0
"""km/s, as the BOSZ library of 2017."""
RESOLUTION = 5000.0
"""Wavelength over FWHM of the instrument's profile."""

FINE_STEP = 2.5
"""km/s, near the narrowest Doppler width (2.2); a sum over a Gaussian is then exact to 1e-3."""
FINE_RANGE = (7078.0, 8872.0)
"""Angstrom: the pixels with room for the instrument's profile and a redshift of 0.002."""
NODE_WAVE = np.array([7070.0, 7350.0, 7650.0, 7950.0, PASCHEN_LIMIT, PASCHEN_20, 8650.0, 8880.0])
"""Where continuum and Planck function are computed, with linear interpolation between."""

CORE_HALF = 16.0
HYDROGEN_CORE_HALF = 60.0
"""km/s around a line's centre where its Voigt profile is summed; its Lorentz wings start there."""
WING_OPACITY = 0.01
"""Line over continuum opacity at which wings are cut."""
MAX_WING, HYDROGEN_WING = 2500.0, 800.0  # km/s
SECANT = 5 / 3
HOLTSMARK = 6.0e-10
"""Half width of a Paschen line, in cm^-1 per (cm^-3)^(2/3): linear Stark broadening as a Lorentz profile; rough."""

VOIGT_LOG_DAMPING = np.linspace(-4.0, 1.5, 111)
VOIGT_OFFSET = np.linspace(0.0, 8.0, 321)
"""Grid of the tabulated Voigt function, in Doppler widths; interpolation keeps it positive and good to 0.3 %."""


@dataclass(frozen=True)
class Lines:
    """The line table, arrays of shape (L,), and where the lines fall on the fine grid."""

    species: tuple[tuple[str, int], ...]
    wave_L: Array
    excitation_L: Array
    strength_L: Array
    """Oscillator strength gf times 0.02654 cm^2 Hz."""
    radiative_L: Array
    stark_L: Array
    vdw_L: Array
    vdw_exponent_L: Array
    mass_L: Array
    line_C: NDArray[np.intp]
    velocity_C: NDArray[np.float32]
    """Line of each core point and its distance from the line, km/s."""
    core_XC: sparse.csr_array
    wing_XL: sparse.csr_array
    """Sum of core points; 1/velocity^2 of the wings, brought to zero at their cut."""


def wavelength() -> Array:
    """Return the vacuum wavelength of the pixel centres, shape (P,), in Angstrom."""
    return 7100.0 + 0.427246 * (np.arange(NUM_PIXELS, dtype=np.float64) + 0.5)


@lru_cache(maxsize=1)
def fine_wavelength() -> Array:
    """Return the fine grid, shape (X,), in vacuum Angstrom, even in the logarithm."""
    size = int(np.log(FINE_RANGE[1] / FINE_RANGE[0]) * LIGHT / FINE_STEP) + 1
    return FINE_RANGE[0] * np.exp(np.arange(size) * (FINE_STEP / LIGHT))


def _windows(centre_L: Array, half_L: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return line index and fine-grid index of all points within `half_L` points of `centre_L`."""
    size = len(fine_wavelength())
    spans = [
        np.arange(max(0, int(np.ceil(c - h))), min(size, int(np.floor(c + h)) + 1))
        for c, h in zip(centre_L, half_L, strict=True)
    ]
    return np.repeat(np.arange(len(spans)), [len(s) for s in spans]), np.concatenate(spans)


@lru_cache(maxsize=1)
def lines() -> Lines:
    """Return the packaged line table; its header names the sources and units."""
    text = files("specvit.physics").joinpath("lines.csv").read_text(encoding="utf-8")
    rows = [line.split(",") for line in text.splitlines() if not line.startswith("#")][1:]
    species = tuple((row[1], int(row[2])) for row in rows)
    wave_L = np.array([float(row[0]) for row in rows])
    table = np.array([[float(value) for value in row[3:]] for row in rows]).T
    mass = dict(zip(elements().names, elements().mass_E, strict=True)) | {"CN": 26.018}
    centre_L = np.log(wave_L / FINE_RANGE[0]) * LIGHT / FINE_STEP
    core_L = np.array([HYDROGEN_CORE_HALF if name == "H" else CORE_HALF for name, _ in species])
    line_C, point_C = _windows(centre_L, core_L / FINE_STEP)
    # A damping of 0.1 Doppler widths of 2.3 km/s, typical of a cool dwarf, says how far a wing matters.
    reach_L = np.clip(2.3 * np.sqrt(0.1 / np.sqrt(np.pi) * 10 ** table[6] / WING_OPACITY), core_L, MAX_WING)
    wing_L = np.where(core_L == HYDROGEN_CORE_HALF, HYDROGEN_WING, reach_L)
    line_W, point_W = _windows(centre_L, wing_L / FINE_STEP)
    velocity_W = FINE_STEP * (point_W - centre_L[line_W])
    far = np.abs(velocity_W) > core_L[line_W]
    shape_W = (velocity_W**-2 - wing_L[line_W] ** -2)[far].astype(np.float32)
    size = len(fine_wavelength())
    ones_C = np.ones(len(line_C), dtype=np.float32)
    return Lines(
        species,
        wave_L,
        table[0],
        0.026540 * 10 ** table[1],
        10 ** table[2],
        10 ** table[3],
        10 ** table[4],
        table[5],
        np.array([mass[name] for name, _ in species]),
        line_C,
        (FINE_STEP * (point_C - centre_L[line_C])).astype(np.float32),
        sparse.csr_array((ones_C, (point_C, np.arange(len(line_C)))), shape=(size, len(line_C))),
        sparse.csr_array((shape_W, (point_W[far], line_W[far])), shape=(size, len(wave_L))),
    )


@lru_cache(maxsize=1)
def node_weights() -> NDArray[np.float32]:
    """Return hat functions of the continuum nodes, shape (nodes, X)."""
    wave_X = fine_wavelength()
    return np.stack([np.interp(wave_X, NODE_WAVE, row) for row in np.eye(len(NODE_WAVE))]).astype(np.float32)


@lru_cache(maxsize=1)
def instrument_profile() -> sparse.csr_array:
    """Return the matrix (P, X) that smears to R = 5000 (a Gaussian) and reads off the pixel centres."""
    sigma = LIGHT / RESOLUTION / np.sqrt(8 * np.log(2)) / FINE_STEP
    centre_P = np.log(wavelength() / FINE_RANGE[0]) * LIGHT / FINE_STEP
    pixel_W, point_W = _windows(centre_P, np.full(NUM_PIXELS, 4 * sigma))
    weight_W = np.exp(-0.5 * ((point_W - centre_P[pixel_W]) / sigma) ** 2)
    weight_W /= np.bincount(pixel_W, weight_W)[pixel_W]
    shape = (NUM_PIXELS, len(fine_wavelength()))
    return sparse.csr_array((weight_W.astype(np.float32), (pixel_W, point_W)), shape=shape)


@lru_cache(maxsize=1)
def voigt_table() -> NDArray[np.float32]:
    """Return H(a, u) on the grid of the constants above, flat, rows of constant a."""
    return wofz(VOIGT_OFFSET + 1j * 10 ** VOIGT_LOG_DAMPING[:, None]).real.astype(np.float32).ravel()


def voigt(damping_JL: Array, offset_JC: NDArray[np.float32], line_C: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return H(a, u) of shape (J, C) for core points with offset u of lines with damping a."""
    place_JL = (np.log10(damping_JL) - VOIGT_LOG_DAMPING[0]) / (VOIGT_LOG_DAMPING[1] - VOIGT_LOG_DAMPING[0])
    place_JL = np.clip(place_JL, 0, len(VOIGT_LOG_DAMPING) - 1.001)
    row_JL = place_JL.astype(np.int32)
    share_JC = (place_JL - row_JL).astype(np.float32)[:, line_C]
    offset_JC = np.minimum(np.abs(offset_JC) * np.float32(1 / VOIGT_OFFSET[1]), np.float32(len(VOIGT_OFFSET) - 1.01))
    column_JC = offset_JC.astype(np.int32)
    offset_JC -= column_JC
    index_JC = (row_JL * np.int32(len(VOIGT_OFFSET)))[:, line_C] + column_JC
    table, size = voigt_table(), len(VOIGT_OFFSET)
    low_JC = table[index_JC] * (1 - share_JC) + table[index_JC + size] * share_JC
    high_JC = table[index_JC + 1] * (1 - share_JC) + table[index_JC + (size + 1)] * share_JC
    return low_JC + (high_JC - low_JC) * offset_JC


def damping_rate(model: Atmosphere) -> Array:
    """Return the Lorentz widths Gamma, shape (J, L), in s^-1: radiative, Stark and van der Waals."""
    table = lines()
    hot_J1 = model.temperature_J[:, None] / 1e4
    perturbers_J1 = (model.hydrogen_J + 0.42 * model.helium_J + 0.85 * model.h2_J)[:, None]
    electrons_J1 = model.electrons_J[:, None]
    rate_JL = (
        table.radiative_L
        + table.stark_L * electrons_J1 * hot_J1 ** (1 / 6)
        + table.vdw_L * perturbers_J1 * hot_J1**table.vdw_exponent_L
    )
    paschen_L = np.array([name == "H" for name, _ in table.species])
    holtsmark_J1 = 4 * np.pi * LIGHT * 1e5 * HOLTSMARK * electrons_J1 ** (2 / 3)
    return np.where(paschen_L, holtsmark_J1, rate_JL)


def line_opacity(model: Atmosphere) -> NDArray[np.float32]:
    """Return the line opacity over the Rosseland mean of the continuum, shape (J, X)."""
    table = lines()
    temperature_J1 = model.temperature_J[:, None]
    thermal_JL = 2 * BOLTZMANN * temperature_J1 / (ATOMIC_MASS * table.mass_L) * 1e-10
    doppler_JL = np.sqrt(thermal_JL + MICROTURBULENCE**2)  # km/s
    width_JL = doppler_JL * 1e13 / table.wave_L  # Hz
    damping_JL = damping_rate(model) / (4 * np.pi * width_JL)
    population_JL = np.stack([model.populations[s] for s in table.species], axis=1)
    boltzmann_JL = np.exp(-table.excitation_L / (8.617333e-5 * temperature_J1))
    stimulated_JL = -np.expm1(-1.4387769e8 / (table.wave_L * temperature_J1))
    mean_J1 = rosseland_mean(continuum(model, ROSSELAND_WAVE))[:, None]
    centre_JL = table.strength_L * population_JL * boltzmann_JL * stimulated_JL / (np.sqrt(np.pi) * width_JL)
    centre_JL = (centre_JL / mean_J1).astype(np.float32)
    wing_JL = centre_JL * (damping_JL * doppler_JL**2 / np.sqrt(np.pi)).astype(np.float32)
    scale_JL = (1 / doppler_JL).astype(np.float32)
    offset_JC = table.velocity_C * scale_JL[:, table.line_C]
    core_JC = centre_JL[:, table.line_C] * voigt(damping_JL, offset_JC, table.line_C)
    return (table.core_XC @ core_JC.T + table.wing_XL @ wing_JL.T).T


def emergent_flux(model: Atmosphere) -> NDArray[np.float32]:
    """Return the flux per unit wavelength on the fine grid, shape (X,), in arbitrary units.

    F = integral of B dT over the transmission T = exp(-5/3 t), t the optical depth of lines and continuum.
    """
    tau_J1 = 10 ** LOG_TAU_J[:, None]
    mean_J1 = rosseland_mean(continuum(model, ROSSELAND_WAVE))[:, None]
    ratio_JN = (continuum(model, NODE_WAVE) / mean_J1).astype(np.float32)
    opacity_JX = ratio_JN @ node_weights()
    opacity_JX += line_opacity(model)
    opacity_JX *= tau_J1.astype(np.float32)
    # Trapezoid in ln tau: t grows by the mean of tau * opacity; the first layer reaches t = tau * opacity.
    half_step = 0.5 * np.diff(LOG_TAU_J)[0] * np.log(10)
    depth_JX = np.empty_like(opacity_JX)
    depth_JX[0] = opacity_JX[0] * np.float32(SECANT)
    for layer in range(1, len(depth_JX)):
        grown_X = (opacity_JX[layer] + opacity_JX[layer - 1]) * np.float32(half_step * SECANT)
        np.add(depth_JX[layer - 1], grown_X, out=depth_JX[layer])
    escape_JX = np.exp(np.negative(depth_JX, out=depth_JX), out=depth_JX)
    source_JN = planck(NODE_WAVE, model.temperature_J)
    # Summed by parts: each layer's escape times the growth of B around it.
    growth_JN = np.empty_like(source_JN)
    growth_JN[0] = 0.5 * (source_JN[1] - source_JN[0])
    growth_JN[1:-1] = 0.5 * (source_JN[2:] - source_JN[:-2])
    growth_JN[-1] = 0.5 * (source_JN[-1] - source_JN[-2])
    weights_NX = node_weights()
    flux_NX = growth_JN.T.astype(np.float32) @ escape_JX
    flux_NX += source_JN[0].astype(np.float32)[:, None]
    return np.einsum("nx,nx->x", flux_NX, weights_NX)


def clean_flux(labels: Mapping[str, float]) -> NDArray[np.float32]:
    """Return the noise-free flux per unit wavelength of one star, shape (P,), its median pixel scaled to 0.5.

    `labels` holds T_eff [K], log_g, M_H, a_M, C_M [dex] and redshift. The reference set divides by a median over
    6500-9500 A, which leaves its median pixel near 0.5; the rule here is that value for every star.
    """
    flux_X = emergent_flux(atmosphere(labels))
    if labels["redshift"]:
        log_wave_X = np.log(fine_wavelength())
        flux_X = np.interp(log_wave_X - np.log1p(labels["redshift"]), log_wave_X, flux_X).astype(np.float32)
    flux_P = instrument_profile() @ flux_X
    return (flux_P * (0.5 / np.median(flux_P))).astype(np.float32)
