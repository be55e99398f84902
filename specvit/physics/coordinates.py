"""The coordinates in which the grid of spectra is laid out: the labels, but for [C/M] the place of carbon to oxygen.

In cool stars TiO gives way to CN where carbon comes to outweigh oxygen, within some hundredths of a dex of [C/M] -
[alpha/M]; elsewhere spectra are smooth. asinh spreads that crossing out.
"""

from typing import Any

import numpy as np

AXIS_NAMES = ("T_eff", "log_g", "M_H", "a_M", "C_O")
CROSSING = 0.26
"""[C/M] - [alpha/M] at which there are as many carbon as oxygen atoms: log_eps of O less that of C, elements.csv."""
WIDTH = 0.01
"""Dex from the crossing at which the spread-out scale becomes logarithmic; the best of .01, .02 and .04."""


def carbon_place(c_m: Any, a_m: Any, asinh: Any = np.arcsinh) -> Any:
    """Return the coordinate C_O of [C/M] and [alpha/M]; `asinh` may be torch's, for tensors."""
    return asinh((c_m - a_m - CROSSING) / WIDTH)


def carbon(place: Any, a_m: Any) -> Any:
    """Return [C/M] of a place at [alpha/M], the inverse of `carbon_place`; numbers or arrays."""
    return a_m + CROSSING + WIDTH * np.sinh(place)
