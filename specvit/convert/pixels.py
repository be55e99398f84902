"""Choose the pixels of the target and how wavelengths are read, once, from the first file.

Shape suffixes: X points of a spectrum, P pixels.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from specvit.convert.choose import Choice
from specvit.convert.contents import Array, Contents, plain
from specvit.convert.error_kinds import WORDS
from specvit.convert.names import Naming
from specvit.convert.options import INSTRUMENT, KEEP, Options
from specvit.convert.resample import Target, Wave, smoothing
from specvit.convert.sources import read_wavelengths
from specvit.convert.spectrum import Recipe, check_flux, read_rows
from specvit.convert.wavelengths import LOG_NAMES, guess, read_unit, to_vacuum_angstrom
from specvit.data.shards import SAME, check_wave, same_wavelengths
from specvit.physics import instrument
from specvit.utils.errors import ConfigError, DataError

LEAST_ANGSTROM = 900.0
"""A FITS axis that begins below this is hardly in Angstrom: few stars are observed there."""


@dataclass(frozen=True)
class RunPixels:
    """The pixels (P,) of a trained model, vacuum Angstrom, and whether spectra of others are resampled to them."""

    wave_P: Wave
    resample: bool

    @property
    def covered(self) -> tuple[float, float]:
        """Wavelengths that spectra reach over in their right unit, also those on the very pixels."""
        return float(self.wave_P[0]) + SAME, float(self.wave_P[-1]) - SAME


def make_recipe(
    contents: Contents,
    choice: Choice,
    options: Options,
    naming: Naming | None,
    resolution: float | None,
    *,
    layout: bool,
    run_pixels: RunPixels | None = None,
) -> tuple[Recipe, list[str]]:
    """Return how each spectrum is made, and notes on what was taken to be so; raises `ConfigError` or `DataError`.

    `resolution` is that of the sources, None if nobody says it; `layout` says that they are shards already. With
    `run_pixels`, those of a trained model, sources may lack errors.
    """
    check_flux(contents, contents.arrays[choice.flux])
    wave = contents.arrays[choice.wave] if choice.wave else read_wavelengths(Path(options.source_wave or ""))
    notes = [] if layout else [_read_from(contents, choice, options)]
    keep = (options.wave or (KEEP if layout else INSTRUMENT)) == KEEP
    keep = keep if run_pixels is None else not run_pixels.resample
    if keep and (options.resolution or options.to_resolution):
        remedy = "give --wave instrument or --wave FILE" if run_pixels is None else "add --resample"
        raise ConfigError("needs pixels to smooth onto, but these are kept", where="--resolution", remedy=remedy)
    target = None if keep else _target(options, resolution, notes, run_pixels)
    covered = target.needed if target else None
    if run_pixels is not None:
        target, covered = target or Target(run_pixels.wave_P), run_pixels.covered
    medium = _medium(wave, options, naming, notes, layout=layout)
    usual = naming.unit if naming else ("A" if layout else None)
    log10 = options.log10 or plain(wave.name) in LOG_NAMES
    unit, log10 = _unit(contents, wave, options.unit or usual, covered, notes, log10=log10)
    recipe = Recipe(
        choice=choice,
        target=target or Target(np.empty(0)),
        unit=unit,
        air=medium == "air",
        log10=log10,
        keep=keep,
        normalise=not layout if options.normalise is None else options.normalise,
        with_error=_uses_errors(contents, choice, options, notes, optional=run_pixels is not None),
        digest=choice.spectra is None,
    )
    if choice.wave is None:
        given = np.asarray(wave.take(None), dtype=np.float64)
        recipe = replace(recipe, wave_X=to_vacuum_angstrom(given, unit, log10=log10, air=recipe.air))
    if keep and run_pixels is None:
        recipe = replace(recipe, target=_own_pixels(contents, recipe))
    if options.magnitudes is not None and not same_wavelengths(recipe.target.wave_P, instrument.wavelength()):
        what = "needs the instrument's pixels, of which the noise is known"
        raise ConfigError(what, where="--magnitudes", remedy="leave out --wave, or give --snr")
    return recipe, notes


def _read_from(contents: Contents, choice: Choice, options: Options) -> str:
    """Return a note of what is read as what."""
    read = f"flux from {choice.flux}, wavelengths from {choice.wave or Path(options.source_wave or '').name}"
    errors = f", {WORDS[choice.error_kind]} from {choice.error}" if choice.error else ""
    return f"note: {contents.path.name}: {read}{errors}"


def _medium(wave: Array, options: Options, naming: Naming | None, notes: list[str], *, layout: bool) -> str:
    """Return `air` or `vacuum`: as asked for, by the header or name of the wavelengths, or usual; says which it is."""
    known = naming.medium if naming else None
    medium = options.medium or wave.medium or known or "vacuum"
    if options.medium is None and (medium == "air" or wave.medium):
        who = naming.name if naming and not wave.medium else "the header" if wave.derived else wave.name
        notes.append(f"note: {who} has wavelengths in {medium}; --air or --vacuum would overrule it")
    elif options.medium is None and known is None and not layout:
        notes.append("note: wavelengths are taken as of vacuum; --air if they are of air")
    return medium


def _target(
    options: Options, resolution: float | None, notes: list[str], run_pixels: RunPixels | None = None
) -> Target:
    """Return pixels and smoothing; raises `ConfigError` for resolutions that do not go together."""
    if run_pixels is not None:
        wave_P, wanted = run_pixels.wave_P, options.to_resolution
        if same_wavelengths(wave_P, instrument.wavelength()):
            wanted = wanted or instrument.RESOLUTION
    elif options.wave in (None, INSTRUMENT):
        wave_P, wanted = instrument.wavelength(), options.to_resolution or instrument.RESOLUTION
    else:
        path = Path(str(options.wave))
        given = read_wavelengths(path)
        raw_P = np.asarray(given.take(None), dtype=np.float64)
        log10 = plain(given.name) in LOG_NAMES
        wave_P = to_vacuum_angstrom(raw_P, read_unit(given.unit) or "A", log10=log10, air=given.medium == "air")
        check_wave(wave_P, len(wave_P), path)
        wanted = options.to_resolution
    if resolution is None:
        if options.to_resolution is not None:
            what = "needs the resolution of the spectra as they are"
            raise ConfigError(what, where="--to-resolution", remedy="give --resolution R")
        notes.append("note: without --resolution spectra are not smoothed, as if they had the instrument's resolution")
        return Target(wave_P)
    if wanted is None:
        what = "needs a resolution to smooth to, which --wave FILE does not say"
        raise ConfigError(what, where="--resolution", remedy="give --to-resolution R")
    if resolution < wanted * (1 - 1e-6):
        what = f"is {resolution:g}, below the {wanted:g} to smooth to; nothing makes spectra sharper"
        raise ConfigError(what, where="--resolution", remedy="take spectra of a higher one")
    return Target(wave_P, smoothing(wave_P, resolution, wanted))


def _unit(
    contents: Contents,
    wave: Array,
    said: str | None,
    covered: tuple[float, float] | None,
    notes: list[str],
    *,
    log10: bool,
) -> tuple[str, bool]:
    """Return the unit of the wavelengths and whether they are its logarithm: as said, by the header, or guessed.

    A FITS axis or logarithms without a unit are of Angstrom, the custom, unless only another one covers the target,
    which reaches over `covered`.
    Raises `DataError` for a unit that is not a length, and where a guess may be wrong.
    """
    spelled = read_unit(wave.unit)
    if said is not None:
        return said, log10
    if wave.unit and spelled is None:
        what = f"has wavelengths in {wave.unit!r}, which is not a known unit of length"
        raise DataError(what, where=f"{contents.path}:{wave.name}", remedy="give --unit A, nm or um")
    if spelled is not None:
        return spelled, log10
    values_X = np.asarray(wave.take(None), dtype=np.float64)
    try:
        if covered is None:
            remedy = "give --unit A, nm or um"
            raise DataError("says no unit of its wavelengths", where=str(contents.path), remedy=remedy)
        unit, log10 = guess(values_X, *covered, log10=log10, path=contents.path)
    except DataError:
        first = 10 ** values_X.min() if log10 else values_X.min()
        if not (wave.derived or log10) or not first >= LEAST_ANGSTROM:
            raise
        unit = "A"
    if wave.derived:
        shown = ("log10 of " if log10 else "") + {"A": "Angstrom"}.get(unit, unit)
        notes.append(f"note: the header gives no unit (CUNIT1): wavelengths are taken as {shown}; --unit overrules it")
    return unit, log10


def _uses_errors(contents: Contents, choice: Choice, options: Options, notes: list[str], *, optional: bool) -> bool:
    """Say whether errors come from the source; raises `DataError` if they come from nowhere, unless `optional`."""
    made = options.snr is not None or options.magnitudes is not None
    if choice.error is not None and made:
        what = f"those of the source ({choice.error}), and what they mark as bad pixels, are left out"
        notes.append(f"note: errors are made; {what}")
    if choice.error is None and optional:
        return False
    if choice.error is None and not made:
        what = f"has no errors by a name known; {contents.listing()}"
        remedy = "name them by --error-name, or have them made: --magnitudes LOW HIGH, or --snr X"
        raise DataError(what, where=str(contents.path), remedy=remedy)
    return not made


def _own_pixels(contents: Contents, recipe: Recipe) -> Target:
    """Return the wavelengths of the first spectrum as pixels; raises `DataError`."""
    wave_X, *_ = read_rows(contents, recipe, [0])
    own_P: Wave = wave_X if wave_X.ndim == 1 else wave_X[0]
    own_P = own_P[::-1] if len(own_P) > 1 and own_P[0] > own_P[-1] else own_P
    check_wave(own_P, len(own_P), contents.path)
    return Target(own_P)
