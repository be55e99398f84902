"""Which tokens tell most about a label: greedy selection by the Fisher information of the training spectra.

The flux of a pixel is fitted as a quadratic in the labels, over the training rows. A token's information about the
labels of a star is J = sum over its pixels of d flux d flux^T / sigma^2, from the slopes of that fit there. With the
labels' own covariance as prior, tokens are added one by one, each the one that leaves the least variance of the label
asked for when all others are unknown, too, on average over stars of the training set: greedy c-optimal design.

Labels are standardised. Sums are float64 over fixed chunks of the view's rows, on one thread, so that neither the
division into files nor the number of threads changes the result.

Shape suffixes: B rows of a chunk, R stars at which information is computed, Q terms of the fit, L labels (the one asked
for is the last), P pixels, N tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specvit.config.schema import NoiseConfig
from specvit.data.noise import STATISTICS_CHUNK, STATISTICS_ROWS, added_noise, sigma_of
from specvit.data.synthetic import one_thread
from specvit.data.validate import check_rows
from specvit.data.views import SpectraView
from specvit.utils.errors import DataError
from specvit.utils.quantities import LABELS

STARS = 64
"""Stars, evenly spaced over the training rows, over which the variance is averaged."""
ROWS_A_TERM = 2
"""Rows that a fit needs for each of its terms."""
RIDGE = 1e-9
"""Share added to the diagonals of the fit's normal equations and of the prior: labels may depend on others."""
NOT_OF_THE_SPECTRUM = ("mag", "snr")
"""Labels of the layout that say how faint a star is, not what its normalised spectrum is like."""


@dataclass(frozen=True)
class Training:
    """What the information is computed from."""

    spectra: SpectraView
    noise: NoiseConfig
    params: tuple[str, ...]
    """The labels of the run; those of the layout that vary are unknown, too."""
    max_redshift: float = 0.0
    """Bound of the redshifts with which specvit made the spectra; their column is `redshift`."""
    fill_P: Tensor | None = None
    """The flux that the network sees in masked pixels."""


@dataclass(frozen=True)
class Labels:
    """Standardised labels of the training rows that have all of them."""

    names: tuple[str, ...]
    rows_n: np.ndarray
    """Their rows in the view."""
    value_nL: Tensor
    offset_L: np.ndarray
    scale_L: np.ndarray

    def of(self, name: str) -> np.ndarray:
        """Return a label (n,) in its unit."""
        number = self.names.index(name)
        return self.value_nL[:, number].numpy() * self.scale_L[number] + self.offset_L[number]

    @property
    def precision_LL(self) -> np.ndarray:
        """The inverse of their covariance: what is known before a spectrum is seen."""
        covariance_LL = self.value_nL.T @ self.value_nL / len(self.value_nL)
        return torch.linalg.inv(covariance_LL + RIDGE * torch.eye(len(covariance_LL))).numpy()


def fisher_order(training: Training, patches: Sequence[range], count: int, label: str) -> tuple[list[int], list[float]]:
    """Return the numbers of `count` tokens in the order of their choice, and what each one gains.

    A gain is the decrease of the label's variance, relative to its variance in the training set. `patches` are the
    pixels of each token. Raises `DataError` for too few rows, and for a spectrum that is not finite.
    """
    with one_thread(), torch.no_grad():
        labels = known_labels(training, label)
        halves = 2 if training.spectra.observed else 1
        fits = [_fit(training, labels, half, halves) for half in range(halves)]
        return _greedy(_information(training, labels, fits), labels.precision_LL, patches, count)


def known_labels(training: Training, label: str) -> Labels:
    """Return the labels that vary over the first rows: those of the run, and those of the layout without gaps.

    Raises `DataError` if too few rows have all of them for the fit.
    """
    spectra, params = training.spectra, training.params
    table = spectra.labels().iloc[:STATISTICS_ROWS]
    also = [name for name in LABELS if name in table and name not in (*params, *NOT_OF_THE_SPECTRUM)]
    also = [name for name in also if not table[name].isna().any()]
    names = [*(name for name in (*params, *also) if name != label), label]
    value_NL = spectra.label_values(names)[:STATISTICS_ROWS]
    rows_n = np.flatnonzero(np.isfinite(value_NL).all(axis=1))
    value_nL = value_NL[rows_n]
    scale_L = value_nL.std(axis=0) if len(rows_n) else np.zeros(len(names))
    varies = scale_L > 1e-9 * np.abs(value_nL).max(axis=0, initial=0.0)
    wanted = ROWS_A_TERM * _num_terms(int(varies.sum())) * (1 + spectra.observed)
    if len(rows_n) < wanted or not varies[-1]:
        what = f"needs {wanted} training rows with {', '.join(names)}, and there are {len(rows_n)}"
        what = what if varies[-1] else f"needs training rows with different {label}"
        remedy = "take more rows, or another model.reduction.select"
        raise DataError(what, where="model.reduction.select=fisher", remedy=remedy)
    kept = tuple(name for name, one in zip(names, varies, strict=True) if one)
    value_nL, scale_L = value_nL[:, varies], scale_L[varies]
    offset_L = value_nL.mean(axis=0)
    return Labels(kept, rows_n, torch.from_numpy((value_nL - offset_L) / scale_L), offset_L, scale_L)


