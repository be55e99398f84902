"""What the gas is made of: abundances, partition functions, ionisation, and molecules in equilibrium with their atoms.

Only the molecules that matter for this band or for its electrons are included. C2, CH and HCN, which carbon stars
hold, are not. Shape suffixes: J layers (outside in), E elements. Pressures are in dyn/cm2.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from tools.spectral_grid.constants import Array

ALPHA_ELEMENTS = ("O", "Mg", "Si", "S", "Ca", "Ti")
"""The elements that follow `a_M`, as in the BOSZ library (Meszaros et al. 2024, A&A 688, A197)."""
FIT_RANGE = (2500.0, 8500.0)
"""Kelvin, where the partition functions of atoms are fitted; outside they keep the value at the nearer end."""
LOG_K = {
    "H2": (12.3916, -4.7051, -0.0745, 0.0244),
    "CO": (13.7604, -11.8518, 0.2297, -0.0332),
    "CN": (12.8234, -8.1603, 0.0896, -0.0109),
    "N2": (13.4807, -10.6270, 0.3303, -0.0553),
    "TiO": (13.5495, -8.5555, 0.7066, -0.1124),
    "OH": (12.1641, -4.8454, 0.0255, 0.0073),
    "H2O": (25.4480, -10.6577, 0.2788, -0.0404),
}
"""log10 of K = p_A p_B / p_AB in powers of 5040/T, within 0.006 dex of Barklem & Collet (2016, A&A 588, A96), from
2500 to 6000 K.

