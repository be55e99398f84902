"""A plane-parallel LTE atmosphere for one star: temperature, pressure, electrons, populations, continuum.

Shape suffixes here: J layers (outside in), E elements, W wavelengths. Units are cgs, wavelengths Angstrom unless
a name says micron; energies are eV.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BOLTZMANN = 1.380649e-16  # erg/K
ATOMIC_MASS = 1.66053907e-24  # g
ROSSELAND_WAVE = np.array([4500.0, 6000.0, 8000.0, 10000.0, 13000.0, 16000.0])
ROSSELAND_WEIGHT = np.array([0.12, 0.20, 0.25, 0.20, 0.13, 0.10])
"""Angstrom and weight: a harmonic mean over six wavelengths stands for the Rosseland mean of a cool star."""
PASCHEN_LIMIT, PASCHEN_20 = 8205.8, 8394.7
"""Vacuum Angstrom: the limit of the Paschen series and its line from n = 20."""

LOG_TAU_J = np.linspace(-5.0, 1.0, 11)
"""log10 of the Rosseland optical depth of the continuum."""
SURFACE_COOLING = 0.06
"""Fraction by which line blanketing cools the surface below the grey law; sets the depth of strong line cores."""

ALPHA_ELEMENTS = ("O", "Mg", "Si", "S", "Ca", "Ti")
FIXED_POINT_STEPS = 20
"""Enough for 1e-5 in the pressures."""

H_MINUS_BF = (152.519, 49.534, -118.858, 92.536, -34.194, 4.982)
H_MINUS_FF = (
    (2483.346, 285.827, -2054.291, 2827.776, -1341.537, 208.952),
    (-3449.889, -1158.382, 8746.523, -11485.632, 5303.609, -812.939),
    (2200.040, 2427.719, -13651.105, 16755.524, -7510.494, 1132.738),
    (-696.271, -1841.400, 8624.970, -10051.530, 4400.067, -655.020),
    (88.283, 444.517, -1863.864, 2095.288, -901.788, 132.985),
)
"""John (1988, A&A 193, 189): bound-free C_1..C_6; free-free (A, B, C, D, E, F) of n = 2..6."""

LOG_K_H2 = (12.3916, -4.7051, -0.0745, 0.0244)
LOG_K_CO = (13.7604, -11.8518, 0.2297, -0.0332)
LOG_K_CN = (12.8234, -8.1603, 0.0896, -0.0109)
LOG_K_N2 = (13.4807, -10.627, 0.3303, -0.0553)
"""log10 p_A p_B / p_AB [dyn/cm2] in powers of 5040/T, fitted to Barklem & Collet (2016, A&A 588, A96)."""

CN_PARTITION = ((2500.0, 3000.0, 3500.0, 4000.0, 4500.0, 5000.0, 6000.0, 8000.0),
                (2742.9, 3652.1, 4799.4, 6080.8, 7640.6, 9371.9, 13673.5, 24500.0))  # fmt: skip
"""Temperature [K] and partition function of CN (Barklem & Collet 2016); the value at 8000 K extrapolates."""


@dataclass(frozen=True)
class Elements:
    """The element table, one entry per element E."""

    names: tuple[str, ...]
    ionisation_E: Array
    log_eps_E: Array
    mass_E: Array
    neutral_Ek: Array
    ion_Ek: Array


@dataclass(frozen=True)
class Atmosphere:
    """The layers of one star."""

    temperature_J: Array
    gas_pressure_J: Array
    electron_pressure_J: Array
    hydrogen_J: Array
    """Number density of neutral atomic hydrogen, cm^-3; likewise the next two."""
    helium_J: Array
    h2_J: Array
    populations: dict[tuple[str, int], Array]
    """Number density over partition function, cm^-3, by (element, 1 neutral or 2 ion); CN is ("CN", 1)."""

    @property
    def electrons_J(self) -> Array:
        """Return the electron density, cm^-3."""
        return self.electron_pressure_J / (BOLTZMANN * self.temperature_J)


@lru_cache(maxsize=1)
def elements() -> Elements:
    """Return the packaged element table; its header names the sources."""
    text = files("specvit.physics").joinpath("elements.csv").read_text(encoding="utf-8")
    rows = [line.split(",") for line in text.splitlines() if not line.startswith("#")][1:]
    table = np.array([[float(value) for value in row[1:]] for row in rows])
    names = tuple(row[0] for row in rows)
    return Elements(names, table[:, 0], table[:, 1], table[:, 2], table[:, 3:8], table[:, 8:13])


def planck(wave_W: Array, temperature_J: Array) -> Array:
    """Return B_lambda of shape (J, W) in units of 1e14 erg s^-1 cm^-2 cm^-1 sr^-1."""
    return 1.191043e9 / wave_W**5 * 1e12 / np.expm1(1.4387769e8 / (wave_W * temperature_J[:, None]))


def h_minus(wave: Array | float, temperature: Array | float) -> Array:
    """Return the H- absorption, bound-free plus free-free, in cm^4/dyn per H atom (John 1988); arguments broadcast."""
    micron = np.asarray(wave) * 1e-4
    temperature = np.asarray(temperature, dtype=np.float64)
    inverse = np.clip(1 / micron - 1 / 1.6419, 0.0, None)
    cross_section = 1e-18 * micron**3 * sum(c * inverse ** (1.5 + n / 2) for n, c in enumerate(H_MINUS_BF))
    stimulated = 1 - np.exp(-1.439e4 / (micron * temperature))
    bound_free = 0.750 * temperature**-2.5 * np.exp(1.439e4 / (1.6419 * temperature)) * stimulated * cross_section
    powers = (micron**2, 1.0, 1 / micron, 1 / micron**2, 1 / micron**3, 1 / micron**4)
    free_free = sum(
        (5040 / temperature) ** ((n + 3) / 2) * sum(c * p for c, p in zip(row, powers, strict=True))
        for n, row in enumerate(H_MINUS_FF)
    )
    return bound_free + 1e-29 * free_free


def hydrogen_opacity(wave: Array | float, temperature: Array | float) -> Array:
    """Return H I bound-free (Kramers, from n = 3 or 4) plus Rayleigh scattering, cm^2 per H atom; arguments broadcast.

    Rayleigh: Dalgarno, as in Kurucz (1970). The Paschen edge lies inside the band; the lines above P20, which are
    not in the line table, run together there, so the edge is a slope from P20 to the limit of the series.
    """
    wave = np.asarray(wave, dtype=np.float64)
    frequency = 2.99792458e18 / wave
    kt = 8.617333e-5 * np.asarray(temperature)
    bound_free = sum(
        2.815e29 * n**-3.0 * frequency**-3 * np.exp(-13.598 * (1 - n**-2.0) / kt) * share
        for n, share in ((3, np.clip((PASCHEN_20 - wave) / (PASCHEN_20 - PASCHEN_LIMIT), 0, 1)), (4, 1))
    )
    rayleigh = 5.799e-13 / wave**4 + 1.422e-6 / wave**6 + 2.784 / wave**8
    return bound_free * -np.expm1(-12398.42 / (wave * kt)) + rayleigh


def continuum(atmosphere: Atmosphere, wave_W: Array) -> Array:
    """Return the continuous absorption, shape (J, W), in cm^-1."""
    temperature_J1 = atmosphere.temperature_J[:, None]
    per_atom_JW = h_minus(wave_W, temperature_J1) * atmosphere.electron_pressure_J[:, None]
    return atmosphere.hydrogen_J[:, None] * (per_atom_JW + hydrogen_opacity(wave_W, temperature_J1))


def rosseland_mean(opacity_JW: Array) -> Array:
    """Return the mean, shape (J,), of opacities at `ROSSELAND_WAVE`."""
    return 1 / (1 / opacity_JW @ ROSSELAND_WEIGHT)


def grey_temperature(t_eff: float) -> Array:
    """Return T_J: the grey law with a fitted Hopf function, and a surface cooled by line blanketing."""
    tau_J = 10**LOG_TAU_J
    hopf_J = 0.7104 - 0.1331 * np.exp(-3.4488 * tau_J)
    return t_eff * (0.75 * (tau_J + hopf_J)) ** 0.25 * (1 - SURFACE_COOLING * np.exp(-tau_J / 0.01))


def abundances(m_h: float, a_m: float, c_m: float) -> Array:
    """Return the number of atoms per hydrogen atom, shape (E,); `a_m` also carries oxygen."""
    table = elements()
    shift_E = np.array(
        [0.0 if n in ("H", "He") else m_h + a_m * (n in ALPHA_ELEMENTS) + c_m * (n == "C") for n in table.names]
    )
    return 10 ** (table.log_eps_E - 12 + shift_E)


def partition_functions(temperature_J: Array) -> tuple[Array, Array]:
    """Return those of the neutral atoms and the ions, each (J, E)."""
    table = elements()
    log_theta = np.log10(5040 / np.clip(temperature_J, 2500.0, 8500.0))  # the range of the fits
    powers_Jk = log_theta[:, None] ** np.arange(5)
    return 10 ** (powers_Jk @ table.neutral_Ek.T), 10 ** (powers_Jk @ table.ion_Ek.T)


def equilibrium_constant(coefficients: tuple[float, ...], temperature_J: Array) -> Array:
    """Return p_A p_B / p_AB in dyn/cm2."""
    return 10 ** ((5040 / temperature_J)[:, None] ** np.arange(len(coefficients)) @ np.array(coefficients))


def ionisation_pressure(temperature_J: Array) -> Array:
    """Return Saha's p(ion) p(electron) / p(atom), shape (J, E), in dyn/cm2."""
    neutral_JE, ion_JE = partition_functions(temperature_J)
    exponent_JE = (
        2.5 * np.log10(temperature_J)[:, None] - 0.1761 - 5040 / temperature_J[:, None] * (elements().ionisation_E)
    )
    return ion_JE / neutral_JE * 10**exponent_JE


