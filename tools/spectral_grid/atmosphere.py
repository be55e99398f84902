"""A plane-parallel LTE atmosphere for one star: temperature, hydrostatic pressure, electrons, populations, continuum.

Shape suffixes: J layers (outside in), E elements, W wavelengths in Angstrom. Other units are cgs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.interpolate import CubicSpline

from tools.spectral_grid.chemistry import (
    Molecules,
    abundances,
    elements,
    equilibrium_constant,
    molecules,
    partition_function,
    partition_functions,
    saha,
)
from tools.spectral_grid.constants import ATOMIC_MASS, BOLTZMANN, Array
from tools.spectral_grid.continuum import (
    ROSSELAND_WAVE,
    THOMSON,
    TIO_MEAN,
    WATER_MEAN,
    h_minus,
    neutral_hydrogen,
    rayleigh,
    rosseland_mean,
)

LOG_TAU_J = np.linspace(-6.0, 1.4, 38)
"""log10 of the Rosseland optical depth of the continuum, five layers a decade."""
TEMPERATURE_NODES = (-6.0, -5.0, -4.5, -4.0, -3.5, -3.0, -2.5, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.4)
MARCS = {
    "metal-rich": (
        0.609,
        0.664,
        0.692,
        0.719,
        0.746,
        0.771,
        0.796,
        0.821,
        0.850,
        0.894,
        0.969,
        1.099,
        1.325,
        1.653,
        1.80,
    ),
    "metal-poor": (
        0.646,
        0.704,
        0.734,
        0.761,
        0.784,
        0.801,
        0.815,
        0.830,
        0.851,
        0.891,
        0.966,
        1.098,
        1.294,
        1.437,
        1.55,
    ),
    "hot": (0.616, 0.656, 0.676, 0.699, 0.725, 0.751, 0.779, 0.807, 0.838, 0.879, 0.948, 1.077, 1.340, 1.518, 1.63),
}
"""T / T_eff at those log10 tau in three MARCS models (Gustafsson et al. 2008, A&A 486, 951): 4500 K, log g 2.5, [M/H] 0
and -2; 6000 K, log g 1, [M/H] -0.5. Lines cool their surfaces and warm the layers below. Both ends are extrapolated."""
COOLER = ((-5.5, -4.0, -3.0, -2.0, -1.0), (-0.09, -0.07, 0.0, -0.015, 0.0))
"""log10 tau, and the relative change of those temperatures that BOSZ spectra of giants ask for, above all the cores of
their Ca II triplet."""
MARCS_T_EFF, MARCS_M_H = (4500.0, 4500.0, 6000.0), (0.0, -2.0, -0.5)
COOLING, COOLING_DEPTH = 0.06, 0.01
"""Stars of 3750 K are grey with a surface cooled by T (1 - a exp(-tau / depth)), which gives them the bands of
BT-Settl's M0 stars; up to 4500 K the two laws are mixed, smoothly."""
COOLED_T_EFF = 3750.0
FIXED_POINT_STEPS = 32
"""Enough for 1e-6 in the pressures of the hottest, most metal-poor stars, 1e-9 in most others."""


@dataclass(frozen=True)
class Atmosphere:
    """The layers of one star."""

    log_tau_J: Array
    temperature_J: Array
    gas_pressure_J: Array
    electron_pressure_J: Array
    mean_opacity_J: Array
    """Rosseland mean of continuum and molecules, cm^-1, to which `log_tau_J` belongs."""
    hydrogen_J: Array
    """Number density of neutral hydrogen atoms, cm^-3; likewise the next two."""
    helium_J: Array
    h2_J: Array
    populations: dict[tuple[str, int], Array]
    """Number density over partition function, cm^-3, by (element, 1 neutral or 2 ion), ("CN", 1) and ("TiO", 1)."""

    @property
    def electrons_J(self) -> Array:
        """Return the electron density, cm^-3."""
        return self.electron_pressure_J / (BOLTZMANN * self.temperature_J)

    def continuum(self, wave_W: Array) -> Array:
        """Return continuous absorption plus scattering, shape (J, W), in cm^-1."""
        temperature_J1 = self.temperature_J[:, None]
        hydrogen_W, helium_W, h2_W = rayleigh(wave_W)
        per_atom_JW = h_minus(wave_W, temperature_J1) * self.electron_pressure_J[:, None] + hydrogen_W
        per_atom_JW += neutral_hydrogen(wave_W, temperature_J1)
        others_JW = self.helium_J[:, None] * helium_W + self.h2_J[:, None] * h2_W + THOMSON * self.electrons_J[:, None]
        return self.hydrogen_J[:, None] * per_atom_JW + others_JW


