"""TiO bands, rotational line by line from molecular constants: right statistically, not in the place of each line.

A smooth band ("just overlapping lines") would block too much light: real lines saturate and leave gaps. Constants:
Huber & Herzberg (1979), Ram et al. (1999); oscillator strengths: Allard, Hauschildt & Schwenke (2000, ApJ 540, 1005).
Heads are within a pixel or two of those observed. Only the main isotope is included.
Shape suffixes: J layers, X points of the fine grid, L rotational lines.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import exp, factorial

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import voigt_profile

from tools.spectral_grid.atmosphere import Atmosphere
from tools.spectral_grid.constants import ATOMIC_MASS, BOLTZMANN, LIGHT, SECOND_RADIATION, WAVENUMBER_KELVIN, Array
from tools.spectral_grid.fine_grid import FINE_STEP, fine_index, fine_wavelength

OSCILLATOR = 8.8525e-13
"""pi e^2 / (m c^2), cm per oscillator, in wavenumbers."""
HIGHEST_V, HIGHEST_J = 9, 150
"""Highest vibrational and rotational levels: 2 % of the molecules are above them at 3500 K."""
CALIBRATION = 0.6
"""Factor on the published oscillator strengths that reproduces the bands of BT-Settl's M0 dwarf and giant."""
LEAST_STRENGTH = 1e-4
"""Bands with a smaller oscillator strength times Franck-Condon factor are left out."""
BRANCHES = ((-1, 0.25), (0, 0.5), (1, 0.25))
"""P, Q, R: change of J and fraction of the strength, for high J in perpendicular bands (Hoenl-London)."""
TIO_MASS, MICROTURBULENCE = 63.866, 2.0  # u, km/s
LOG_VDW = -7.6
"""log10 of the van der Waals width, s^-1 cm^3 at 1e4 K, the same for all lines; ours."""
MIDDLE_WAVE = 7500.0
"""Angstrom at which widths in Hz become velocities."""
PROFILE_HALF = 12
"""Half width of a line in points of the fine grid."""


@dataclass(frozen=True)
class System:
    """A band system; energies and constants in cm^-1, `lower` and `upper` as (omega_e, omega_e x_e)."""

    heads: tuple[float, ...]
    """Vacuum wavenumbers of the 0-0 heads, one per component of the multiplet."""
    energies: tuple[float, ...]
    """Energies of the components' lower levels above the ground state."""
    oscillator: float
    lower: tuple[float, float]
    upper: tuple[float, float]
    rotation: tuple[float, float]
    """B of the lower and of the upper state."""
    shift: float
    """Huang-Rhys factor: displacement of the two potentials, which gives the Franck-Condon factors. The value of gamma
    is fitted to the templates; .33, from published factors (q00 = .72), makes the bands at 7600 too deep."""


SYSTEMS = {
    # gamma, A3Phi - X3Delta: heads 7054, 7088, 7126 Angstrom in air.
    "gamma": System((14172.5, 14104.5, 14029.3), (197.0, 98.0, 0.0), 0.0786, (1009.0, 4.5), (867.0, 3.9),
                    (0.5339, 0.506), 0.2),
    # epsilon, E3Pi - X3Delta: 8432, 8442, 8452.
    "epsilon": System((11856.3, 11842.3, 11828.3), (0.0, 98.0, 197.0), 0.0023, (1009.0, 4.5), (924.0, 5.0),
                      (0.5339, 0.516), 0.13),
    # delta, b1Pi - a1Delta: 8859, beyond the band; 1-0 lies inside.
    "delta": System((11284.4,), (3444.0,), 0.048, (1018.0, 4.5), (920.0, 4.0), (0.5362, 0.512), 0.23),
}  # fmt: skip


@dataclass(frozen=True)
class RotationalLines:
    """The lines, arrays of shape (L,), and a matrix that shares each between its two neighbouring grid points."""

    energy_L: Array
    """Energy of the lower level, cm^-1."""
    strength_L: Array
    """Oscillator strength times statistical weight."""
    stick_XL: sparse.csr_array


def franck_condon(upper: int, lower: int, shift: float) -> float:
    """Return the overlap of two levels of displaced harmonic oscillators, squared."""
    small, large = sorted((upper, lower))
    gap = large - small
    terms = (
        (-shift) ** k * factorial(large) / (factorial(small - k) * factorial(gap + k) * factorial(k))
        for k in range(small + 1)
    )
    return exp(-shift) * shift**gap * factorial(small) / factorial(large) * sum(terms) ** 2


