"""The stars of a test set as bounds need them: labels, magnitudes, and flux and noise as functions of the labels.

Built-in stars are drawn again, and their noise depends on the labels; a file's labels and errors are used as stored.

Shape suffixes: N stars, B stars of a chunk, S columns of a star, L labels, P pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specvit.config.schema import Config, NoiseConfig
from specvit.data.folds import open_stars_named
from specvit.data.noise import sigma_of, whole_level
from specvit.data.shards import same_wavelengths
from specvit.data.splits import is_synthetic, open_split
from specvit.data.views import SpectraView
from specvit.physics.fisher import Observe
from specvit.physics.forward import LABEL_COLUMNS, ForwardModel, check_labels
from specvit.physics.instrument import MAX_REDSHIFT, wavelength
from specvit.physics.population import RANGES, STAR_COLUMNS, draw_stars, label_variance
from specvit.physics.simulator import Simulator
from specvit.utils.errors import DataError

MAG = STAR_COLUMNS.index("mag")
CHUNK = 256
FROM_WALLS = 5e-7
"""Least distance from the walls of the box, where a node may be and derivatives end."""


@dataclass(frozen=True)
class Stars:
    """Stars in the unit box of their labels; `noise` is the runs' noise configuration."""

    names: tuple[str, ...]
    """The labels: five, and the redshift where stars move."""
    low_L: Tensor
    span_L: Tensor
    place_NL: Tensor
    """Coordinates from 0 to 1, float64."""
    mag_N: NDArray[np.float64]
    noise: NoiseConfig
    pixels: Observe
    """Takes labels (B, L) in their units and the stars' numbers (B,); returns flux and error (B, P)."""
    drawn: NDArray[np.float64] | None
    """All columns of the stars (N, S) if specvit drew them; None for those of a file."""
    label_prior: str | None
    """`data.label_prior` of drawn stars."""

    def __len__(self) -> int:
        """Number of stars."""
        return len(self.place_NL)

    @property
    def uniform(self) -> bool:
        """Whether the stars are drawn uniformly over the box, as the van Trees bound takes them."""
        return self.label_prior == "uniform"

    def population_variance(self, name: str) -> float:
        """Return the variance of a label over the population that drawn stars come from."""
        assert self.label_prior is not None
        return label_variance(name, float(self.span_L[self.names.index(name)]), self.label_prior)

    def labels_of(self, name: str) -> NDArray[np.float64]:
        """Return the true values (N,) of a label in its unit."""
        column = self.names.index(name)
        return (self.low_L[column] + self.span_L[column] * self.place_NL[:, column]).numpy()

    def observe(self, place_BL: Tensor, rows_B: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return flux (B, P) and the noise's sigma, (B, P) or (B, 1), as `physics.fisher` takes them."""
        flux_BP, error_BP = self.pixels(self.low_L + self.span_L * place_BL, rows_B)
        sigma = sigma_of(error_BP, self.noise)
        assert sigma is not None
        return flux_BP, sigma

    def signal_to_noise(self, place_NL: Tensor | None = None) -> NDArray[np.float64]:
        """Return S/N (N,) as in tables of scores: the median over pixels of flux / error, over the noise level."""
        place_NL = self.place_NL if place_NL is None else place_NL
        parts = []
        for rows_B in np.split(np.arange(len(place_NL)), range(CHUNK, len(place_NL), CHUNK)):
            with torch.no_grad():
                flux_BP, error_BP = self.pixels(self.low_L + self.span_L * place_NL[rows_B], rows_B)
            parts.append(np.median((flux_BP / error_BP).numpy(), axis=1))
        return np.concatenate(parts) / self.noise.noise_level

    def at_magnitude(self, mag: float) -> "Stars":
        """Return drawn stars at another magnitude, each with its own throughput."""
        assert self.drawn is not None
        drawn_NS = self.drawn.copy()
        drawn_NS[:, MAG] = mag
        return replace(self, mag_N=drawn_NS[:, MAG], drawn=drawn_NS, pixels=_simulated_pixels(drawn_NS, self.names))

    def first(self, rows: int) -> "Stars":
        """Return the first `rows` stars."""
        drawn = None if self.drawn is None else self.drawn[:rows]
        return replace(self, place_NL=self.place_NL[:rows], mag_N=self.mag_N[:rows], drawn=drawn)


def open_stars(config: Config, rows: int | None, names: Sequence[str] | None = None) -> Stars:
    """Return the first `rows` (or all) test stars of a run; raises `DataError` for files that the model cannot draw.

    `names` are the ids of the stars of all folds of a cross-validation, which are taken in their place and order.
    """
    if is_synthetic(config.data, "test"):
        wanted = config.data.test_samples if rows is None else min(rows, config.data.test_samples)
        return synthetic_stars(config, wanted)
    if names is not None:
        return _file_stars(open_stars_named(config.data, names), rows, config.noise)
    return _file_stars(open_split(config.data, "test", lambda *_: None), rows, config.noise)


def synthetic_stars(config: Config, rows: int, *, split: str = "test") -> Stars:
    """Return built-in stars with the noise of `config`, float64."""
    data = config.data
    rows_N, redshift, prior = np.arange(rows), data.max_redshift, data.label_prior
    drawn_NS = draw_stars(data.builtin_seed, split, rows_N, max_redshift=redshift, label_prior=prior)
    names = LABEL_COLUMNS if data.max_redshift > 0 else LABEL_COLUMNS[:-1]
    ends = {**RANGES, "redshift": (-data.max_redshift, data.max_redshift)}
    low_L, span_L = _box(names, ends)
    place_NL = ((torch.from_numpy(drawn_NS[:, : len(names)]) - low_L) / span_L).clamp(FROM_WALLS, 1 - FROM_WALLS)
    pixels = _simulated_pixels(drawn_NS, names)
    return Stars(names, low_L, span_L, place_NL, drawn_NS[:, MAG], config.noise, pixels, drawn_NS, prior)


def _simulated_pixels(drawn_NS: NDArray[np.float64], names: tuple[str, ...]) -> Observe:
    """Return `Stars.pixels` of built-in stars, with fixed magnitude and throughput and free labels."""
    simulator = Simulator(redshifted="redshift" in names).double().requires_grad_(False)
    rest = torch.from_numpy(drawn_NS[:, len(names) :])

    def pixels(labels_BL: Tensor, rows_B: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        return simulator(torch.cat([labels_BL, rest[rows_B]], dim=1))

    return pixels


def _file_stars(view: SpectraView, rows: int | None, noise: NoiseConfig) -> Stars:
    """Return the stars of a file: flux by the built-in model at its labels, errors from the file."""
    index_N = np.arange(len(view) if rows is None else min(rows, len(view)))
    where, labels = view.origins()[0][0], view.labels().iloc[: len(index_N)]
    if not same_wavelengths(view.wave_P, wavelength()):
        what = "its pixels are not those of the built-in model, so the information in its spectra is unknown"
        raise DataError(what, where=where, remedy="ceilings need 4096 pixels of 0.427 Å from 7100 Å")
    if missing := [name for name in LABEL_COLUMNS[:-1] if name not in labels]:
        what = f"has no column {missing[0]}, without which the built-in model knows no spectrum"
        raise DataError(what, where=where, remedy=f"ceilings need {', '.join(LABEL_COLUMNS[:-1])}")
    redshifted = "redshift" in labels and bool((labels["redshift"] != 0).any())
    names = LABEL_COLUMNS if redshifted else LABEL_COLUMNS[:-1]
    labels_NL = view.label_values(names)[: len(index_N)]
    if view.masked_N is not None:
        raise DataError("has masked pixels", where=where, remedy="ceilings need the errors of all pixels")
    if missing := np.argwhere(np.isnan(labels_NL)).tolist():
        row, column = missing[0]
        what = f"lacks label {names[column]}, without which the built-in model knows no spectrum"
        raise DataError(what, where=view.describe_row(row), remedy="score runs on files whose rows have all labels")
    model = ForwardModel(redshifted=redshifted).double().requires_grad_(False)
    try:
        check_labels(model, labels_NL)
    except DataError as problem:
        remedy = "ceilings need stars inside the built-in grid"
        raise DataError(problem.what, where=f"{where} {problem.where}", remedy=remedy) from problem
    low_L, span_L = _box(names, {**RANGES, "redshift": (-MAX_REDSHIFT, MAX_REDSHIFT)})
    mag_N = labels["mag"].to_numpy(np.float64) if "mag" in labels else np.full(len(index_N), np.nan)
    place_NL = (torch.tensor(labels_NL) - low_L) / span_L
    if view.observed:
        noise = replace(noise, noise_type="heteroscedastic", noise_level=whole_level(view, noise))
    return Stars(names, low_L, span_L, place_NL, mag_N, noise, _file_pixels(view, model), None, None)


def _file_pixels(view: SpectraView, model: ForwardModel) -> Observe:
    """Return `Stars.pixels` of a file: its errors over its flux's median, times that of the model's flux.

    The errors do not depend on the labels, since the file does not say how.
    """

    def pixels(labels_BL: Tensor, rows_B: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        flux_BP, error_BP = (torch.from_numpy(x).double() for x in view.gather(rows_B))
        modelled_BP = model(labels_BL)
        # The factor is a constant here: a median has no meaningful derivative.
        factor_B1 = modelled_BP.detach().median(1, keepdim=True).values / flux_BP.median(1, keepdim=True).values
        return modelled_BP, error_BP * factor_B1

    return pixels


def _box(names: tuple[str, ...], ends: dict[str, tuple[float, float]]) -> tuple[Tensor, Tensor]:
    """Return low ends and widths of the labels' box."""
    low_L, high_L = (torch.tensor([ends[name][end] for name in names], dtype=torch.float64) for end in (0, 1))
    return low_L, high_L - low_L
