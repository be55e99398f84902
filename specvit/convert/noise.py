"""Errors for spectra that come without: one S/N in every pixel, or what the instrument makes of a magnitude.

Shape suffixes: B spectra of a piece, P pixels, N all spectra of a conversion.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit.convert.masks import filled
from specvit.convert.plan import Plan
from specvit.utils.errors import DataError

Float32 = NDArray[np.float32]

SPLIT = "convert"
"""Draws the exposures of converted spectra apart from those of built-in ones."""


class Noise:
    """Where the errors of a shard's spectra come from, and the label columns that come with them."""

    def __init__(self, plan: Plan, kept: NDArray[np.intp]) -> None:
        """`kept` are the plan's spectra that the shard holds, in order."""
        self.plan, self.kept = plan, kept
        self.columns: dict[str, Any] = {} if plan.keeps_snr else {"snr": np.zeros(len(kept))}
        if plan.options.magnitudes is not None:
            self.columns["mag"], self.throughput = exposures(plan.options.seed, kept, plan.options.magnitudes)

    def errors(self, flux_BP: Float32, own_BP: Any, here: slice) -> Float32:
        """Return errors (B, P) of the shard's spectra `here`, NaN in masked pixels; raises `DataError`."""
        options, masked_BP = self.plan.options, np.isnan(flux_BP)
        error_BP = own_BP
        if options.snr is not None:
            sigma_B = median_of(flux_BP)[:, None] / np.float32(options.snr)
            error_BP = np.broadcast_to(sigma_B, flux_BP.shape)
        if options.magnitudes is not None:
            whole_BP = np.stack(list(map(filled, flux_BP))) if masked_BP.any() else flux_BP
            error_BP = instrument_error(whole_BP, self.columns["mag"][here], self.throughput[here])
        error_BP = np.where(masked_BP, np.float32(np.nan), error_BP) if masked_BP.any() else error_BP
        bad = np.flatnonzero(~((np.isfinite(error_BP) & (error_BP > 0)) | masked_BP).all(axis=1))
        if len(bad):
            where = self.plan.origin(int(self.kept[here][bad[0]]))
            raise DataError("has a flux of which no errors can be made", where=where, remedy="leave it out")
        return error_BP


def median_of(values_BP: Float32) -> Float32:
    """Return the median of each row (B,), over pixels that are not masked (NaN)."""
    return np.nanmedian(values_BP, axis=1) if np.isnan(values_BP).any() else np.median(values_BP, axis=1)


def exposures(seed: int, rows_N: NDArray[np.integer], magnitudes: tuple[float, float]) -> tuple[Any, Any]:
    """Return magnitude and throughput (N,) of rows: functions of (seed, row), whatever else is converted.

    The magnitude is uniform in the range; the throughput is spread as that of built-in stars.
    """
    from specvit.physics.population import RANGES, STAR_COLUMNS, draw_stars

    stars_NS = draw_stars(seed, SPLIT, rows_N)
    low, high = RANGES["mag"]
    uniform_N = (stars_NS[:, STAR_COLUMNS.index("mag")] - low) / (high - low)
    mag_N = magnitudes[0] + (magnitudes[1] - magnitudes[0]) * uniform_N
    return mag_N, stars_NS[:, STAR_COLUMNS.index("throughput")]


def instrument_error(flux_BP: Float32, mag_B: Any, throughput_B: Any) -> Float32:
    """Return the errors (B, P) that the instrument makes at AB magnitudes and throughputs (B,).

    A flux below 0 has no photons of the star in its noise; the magnitude is that of the flux as it is. Computed by one
    thread; for the same bits it has to be called with the same pieces.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            noise, flux = _pixel_noise(), torch.from_numpy(flux_BP)
            mag, throughput = (torch.tensor(np.asarray(value), dtype=torch.float32) for value in (mag_B, throughput_B))
            lit = flux.clamp(min=0)
            throughput = throughput * ((lit @ noise.photon_P) / (flux @ noise.photon_P))
            return noise(lit, mag, throughput).numpy()
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _pixel_noise() -> Any:
    from specvit.physics.simulator import PixelNoise

    return PixelNoise()
