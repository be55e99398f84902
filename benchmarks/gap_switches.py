"""What `published_gap.py` does otherwise than specvit, one switch at a time, and the spectra that follow.

Shape suffixes: N rows, P pixels, S star columns, K polynomials.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specvit.physics.instrument import wavelength
from specvit.physics.population import STAR_COLUMNS, draw_stars
from specvit.physics.simulator import MAG, Simulator
from specvit.utils.seeding import torch_rng

LOG_G = STAR_COLUMNS.index("log_g")
PENALTIES = (1.0, 5e2, 1e3, 5e3, 1e4, 3e4, 1e5, 3e5)
RAW_PENALTIES = (1.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3)
"""As scikit-learn counts them: on standardised pixels, and on flux whose median is 0.5."""
PUBLISHED_PENALTIES = (5e2, 1e3, 5e3)
CHUNK = 1000
SODIUM, CALCIUM = ((8175.0, 8210.0),), ((8480.0, 8520.0), (8520.0, 8570.0), (8640.0, 8690.0))
"""Angstrom: the doublet of Na I, and the Ca II triplet with its wings."""


@dataclass(frozen=True)
class Spectra:
    """Clean flux, 1 sigma error and standard normal noise (N, P), and the stars (N, S)."""

    flux_NP: Tensor
    error_NP: Tensor
    noise_NP: Tensor
    stars_NS: np.ndarray

    @property
    def log_g_N(self) -> np.ndarray:
        """True labels."""
        return self.stars_NS[:, LOG_G]

    @property
    def snr_N(self) -> np.ndarray:
        """Median over pixels of flux / error."""
        return (self.flux_NP / self.error_NP).median(1).values.numpy()

    def first(self, rows: int) -> "Spectra":
        """Return the first rows."""
        return Spectra(self.flux_NP[:rows], self.error_NP[:rows], self.noise_NP[:rows], self.stars_NS[:rows])


Noisy = Callable[[Spectra, str], Tensor]
"""Takes the spectra and their split; returns what a model sees (N, P)."""


def plain(spectra: Spectra, _: str) -> Tensor:
    """Return flux with noise."""
    return torch.addcmul(spectra.flux_NP, spectra.error_NP, spectra.noise_NP)


@dataclass(frozen=True)
class Switch:
    """What is done otherwise than here. `ruled_out` says where the published settings are known to be ours."""

    name: str
    stars: tuple[tuple[str, Any], ...] = ()
    sky: float = 1.0
    sky_lines: float = 1.0
    """Factor on the background beyond 1.3 times its median."""
    seen: Noisy = plain
    penalties: tuple[float, ...] = PENALTIES
    standardised: bool = True
    centred: bool = True
    twice: bool = False
    """Whether each training star comes with two noises."""
    without: tuple[tuple[float, float], ...] = ()
    clean: Callable[[Tensor], Tensor] | None = None
    """Changes the clean spectra (N, P)."""
    gravity_in: str = "continuum and lines"
    """Which of the two depend on log g; the other is that of the same star with log g = 3."""
    bayes: bool = False
    """Whether near-Bayes is computed, too."""
    ruled_out: str = ""

    @property
    def changes_spectra(self) -> bool:
        """Whether clean spectra or errors are other than here."""
        return bool(
            self.stars or self.clean or self.sky != 1.0 or self.sky_lines != 1.0 or self.gravity_in != BASE.gravity_in
        )


BASE = Switch("as here", bayes=True)


def simulated(seed: int, split: str, rows: int, switch: Switch) -> Spectra:
    """Return the spectra of a switch."""
    options: dict[str, Any] = dict(switch.stars)
    stars_NS = draw_stars(seed, split, np.arange(rows), **options)
    model = simulator(bool(options.get("max_redshift")), switch.sky, switch.sky_lines)
    with torch.inference_mode():
        parts = [model(part) for part in torch.from_numpy(stars_NS).split(CHUNK)]
    flux_NP, error_NP = (torch.cat(part) for part in zip(*parts, strict=True))
    noise_NP = torch.randn(flux_NP.shape, generator=torch_rng(seed, "noise", split))
    if switch.clean is not None:
        flux_NP = torch.cat([switch.clean(part) for part in flux_NP.split(CHUNK)])
    if switch.gravity_in != BASE.gravity_in:
        stars_NS = stars_NS.copy()
        stars_NS[:, LOG_G] = 3.0
        with torch.inference_mode():
            other_NP = torch.cat([model(part)[0] for part in torch.from_numpy(stars_NS).split(CHUNK)])
        stars_NS = draw_stars(seed, split, np.arange(rows), **options)
        pairs = (flux_NP, other_NP) if switch.gravity_in == "lines" else (other_NP, flux_NP)
        parts = zip(*(flux.split(CHUNK) for flux in pairs), strict=True)
        flux_NP = torch.cat([lines / continuum(lines) * continuum(level) for lines, level in parts])
    return Spectra(flux_NP, error_NP, noise_NP, stars_NS)


@lru_cache(maxsize=4)
def simulator(redshifted: bool, sky: float, sky_lines: float) -> Simulator:
    """Return the simulator with a background, or its lines, so many times as bright."""
    model = Simulator(redshifted).requires_grad_(False).eval()
    background_P = model.noise.background_P
    level = 1.3 * background_P.median()
    background_P.copy_(
        sky * torch.where(background_P > level, level + sky_lines * (background_P - level), background_P)
    )
    return model


def units_of_magnitude(spectra: Spectra, split: str) -> Tensor:
    """Return flux as an instrument counts it, in proportion to the star's brightness."""
    factor_N = 10 ** (-0.4 * (spectra.stars_NS[:, MAG] - 21.5))
    return plain(spectra, split) * torch.from_numpy(factor_N).float()[:, None]


