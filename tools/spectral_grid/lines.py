"""Atomic and CN lines: their table, their Voigt profiles, and their opacity on the fine grid.

Shape suffixes: J layers, L lines, X points of the fine grid, C points of line cores, W points of wings.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import wofz

from tools.spectral_grid.atmosphere import Atmosphere
from tools.spectral_grid.chemistry import elements
from tools.spectral_grid.constants import (
    ATOMIC_MASS,
    BOLTZMANN,
    BOLTZMANN_EV,
    LIGHT,
    LINE_STRENGTH,
    SECOND_RADIATION,
    Array,
)
from tools.spectral_grid.continuum import PASCHEN_LIMIT
from tools.spectral_grid.fine_grid import FINE_STEP, fine_index, fine_wavelength, windows

MICROTURBULENCE = 2.0
"""km/s, one of the values of the BOSZ library (Meszaros et al. 2024, A&A 688, A197)."""
CORE_HALF, HYDROGEN_CORE_HALF = 16.0, 60.0
"""km/s on either side of a line's centre where its Voigt profile is summed; beyond begin its Lorentz wings."""
WING_OPACITY = 0.003
"""Ratio of line to continuum opacity at which wings are truncated."""
MAX_WING, HYDROGEN_WING = 2500.0, 800.0  # km/s
TYPICAL_DAMPING, TYPICAL_DOPPLER = 0.1, 2.3
"""Damping, in Doppler widths, and Doppler width [km/s] of a line in a cool dwarf: they set how far a wing matters."""
HOLTSMARK = 1.68e-11
"""Half width of a Paschen line over n^2, cm^-1 per (cm^-3)^(2/3): linear Stark broadening as a Lorentz profile, which
moves the levels of n by n^2 times the field. Fitted to BOSZ spectra of giants."""
CN_MASS = 26.018
LOG_DAMPING = np.linspace(-4.0, 1.5, 111)
OFFSET = np.linspace(0.0, 8.0, 321)
"""The table's damping (log10) and offset, in Doppler widths; interpolation keeps H positive and good to 0.3 %."""


@dataclass(frozen=True)
class Lines:
    """The line table, arrays of shape (L,), and the lines' cores and wings on the fine grid."""

    species: tuple[tuple[str, int], ...]
    wave_L: Array
    excitation_L: Array
    strength_L: Array
    """Oscillator strength gf times `LINE_STRENGTH`, cm^2 Hz."""
    radiative_L: Array
    stark_L: Array
    vdw_L: Array
    vdw_exponent_L: Array
    mass_L: Array
    line_C: NDArray[np.intp]
    velocity_C: NDArray[np.float32]
    """Line of each core point, and its distance from the line's centre, km/s."""
    core_XC: sparse.csr_array
    """Sums the core points on the grid."""
    wing_XL: sparse.csr_array
    """1/velocity^2 of the wings, shifted to zero where they are truncated."""


@lru_cache(maxsize=1)
def lines() -> Lines:
    """Return the line table; `lines.csv` names the units and the source of each line."""
    text = Path(__file__).with_name("lines.csv").read_text(encoding="utf-8")
    rows = [line.split(",") for line in text.splitlines() if not line.startswith("#")][1:]
    species = tuple((row[1], int(row[2])) for row in rows)
    wave_L = np.array([float(row[0]) for row in rows])
    table = np.array([[float(value) for value in row[3:10]] for row in rows]).T
    mass = dict(zip(elements().names, elements().mass_E, strict=True)) | {"CN": CN_MASS}
    hydrogen_L = np.array([name == "H" for name, _ in species])
    return Lines(
        species,
        wave_L,
        table[0],
        LINE_STRENGTH * 10 ** table[1],
        10 ** table[2],
        10 ** table[3],
        10 ** table[4],
        table[5],
        np.array([mass[name] for name, _ in species]),
        *_spread(fine_index(wave_L), hydrogen_L, table[6]),
    )