@dataclass(frozen=True)
class Pressures:
    """Pressures of gas, electrons, H atoms, and of all H nuclei as if they were free atoms, (J,) each, dyn/cm2."""

    gas_J: Array
    electron_J: Array
    hydrogen_J: Array
    nuclei_J: Array
    mean_J: Array
    """Rosseland mean of the opacity times k T, dyn/cm3."""


@lru_cache(maxsize=1)
def _marcs() -> CubicSpline:
    """Return T / T_eff as a function of log10 tau, shape (3,): a constant, the slope per [M/H], the slope per K."""
    rich, poor, hot = (np.array(values) for values in MARCS.values())
    per_m_h = (rich - poor) / (MARCS_M_H[0] - MARCS_M_H[1])
    per_kelvin = (hot - rich - MARCS_M_H[2] * per_m_h) / (MARCS_T_EFF[2] - MARCS_T_EFF[0])
    return CubicSpline(TEMPERATURE_NODES, np.stack([rich, per_m_h, per_kelvin], axis=1), bc_type="natural")


def cooled_grey(t_eff: float, log_tau_J: Array, cooling: float) -> Array:
    """Return T_J of a grey atmosphere with a fitted Hopf function (Mihalas 1978), its surface cooled."""
    tau_J = 10**log_tau_J
    hopf_J = 0.7104 - 0.1331 * np.exp(-3.4488 * tau_J)
    return t_eff * (0.75 * (tau_J + hopf_J)) ** 0.25 * (1 - cooling * np.exp(-tau_J / COOLING_DEPTH))


def temperature(t_eff: float, m_h: float, log_tau_J: Array) -> Array:
    """Return T_J: linear in T_eff and [M/H] through three MARCS models, mixed with a cooled grey law below 4500 K."""
    constant_J, per_m_h_J, per_kelvin_J = _marcs()(np.clip(log_tau_J, TEMPERATURE_NODES[0], TEMPERATURE_NODES[-1])).T
    marcs_J = t_eff * (constant_J + per_m_h_J * m_h + per_kelvin_J * (t_eff - MARCS_T_EFF[0]))
    way = np.clip((t_eff - COOLED_T_EFF) / (MARCS_T_EFF[0] - COOLED_T_EFF), 0.0, 1.0)
    share = way**2 * (3 - 2 * way)
    marcs_J *= 1 + np.interp(log_tau_J, *COOLER)
    return share * marcs_J + (1 - share) * cooled_grey(t_eff, log_tau_J, COOLING)


def hydrogen_balance(pressure_J: Array, ions_J: Array, k_h2_J: Array, rest: float) -> tuple[Array, Array]:
    """Return the pressures of H atoms and of all H nuclei (as free atoms), given the pressure of all but the electrons.

    `ions_J` is p(H+)/p(H), `rest` the number of other atoms per hydrogen nucleus:
    pressure = p (1 + ions) + p^2 / K + rest nuclei, nuclei = p (1 + ions) + 2 p^2 / K.
    """
    linear_J, square_J = (1 + rest) * (1 + ions_J), (1 + 2 * rest) / k_h2_J
    hydrogen_J = 2 * pressure_J / (linear_J + np.sqrt(linear_J**2 + 4 * square_J * pressure_J))
    return hydrogen_J, hydrogen_J * (1 + ions_J) + 2 * hydrogen_J**2 / k_h2_J


def bound_atoms(temperature_J: Array, hydrogen_J: Array, nuclei_J: Array, eps_E: Array, ions_JE: Array) -> Molecules:
    """Return the molecules of a gas; `ions_JE` is ions over atoms of each element."""
    index = elements().names.index
    nuclei = {name: nuclei_J * eps_E[index(name)] for name in ("C", "N", "O", "Ti")}
    return molecules(temperature_J, hydrogen_J, nuclei, ions_JE[:, index("Ti")])