def _vibration(v: int, constants: tuple[float, float]) -> float:
    """Return the energy of vibrational level v above v = 0, cm^-1."""
    return constants[0] * v - constants[1] * v * (v + 1)


def _band(system: System, upper: int, lower: int) -> list[Array]:
    """Return wavenumber, energy and strength of the lines of all components of one band, (3, lines) each."""
    strength = system.oscillator * franck_condon(upper, lower, system.shift)
    if strength < LEAST_STRENGTH:
        return []
    low_b, high_b = system.rotation
    j = np.arange(2, HIGHEST_J + 1, dtype=np.float64)
    # The R branch turns at its head, where d/dJ = 0.
    head_offset = 2 * high_b + (3 * high_b - low_b) ** 2 / (4 * (low_b - high_b))
    rows = []
    for head, energy in zip(system.heads, system.energies, strict=True):
        origin = head - head_offset + _vibration(upper, system.upper) - _vibration(lower, system.lower)
        level = energy + _vibration(lower, system.lower) + low_b * j * (j + 1)
        for change, share in BRANCHES:
            at = origin + high_b * (j + change) * (j + change + 1) - low_b * j * (j + 1)
            rows.append(np.stack((at, level, strength * share * 2 * (2 * j + 1))))
    return rows


@lru_cache(maxsize=1)
def rotational_lines() -> RotationalLines:
    """Return the lines on the fine grid."""
    levels = list(np.ndindex(HIGHEST_V + 1, HIGHEST_V + 1))
    rows = [row for system in SYSTEMS.values() for upper, lower in levels for row in _band(system, upper, lower)]
    wave_number_L, energy_L, strength_L = np.concatenate(rows, axis=1)
    size = len(fine_wavelength())
    place_L = fine_index(1e8 / wave_number_L)
    inside_L = (place_L > 0) & (place_L < size - 1)
    place_L, energy_L, strength_L = place_L[inside_L], energy_L[inside_L], strength_L[inside_L]
    first_L = place_L.astype(np.intp)
    share_L = (place_L - first_L).astype(np.float32)
    number_L = np.arange(len(place_L))
    entries = (np.concatenate((1 - share_L, share_L)), (np.append(first_L, first_L + 1), np.append(number_L, number_L)))
    return RotationalLines(energy_L, strength_L, sparse.csr_array(entries, shape=(size, len(place_L))))


def profiles(model: Atmosphere) -> Array:
    """Return the profile of a line on the fine grid, shape (J, 2 `PROFILE_HALF` + 1), with a sum of at most 1."""
    thermal_J = 2 * BOLTZMANN * model.temperature_J / (ATOMIC_MASS * TIO_MASS) * 1e-10
    doppler_J1 = np.sqrt(thermal_J + MICROTURBULENCE**2)[:, None]  # km/s
    perturbers_J = model.hydrogen_J + 0.42 * model.helium_J + 0.85 * model.h2_J
    rate_J1 = (10**LOG_VDW * perturbers_J * (model.temperature_J / 1e4) ** 0.3)[:, None]
    lorentz_J1 = rate_J1 / (4 * np.pi) * MIDDLE_WAVE * 1e-13  # Hz times Angstrom is 1e-13 km/s
    velocity = FINE_STEP * np.arange(-PROFILE_HALF, PROFILE_HALF + 1)
    return FINE_STEP * voigt_profile(velocity, doppler_J1 / np.sqrt(2), lorentz_J1)


def tio_opacity(model: Atmosphere, unit_J: Array) -> NDArray[np.float32]:
    """Return the opacity of TiO in units of `unit_J` [cm^-1], shape (J, X)."""
    table, wave_X = rotational_lines(), fine_wavelength()
    temperature_J1 = model.temperature_J[:, None]
    # Per wavenumber: a point of the grid is FINE_STEP / c of its wavenumber wide.
    boltzmann_JL = np.exp((-WAVENUMBER_KELVIN / temperature_J1).astype(np.float32) * table.energy_L.astype(np.float32))
    stick_XJ = table.stick_XL @ (boltzmann_JL * table.strength_L.astype(np.float32)).T
    scale_JX = (
        (CALIBRATION * OSCILLATOR * model.populations["TiO", 1] / unit_J)[:, None] * wave_X / 1e8 * (LIGHT / FINE_STEP)
    )
    scale_JX *= -np.expm1(-SECOND_RADIATION / (wave_X * temperature_J1))
    smooth_JX = [np.convolve(s, p, mode="same") for s, p in zip(stick_XJ.T, profiles(model), strict=True)]
    return (np.stack(smooth_JX) * scale_JX).astype(np.float32)
