"""The Voigt function from a table. J layers, L lines, C points of line cores."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import wofz

from specvit.physics.constants import Array

LOG_DAMPING = np.linspace(-4.0, 1.5, 111)
OFFSET = np.linspace(0.0, 8.0, 321)
"""The table's damping (log10) and offset, in Doppler widths; interpolation keeps H positive and good to 0.3 %."""


@lru_cache(maxsize=1)
def _table() -> NDArray[np.float32]:
    """Return H(a, u), flat, rows of constant a."""
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
    table, size = _table(), len(OFFSET)
    low_JC = table[index_JC] * (1 - share_JC) + table[index_JC + size] * share_JC
    high_JC = table[index_JC + 1] * (1 - share_JC) + table[index_JC + (size + 1)] * share_JC
    return low_JC + (high_JC - low_JC) * offset_JC
