"""Convert a spectrum of a file to flux and error on the target's pixels.

Shape suffixes: X points of a spectrum, P pixels, B spectra of one file.
"""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from specvit.convert.choose import Choice, check_shapes
from specvit.convert.contents import Array, Contents, plain
from specvit.convert.error_kinds import WORDS, kind_of_errors, to_sigma
from specvit.convert.masks import Marks, bad_points, check_share, drawing_on, filled
from specvit.convert.options import Options
from specvit.convert.resample import TOLERANCE, Target, edges, is_same, refined, weights
from specvit.convert.wavelengths import read_unit, to_vacuum_angstrom
from specvit.utils.errors import DataError

Values = NDArray[np.float64]

OTHER_PIXELS = "leave it out, or take other pixels: --wave keep, or --wave FILE"
NORMAL_MEDIAN = 0.5
"""The median pixel of built-in spectra, and of these."""
GAP = 3.0
"""A step this many times the usual one is a hole if wider than a pixel; the usual one is at most so many pixels."""
OTHER_FLUX = {"per frequency": r"hz|jy", "in magnitudes": r"\bmag", "in photons": r"\bph(ot(on)?s?)?\b"}
"""What the unit of a flux may say that is not an energy per wavelength."""
PER_FREQUENCY = ("fnu", "fluxnu", "fluxdensitynu")
"""Names that say so where a file gives no unit."""
MATRICES = 4
"""Sparse matrices kept for spectra of the same wavelengths."""


@dataclass(frozen=True)
class Recipe:
    """What a worker needs to convert any spectrum of a conversion."""

    choice: Choice
    target: Target
    unit: str
    """Of wavelengths; without --unit a file's own header goes first."""
    air: bool
    """Wavelengths are of air; without --air and --vacuum a file's own header goes first."""
    log10: bool = False
    wave_X: Values | None = None
    """Wavelengths of all spectra, vacuum Angstrom, where they come from a file of their own."""
    keep: bool = False
    normalise: bool = True
    with_error: bool = True
    digest: bool = False
    """Whether files are digested as they are read."""

    @property
    def options(self) -> Options:
        """The options of the conversion."""
        return self.choice.options


Blocks = tuple[Values, Values, Values | None]
"""Wavelengths, (B, X) or (X,) in vacuum Angstrom, flux and 1 sigma error (B, X)."""


def read_rows(contents: Contents, recipe: Recipe, rows: list[int]) -> Blocks:
    """Return rows of a file; raises `DataError`."""
    contents = contents if recipe.choice.spectra is not None else contents.single()
    single = recipe.choice.spectra is None
    at = None if single else np.array(rows)

    def taken(array: Array) -> Values:
        values = np.asarray(array.take(at), dtype=np.float64)
        return values[None] if single else values

    return _read(contents, recipe, taken)


def stream_rows(contents: Contents, recipe: Recipe, rows: int) -> Iterator[Blocks]:
    """Yield all rows of a file with many spectra in order, so many at a time, each array gone through once."""
    streams: dict[str, Iterator[Values]] = {}

    def taken(array: Array) -> Values:
        values = next(streams.setdefault(array.name, _in_blocks(array, rows)), None)
        if values is None:
            raise DataError("has fewer rows than it says", where=str(contents.path), remedy="copy or make it again")
        return values

    for _ in range(0, contents.arrays[recipe.choice.flux].shape[0], rows):
        yield _read(contents, recipe, taken)


def _in_blocks(array: Array, rows: int) -> Iterator[Values]:
    """Yield all rows of an array, so many at a time, the last ones fewer."""
    held, count = list[Values](), 0
    for piece in array.pieces():
        while len(piece):
            held.append(np.asarray(piece[: rows - count], dtype=np.float64))
            piece, count = piece[rows - count :], count + len(held[-1])
            if count == rows:
                yield held[0] if len(held) == 1 else np.concatenate(held)
                held, count = [], 0
    if held:
        yield np.concatenate(held)


