"""Labels -> clean flux on the pixels of the instrument, interpolated in the packaged grid; differentiable, any device.

Shape suffixes: B batch, L labels, N nodes of the grid, K components, P pixels, Q padded pixels.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.ndimage import spline_filter1d
from torch import Tensor, nn

from specvit.physics.grid import AXIS_NAMES, Grid, carbon_to_oxygen, packaged_grid, spline_pieces
from specvit.physics.instrument import MAX_REDSHIFT, PAD, STEP, wavelength
from specvit.physics.population import RANGES
from specvit.utils.errors import DataError

LABEL_COLUMNS = ("T_eff", "log_g", "M_H", "a_M", "C_M", "redshift")
"""K, four in dex, and v/c."""
ROUNDING = 1e-6
"""Tolerance for rounded labels, as a fraction of their range (redshift: of `MAX_REDSHIFT`)."""


class SplineWeights(nn.Module):
    """Weights of the nodes of one axis as a function of the coordinate; NaN outside the axis."""

    nodes_N: Tensor
    pieces: Tensor
    """Shape (N - 1, 4, N), see `grid.spline_pieces`."""

    def __init__(self, nodes: tuple[float, ...], kind: str) -> None:
        """Tabulate the cardinal splines."""
        super().__init__()
        self.register_buffer("nodes_N", torch.tensor(nodes, dtype=torch.float32), persistent=False)
        pieces = torch.tensor(spline_pieces(nodes, kind), dtype=torch.float32)
        self.register_buffer("pieces", pieces, persistent=False)

    def forward(self, place_B: Tensor) -> Tensor:
        """Return shape (B, N); every row sums to 1."""
        inside_B = (place_B >= self.nodes_N[0]) & (place_B <= self.nodes_N[-1])
        place_B = torch.where(inside_B, place_B, torch.nan)
        piece_B = torch.bucketize(place_B.detach().contiguous(), self.nodes_N[1:-1], right=True)
        step_B1 = (place_B - self.nodes_N[piece_B])[:, None]
        cubic, square, linear, constant = self.pieces[piece_B].unbind(1)
        return ((cubic * step_B1 + square) * step_B1 + linear) * step_B1 + constant


class ForwardModel(nn.Module):
    """Labels (B, L) in `LABEL_COLUMNS` -> flux (B, P) per unit wavelength, the median pixel near 0.5.

    Flux has two continuous derivatives by every label. Nothing is extrapolated: a row with a label outside `bounds` is
    all NaN, since raising an error here would have to wait for the GPU; `check_labels` names the label. With
    `redshifted=False` the redshift column may be missing and is ignored.
    """

    mean: Tensor
    basis: Tensor
    coefficient_NK: Tensor
    shift_P: Tensor
    """Shift of a line in pixels per unit of redshift."""
    first_P: Tensor
    """Padded pixel of the first of the four B-splines over each pixel, at redshift 0."""

    def __init__(self, *, redshifted: bool = True, grid: Grid | None = None) -> None:
        """Read the packaged grid unless another one is given."""
        super().__init__()
        grid = packaged_grid() if grid is None else grid
        assert tuple(grid.axes) == AXIS_NAMES
        self.redshifted = redshifted
        self.bounds = {name: (nodes[0], nodes[-1]) for name, nodes in grid.axes.items() if name != "C_O"}
        self.bounds["C_M"] = RANGES["C_M"]
        self.carbon_ends = [float(np.float32(grid.axes["C_O"][end])) for end in (0, -1)]
        self.bounds["redshift"] = (-MAX_REDSHIFT, MAX_REDSHIFT)
        self.axes = nn.ModuleList(SplineWeights(nodes, grid.kinds[name]) for name, nodes in grid.axes.items())
        mean_Q, basis_KQ = grid.mean_Q.astype(np.float64), grid.basis_KQ.dequantized()
        if redshifted:  # coefficients of the cubic B-spline through the pixels, over 6
            mean_Q, basis_KQ = (spline_filter1d(x, order=3, axis=-1, mode="mirror") / 6 for x in (mean_Q, basis_KQ))
        else:
            mean_Q, basis_KQ = mean_Q[PAD:-PAD], basis_KQ[:, PAD:-PAD]
        self._hold("mean", mean_Q)
        self._hold("basis", basis_KQ)
        self._hold("coefficient_NK", grid.coefficient_NK.dequantized())
        self._hold("shift_P", wavelength() / STEP)
        self.register_buffer("first_P", torch.arange(len(wavelength())) + PAD - 1, persistent=False)

    def _hold(self, name: str, value: ArrayLike) -> None:
        self.register_buffer(name, torch.tensor(np.asarray(value), dtype=torch.float32), persistent=False)

    def forward(self, labels_BL: Tensor) -> Tensor:
        """Return the flux, shape (B, P), in the precision of the module."""
        labels_BL = labels_BL.to(self.mean.dtype)
        weight_BN = labels_BL.new_ones(len(labels_BL), 1)
        for place_B, axis in zip(self._places(labels_BL), self.axes, strict=True):
            weight_BN = (weight_BN[:, :, None] * axis(place_B)[:, None]).flatten(1)
        coefficient_BK = weight_BN @ self.coefficient_NK
        if not self.redshifted:
            return torch.exp(torch.addmm(self.mean, coefficient_BK, self.basis))
        redshift_B = labels_BL[:, LABEL_COLUMNS.index("redshift")]
        inside_B1 = (redshift_B.abs() <= MAX_REDSHIFT * (1 + ROUNDING))[:, None]
        coefficient_BK = torch.where(inside_B1, coefficient_BK, torch.nan)
        spline_BQ = torch.addmm(self.mean, coefficient_BK, self.basis)
        return torch.exp(self._shifted(spline_BQ, torch.where(inside_B1[:, 0], redshift_B, 0)))

    def _places(self, labels_BL: Tensor) -> list[Tensor]:
        """Return the coordinates in the grid, (B,) each; NaN where [C/M] is out of bounds."""
        *others, a_B, c_B = labels_BL.unbind(1)[: len(AXIS_NAMES)]
        low, high = self.bounds["C_M"]
        place_B = carbon_to_oxygen(c_B, a_B, torch.asinh)
        # The corners of the label box are the ends of the axis, which rounding must not exceed.
        place_B = place_B.clamp(*self.carbon_ends)
        return [*others, a_B, torch.where((c_B >= low) & (c_B <= high), place_B, torch.nan)]

    def _shifted(self, spline_BQ: Tensor, redshift_B: Tensor) -> Tensor:
        """Return the B-spline of these coefficients (over 6) at each pixel's rest wavelength, shape (B, P)."""
        moved_BP = (-redshift_B / (1 + redshift_B))[:, None] * self.shift_P
        whole_BP = torch.floor(moved_BP.detach())
        t_BP = moved_BP - whole_BP
        first_BP = self.first_P + whole_BP.to(torch.int64)
        a, b, c, d = (spline_BQ[:, k:].gather(1, first_BP) for k in range(4))
        # The four cubic B-splines over a pixel, times 6, as one polynomial in the distance t from the second of them:
        # (a + 4b + c) + 3 (c - a) t + 3 (a - 2b + c) t^2 + (d - a + 3b - 3c) t^3, in few passes over memory.
        outer = a + c
        cubic = torch.add(d - a, b - c, alpha=3)
        square = torch.addcmul(torch.sub(outer, b, alpha=2), cubic, t_BP, value=1 / 3)
        linear = torch.addcmul(c - a, square, t_BP)
        return torch.addcmul(torch.add(outer, b, alpha=4), linear, t_BP, value=3)


def check_labels(model: ForwardModel, labels_BL: ArrayLike | Tensor) -> None:
    """Raise `DataError` naming the first label that `model` does not cover; for labels on the host."""
    labels_BL = np.asarray(labels_BL, dtype=np.float64)
    columns = LABEL_COLUMNS if model.redshifted else LABEL_COLUMNS[:-1]
    if labels_BL.shape[1] < len(columns):
        what = f"has {labels_BL.shape[1]} columns"
        raise DataError(what, where="labels", remedy=f"give {', '.join(columns)}")
    for column, name in enumerate(columns):
        low, high = model.bounds[name]
        slack = ROUNDING * (high - low)
        good_B = (labels_BL[:, column] >= low - slack) & (labels_BL[:, column] <= high + slack)
        if not good_B.all():
            row = int(np.flatnonzero(~good_B)[0])
            what = f"{name} is {labels_BL[row, column]:g} but the built-in spectra cover {low:g} to {high:g}"
            raise DataError(what, where=f"row {row}", remedy="choose a value between them")
