"""The chemical elements of a star: abundances, partition functions, ionisation. J layers (outside in), E elements."""

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np

from specvit.physics.constants import Array

ALPHA_ELEMENTS = ("O", "Mg", "Si", "S", "Ca", "Ti")
"""What `a_M` carries, as in the BOSZ library (Meszaros et al. 2024, A&A 688, A197)."""
FIT_RANGE = (2500.0, 8500.0)
"""Kelvin, where the partition functions are fitted; outside they keep the value at its end."""


@dataclass(frozen=True)
class Elements:
    """The element table, one entry per element E; its file names the sources."""

    names: tuple[str, ...]
    ionisation_E: Array
    log_eps_E: Array
    mass_E: Array
    neutral_Ek: Array
    ion_Ek: Array


@lru_cache(maxsize=1)
def elements() -> Elements:
    """Return the packaged table."""
    text = files("specvit.physics").joinpath("elements.csv").read_text(encoding="utf-8")
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
    """Return those of the neutral atoms and of the ions, each (J, E)."""
    table = elements()
    powers_Jk = np.log10(5040 / np.clip(temperature_J, *FIT_RANGE))[:, None] ** np.arange(5)
    return 10 ** (powers_Jk @ table.neutral_Ek.T), 10 ** (powers_Jk @ table.ion_Ek.T)


def saha(temperature_J: Array) -> Array:
    """Return p(ion) p(electron) / p(atom), shape (J, E), in dyn/cm2."""
    neutral_JE, ion_JE = partition_functions(temperature_J)
    temperature_J1 = temperature_J[:, None]
    exponent_JE = 2.5 * np.log10(temperature_J1) - 0.1761 - 5040 / temperature_J1 * elements().ionisation_E
    return ion_JE / neutral_JE * 10**exponent_JE
