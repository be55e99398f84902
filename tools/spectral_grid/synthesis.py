"""Labels -> clean spectrum: radiative transfer through a model atmosphere, then the instrument's resolution.

Shape suffixes: J layers, X points of the fine grid, N wavelength nodes, A directions, Q padded pixels.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import roots_jacobi

from specvit.physics.instrument import PAD
from tools.spectral_grid.atmosphere import Atmosphere, atmosphere
from tools.spectral_grid.constants import Array
from tools.spectral_grid.continuum import PASCHEN_28, PASCHEN_LIMIT, planck
from tools.spectral_grid.fine_grid import fine_wavelength, instrument_profile
from tools.spectral_grid.lines import line_opacity
from tools.spectral_grid.titanium_oxide import tio_opacity

NODE_WAVE = np.array([7070.0, 7300.0, 7530.0, 7760.0, 7990.0, PASCHEN_LIMIT, PASCHEN_28, 8400.0, 8630.0, 8880.0])
"""Vacuum Angstrom where continuum and Planck function are computed, with linear interpolation between them."""
DIRECTIONS = 3
"""Angles of Gauss's rule for the flux: accurate to 0.2 % of the flux from any one depth."""
MEDIAN_FLUX = 0.5
"""The reference set divides by a median over 6500-9500 A, which leaves its median pixel near this value."""


@lru_cache(maxsize=1)
def node_weights() -> NDArray[np.float32]:
    """Return the hat functions of the nodes, shape (N, X)."""
    wave_X = fine_wavelength()
    return np.stack([np.interp(wave_X, NODE_WAVE, row) for row in np.eye(len(NODE_WAVE))]).astype(np.float32)


def directions(number: int) -> tuple[Array, Array]:
    """Return secants (A,) and weights (A,) with which sums of exp(-secant t) approach 2 E3(t)."""
    place_A, weight_A = roots_jacobi(number, 0, 1)
    return 2 / (place_A + 1), weight_A / weight_A.sum()


def optical_depth(model: Atmosphere) -> NDArray[np.float32]:
    """Return the vertical optical depth of continuum, lines and TiO, shape (J, X).

    Trapezoid rule in ln tau; above the first layer the opacity is taken as constant, which gives tau times the opacity.
    """
    mean_J = model.mean_opacity_J
    opacity_JX = (model.continuum(NODE_WAVE) / mean_J[:, None]).astype(np.float32) @ node_weights()
    opacity_JX += line_opacity(model, mean_J)
    opacity_JX += tio_opacity(model, mean_J)
    opacity_JX *= (10 ** model.log_tau_J[:, None]).astype(np.float32)
    half_step = np.float32(0.5 * (model.log_tau_J[1] - model.log_tau_J[0]) * np.log(10))
    depth_JX = np.empty_like(opacity_JX)
    depth_JX[0] = opacity_JX[0]
    for layer in range(1, len(depth_JX)):
        np.add(depth_JX[layer - 1], (opacity_JX[layer] + opacity_JX[layer - 1]) * half_step, out=depth_JX[layer])
    return depth_JX


def emergent_flux(model: Atmosphere) -> NDArray[np.float32]:
    """Return the flux per unit wavelength on the fine grid, shape (X,), in units of pi 1e14 erg s^-1 cm^-3.

    Flux = B(surface) + integral of dB times 2 E3(t), the share of the light of depth t that escapes.
    """
    depth_JX = optical_depth(model)
    escape_JX = np.zeros_like(depth_JX)
    for secant, weight in zip(*directions(DIRECTIONS), strict=True):
        escape_JX += np.float32(weight) * np.exp(np.float32(-secant) * depth_JX)
    source_JN = planck(NODE_WAVE, model.temperature_J)
    # Summed by parts: each layer's escape times the growth of B around it.
    growth_JN = np.empty_like(source_JN)
    growth_JN[0] = 0.5 * (source_JN[1] - source_JN[0])
    growth_JN[1:-1] = 0.5 * (source_JN[2:] - source_JN[:-2])
    growth_JN[-1] = 0.5 * (source_JN[-1] - source_JN[-2])
    flux_NX = growth_JN.T.astype(np.float32) @ escape_JX
    flux_NX += source_JN[0].astype(np.float32)[:, None]
    return np.einsum("nx,nx->x", flux_NX, node_weights())


def padded_flux(labels: Mapping[str, float], *, cooling: float | None = None) -> NDArray[np.float32]:
    """Return the clean flux per unit wavelength of a star at rest on the padded pixels, shape (Q,).

    `labels` holds T_eff [K], log_g [cgs], M_H, a_M and C_M [dex]; the median of the inner P pixels is `MEDIAN_FLUX`.
    `cooling` is that of `atmosphere`; 0 is a grey one.
    """
    model = atmosphere(labels, cooling=cooling)
    flux_Q = instrument_profile() @ emergent_flux(model)
    return (flux_Q * (MEDIAN_FLUX / np.median(flux_Q[PAD:-PAD]))).astype(np.float32)
