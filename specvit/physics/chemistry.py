"""Molecules in equilibrium with their atoms. J layers; pressures in dyn/cm2.

Each constant is p_A p_B / p_AB. Only the molecules that matter for this band or for its electrons are there; C2, CH,
HCN and their like, which carbon stars hold, are not.
"""

from dataclasses import dataclass

import numpy as np

from specvit.physics.constants import Array

LOG_K = {
    "H2": (12.3916, -4.7051, -0.0745, 0.0244),
    "CO": (13.7604, -11.8518, 0.2297, -0.0332),
    "CN": (12.8234, -8.1603, 0.0896, -0.0109),
    "N2": (13.4807, -10.6270, 0.3303, -0.0553),
    "TiO": (13.5495, -8.5555, 0.7066, -0.1124),
    "OH": (12.1641, -4.8454, 0.0255, 0.0073),
    "H2O": (25.4480, -10.6577, 0.2788, -0.0404),
}
"""log10 K in powers of 5040/T, fitted within 0.006 dex to Barklem & Collet (2016, A&A 588, A96), 2500-6000 K.

H2O (p_H^2 p_O / p_H2O) is worked out here: rigid rotor and harmonic oscillators, 27.88, 14.51, 9.285 and 3657, 1595,
3756 cm^-1, 9.511 eV (Herzberg 1966); the same sum gives OH within 0.08 dex of the table.
"""
PARTITION_TEMPERATURE = (2500.0, 3000.0, 3500.0, 4000.0, 4500.0, 5000.0, 6000.0)
PARTITION = {
    "CN": (2742.9, 3652.1, 4799.4, 6080.8, 7640.6, 9371.9, 13673.5),
    "TiO": (46146.2, 64396.9, 86624.0, 111992.0, 142509.9, 176793.0, 263755.0),
}
"""Partition functions at those temperatures [K] (Barklem & Collet 2016)."""


@dataclass(frozen=True)
class Molecules:
    """Pressures that are left to free atoms, and those of the molecules with bands, each (J,)."""

    carbon_J: Array
    nitrogen_J: Array
    oxygen_J: Array
    titanium_share_J: Array
    """Share of titanium that is not in TiO."""
    cn_J: Array
    tio_J: Array
    water_J: Array


def equilibrium_constant(molecule: str, temperature_J: Array) -> Array:
    """Return K of shape (J,); above 6000 K, where molecules no longer matter, the fit is carried on."""
    coefficients = np.array(LOG_K[molecule])
    return 10 ** ((5040 / temperature_J)[:, None] ** np.arange(len(coefficients)) @ coefficients)


def partition_function(molecule: str, temperature_J: Array) -> Array:
    """Return it of shape (J,), by a power law between the tabulated temperatures and beyond them."""
    log_t, log_q = np.log(PARTITION_TEMPERATURE), np.log(PARTITION[molecule])
    slope = (log_q[-1] - log_q[-2]) / (log_t[-1] - log_t[-2])
    log_T_J = np.log(temperature_J)
    beyond_J = np.clip(log_T_J - log_t[-1], 0.0, None) * slope
    return np.exp(np.interp(log_T_J, log_t, log_q) + beyond_J)


def pair(rare_J: Array, other_J: Array, constant_J: Array) -> Array:
    """Return the pressure of free atoms of `rare_J` when AB takes its share of both nuclei; no cancellation."""
    half_J = 0.5 * (other_J - rare_J + constant_J)
    root_J = np.sqrt(half_J**2 + constant_J * rare_J)
    # Both forms are the positive root; numpy works out the one that is not taken, too.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(half_J > 0, constant_J * rare_J / (half_J + root_J), root_J - half_J)


def molecules(temperature_J: Array, hydrogen_J: Array, nuclei: dict[str, Array], titanium_ions_J: Array) -> Molecules:
    """Share C, N, O and Ti among atoms and molecules.

    `hydrogen_J` is the pressure of free H atoms, `nuclei` what C, N, O and Ti would have as free atoms alone, and
    `titanium_ions_J` p(Ti II) / p(Ti I). CO takes the rarer of C and O; OH and, in dwarfs, H2O take oxygen, too; N2
    takes most of N. TiO takes little oxygen and CN little of C and N, so they follow from what the others leave.
    """
    k = {name: equilibrium_constant(name, temperature_J) for name in LOG_K}
    with_h_J = 1 + hydrogen_J / k["OH"] + hydrogen_J**2 / k["H2O"]  # oxygen as O, OH and H2O, over O
    carbon_J = pair(nuclei["C"], nuclei["O"], k["CO"] * with_h_J)
    oxygen_J = pair(nuclei["O"], nuclei["C"], k["CO"] * with_h_J) / with_h_J
    nitrogen_J = 2 * nuclei["N"] / (1 + np.sqrt(1 + 8 * nuclei["N"] / k["N2"]))
    share_J = (1 + titanium_ions_J) / (1 + titanium_ions_J + oxygen_J / k["TiO"])
    tio_J = nuclei["Ti"] * (1 - share_J)
    cn_J, water_J = carbon_J * nitrogen_J / k["CN"], hydrogen_J**2 * oxygen_J / k["H2O"]
    return Molecules(carbon_J, nitrogen_J, oxygen_J, share_J, cn_J, tio_J, water_J)
