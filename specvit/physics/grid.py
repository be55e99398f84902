"""The packaged grid of spectra: its coordinates, its splines, and its compressed form on disk. Needs no torch.

Logarithm of the flux = mean + coefficients @ basis, with splines between the coefficients of the nodes.

*Coordinates* are the labels, with C_O in place of [C/M]. In cool stars TiO gives way to CN where carbon begins to
outnumber oxygen, within some hundredths of a dex of [C/M] - [alpha/M]; elsewhere spectra are smooth. asinh stretches
that crossing.

A spline through values is linear in them, so it is the sum of the values times the *cardinal* splines, each 1 at its
own node and 0 at the others.

Shape suffixes: N nodes, in the order of the axes, the last fastest; K components; Q padded pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

AXIS_NAMES = ("T_eff", "log_g", "M_H", "a_M", "C_O")
CROSSING = 0.27
"""[C/M] - [alpha/M] at which there are as many carbon as oxygen atoms: log_eps of O less that of C in the synthesis."""
WIDTH = 0.01
"""Dex from the crossing at which C_O turns from linear to logarithmic; the best of .01, .02 and .04."""
SPLINE_KINDS = ("not-a-knot", "natural")
"""Boundary condition of the cubic pieces: the outer two are one polynomial, or the curvature vanishes at the ends."""
FILE_NAME = "grid.npz"
INT16_MAX = 32767


def carbon_to_oxygen(c_m: Any, a_m: Any, asinh: Any = np.arcsinh) -> Any:
    """Return the coordinate C_O of [C/M] and [alpha/M]; for tensors pass `torch.asinh`."""
    return asinh((c_m - a_m - CROSSING) / WIDTH)


def carbon(c_o: Any, a_m: Any) -> Any:
    """Return [C/M] from C_O and [alpha/M], the inverse of `carbon_to_oxygen`; numbers or arrays."""
    return a_m + CROSSING + WIDTH * np.sinh(c_o)


def cardinal_splines(nodes: Sequence[float], kind: str) -> CubicSpline:
    """Return the function coordinate -> weights (N,) of two or more nodes: three give a parabola, two a line."""
    return CubicSpline(np.asarray(nodes), np.eye(len(nodes)), bc_type=kind if len(nodes) > 3 else "not-a-knot")


def spline_pieces(nodes: Sequence[float], kind: str) -> NDArray[np.float64]:
    """Return the polynomials between nodes, shape (N - 1, 4, N): powers 3 to 0 of (coordinate - left node)."""
    return np.ascontiguousarray(cardinal_splines(nodes, kind).c.swapaxes(0, 1))


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix of 16-bit integers with one scale per column (`axis` 1) or per row (`axis` 0)."""

    integers: NDArray[np.int16]
    scale: NDArray[np.float32]

    @staticmethod
    def of(matrix: NDArray, *, axis: int) -> "QuantizedMatrix":
        """Quantize `matrix`, with one scale for each index of `axis`."""
        scale = np.abs(matrix).max(axis=1 - axis, keepdims=True) / INT16_MAX
        integers = np.rint(matrix / np.where(scale > 0, scale, 1)).astype(np.int16)
        return QuantizedMatrix(integers, scale.astype(np.float32))

    def dequantized(self) -> NDArray[np.float64]:
        """Return the matrix in double precision."""
        return self.integers * self.scale.astype(np.float64)


@dataclass(frozen=True)
class Grid:
    """Axes, how to interpolate along each, and the compressed spectra of the nodes."""

    axes: dict[str, tuple[float, ...]]
    kinds: dict[str, str]
    """One of `SPLINE_KINDS` for each axis."""
    fingerprint: str
    """Digest of the sources that synthesised the spectra, a hyphen, and a digest of the axes."""
    mean_Q: NDArray[np.float32]
    basis_KQ: QuantizedMatrix
    coefficient_NK: QuantizedMatrix

    def save(self, stream: IO[bytes]) -> None:
        """Write everything as npz; equal grids give equal bytes."""
        axes: dict[str, Any] = {f"axis_{name}": np.array(nodes) for name, nodes in self.axes.items()}
        np.savez_compressed(
            stream,
            **axes,
            kinds=np.array([self.kinds[name] for name in self.axes]),
            fingerprint=np.array(self.fingerprint),
            mean=self.mean_Q,
            basis=self.basis_KQ.integers,
            basis_scale=self.basis_KQ.scale,
            coefficient=self.coefficient_NK.integers,
            coefficient_scale=self.coefficient_NK.scale,
        )

    @staticmethod
    def load(path: Path) -> "Grid":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            names = [name.removeprefix("axis_") for name in arrays if name.startswith("axis_")]
            return Grid(
                {name: tuple(arrays[f"axis_{name}"].tolist()) for name in names},
                dict(zip(names, arrays["kinds"].tolist(), strict=True)),
                str(arrays["fingerprint"]),
                arrays["mean"],
                QuantizedMatrix(arrays["basis"], arrays["basis_scale"]),
                QuantizedMatrix(arrays["coefficient"], arrays["coefficient_scale"]),
            )


@lru_cache(maxsize=1)
def packaged_grid() -> Grid:
    """Return the grid in the package; read once per process."""
    with as_file(files("specvit.physics").joinpath(FILE_NAME)) as path:
        return Grid.load(path)