def _read(contents: Contents, recipe: Recipe, taken: Callable[[Array], Values]) -> Blocks:
    """Return the rows that `taken` reads of each array, checked against the recipe; raises `DataError`."""
    choice = recipe.choice
    missing = [name for name in choice.arrays if name not in contents.arrays]
    if missing:
        what = f"has no {missing[0]}, as the first file has; {contents.listing()}"
        raise DataError(what, where=str(contents.path), remedy="convert files of one form at a time")
    flux = contents.arrays[choice.flux]
    wave = contents.arrays[choice.wave] if choice.wave else None
    error = contents.arrays[choice.error] if choice.error else None
    mask = contents.arrays[choice.mask] if choice.mask else None
    check_shapes(contents, wave, flux, error, mask)
    check_flux(contents, flux)
    if (len(flux.shape) == 2) != (choice.spectra is not None):
        what = f"has a flux of shape {flux.shape}, unlike the first file"
        raise DataError(what, where=str(contents.path), remedy="convert files of one form at a time")
    if wave is None:
        assert recipe.wave_X is not None
        vacuum_BX = recipe.wave_X
        if len(vacuum_BX) != flux.shape[-1]:
            what = f"has {flux.shape[-1]} values but there are {len(vacuum_BX)} wavelengths"
            raise DataError(what, where=str(contents.path), remedy="check --source-wave")
    else:
        unit = recipe.options.unit or read_unit(wave.unit) or recipe.unit
        air = recipe.air if recipe.options.medium or not wave.medium else wave.medium == "air"
        shared = wave.shape != flux.shape
        raw = np.asarray(wave.take(None), dtype=np.float64) if shared else taken(wave)
        vacuum_BX = to_vacuum_angstrom(raw, unit, log10=recipe.log10, air=air)
    flux_BX = taken(flux)
    if mask is not None:
        flux_BX = np.where(taken(mask) == 0, flux_BX, np.nan)
    if error is None or not recipe.with_error:
        return vacuum_BX, flux_BX, None
    kind, factor = kind_of_errors(flux, error, choice.options.error_kind, contents.path)
    if kind != choice.error_kind:
        what = f"has {WORDS[kind]} in {error.name}, unlike the first file"
        raise DataError(what, where=str(contents.path), remedy="convert files of one form at a time")
    return vacuum_BX, flux_BX, to_sigma(factor * taken(error), kind)


def check_flux(contents: Contents, flux: Array) -> None:
    """Raise `DataError` for a flux whose unit, or else name, says that it is not an energy per wavelength."""
    unit = flux.unit or ("Hz, by its name" if plain(flux.name) in PER_FREQUENCY else "")
    for what, words in OTHER_FLUX.items():
        if re.search(words, unit.lower()):
            remedy = "make it energy per wavelength first"
            raise DataError(f"is {what} ({unit})", where=f"{contents.path}:{flux.name}", remedy=remedy)