def hydrostatic(log_tau_J: Array, temperature_J: Array, log_g: float, eps_E: Array) -> Pressures:
    """Solve dP / d ln tau = g tau rho / alpha with Saha's equations and molecules.

    A damped fixed-point iteration with a constant number of steps, so that equal labels give equal bits. Above the
    first layer P ~ tau^0.55, whose integral is slope / 0.55.
    """
    tau_J, step = 10**log_tau_J, (log_tau_J[1] - log_tau_J[0]) * np.log(10)
    saha_JE, k_h2_J = saha(temperature_J), equilibrium_constant("H2", temperature_J)
    h_minus_JW = h_minus(ROSSELAND_WAVE, temperature_J[:, None])
    hydrogen_W, helium_W, h2_W = rayleigh(ROSSELAND_WAVE)
    atom_JW = neutral_hydrogen(ROSSELAND_WAVE, temperature_J[:, None]) + hydrogen_W + eps_E[1] * helium_W
    rest, gram_per_h = eps_E[1:].sum(), ATOMIC_MASS * (eps_E @ elements().mass_E)
    gas_J = 10**log_g * tau_J**0.6 / 0.1
    electron_J = 1e-4 * gas_J
    hydrogen_J = nuclei_J = mean_J = gas_J
    for _ in range(FIXED_POINT_STEPS):
        without_J = np.maximum(gas_J - electron_J, 0.1 * gas_J)
        hydrogen_J, nuclei_J = hydrogen_balance(without_J, saha_JE[:, 0] / electron_J, k_h2_J, rest)
        share_JE = saha_JE / (saha_JE + electron_J[:, None])
        share_JE[:, 0] = hydrogen_J * saha_JE[:, 0] / electron_J / nuclei_J
        electron_J = np.sqrt(electron_J * nuclei_J * (share_JE @ eps_E))
        # As `Atmosphere.continuum`, with the molecules: cross-sections times pressures, cm^-1 times k T.
        opacity_JW = hydrogen_J[:, None] * (h_minus_JW * electron_J[:, None] + atom_JW)
        opacity_JW += (hydrogen_J**2 / k_h2_J)[:, None] * h2_W + THOMSON * electron_J[:, None]
        bound = bound_atoms(temperature_J, hydrogen_J, nuclei_J, eps_E, saha_JE / electron_J[:, None])
        opacity_JW += bound.tio_J[:, None] * TIO_MEAN + bound.water_J[:, None] * WATER_MEAN
        mean_J = rosseland_mean(opacity_JW)
        slope_J = 10**log_g * tau_J * gram_per_h * nuclei_J / mean_J
        inner_J = np.cumsum(0.5 * step * (slope_J[1:] + slope_J[:-1]))
        gas_J = np.sqrt(gas_J * (slope_J[0] / 0.55 + np.concatenate(([0.0], inner_J))))
    return Pressures(gas_J, electron_J, hydrogen_J, nuclei_J, mean_J)


def atmosphere(
    labels: Mapping[str, float], *, cooling: float | None = None, log_tau_J: Array = LOG_TAU_J
) -> Atmosphere:
    """Return the layers of a star with `T_eff` [K], `log_g` [cgs], `M_H`, `a_M`, `C_M` [dex].

    With `cooling` the temperature is that of `cooled_grey`, with 0 that of a grey atmosphere.
    """
    names = elements().names
    if cooling is None:
        temperature_J = temperature(labels["T_eff"], labels["M_H"], log_tau_J)
    else:
        temperature_J = cooled_grey(labels["T_eff"], log_tau_J, cooling)
    eps_E = abundances(labels["M_H"], labels["a_M"], labels["C_M"])
    pressures = hydrostatic(log_tau_J, temperature_J, labels["log_g"], eps_E)
    kt_J = BOLTZMANN * temperature_J
    ions_JE = saha(temperature_J) / pressures.electron_J[:, None]
    atoms_JE = pressures.nuclei_J[:, None] * eps_E / (1 + ions_JE)
    atoms_JE[:, 0] = pressures.hydrogen_J
    bound = bound_atoms(temperature_J, pressures.hydrogen_J, pressures.nuclei_J, eps_E, ions_JE)
    for name, free_J in (("C", bound.carbon_J), ("N", bound.nitrogen_J), ("O", bound.oxygen_J)):
        atoms_JE[:, names.index(name)] = free_J / (1 + ions_JE[:, names.index(name)])
    atoms_JE[:, names.index("Ti")] *= bound.titanium_share_J
    neutral_JE, ion_JE = partition_functions(temperature_J)
    density_JE = atoms_JE / kt_J[:, None]
    populations = {(name, 1): (density_JE / neutral_JE)[:, e] for e, name in enumerate(names)}
    populations |= {(name, 2): (density_JE * ions_JE / ion_JE)[:, e] for e, name in enumerate(names)}
    for name, pressure_J in (("CN", bound.cn_J), ("TiO", bound.tio_J)):
        populations[name, 1] = pressure_J / kt_J / partition_function(name, temperature_J)
    h2_J = pressures.hydrogen_J**2 / equilibrium_constant("H2", temperature_J)
    return Atmosphere(
        log_tau_J,
        temperature_J,
        pressures.gas_J,
        pressures.electron_J,
        pressures.mean_J / kt_J,
        density_JE[:, 0],
        density_JE[:, 1],
        h2_J / kt_J,
        populations,
    )