def _num_terms(labels: int) -> int:
    return 1 + labels + labels * (labels + 1) // 2


def _terms(value_BL: Tensor) -> Tensor:
    """Return the terms of a quadratic (B, Q): 1, each label, each product of two."""
    first, second = torch.triu_indices(value_BL.shape[1], value_BL.shape[1])
    products = value_BL[:, first] * value_BL[:, second]
    return torch.cat([torch.ones(len(value_BL), 1, dtype=torch.float64), value_BL, products], dim=1)


def _fit(training: Training, labels: Labels, half: int, halves: int) -> Tensor:
    """Return the coefficients (Q, P) of the flux, by least squares over every `halves`-th row.

    Stars that specvit has shifted are moved to redshift 0 first: over a line that moves, a quadratic says nothing.
    """
    spectra, terms = training.spectra, _num_terms(len(labels.names))
    normal_QQ = torch.zeros(terms, terms, dtype=torch.float64)
    moment_QP = torch.zeros(terms, spectra.num_pixels, dtype=torch.float64)
    for start in range(0, len(labels.rows_n), STATISTICS_CHUNK):
        chunk = np.arange(start, min(start + STATISTICS_CHUNK, len(labels.rows_n)))
        chunk = chunk[chunk % halves == half]
        index_B = labels.rows_n[chunk]
        flux_BP, error_BP = spectra.gather(index_B)
        check_rows(spectra, index_B, flux_BP, error_BP, "float32")
        flux_BP = flux_BP if spectra.observed else np.clip(flux_BP, 0.0, None)
        if training.fill_P is not None:
            flux_BP = np.where(np.isnan(flux_BP), training.fill_P.cpu().numpy(), flux_BP)
        flux_BP = flux_BP.astype(np.float64)
        if training.max_redshift:
            flux_BP = _at_rest(flux_BP, spectra.wave_P, labels.of("redshift")[chunk])
        terms_BQ = _terms(labels.value_nL[torch.from_numpy(chunk)])
        normal_QQ += terms_BQ.T @ terms_BQ
        moment_QP += terms_BQ.T @ torch.from_numpy(flux_BP)
    normal_QQ += RIDGE * torch.diag(normal_QQ.diagonal())
    return torch.linalg.solve(normal_QQ, moment_QP)


def _at_rest(flux_BP: np.ndarray, wave_P: np.ndarray, redshift_B: np.ndarray) -> np.ndarray:
    rows = zip(flux_BP, redshift_B, strict=True)
    return np.stack([np.interp(wave_P * (1 + redshift), wave_P, flux_P) for flux_P, redshift in rows])


def _information(training: Training, labels: Labels, fits: Sequence[Tensor]) -> np.ndarray:
    """Return each pixel's information (L, L, R, P) about the labels, at stars of the training set.

    Of two fits, to two halves of observed spectra, it is the symmetrised product of their slopes: the square of one
    fit's slopes would add the variance that the spectra's own noise gives them, to every pixel. R is 1 then.
    """
    spectra = training.spectra
    chosen = np.unique(np.linspace(0, len(labels.rows_n) - 1, STARS).astype(np.int64))
    value_RL = labels.value_nL[torch.from_numpy(chosen)]
    left_LRP, right_LRP = (_slopes(training, labels, value_RL, fit_QP) for fit_QP in (fits[0], fits[-1]))
    error_RP = torch.from_numpy(spectra.gather(labels.rows_n[chosen])[1]).double()
    sigma = sigma_of(error_RP, added_noise(spectra, training.noise))
    if sigma is None:  # without noise the errors stand for it
        sigma = error_RP
    elif spectra.observed:
        sigma = torch.hypot(error_RP, sigma.expand_as(error_RP))
    weight_RP = torch.where(sigma > 0, sigma**-2, 0.0).expand_as(error_RP).numpy()  # 0 in masked pixels, too
    information_LLRP = left_LRP[:, None] * right_LRP
    information_LLRP = information_LLRP + information_LLRP.swapaxes(0, 1)
    if training.max_redshift:
        information_LLRP = _smeared(information_LLRP, spectra.wave_P, training.max_redshift)
    information_LLRP *= weight_RP / 2
    # A product of two fits may be negative at a star; the mean over stars seldom is.
    return information_LLRP.mean(axis=2, keepdims=True) if spectra.observed else information_LLRP


