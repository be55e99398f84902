"""Labels -> clean spectrum: the whole physical model in four lines. Q padded pixels."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from specvit.physics.atmosphere import atmosphere
from specvit.physics.fine_grid import instrument_profile
from specvit.physics.pixels import PAD
from specvit.physics.transfer import emergent_flux

MEDIAN_FLUX = 0.5
"""The reference set divides by a median over 6500-9500 A, which leaves its median pixel near this."""


def padded_flux(labels: Mapping[str, float], *, cooling: float | None = None) -> NDArray[np.float32]:
    """Return the clean flux per unit wavelength of a star at rest on the padded pixels, shape (Q,).

    `labels` holds T_eff [K], log_g [cgs], M_H, a_M and C_M [dex]; the median of the inner P pixels is `MEDIAN_FLUX`.
    `cooling` replaces the surface cooling of `atmosphere`; 0 is a grey atmosphere.
    """
    model = atmosphere(labels, cooling=cooling)
    flux_Q = instrument_profile() @ emergent_flux(model)
    return (flux_Q * (MEDIAN_FLUX / np.median(flux_Q[PAD:-PAD]))).astype(np.float32)