def hydrostatic(temperature_J: Array, log_g: float, eps_E: Array) -> tuple[Array, Array, Array]:
    """Return gas pressure, electron pressure and atomic-hydrogen pressure, each (J,), in dyn/cm2.

    Solves dP / d ln tau = g tau rho / alpha together with Saha's equations and H2 by a damped fixed point of a
    constant number of steps, so that equal labels give equal bits.
    """
    tau_J = 10**LOG_TAU_J
    step = np.diff(LOG_TAU_J)[0] * np.log(10)
    saha_JE = ionisation_pressure(temperature_J)
    k_h2_J = equilibrium_constant(LOG_K_H2, temperature_J)
    h_minus_JW = h_minus(ROSSELAND_WAVE, temperature_J[:, None])
    other_JW = hydrogen_opacity(ROSSELAND_WAVE, temperature_J[:, None])
    rest = eps_E[1:].sum()
    gram_per_h = ATOMIC_MASS * (eps_E @ elements().mass_E)
    gas_J = 10**log_g * tau_J**0.6 / 0.1
    electron_J = 1e-4 * gas_J
    hydrogen_J = gas_J
    for _ in range(FIXED_POINT_STEPS):
        # p(H) from P - Pe = p(H) + p(H2) + rest * nuclei, with p(H2) = p(H)^2 / K and nuclei = p(H) + 2 p(H2).
        square_J, excess_J = (1 + 2 * rest) / k_h2_J, np.maximum(gas_J - electron_J, 0.1 * gas_J)
        hydrogen_J = 2 * excess_J / (1 + rest + np.sqrt((1 + rest) ** 2 + 4 * square_J * excess_J))
        nuclei_J = hydrogen_J * (1 + 2 * hydrogen_J / k_h2_J)
        ions_J = nuclei_J * ((saha_JE / (saha_JE + electron_J[:, None])) @ eps_E)
        electron_J = np.sqrt(electron_J * ions_J)
        opacity_J = hydrogen_J * rosseland_mean(h_minus_JW * electron_J[:, None] + other_JW)
        slope_J = 10**log_g * tau_J * gram_per_h * nuclei_J / opacity_J
        # Above the first layer P ~ tau^0.55, whose integral is slope / 0.55.
        inner_J = np.cumsum(0.5 * step * (slope_J[1:] + slope_J[:-1]))
        gas_J = np.sqrt(gas_J * (slope_J[0] / 0.55 + np.concatenate(([0.0], inner_J))))
    return gas_J, electron_J, hydrogen_J


