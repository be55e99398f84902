"""Noise: fresh in training, one fixed realisation a row in evaluation; and the normalisation that follows it.

Legend: B batch, P pixels. `flux` is median-normalised flux, `error` its 1 sigma in the same unit.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from specvit.config.schema import NoiseConfig, effective_level
from specvit.data.validate import check_rows
from specvit.data.views import SpectraView
from specvit.utils import seeding
from specvit.utils.errors import DataError

STATISTICS_ROWS = 20_000
"""Rows that the mean spectrum is computed from: more would not change it by a tenth of the noise."""
STATISTICS_CHUNK = 128
"""Rows summed at a time: their float64 copies fit into a processor's cache."""


def added_noise(spectra: SpectraView, noise: NoiseConfig) -> NoiseConfig:
    """Return the noise that is added to a view's flux: none to an observed one, unless `noise.on_observed` adds it."""
    without = spectra.observed and noise.on_observed == "none"
    return replace(noise, noise_type="none") if without else noise


def whole_level(spectra: SpectraView, noise: NoiseConfig) -> float:
    """Return the level of all noise in a view's flux, in units of its errors: of an observed one with its own."""
    level = effective_level(added_noise(spectra, noise))
    return math.hypot(1.0, level) if spectra.observed else level


def sigma_of(error_BP: Tensor, noise: NoiseConfig) -> Tensor | None:
    """Return the noise's sigma a pixel (B, P) or (B, 1), or None for clean flux."""
    if effective_level(noise) == 0.0:
        return None
    if noise.noise_type == "homoscedastic":
        middle_B1 = (error_BP.isnan().logical_not_().sum(dim=1, keepdim=True) - 1) // 2  # masked pixels are NaN
        # the median: NaN is sorted last; torch.median is not deterministic on CUDA
        error_BP = error_BP.sort(dim=1).values.gather(1, middle_B1.clamp(min=0))
    return error_BP * noise.noise_level


def training_noise(shape: tuple[int, ...], *, seed: int, step: int, device: torch.device) -> Tensor:
    """Return unit Gaussian noise for the whole batch of one step, keyed by (seed, step)."""
    generator = seeding.torch_rng(seed, "noise", step, device=device)
    return torch.randn(shape, generator=generator, device=device)


def with_training_noise(flux_BP: Tensor, error_BP: Tensor, noise: NoiseConfig, *, seed: int, step: int) -> Tensor:
    """Return flux (B, P) with the noise of a step's whole batch added; `flux_BP` itself for clean flux."""
    sigma_BP = sigma_of(error_BP, noise)
    if sigma_BP is None:
        return flux_BP
    noise_BP = training_noise(tuple(flux_BP.shape), seed=seed, step=step, device=flux_BP.device)
    return noise_BP.mul_(sigma_BP).add_(flux_BP)


def evaluation_noise(rows_B: np.ndarray, num_pixels: int, *, seed: int, split: str) -> np.ndarray:
    """Return unit Gaussian noise (B, P), float32; a row's noise depends on (seed, split, row) alone."""
    noise_BP = np.empty((len(rows_B), num_pixels), dtype=np.float32)
    for noise_P, row in zip(noise_BP, rows_B, strict=True):
        seeding.numpy_rng(seed, "eval_noise", split, int(row)).standard_normal(out=noise_P, dtype=np.float32)
    return noise_BP


@dataclass(frozen=True)
class FluxNorm:
    """Network input = (noisy flux - mean spectrum) / scale. Statistics of the training subset, saved with the model."""

    mean_P: Tensor
    scale: float
    fill_P: Tensor | None = None
    """What the network sees in masked pixels (NaN): the training-mean spectrum; None where no pixel is masked."""

    def __call__(self, flux_BP: Tensor) -> Tensor:
        """Return normalised flux (B, P), float32."""
        if self.fill_P is not None:
            flux_BP = torch.where(flux_BP.isnan(), self.fill_P, flux_BP)
        return (flux_BP - self.mean_P).div_(self.scale)

    def to(self, device: torch.device) -> "FluxNorm":
        """Return the same normaliser on `device`."""
        return FluxNorm(self.mean_P.to(device), self.scale, None if self.fill_P is None else self.fill_P.to(device))

    def filling(self, kind: str, where: str) -> "FluxNorm":
        """Return the normaliser for spectra with masked pixels, though no set of the run had any; the first is `where`.

        Raises `DataError` where the run kept no mean spectrum (`data.flux_norm=none`).
        """
        if self.fill_P is not None:
            return self
        if kind == "none":
            what = "has masked pixels, and the run kept no mean spectrum to fill them with (data.flux_norm=none)"
            raise DataError(what, where=where, remedy="leave out rows with masked pixels")
        return replace(self, fill_P=self.mean_P)


def fit_flux_norm(spectra: SpectraView, kind: str, noise: NoiseConfig, *, fills: bool = False) -> FluxNorm:
    """Return the normaliser of a training view: `standard` centres on its mean spectrum and scales to unit power.

    The scale is one number, the root mean square of (flux - mean spectrum) with the noise's variance added, so the
    network's input has unit power at any noise level. `none` leaves the flux as it is. Sums are float64 over fixed
    chunks of the first `STATISTICS_ROWS` rows, so they do not depend on the hardware, and over pixels that are not
    masked. With `fills` the mean spectrum is kept for those that are. Raises `DataError` for a spectrum that is not
    finite.
    """
    pixels, noise = spectra.num_pixels, added_noise(spectra, noise)
    if kind == "none" and not fills:
        return FluxNorm(torch.zeros(pixels), 1.0)
    rows = min(len(spectra), STATISTICS_ROWS)
    sum_P, square, variance = np.zeros(pixels), np.zeros(pixels), 0.0
    count_P: np.ndarray = np.zeros(pixels, dtype=np.int64)
    for start in range(0, rows, STATISTICS_CHUNK):
        index_B = np.arange(start, min(start + STATISTICS_CHUNK, rows))
        flux_BP, error_BP = spectra.gather(index_B)
        check_rows(spectra, index_B, flux_BP, error_BP, "float32")
        flux_BP = (flux_BP if spectra.observed else np.clip(flux_BP, 0.0, None)).astype(np.float64)
        masked_BP = np.isnan(flux_BP) if spectra.masked_N is not None else np.zeros((1, pixels), dtype=bool)
        count_P += len(index_B) if spectra.masked_N is None else (~masked_BP).sum(axis=0)
        flux_BP[np.broadcast_to(masked_BP, flux_BP.shape)] = 0.0
        sum_P += flux_BP.sum(axis=0)
        square += np.square(flux_BP).sum(axis=0)
        sigma_BP = sigma_of(torch.from_numpy(error_BP), noise)
        if sigma_BP is not None:
            sigma_BP = np.broadcast_to(np.square(sigma_BP.double().numpy()), flux_BP.shape)
            variance += float((sigma_BP if spectra.masked_N is None else np.where(masked_BP, 0.0, sigma_BP)).sum())
    if not count_P.all():
        what = (
            f"pixel {int(np.flatnonzero(count_P == 0)[0])} is masked in all {rows:,} rows that have the mean spectrum"
        )
        raise DataError(what, where=spectra.describe_row(0), remedy="convert the spectra without it")
    mean_P = sum_P / count_P
    power = float((square / count_P - mean_P**2).mean()) + variance / int(count_P.sum())
    mean = torch.from_numpy(mean_P.astype(np.float32))
    if kind == "none":
        return FluxNorm(torch.zeros(pixels), 1.0, mean)
    return FluxNorm(mean, max(power, 1e-12) ** 0.5, mean if fills else None)
