"""What the errors of a source are: standard deviations, variances or inverse variances, and in which unit.

It is never guessed: an inverse variance that is read as an error is wrong in each pixel, and nothing shows it.
"""

import re
import warnings
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from specvit.convert.contents import Array, plain
from specvit.utils.errors import DataError

ERROR_NAMES = ("error", "errors", "err", "sigma", "fluxerror", "fluxerr", "errflux", "eflux", "uncertainty", "stdev")
ERROR_NAMES += ("std", "unc", "stat", "errs", "variance", "var", "fluxvar", "fluxvariance")
ERROR_NAMES += ("ivar", "invvar", "inversevariance", "fluxivar")
KINDS_OF_NAMES = {
    r"ivar|inv.*var|var.*inv": "ivar",
    r"inv|i(err|sig|unc|std)": None,
    r"weight|wgt": "ivar",
    r"var": "variance",
    r"err|sig|unc|std|^eflux$": "sigma",
}
"""Kinds of errors by patterns in names such as Z_IVAR or flux_err_coadd, None for an inverse sigma; the first counts.

STAT has none: it is the variance of MUSE's cubes, and sigma elsewhere.
"""
POWERS = {"sigma": 1, "variance": 2, "ivar": -2}
"""Kinds of errors; their unit is that of the flux to this power."""
WORDS = {"sigma": "errors", "variance": "variances", "ivar": "inverse variances"}
BAD_ERROR = 1e6
"""An error this many times the spectrum's median marks a bad pixel: surveys write 1e10 or more there."""


def kind_of_errors(flux: Array, error: Array, given: str | None, path: object) -> tuple[str, float]:
    """Return the kind of the errors, and the factor that brings their values to the unit of the flux.

    The kind is the `given` one, else that of name and unit. Raises `DataError` where these do not say it or disagree.
    """
    try:
        by_unit, factor = _kind_by_unit(flux.unit, error.unit, given)
        if given is not None:
            return given, factor
        by_name = _kind_by_name(error)
        if by_unit == by_name or by_unit is None or by_name is None:
            if kind := by_unit or by_name:
                return kind, factor
            raise _Unclear("may be an error, a variance or an inverse variance")
        raise _Unclear(f"has the name of a {by_name} and its unit [{error.unit}] is that of a {by_unit}")
    except _Unclear as problem:
        remedy = f"say which by --error-kind {'|'.join(POWERS)}"
        raise DataError(str(problem), where=f"{path}:{error.name}", remedy=remedy) from None


class _Unclear(ValueError):
    """Why the kind of errors is not known."""


def _kind_by_name(error: Array) -> str | None:
    short = plain(error.name)
    return next((kind for pattern, kind in KINDS_OF_NAMES.items() if re.search(pattern, short)), None)


@lru_cache(maxsize=64)
def _kind_by_unit(flux: str, error: str, given: str | None) -> tuple[str | None, float]:
    """Return the kind whose unit is that of the flux to its power, and the factor between the units.

    (None, 1) where a unit is missing, unknown or a pure number; raises `_Unclear` for units that are not comparable.
    """
    if not flux or not error or (flux == error and given in (None, "sigma")):
        return ("sigma" if flux and error and not _is_number(flux) else None), 1.0
    try:
        from astropy import units
    except ImportError:
        if given is None:
            what = f"has the unit [{error}] for a flux in [{flux}]; `pip install 'specvit[fits]'` lets them be compared"
            raise _Unclear(what) from None
        return None, 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of several slashes
        try:
            of_flux, of_error = (units.Unit(re.sub(r"\bAng\b", "Angstrom", text)) for text in (flux, error))
        except (ValueError, TypeError):
            return None, 1.0
    if of_flux.is_equivalent(units.dimensionless_unscaled):
        return None, 1.0
    for kind, power in POWERS.items():
        if given in (None, kind) and of_error.is_equivalent(of_flux**power):
            return kind, float(np.real(of_error.to(of_flux**power)))
    if given is None:
        raise _Unclear(f"has the unit [{error}], which is not that of the flux [{flux}], its square or one over that")
    return None, 1.0


def _is_number(unit: str) -> bool:
    return bool(re.fullmatch(r"[\d.eE+\-* ^]*|dimensionless|none|normali[sz]ed", unit.strip(), re.IGNORECASE))


def to_sigma(values: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    """Return standard deviations of values of that kind: infinite or NaN at bad pixels (inverse variance 0)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind == "variance":
            return np.sqrt(values)
        return 1 / np.sqrt(values) if kind == "ivar" else values
