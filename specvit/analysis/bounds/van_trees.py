"""The van Trees bound: the least mean squared error of ANY estimator of one label, biased or not, over a population.

Stars are spread uniformly over a box of L labels, from 0 to 1 each; the estimator knows magnitude and throughput, which
can only help it. For any field h(u, magnitude) whose normal part vanishes on the walls of the box,

    E[(estimate - u_c)^2]  >=  E[h_c]^2 / (E[h' I h] + E[(div h)^2]),

with I the Fisher information of flux and noise. docs/bounds.md has the derivation and its sources. The field is
h = (I + A)^-1 e_c with I of the flux alone and A = diag(STRENGTH / (u (1 - u))), which is infinite on the walls: where
spectra hold much information it has the Cramér-Rao bound's direction, where they hold none the bound becomes the
variance of the population, 1/12. The estimator also knows the labels along which the field does not move. For stars in
a range of S/N, which depends on the labels, the field is faded out towards the range's ends.

Shape suffixes: N stars, L labels, M labels along which the field moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specvit.physics.fisher import Information, Observe, information

Array = NDArray[np.float64]

STRENGTH = 4.0
"""Any number above 0 gives a valid bound; between 3 and 6 the bounds of the built-in stars differ by .003 in R²."""
STEP = 1e-5
"""Part of the box by which a star is moved, inwards, to see how its information changes."""
FADE = 0.01
"""Part of the S/N at an end of a range over which the field is faded out there."""


@dataclass(frozen=True)
class Field:
    """The field h with its divergence and cost, one row for each star."""

    column: int
    """The estimated label."""
    h_NL: Array
    divergence_N: Array
    cost_N: Array
    """h' I h."""

    def bound(self, window: "Window") -> tuple[float, float]:
        """Return the least mean squared error in units of the box squared, and its sampling error (1 sigma).

        `window` chooses the stars; the bound holds for the population that these are drawn from.
        """
        inside_N = window.inside_N
        weight_n, h_nL = window.weight_N[inside_N], self.h_NL[inside_N]
        gain_n = weight_n * h_nL[:, self.column]
        drift_n = weight_n * self.divergence_N[inside_N] + (window.slope_NL[inside_N] * h_nL).sum(1)
        price_n = weight_n**2 * self.cost_N[inside_N] + drift_n**2
        if not (price_n.mean() > 0 and np.isfinite(price_n).all()):
            return 0.0, 0.0
        bound = gain_n.mean() ** 2 / price_n.mean()
        influence_n = 2 * gain_n / gain_n.mean() - price_n / price_n.mean() if bound > 0 else np.zeros(1)
        return float(bound), float(bound * influence_n.std() / np.sqrt(len(price_n)))


@dataclass(frozen=True)
class Window:
    """The stars of a bound, and the factor on their field: 1, or less towards a limit that labels can cross."""

    inside_N: NDArray[np.bool_]
    weight_N: Array
    slope_NL: Array
    """Derivatives of the weight by the labels, with magnitude and throughput held."""


def whole_window(inside_N: NDArray[np.bool_], labels: int) -> Window:
    """Return the window of stars that are chosen by what the estimator knows, such as the magnitude."""
    return Window(inside_N, inside_N.astype(np.float64), np.zeros((len(inside_N), labels)))


def faded(value_N: Array, gradient_NL: Array, low: float, high: float) -> Window:
    """Return the window of stars with low <= value < high, of a value that depends on the labels.

    The weight falls to 0 in a straight line over `FADE` of a limit's size; a limit of 0 or infinity needs none.
    """
    weight_N, slope_N = np.ones_like(value_N), np.zeros_like(value_N)
    for limit, sign in ((low, 1.0), (high, -1.0)):
        if 0 < limit < np.inf:
            ramp_N = sign * (value_N - limit) / (FADE * limit)
            nearer_N = ramp_N < weight_N
            weight_N = np.where(nearer_N, np.maximum(ramp_N, 0.0), weight_N)
            slope_N = np.where(nearer_N, sign / (FADE * limit), slope_N)
    inside_N = (value_N >= low) & (value_N < high)
    return Window(inside_N, weight_N, slope_N[:, None] * gradient_NL)


def inward_steps(place_NL: Tensor, axis: int) -> Tensor:
    """Return the places moved by `STEP` along an axis, away from the nearer wall."""
    moved_NL = place_NL.clone()
    moved_NL[:, axis] += torch.where(place_NL[:, axis] < 0.5, STEP, -STEP)
    return moved_NL


def gradients(observe: Observe, place_NL: Tensor, here: Information, axes: Sequence[int]) -> Array:
    """Return how the flux's information changes along the axes, (M, N, L, L), by differences."""
    parts = []
    for axis in axes:
        moved_NL = inward_steps(place_NL, axis)
        step_N = (moved_NL - place_NL)[:, axis].numpy()
        parts.append((information(observe, moved_NL).flux_NLL - here.flux_NLL) / step_N[:, None, None])
    return np.stack(parts)


def field(
    here: Information,
    gradient_MNLL: Array,
    place_NL: Array,
    column: int,
    axes: Sequence[int],
    *,
    strength: float = STRENGTH,
) -> Field:
    """Return the field for label `column`, one of the `axes` along which it moves, at stars strictly inside the box.

    Its divergence is -sum over i of the i-th element of G (d_i I + d_i A) h, with G = (I + A)^-1 and i, I and A those
    of the axes.
    """
    whole = np.ix_(range(len(place_NL)), axes, axes)
    place_NM = place_NL[:, axes]
    width_NM = place_NM * (1 - place_NM)
    inverse_NMM = np.linalg.inv(here.flux_NLL[whole] + np.eye(len(axes)) * (strength / width_NM)[:, None, :])
    h_NM = inverse_NMM[:, :, list(axes).index(column)]
    gradient_MNMM = np.stack([gradient_NLL[whole] for gradient_NLL in gradient_MNLL])
    along_MN = np.einsum("nij,injk,nk->in", inverse_NMM, gradient_MNMM, h_NM, optimize=True)
    pull_NM = -strength * (1 - 2 * place_NM) / width_NM**2
    walls_NM = np.diagonal(inverse_NMM, axis1=1, axis2=2) * pull_NM * h_NM
    cost_N = np.einsum("ni,nij,nj->n", h_NM, (here.flux_NLL + here.noise_NLL)[whole], h_NM, optimize=True)
    h_NL = np.zeros_like(place_NL)
    h_NL[:, axes] = h_NM
    return Field(column, h_NL, -along_MN.sum(0) - walls_NM.sum(1), cost_N)
