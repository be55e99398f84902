"""What a model's training spectra were like, saved with it: spectra unlike any of them are recognised when it predicts.

Legend: B rows, P pixels.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from specvit.config.schema import NoiseConfig
from specvit.data.noise import FluxNorm, added_noise, evaluation_noise, sigma_of
from specvit.data.views import SpectraView

BLOCKS, BLOCK_ROWS = 8, 128
"""Evenly spaced blocks of training rows that the range is taken from, which chunked files give cheaply, too."""
MARGIN = 0.01
"""Part of its ends by which a range is widened: spectra normalised to one median differ in their last digits."""
SPLIT = "range"
"""Draws the noise of these rows apart from that of validation and test rows."""


class Measures(NamedTuple):
    """Of each spectrum, (B,): median flux, distance to the mean training spectrum in units of the scale, S/N."""

    median_B: np.ndarray
    distance_B: np.ndarray
    snr_B: np.ndarray


@dataclass(frozen=True)
class TrainingRange:
    """Least and greatest median flux and S/N of training spectra with their noise, and the greatest distance."""

    median: tuple[float, float]
    distance: float
    snr: tuple[float, float]

    def flux_outside(self, measures: Measures) -> np.ndarray:
        """Return which spectra (B,) are fainter, brighter or more unlike the mean than any training spectrum."""
        return _outside(measures.median_B, *self.median) | (measures.distance_B > self.distance * (1 + MARGIN))

    def snr_outside(self, measures: Measures) -> np.ndarray:
        """Return which spectra (B,) have less or more noise than any training spectrum."""
        return _outside(measures.snr_B, *self.snr)


def measure(flux_BP: np.ndarray, norm: FluxNorm) -> Measures:
    """Return the measures of spectra as the model sees them, float32, not normalised yet; masked pixels are NaN.

    S/N is that of the flux alone, whatever errors are given.
    """
    flux_BP = _filled(flux_BP, norm)
    median_B = np.median(flux_BP, axis=1)
    with np.errstate(over="ignore"):
        square_BP = np.square((flux_BP - norm.mean_P.cpu().numpy()) / np.float32(norm.scale))
    return Measures(median_B, np.sqrt(square_BP.mean(axis=1)), _flux_snr(flux_BP, median_B))


def flux_snr(spectra: SpectraView, norm: FluxNorm, noise: NoiseConfig, split: str) -> np.ndarray:
    """Return S/N (N,) as `measure` does, of all rows of a view with the noise of their evaluation."""
    snr_N = np.empty(len(spectra))
    for start in range(0, len(spectra), BLOCK_ROWS):
        flux_BP = _filled(_noisy_flux(spectra, start, noise, split), norm)
        snr_N[start : start + BLOCK_ROWS] = _flux_snr(flux_BP, np.median(flux_BP, axis=1))
    return snr_N


def _filled(flux_BP: np.ndarray, norm: FluxNorm) -> np.ndarray:
    """Return flux with what the model sees in masked pixels (NaN)."""
    return flux_BP if norm.fill_P is None else np.where(np.isnan(flux_BP), norm.fill_P.cpu().numpy(), flux_BP)


def _flux_snr(flux_BP: np.ndarray, median_B: np.ndarray) -> np.ndarray:
    """Return the median over 1.482602 / sqrt(6) times the median of |2 f(i) - f(i-2) - f(i+2)|.

    DER_SNR (Stoehr et al. 2008, ASP Conf. Ser. 394, 505) takes noise as independent from pixel to pixel; NaN below five
    pixels, infinite for a flux without any scatter.
    """
    noise_B = np.full(len(flux_BP), np.nan)
    if flux_BP.shape[1] > 4:
        scatter_BP = np.abs(2 * flux_BP[:, 2:-2] - flux_BP[:, :-4] - flux_BP[:, 4:])
        noise_B = 1.482602 / np.sqrt(6) * np.median(scatter_BP, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return median_B / noise_B


def fit_range(spectra: SpectraView, norm: FluxNorm, noise: NoiseConfig) -> TrainingRange:
    """Return the range of training spectra, with one noise each; up to `BLOCKS * BLOCK_ROWS` of them are looked at."""
    last = max(0, len(spectra) - BLOCK_ROWS)
    starts = np.unique(np.linspace(0, last, BLOCKS).astype(np.int64))
    found = [measure(_noisy_flux(spectra, start, noise, SPLIT), norm) for start in starts.tolist()]
    median_N, distance_N, snr_N = map(np.concatenate, zip(*found, strict=True))
    return TrainingRange(_ends(median_N), float(distance_N.max()), _ends(snr_N))


def range_to_plain(known: TrainingRange) -> dict[str, Any]:
    """Return a range as plain lists and numbers, for a checkpoint."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(known).items()}


def range_from_plain(plain: Any) -> TrainingRange | None:
    """Return the range that `range_to_plain` wrote; None for a checkpoint of an older specvit, which has none."""
    if not isinstance(plain, dict):
        return None
    return TrainingRange(tuple(plain["median"]), plain["distance"], tuple(plain["snr"]))


def _noisy_flux(spectra: SpectraView, start: int, noise: NoiseConfig, split: str) -> np.ndarray:
    """Return flux (B, P) of the `BLOCK_ROWS` rows from `start` on, with the noise that `split` draws."""
    index_B = np.arange(start, min(start + BLOCK_ROWS, len(spectra)))
    flux_BP, error_BP = spectra.gather(index_B)
    flux_BP = flux_BP if spectra.observed else np.clip(flux_BP, 0.0, None)
    if (sigma_BP := sigma_of(torch.from_numpy(error_BP), added_noise(spectra, noise))) is not None:
        unit_BP = evaluation_noise(spectra.rows_N[index_B], flux_BP.shape[1], seed=noise.eval_seed, split=split)
        flux_BP = flux_BP + sigma_BP.numpy() * unit_BP
    return flux_BP


def _ends(values_N: np.ndarray) -> tuple[float, float]:
    """Return least and greatest value, each NaN if one is."""
    return float(values_N.min()), float(values_N.max())


def _outside(values_B: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return which values lie outside; none where an end or the value itself is unknown (NaN)."""
    low, high = (end + sign * MARGIN * abs(end) if np.isfinite(end) else end for end, sign in ((low, -1), (high, 1)))
    return (values_B < low) | (values_B > high)