def on_pixels(
    where: str, wave_X: Values, flux_X: Values, error_X: Values | None, recipe: Recipe
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Return flux and error, (P,), of a spectrum on the target's pixels; raises `DataError` naming where it is from.

    Both are NaN in masked pixels. Errors are those of points drawn independently, brought to pixels that are drawn
    independently, too: as much noise in the mean over many pixels as there was in that of the points under them. In a
    single pixel it is more than what smoothing leaves there, which is correlated from pixel to pixel.
    """
    if len(wave_X) < 2:
        raise DataError("has one point", where=where, remedy="leave it out")
    if wave_X[0] > wave_X[-1]:
        wave_X, flux_X = wave_X[::-1], flux_X[::-1]
        error_X = None if error_X is None else error_X[::-1]
    if recipe.keep and not is_same(wave_X, recipe.target):
        what = "has other wavelengths than the first spectrum"
        raise DataError(what, where=where, remedy="leave out --wave keep: they are put on common pixels then")
    inside = slice(None) if recipe.keep else _needed_points(where, wave_X, recipe)
    wave_X, flux_X = wave_X[inside], flux_X[inside]
    error_X = None if error_X is None else error_X[inside]
    bad_X = bad_points(flux_X, error_X)
    flux_P, error_P, masked_P = _binned(wave_X, flux_X, error_X, bad_X, recipe)
    source = wave_X, flux_X, error_X, bad_X
    check_share(where, masked_P, recipe.options.max_masked, source, recipe.choice.error_kind)
    if masked_P.any():
        flux_P = np.where(masked_P, np.nan, flux_P)
        error_P = None if error_P is None else np.where(masked_P, np.nan, error_P)
    if recipe.normalise:
        median = float(np.median(flux_P[~masked_P]))
        if not median > 0:
            raise DataError(f"has a median flux of {median:g}", where=where, remedy="leave it out, or --no-normalise")
        flux_P = flux_P * (NORMAL_MEDIAN / median)
        error_P = None if error_P is None else error_P * (NORMAL_MEDIAN / median)
    with np.errstate(over="ignore", under="ignore"):
        flux, error = flux_P.astype(np.float32), None if error_P is None else error_P.astype(np.float32)
    fits_P = np.isfinite(flux) if error is None else np.isfinite(flux) & np.isfinite(error) & (error > 0)
    if not (fits_P | masked_P).all():
        raise DataError("does not fit into float32", where=where, remedy="leave out --no-normalise")
    _check_light(where, flux, recipe)
    return flux, error


def _binned(
    wave_X: Values, flux_X: Values, error_X: Values | None, bad_X: Marks, recipe: Recipe
) -> tuple[Values, Values | None, Marks]:
    """Return flux and error on the target's pixels, (P,), and which pixels draw on bad points."""
    if recipe.keep or is_same(wave_X, recipe.target):
        return flux_X, error_X, bad_X
    matrix, spread = _matrices(wave_X, recipe.target)
    masked_P = np.zeros(len(recipe.target.wave_P), dtype=bool)
    if bad_X.any():
        masked_P = drawing_on(bad_X, matrix)
        flux_X = np.where(bad_X, 0.0, flux_X)
        error_X = None if error_X is None else np.where(bad_X, 0.0, error_X)
    return matrix @ flux_X, None if error_X is None else np.sqrt(spread @ error_X**2), masked_P


def _needed_points(where: str, wave_X: Values, recipe: Recipe) -> slice:
    """Return the points that the target needs, after checking that they rise, reach far enough and leave no hole."""
    low, high = recipe.target.needed
    finite_X = wave_X[np.isfinite(wave_X)]
    span = f"{finite_X.min():.1f}-{finite_X.max():.1f} Å" if len(finite_X) else "nothing finite"
    near = np.flatnonzero((wave_X >= low) & (wave_X <= high))
    uncovered = f"covers {span} but {low:.1f}-{high:.1f} Å are needed"
    if not len(near):
        raise DataError(uncovered, where=where, remedy=OTHER_PIXELS)
    inside = slice(max(int(near[0]) - 1, 0), int(near[-1]) + 2)
    points = wave_X[inside]
    falls = np.flatnonzero(~(np.diff(points) > 0))
    if len(falls):
        at = int(falls[0]) + 1 + inside.start
        what = f"wavelengths do not rise at point {at} ({wave_X[at - 1]:.4f}, {wave_X[at]:.4f} Å)"
        raise DataError(what, where=where, remedy="sort them, and remove what is there twice")
    bins, pixels = edges(points), np.diff(edges(recipe.target.wave_P))
    if bins[0] > low + TOLERANCE * pixels[0] or bins[-1] < high - TOLERANCE * pixels[-1]:
        raise DataError(uncovered, where=where, remedy=OTHER_PIXELS)
    steps = np.diff(points)
    if np.median(steps) > GAP * pixels.min():
        what = f"has a point each {np.median(steps):.2f} Å for pixels of {pixels.min():.2f} Å"
        raise DataError(what, where=where, remedy="take finer spectra, or other pixels: --wave keep, or --wave FILE")
    widest = int(np.argmax(steps))
    if steps[widest] > max(GAP * float(np.median(steps)), float(pixels.min())):
        what = f"has a hole of {steps[widest]:.2f} Å after {points[widest]:.2f} Å"
        raise DataError(what, where=where, remedy="fill it with NaN, or leave the spectrum out")
    return inside


def _check_light(where: str, flux: NDArray[np.float32], recipe: Recipe) -> None:
    """Raise `DataError` for a flux (P,) of which the errors that were asked for cannot be made."""
    snr, median = recipe.options.snr, np.median(flux[~np.isnan(flux)])
    if snr is not None and not median / np.float32(snr) > 0:
        what = f"has a median flux of {median:g}, of which --snr makes no error"
        raise DataError(what, where=where, remedy="leave it out, or use --magnitudes LOW HIGH")
    if recipe.options.magnitudes is not None and not filled(flux).astype(np.float64) @ recipe.target.wave_P**2 > 0:
        raise DataError("has no light in all, and so no magnitude", where=where, remedy="leave it out")


_matrix_cache: OrderedDict[bytes, tuple[Any, Any]] = OrderedDict()


def _matrices(wave_X: Values, target: Target) -> tuple[Any, Any]:
    """Return the matrices that bring flux and variances to the pixels, made once for the same wavelengths.

    Of a variance the share that falls into a pixel goes there, times how much narrower than the pixel its bin is.
    """
    sigma = b"" if target.sigma_P is None else target.sigma_P.tobytes()
    key = hashlib.blake2b(wave_X.tobytes() + target.wave_P.tobytes() + sigma, digest_size=16).digest()
    if key not in _matrix_cache:
        flux = shares = weights(wave_X, target)
        between = refined(wave_X, target)
        if between is not None:
            flux = weights(between[0], target) @ between[1]
        width_P, width_X = np.diff(edges(target.wave_P)), np.diff(edges(wave_X))
        _matrix_cache[key] = flux, sparse.diags_array(1 / width_P) @ shares @ sparse.diags_array(width_X)
        if len(_matrix_cache) > MATRICES:
            _matrix_cache.popitem(last=False)
    _matrix_cache.move_to_end(key)
    return _matrix_cache[key]