def _slopes(training: Training, labels: Labels, value_RL: Tensor, fit_QP: Tensor) -> np.ndarray:
    """Return d flux / d label (L, R, P) of a fit, by standardised labels."""
    size = value_RL.shape[1]
    first, second = torch.triu_indices(size, size)
    slopes = []
    for number in range(size):
        terms_RQ = torch.zeros(len(value_RL), fit_QP.shape[0], dtype=torch.float64)
        terms_RQ[:, 1 + number] = 1.0
        terms_RQ[:, 1 + size :] = (first == number) * value_RL[:, second] + (second == number) * value_RL[:, first]
        slopes.append((terms_RQ @ fit_QP).numpy())
    if training.max_redshift:
        number, wave_P = labels.names.index("redshift"), training.spectra.wave_P
        flux_RP = (_terms(value_RL) @ fit_QP).numpy()
        slopes[number] = -np.gradient(flux_RP, wave_P, axis=1) * wave_P * labels.scale_L[number]
    return np.stack(slopes)


def _smeared(information_LLRP: np.ndarray, wave_P: np.ndarray, max_redshift: float) -> np.ndarray:
    """Return information of stars at rest as a fixed pixel has it on average over the redshifts of a set."""
    first_P = np.searchsorted(wave_P, wave_P * (1 - max_redshift))
    last_P = np.minimum(np.searchsorted(wave_P, wave_P * (1 + max_redshift)), len(wave_P) - 1)
    sums = np.cumsum(np.pad(information_LLRP, ((0, 0), (0, 0), (0, 0), (1, 0))), axis=3)
    return (sums[..., last_P + 1] - sums[..., first_P]) / (last_P + 1 - first_P)


def _greedy(
    information_LLRP: np.ndarray, precision_LL: np.ndarray, patches: Sequence[range], count: int
) -> tuple[list[int], list[float]]:
    """Return tokens in the order of their choice, and their gains. A pixel that two tokens share counts once.

    `information_LLRP` is overwritten.
    """
    token_LLRN = np.stack([_of(information_LLRP, patch) for patch in patches], axis=-1)
    known_LLR = np.repeat(precision_LL[:, :, None], information_LLRP.shape[2], axis=2)
    variance = prior = float(_variance(known_LLR).mean())
    chosen: list[int] = []
    gains: list[float] = []
    for _ in range(count):
        left_n = np.setdiff1d(np.arange(len(patches)), chosen)
        variance_n = _variance(known_LLR[..., None] + token_LLRN[..., left_n]).mean(axis=0)
        best, least = int(left_n[np.argmin(variance_n)]), float(variance_n.min())
        chosen.append(best)
        gains.append((variance - least) / prior if np.isfinite(least) else 0.0)
        if not np.isfinite(least):  # what is left tells less than its noise
            continue
        variance = least
        known_LLR += token_LLRN[..., best]
        patch = patches[best]
        information_LLRP[..., patch.start : patch.stop] = 0.0
        for number in left_n[left_n != best].tolist():
            if patches[number].start < patch.stop and patch.start < patches[number].stop:
                token_LLRN[..., number] = _of(information_LLRP, patches[number])
    return chosen, gains


def _of(information_LLRP: np.ndarray, patch: range) -> np.ndarray:
    return information_LLRP[..., patch.start : patch.stop].sum(axis=-1)


def _variance(matrix_LLX: np.ndarray) -> np.ndarray:
    """Return the last diagonal element of the inverse (X), by elimination; infinite if it is not positive definite."""
    rest, is_positive = matrix_LLX, np.ones(matrix_LLX.shape[2:], dtype=bool)
    while len(rest):
        pivot = rest[0, 0]
        is_positive = is_positive & (pivot > 0)
        pivot = np.where(pivot > 0, pivot, 1.0)
        if len(rest) == 1:
            return np.where(is_positive, 1 / pivot, np.inf)
        rest = rest[1:, 1:] - rest[1:, :1] * rest[:1, 1:] / pivot
    raise AssertionError("a matrix has rows")