H2O (p_H^2 p_O / p_H2O) is our calculation: rigid rotor and harmonic oscillators, 27.88, 14.51, 9.285 and 3657, 1595,
3756 cm^-1, 9.511 eV (Herzberg 1966); the same sum gives OH within 0.08 dex of the table.
"""
PARTITION_TEMPERATURE = (2500.0, 3000.0, 3500.0, 4000.0, 4500.0, 5000.0, 6000.0)
PARTITION = {
    "CN": (2742.9, 3652.1, 4799.4, 6080.8, 7640.6, 9371.9, 13673.5),
    "TiO": (46146.2, 64396.9, 86624.0, 111992.0, 142509.9, 176793.0, 263755.0),
}
"""Partition functions at those temperatures [K] (Barklem & Collet 2016)."""


@dataclass(frozen=True)
class Elements:
    """The element table, one entry per element; `elements.csv` names the sources."""

    names: tuple[str, ...]
    ionisation_E: Array
    log_eps_E: Array
    mass_E: Array
    neutral_Ek: Array
    ion_Ek: Array


@lru_cache(maxsize=1)
def elements() -> Elements:
    """Return the element table."""
    text = Path(__file__).with_name("elements.csv").read_text(encoding="utf-8")
    rows = [line.split(",") for line in text.splitlines() if not line.startswith("#")][1:]
    table = np.array([[float(value) for value in row[1:]] for row in rows])
    names = tuple(row[0] for row in rows)
    return Elements(names, table[:, 0], table[:, 1], table[:, 2], table[:, 3:8], table[:, 8:13])


def abundances(m_h: float, a_m: float, c_m: float) -> Array:
    """Return atoms per hydrogen atom, shape (E,), from [M/H], [alpha/M] and [C/M] in dex."""
    table = elements()
    shift_E = np.array(
        [0.0 if n in ("H", "He") else m_h + a_m * (n in ALPHA_ELEMENTS) + c_m * (n == "C") for n in table.names]
    )
    return 10 ** (table.log_eps_E - 12 + shift_E)


def partition_functions(temperature_J: Array) -> tuple[Array, Array]:
    """Return the partition functions of neutral atoms and of ions, (J, E) each."""
    table = elements()
    powers_Jk = np.log10(5040 / np.clip(temperature_J, *FIT_RANGE))[:, None] ** np.arange(5)
    return 10 ** (powers_Jk @ table.neutral_Ek.T), 10 ** (powers_Jk @ table.ion_Ek.T)


def saha(temperature_J: Array) -> Array:
    """Return p(ion) p(electron) / p(atom) by the Saha equation, shape (J, E)."""
    neutral_JE, ion_JE = partition_functions(temperature_J)
    temperature_J1 = temperature_J[:, None]
    exponent_JE = 2.5 * np.log10(temperature_J1) - 0.1761 - 5040 / temperature_J1 * elements().ionisation_E
    return ion_JE / neutral_JE * 10**exponent_JE


@dataclass(frozen=True)
class Molecules:
    """Pressures of free atoms and of the molecules with bands, (J,) each."""

    carbon_J: Array
    nitrogen_J: Array
    oxygen_J: Array
    titanium_share_J: Array
    """Share of titanium that is not in TiO."""
    cn_J: Array
    tio_J: Array
    water_J: Array


def equilibrium_constant(molecule: str, temperature_J: Array) -> Array:
    """Return K, shape (J,); above 6000 K, where molecules no longer matter, the fit is extrapolated."""
    coefficients = np.array(LOG_K[molecule])
    return 10 ** ((5040 / temperature_J)[:, None] ** np.arange(len(coefficients)) @ coefficients)


def partition_function(molecule: str, temperature_J: Array) -> Array:
    """Return the partition function, shape (J,): a power law between the tabulated temperatures and beyond them."""
    log_t, log_q = np.log(PARTITION_TEMPERATURE), np.log(PARTITION[molecule])
    slope = (log_q[-1] - log_q[-2]) / (log_t[-1] - log_t[-2])
    log_T_J = np.log(temperature_J)
    beyond_J = np.clip(log_T_J - log_t[-1], 0.0, None) * slope
    return np.exp(np.interp(log_T_J, log_t, log_q) + beyond_J)


def free_atoms(nuclei_J: Array, other_J: Array, constant_J: Array) -> Array:
    """Return the pressure of free A beside AB, without cancellation; `nuclei_J` and `other_J` are those without AB."""
    half_J = 0.5 * (other_J - nuclei_J + constant_J)
    root_J = np.sqrt(half_J**2 + constant_J * nuclei_J)
    # Both forms are the positive root; numpy evaluates the unused one, too.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(half_J > 0, constant_J * nuclei_J / (half_J + root_J), root_J - half_J)


def molecules(temperature_J: Array, hydrogen_J: Array, nuclei: dict[str, Array], titanium_ions_J: Array) -> Molecules:
    """Distribute C, N, O and Ti over atoms and molecules.

    `hydrogen_J` is the pressure of free H atoms, `nuclei` the pressures of C, N, O and Ti if all were free atoms, and
    `titanium_ions_J` p(Ti II) / p(Ti I). CO takes the rarer of C and O; OH and, in dwarfs, H2O also take oxygen; N2
    takes most of N. TiO takes little oxygen and CN little of C and N, so they follow from the atoms still free.
    """
    k = {name: equilibrium_constant(name, temperature_J) for name in LOG_K}
    with_h_J = 1 + hydrogen_J / k["OH"] + hydrogen_J**2 / k["H2O"]  # oxygen as O, OH and H2O, over O
    carbon_J = free_atoms(nuclei["C"], nuclei["O"], k["CO"] * with_h_J)
    oxygen_J = free_atoms(nuclei["O"], nuclei["C"], k["CO"] * with_h_J) / with_h_J
    nitrogen_J = 2 * nuclei["N"] / (1 + np.sqrt(1 + 8 * nuclei["N"] / k["N2"]))
    share_J = (1 + titanium_ions_J) / (1 + titanium_ions_J + oxygen_J / k["TiO"])
    tio_J = nuclei["Ti"] * (1 - share_J)
    cn_J, water_J = carbon_J * nitrogen_J / k["CN"], hydrogen_J**2 * oxygen_J / k["H2O"]
    return Molecules(carbon_J, nitrogen_J, oxygen_J, share_J, cn_J, tio_J, water_J)
