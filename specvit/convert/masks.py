"""Masked pixels: points of a source that cannot be used, the pixels that draw on them, and how many there may be.

Shape suffixes: X points of a spectrum, P pixels.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit.convert.error_kinds import BAD_ERROR
from specvit.utils.errors import DataError

Values = NDArray[np.float64]
Marks = NDArray[np.bool_]

DRAWN = 1e-9
"""Weight from which a pixel draws on a point; what is less is rounding."""


class BadPixels(DataError):
    """A spectrum with too many masked pixels, and otherwise sound."""


def bad_points(flux_X: Values, error_X: Values | None) -> Marks:
    """Return which points cannot be used: flux or error not finite, an error of 0 or less or far above the median."""
    bad_X = ~np.isfinite(flux_X)
    if error_X is not None:
        usual = np.median(error_X[np.isfinite(error_X)]) if np.isfinite(error_X).any() else 0.0
        bad_X |= ~((error_X > 0) & (error_X < BAD_ERROR * usual))
    return bad_X


def drawing_on(bad_X: Marks, matrix: Any) -> Marks:
    """Return which pixels (P,) draw on a bad point by a sparse matrix (P, X) of weights."""
    return np.asarray(abs(matrix) @ bad_X.astype(np.float64) > DRAWN)


def check_share(
    where: str, masked_P: Marks, most: float, source: tuple[Values, Values, Values | None, Marks], kind: str
) -> None:
    """Raise `BadPixels` if more than a share `most` of the pixels is masked, naming the first bad point of the source.

    `source` has wavelengths, flux, errors and bad points (X,); `kind` is that of the errors.
    """
    share = masked_P.mean()
    if share <= most:
        return
    wave_X, flux_X, error_X, bad_X = source
    at = int(np.argmax(bad_X))
    name, value = "flux", flux_X[at]
    if error_X is not None and np.isfinite(value):
        name, value = "error", error_X[at]
    first = f"{name} is {value:g}"
    if kind == "ivar" and name == "error" and np.isinf(value):
        first = "inverse variance is 0"
    what = f"has {100 * share:.3g} % of its pixels masked, more than {100 * most:.3g} % (the first: {first}"
    remedy = "leave such spectra out by --skip-bad, or set --max-masked higher"
    raise BadPixels(f"{what} at {wave_X[at]:.2f} Å)", where=where, remedy=remedy)


def filled(flux_P: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return flux (P,) with masked pixels (NaN) on the line between their neighbours, for sums over all of it."""
    masked_P = np.isnan(flux_P)
    if not masked_P.any():
        return flux_P
    number_P = np.arange(len(flux_P))
    return np.interp(number_P, number_P[~masked_P], flux_P[~masked_P]).astype(flux_P.dtype)