def cyanogen(temperature_J: Array, carbon_J: Array, nitrogen_J: Array, oxygen_J: Array) -> Array:
    """Return the pressure of CN from those of C, N and O nuclei: CO takes the rarer of C and O, N2 most of N."""
    k_co_J, k_n2_J = (equilibrium_constant(k, temperature_J) for k in (LOG_K_CO, LOG_K_N2))
    # p_C of carbon = p_C (1 + p_O / K) and oxygen = p_O (1 + p_C / K): the positive root, written without cancellation.
    half_J = 0.5 * (oxygen_J - carbon_J + k_co_J)
    root_J = np.sqrt(half_J**2 + k_co_J * carbon_J)
    free_carbon_J = np.where(half_J > 0, k_co_J * carbon_J / (half_J + root_J), root_J - half_J)
    free_nitrogen_J = 2 * nitrogen_J / (1 + np.sqrt(1 + 8 * nitrogen_J / k_n2_J))
    return free_carbon_J * free_nitrogen_J / equilibrium_constant(LOG_K_CN, temperature_J)


def atmosphere(labels: Mapping[str, float]) -> Atmosphere:
    """Return the layers of the star with `T_eff`, `log_g`, `M_H`, `a_M`, `C_M`."""
    names = elements().names
    temperature_J = grey_temperature(labels["T_eff"])
    eps_E = abundances(labels["M_H"], labels["a_M"], labels["C_M"])
    gas_J, electron_J, hydrogen_J = hydrostatic(temperature_J, labels["log_g"], eps_E)
    kt_J = BOLTZMANN * temperature_J
    h2_J = hydrogen_J**2 / equilibrium_constant(LOG_K_H2, temperature_J)
    nuclei_JE = (hydrogen_J + 2 * h2_J)[:, None] * eps_E
    saha_JE = ionisation_pressure(temperature_J) / electron_J[:, None]
    neutral_JE, ion_JE = partition_functions(temperature_J)
    density_JE = nuclei_JE / (1 + saha_JE) / kt_J[:, None]
    density_JE[:, 0] = hydrogen_J / kt_J
    atoms_JE, ions_JE = density_JE / neutral_JE, density_JE * saha_JE / ion_JE
    populations = {(name, 1): atoms_JE[:, e] for e, name in enumerate(names)}
    populations |= {(name, 2): ions_JE[:, e] for e, name in enumerate(names)}
    cn_J = cyanogen(temperature_J, *(nuclei_JE[:, names.index(name)] for name in ("C", "N", "O")))
    populations["CN", 1] = cn_J / kt_J / np.interp(temperature_J, *CN_PARTITION)
    helium_J = nuclei_JE[:, 1] / kt_J
    return Atmosphere(temperature_J, gas_J, electron_J, hydrogen_J / kt_J, helium_J, h2_J / kt_J, populations)
