"""The compressed grid of spectra as it lies in the package: logarithm of flux = mean + coefficients @ basis.

Shape suffixes: N nodes, in the order of the axes, the last fastest; K components; Q padded pixels.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

NAME = "grid.npz"
LARGEST = 32767
"""Of a 16-bit integer."""


@dataclass(frozen=True)
class Rows16:
    """A matrix in 16-bit integers with one scale a column of `axis` 1, or a row (`axis` 0)."""

    integers: NDArray[np.int16]
    scale: NDArray[np.float32]

    @staticmethod
    def of(matrix: NDArray, *, axis: int) -> "Rows16":
        """Round `matrix`; the scale is shared along the other axis."""
        scale = np.abs(matrix).max(axis=1 - axis, keepdims=True) / LARGEST
        integers = np.rint(matrix / np.where(scale > 0, scale, 1)).astype(np.int16)
        return Rows16(integers, scale.astype(np.float32))

    def matrix(self) -> NDArray[np.float64]:
        """Return what was rounded."""
        return self.integers * self.scale.astype(np.float64)


@dataclass(frozen=True)
class Grid:
    """Axes, how to interpolate along each, and the compressed spectra of the nodes."""

    axes: dict[str, tuple[float, ...]]
    kinds: dict[str, str]
    """Of `splines.KINDS`, by axis."""
    fingerprint: str
    """Of the axes and the sources that made the spectra."""
    mean_Q: NDArray[np.float32]
    basis_KQ: Rows16
    coefficient_NK: Rows16

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
        with np.load(path, allow_pickle=False) as found:
            names = [name.removeprefix("axis_") for name in found if name.startswith("axis_")]
            return Grid(
                {name: tuple(found[f"axis_{name}"].tolist()) for name in names},
                dict(zip(names, found["kinds"].tolist(), strict=True)),
                str(found["fingerprint"]),
                found["mean"],
                Rows16(found["basis"], found["basis_scale"]),
                Rows16(found["coefficient"], found["coefficient_scale"]),
            )


@lru_cache(maxsize=1)
def packaged_grid() -> Grid:
    """Return the grid that specvit carries; it is read once a process."""
    with as_file(files("specvit.physics").joinpath(NAME)) as path:
        return Grid.load(path)