def over_own_median(spectra: Spectra, split: str) -> Tensor:
    """Return noisy flux over its own median."""
    seen_NP = plain(spectra, split)
    return 0.5 * seen_NP / seen_NP.median(1, keepdim=True).values


def one_sigma(spectra: Spectra, _: str) -> Tensor:
    """Return flux with the same noise in every pixel of a spectrum."""
    return spectra.flux_NP + spectra.error_NP.median(1, keepdim=True).values * spectra.noise_NP


def noise_in(*splits: str) -> Noisy:
    """Return what adds noise to these splits only."""
    return lambda spectra, split: plain(spectra, split) if split in splits else spectra.flux_NP.clone()


def noise_level(level: float) -> Noisy:
    """Return what adds noise of another level."""
    return lambda spectra, _: torch.addcmul(spectra.flux_NP, spectra.error_NP, spectra.noise_NP, value=level)


def calibration_error(size: float) -> Noisy:
    """Return what multiplies noisy flux by a smooth random curve, of this standard deviation, drawn for each star."""

    def seen(spectra: Spectra, split: str) -> Tensor:
        bend_NK = size * torch.randn(len(spectra.flux_NP), 4, generator=torch_rng(7, "noise", split, "calibration"))
        return plain(spectra, split) * (1 + bend_NK @ smooth_basis()[:, 1:5].T / 2)

    return seen


@lru_cache(maxsize=1)
def smooth_basis() -> Tensor:
    """Return Legendre polynomials of the wavelength of degree 0 to 5, (P, 6), of mean square 1."""
    place_P = np.linspace(-1, 1, len(wavelength()))
    basis_PK = np.polynomial.legendre.legvander(place_P, 5) * np.sqrt(2 * np.arange(6) + 1)
    return torch.from_numpy(basis_PK).float()


def continuum(flux_NP: Tensor) -> Tensor:
    """Return a polynomial of degree 5 through the upper pixels of clean spectra, fitted five times to every eighth."""
    basis_PK, few_NP = smooth_basis(), flux_NP[:, ::8]
    few_PK = basis_PK[::8]
    square_PL = (few_PK[:, :, None] * few_PK[:, None, :]).flatten(1)
    weight_NP, fit_NK = torch.ones_like(few_NP), few_PK[:0]
    for _ in range(5):
        normal_NKK = (weight_NP @ square_PL).unflatten(1, (6, 6)).double()
        fit_NK = torch.linalg.solve(normal_NKK, ((weight_NP * few_NP) @ few_PK).double()).float()
        weight_NP = torch.where(few_NP > 0.995 * (fit_NK @ few_PK.T), 1.0, 1e-3)
    return fit_NK @ basis_PK.T


def lines_to_the_power(power: float) -> Callable[[Tensor], Tensor]:
    """Return what makes all lines weaker (below 1): flux over continuum to this power."""

    def changed(flux_NP: Tensor) -> Tensor:
        level_NP = continuum(flux_NP)
        return level_NP * (flux_NP / level_NP).clamp(min=0) ** power

    return changed


def without_continuum(flux_NP: Tensor) -> Tensor:
    """Return clean flux over its continuum."""
    return 0.5 * flux_NP / continuum(flux_NP)


CONFIG = "the published configuration has none"
SWITCHES = (
    Switch("labels at nodes, as published", stars=(("label_prior", "published"),), bayes=True),
    Switch("penalty the best of 500, 1000, 5000, as published", penalties=PUBLISHED_PENALTIES),
    Switch("penalty 1", penalties=(1.0,)),
    Switch("pixels not standardised", standardised=False, penalties=RAW_PENALTIES),
    Switch("neither centred nor with an intercept", centred=False),
    Switch("noisy flux clipped at 0", seen=lambda spectra, split: plain(spectra, split).clamp(min=0)),
    Switch("noisy flux in float16", seen=lambda spectra, split: plain(spectra, split).half().float()),
    Switch("one sigma a spectrum", seen=one_sigma, bayes=True, ruled_out="errors by pixel are published"),
    Switch("trained without noise", seen=noise_in("val", "test")),
    Switch("two noises a training star", twice=True),
    Switch("tested without noise", seen=noise_in("train")),
    Switch("flux in proportion to brightness", seen=units_of_magnitude, ruled_out="medians of .5 are published"),
    Switch("noisy flux over its own median", seen=over_own_median),
    Switch("noise 1.2 times", seen=noise_level(1.2), ruled_out="S/N and Cramér-Rao bound are published"),
    Switch("sky 1.3 times as bright", sky=1.3, bayes=True, ruled_out="S/N and Cramér-Rao bound are published"),
    Switch("sky lines 1.7 times as bright", sky_lines=1.7, bayes=True),
    Switch("velocities up to 300 km/s", stars=(("max_redshift", 0.001),), ruled_out=CONFIG),
    Switch("calibration wrong by 5 %", seen=calibration_error(0.05), ruled_out=CONFIG),
    Switch("continuum divided out", clean=without_continuum, ruled_out="flux over one median is published"),
    Switch("without the sodium doublet", without=SODIUM),
    Switch("without the calcium triplet", without=CALCIUM),
    Switch("lines to the power 0.7", clean=lines_to_the_power(0.7), bayes=True),
    Switch("lines to the power 0.5", clean=lines_to_the_power(0.5), bayes=True),
    Switch("continuum of log g 3", gravity_in="lines", bayes=True),
    Switch("lines of log g 3", gravity_in="continuum", bayes=True),
)