def _spread(
    centre_L: Array, hydrogen_L: NDArray[np.bool_], log_eta_L: Array
) -> tuple[NDArray[np.intp], NDArray[np.float32], sparse.csr_array, sparse.csr_array]:
    """Return `line_C`, `velocity_C`, `core_XC` and `wing_XL`; `log_eta_L` is the largest line-to-continuum opacity."""
    size = len(fine_wavelength())
    core_L = np.where(hydrogen_L, HYDROGEN_CORE_HALF, CORE_HALF)
    line_C, point_C = windows(centre_L, core_L / FINE_STEP)
    ones_C = np.ones(len(line_C), dtype=np.float32)
    core_XC = sparse.csr_array((ones_C, (point_C, np.arange(len(line_C)))), shape=(size, len(line_C)))
    far_L = TYPICAL_DOPPLER * np.sqrt(TYPICAL_DAMPING / np.sqrt(np.pi) * 10**log_eta_L / WING_OPACITY)
    wing_L = np.where(hydrogen_L, HYDROGEN_WING, np.clip(far_L, core_L, MAX_WING))
    line_W, point_W = windows(centre_L, wing_L / FINE_STEP)
    velocity_W = FINE_STEP * (point_W - centre_L[line_W])
    far_W = np.abs(velocity_W) > core_L[line_W]
    shape_W = (velocity_W**-2 - wing_L[line_W] ** -2)[far_W].astype(np.float32)
    wing_XL = sparse.csr_array((shape_W, (point_W[far_W], line_W[far_W])), shape=(size, len(centre_L)))
    return line_C, (FINE_STEP * (point_C - centre_L[line_C])).astype(np.float32), core_XC, wing_XL


@lru_cache(maxsize=1)
def _voigt_table() -> NDArray[np.float32]:
    """Return the Voigt function H(a, u), flattened, rows of constant a."""
    return wofz(OFFSET + 1j * 10 ** LOG_DAMPING[:, None]).real.astype(np.float32).ravel()


def voigt(damping_JL: Array, offset_JC: NDArray[np.float32], line_C: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return H(a, u) of shape (J, C) for core points with offset u that belong to lines with damping a."""
    place_JL = (np.log10(damping_JL) - LOG_DAMPING[0]) / (LOG_DAMPING[1] - LOG_DAMPING[0])
    place_JL = np.clip(place_JL, 0, len(LOG_DAMPING) - 1.001)
    row_JL = place_JL.astype(np.int32)
    share_JC = (place_JL - row_JL).astype(np.float32)[:, line_C]
    offset_JC = np.minimum(np.abs(offset_JC) * np.float32(1 / OFFSET[1]), np.float32(len(OFFSET) - 1.01))
    column_JC = offset_JC.astype(np.int32)
    offset_JC -= column_JC
    index_JC = (row_JL * np.int32(len(OFFSET)))[:, line_C] + column_JC
    table, size = _voigt_table(), len(OFFSET)
    low_JC = table[index_JC] * (1 - share_JC) + table[index_JC + size] * share_JC
    high_JC = table[index_JC + 1] * (1 - share_JC) + table[index_JC + (size + 1)] * share_JC
    return low_JC + (high_JC - low_JC) * offset_JC


def damping_rate(model: Atmosphere) -> Array:
    """Return the Lorentz widths Gamma, shape (J, L), in s^-1: radiative, Stark and van der Waals; Paschen: Stark."""
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
    square_L = 9 / np.where(paschen_L, 1 - PASCHEN_LIMIT / table.wave_L, 1)  # n^2 of the upper level
    holtsmark_JL = 4 * np.pi * LIGHT * 1e5 * HOLTSMARK * square_L * electrons_J1 ** (2 / 3)
    return np.where(paschen_L, holtsmark_JL, rate_JL)


def line_opacity(model: Atmosphere, unit_J: Array) -> NDArray[np.float32]:
    """Return the opacity of all lines in units of `unit_J` [cm^-1], shape (J, X)."""
    table = lines()
    temperature_J1 = model.temperature_J[:, None]
    thermal_JL = 2 * BOLTZMANN * temperature_J1 / (ATOMIC_MASS * table.mass_L) * 1e-10
    doppler_JL = np.sqrt(thermal_JL + MICROTURBULENCE**2)  # km/s
    width_JL = doppler_JL * 1e13 / table.wave_L  # Hz
    damping_JL = damping_rate(model) / (4 * np.pi * width_JL)
    population_JL = np.stack([model.populations[s] for s in table.species], axis=1)
    boltzmann_JL = np.exp(-table.excitation_L / (BOLTZMANN_EV * temperature_J1))
    stimulated_JL = -np.expm1(-SECOND_RADIATION / (table.wave_L * temperature_J1))
    centre_JL = table.strength_L * population_JL * boltzmann_JL * stimulated_JL / (np.sqrt(np.pi) * width_JL)
    centre_JL = (centre_JL / unit_J[:, None]).astype(np.float32)
    wing_JL = centre_JL * (damping_JL * doppler_JL**2 / np.sqrt(np.pi)).astype(np.float32)
    offset_JC = table.velocity_C * (1 / doppler_JL).astype(np.float32)[:, table.line_C]
    core_JC = centre_JL[:, table.line_C] * voigt(damping_JL, offset_JC, table.line_C)
    return (table.core_XC @ core_JC.T + table.wing_XL @ wing_JL.T).T
