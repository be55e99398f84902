"""Physical constants, CODATA 2018, in the units of this package: cgs, Angstrom, km/s, eV."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BOLTZMANN = 1.380649e-16  # erg/K
BOLTZMANN_EV = 8.617333e-5  # eV/K
ATOMIC_MASS = 1.66053907e-24  # g
LIGHT = 299792.458  # km/s
SECOND_RADIATION = 1.4387769e8  # h c / k, Angstrom K
WAVENUMBER_KELVIN = 1.4387769  # h c / k, cm K
EV_ANGSTROM = 12398.42  # h c, eV Angstrom
LINE_STRENGTH = 0.026540  # pi e^2 / (m c), cm^2 Hz per oscillator
"""Integrated cross-section of one oscillator."""
