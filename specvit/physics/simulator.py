"""A star -> clean spectrum and its noise: the whole of the built-in data, as one torch module.

Shape suffixes: B batch, S columns of a star, P pixels.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

from specvit.physics.forward import LABEL_COLUMNS, ForwardModel
from specvit.physics.instrument import PixelNoise
from specvit.physics.population import STAR_COLUMNS

__all__ = ["STAR_COLUMNS", "Simulator", "host_simulator"]

MAG, THROUGHPUT = STAR_COLUMNS.index("mag"), STAR_COLUMNS.index("throughput")
assert STAR_COLUMNS[: len(LABEL_COLUMNS)] == LABEL_COLUMNS


class Simulator(nn.Module):
    """Stars (B, S) in `STAR_COLUMNS` -> flux (B, P) and its 1 sigma error (B, P); any device, differentiable.

    A star outside the ranges of the grid gives NaN, see `ForwardModel`. With `redshifted=False` the redshift is taken
    as 0 without being looked at, which saves the resampling.
    """

    def __init__(self, redshifted: bool = True) -> None:
        """Take the packaged grid and the table of the instrument."""
        super().__init__()
        self.model = ForwardModel(redshifted=redshifted)
        self.noise = PixelNoise()

    def forward(self, stars_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return flux and error in the precision of the module, whatever that of the stars."""
        stars_BS = stars_BS.to(self.model.mean.dtype)
        flux_BP = self.model(stars_BS[:, : len(LABEL_COLUMNS)])
        return flux_BP, self.noise(flux_BP, stars_BS[:, MAG], stars_BS[:, THROUGHPUT])


@lru_cache(maxsize=2)
def host_simulator(redshifted: bool) -> Simulator:
    """Return the simulator on the CPU, which is built once a process; not to be moved."""
    with torch.inference_mode(False):  # whoever asks first may be in it, and others want gradients
        return Simulator(redshifted).requires_grad_(False).eval()
