"""Wavelengths of any unit, of air or vacuum, written out or as their logarithm -> vacuum Angstrom. X points."""

import re

import numpy as np
from numpy.typing import NDArray

from specvit.utils.errors import DataError

Wave = NDArray[np.float64]

ANGSTROM = {"A": 1.0, "nm": 10.0, "um": 1e4, "m": 1e10}
"""Angstrom in each unit that may be asked for or that headers name."""
SPELLINGS = {
    "A": ("a", "aa", "å", "ang", "angs", "angstrom", "angstroms", "ångström", "0.1nm", "10**-10m"),
    "nm": ("nm", "nanometer", "nanometers", "nanometre", "nanometres"),
    "um": ("um", "µm", "μm", "micron", "microns", "mum", "micrometer", "micrometers", "micrometre", "micrometres"),
    "m": ("m", "meter", "metre"),
}
NAMES = ("wave", "wavelength", "wavelengths", "lambda", "lam", "wl", "wlen", "wavel")
LOG_NAMES = ("loglam", "loglambda", "logwave", "logwavelength", "log10wave", "log10lambda", "log10wavelength")
WAVE_NAMES = tuple(f"{name}{medium}" for medium in ("vac", "vacuum", "", "air") for name in NAMES)
WAVE_NAMES += (*(f"{medium}{name}" for medium in ("vac", "vacuum", "air") for name in NAMES), "awav")
"""Names of wavelengths without case and signs; where a file has several, those of vacuum go first."""
AIR_FROM = 2000.0
"""Angstrom; by custom tables give vacuum wavelengths below it even where they give air above."""


def read_unit(text: str) -> str | None:
    """Return a key of `ANGSTROM` for a unit as headers spell it, None for one that is not a length."""
    low = re.sub(r"^(?:dex|log|log10)\((.*)\)$", r"\1", text.strip().lower().replace(" ", ""))
    return next((unit for unit, known in SPELLINGS.items() if low in known), None)


def medium_of(name: str) -> str:
    """Return `air` or `vacuum` where a name of wavelengths without case and signs says it: waveair, awav; else ""."""
    if name == "awav" or name.startswith("air") or name.endswith("air"):
        return "air"
    return "vacuum" if name.startswith("vac") or name.endswith(("vac", "vacuum")) else ""


def to_vacuum_angstrom(wave_X: Wave, unit: str, *, log10: bool, air: bool) -> Wave:
    """Return vacuum Angstrom of wavelengths in `unit`, or of their decimal logarithm, in air or vacuum."""
    with np.errstate(over="ignore"):
        angstrom_X = (10.0**wave_X if log10 else wave_X) * ANGSTROM[unit]
    return air_to_vacuum(angstrom_X) if air else angstrom_X


def air_to_vacuum(air_X: Wave) -> Wave:
    """Return vacuum wavelengths of those in standard air, both Angstrom; up to 2000 A they are left as they are.

    The refraction of Morton (2000, ApJS 130, 403, after Birch & Downs 1994), solved for the wavelength in air by
    Piskunov for VALD3 (astro.uu.se/valdwiki, "Air-to-vacuum conversion"). In the red Ciddor (1996) agrees to 1e-4 A.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        s2_X = (1e4 / air_X) ** 2
        n_X = 1 + 8.336624212083e-5 + 0.02408926869968 / (130.1065924522 - s2_X)
        n_X = n_X + 1.599740894897e-4 / (38.92568793293 - s2_X)
    return np.where(air_X > AIR_FROM, air_X * n_X, air_X)


def guess(wave_X: Wave, low: float, high: float, *, log10: bool, path: object) -> tuple[str, bool]:
    """Return the unit, and whether it is its logarithm, in which the wavelengths cover low to high Angstrom.

    Raises `DataError` where none or several do.
    """
    finite_X = wave_X[np.isfinite(wave_X)]
    first, last = (float(finite_X.min()), float(finite_X.max())) if len(finite_X) else (np.nan, np.nan)
    fits = []
    for unit in ("A", "nm", "um"):
        for logarithm in (True,) if log10 else (False, True):
            ends = to_vacuum_angstrom(np.array([first, last]), unit, log10=logarithm, air=False)
            if ends[0] <= low and ends[1] >= high:
                fits.append((unit, logarithm))
    if len(fits) == 1:
        return fits[0]
    what = f"says no unit of its wavelengths, {first:g} to {last:g}, which "
    if fits:
        known = " or ".join(("log10 of " if logarithm else "") + unit for unit, logarithm in fits)
        what += f"cover {low:.0f}-{high:.0f} Å as {known}"
    else:
        what += f"cover {low:.1f}-{high:.1f} Å in none of A, nm and um"
    raise DataError(
        what,
        where=str(path),
        remedy=f"give --unit A, nm or um (and --log10){'' if fits else ', and --wave keep for other pixels'}",
    )
