"""FITS: columns of tables, images, and the wavelengths that a header describes; astropy does the reading.

Shape suffixes: X pixels along the first axis of an image.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from specvit.convert.contents import MAYBE_PLANES, UNPACKING, Array, Contents, damaged, suffixes
from specvit.convert.options import SPECTRA
from specvit.utils.errors import DataError

AXIS = "wavelength of the header"
MOST_PLANES, FEWEST_PIXELS = 16, 32
"""An image of so few rows may be one star: its flux, errors, wavelengths and masks, a plane each."""
EXPOSURES = re.compile(r"EXP_FIBERMAP|[BR]-\d+")
"""Units of DESI's and LAMOST's sums of exposures that are about the exposures."""
APSTAR = {1: "FLUX", 2: "ERROR", 3: "MASK"}
"""Units of APOGEE's apStar."""
DAMAGE = (OSError, ValueError, TypeError, KeyError, *UNPACKING)


@contextmanager
def opened(path: Path, planes: str | None = None) -> Iterator[Contents]:
    """Give columns and images of a FITS file as arrays, rows of images as `planes` names them; raises `DataError`."""
    fits = import_fits(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that are not quite standard
        try:
            units = fits.open(path, memmap=not suffixes(path)[1])
        except FileNotFoundError:
            raise
        except DAMAGE as problem:
            raise damaged(path, problem) from problem
        with units:
            contents = Contents(path)
            with _faults(path):
                _fill(contents, units, planes)
            yield contents


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as problem:  # astropy has errors of its own for odd headers, which are no OSError or ValueError
        raise damaged(path, problem) from problem


def header_wavelength(header: Any, pixels: int) -> tuple[np.ndarray, str, str] | None:
    """Return the wavelengths along the first axis (X,), their unit and `air`, `vacuum` or ""; None if none are there.

    Known are the standard's WAVE and AWAV with its scales, linear axes, and log10 ones as IRAF (DC-FLAG = 1) and
    SDSS (COEFF0, COEFF1) write them. Without CRPIX1 the first pixel is the one of CRVAL1, as those who leave it out
    mean it; the standard would have the one before. Where CD1_1 stands CDELT1 has no meaning (Greisen & Calabretta
    2002, A&A 395, 1061).
    """
    index_X = np.arange(pixels, dtype=np.float64)
    if "COEFF0" in header and "COEFF1" in header:
        wave_X = 10 ** (header["COEFF0"] + header["COEFF1"] * index_X)
        return wave_X, "Angstrom", "vacuum" if header.get("VACUUM") is True else ""
    kind = str(header.get("CTYPE1", "")).strip().upper()
    if kind.startswith(("WAVE-", "AWAV-")) or (kind in ("WAVE", "AWAV") and "CUNIT1" in header):
        from astropy.wcs import WCS

        medium = "air" if kind.startswith("AWAV") else "vacuum"
        header = header.copy()
        header.setdefault("CRPIX1", 1.0)
        without = not header.get("CUNIT1")
        if without:  # the standard's default is the metre, and nobody means it
            header["CUNIT1"] = "Angstrom"
        wave_X = np.asarray(WCS(header, naxis=1).all_pix2world(index_X, 0)[0], dtype=np.float64)
        return (wave_X * 1e10, "", medium) if without else (wave_X, "m", medium)
    step = header.get("CD1_1") or header.get("CDELT1", 0.0) * header.get("PC1_1", 1.0)
    if "CRVAL1" not in header or not step:
        return None
    wave_X = header["CRVAL1"] + step * (index_X + 1 - header.get("CRPIX1", 1.0))
    if header.get("DC-FLAG") == 1 or kind.startswith(("LOG", "WAVE-LOG")):
        wave_X = 10**wave_X
    iraf = re.search(r"units=(\w+)", str(header.get("WAT1_001", "")))
    unit = str(header.get("CUNIT1", "")).strip() or (iraf[1] if iraf else "")
    medium = "vacuum" if header.get("VACUUM") is True else {"AWAV": "air", "WAVE": "vacuum"}.get(kind[:4], "")
    return wave_X, unit, medium


def _fill(contents: Contents, units: Any, planes: str | None) -> None:
    """Put in what all units of the file hold; names that occur twice get the name of their unit in front."""
    found: list[tuple[str, Array]] = []
    primary, names = units[0].header, {unit.name for unit in units}
    lamost = "LAMOST" in str(primary.get("TELESCOP", ""))
    for number, unit in enumerate(units):
        if EXPOSURES.fullmatch(unit.name) and names & {"FIBERMAP", "COADD_B", "COADD_R"}:
            continue
        where = unit.name or f"HDU{number}"
        where += str(number) if where in (other for other, _ in found) else ""
        if hasattr(unit, "columns"):
            found += [(where, _of_lamost(array) if lamost else array) for array in _columns(contents.path, unit)]
        elif unit.shape and 0 not in unit.shape:
            rows = _names_of_rows(unit, number, primary, planes)
            found += [(where, array) for array in _image(contents.path, where, unit, rows)]
            found += [(where, array) for array in _axis(unit)]
    axes = [array for _, array in found if array.derived]
    if len({(array.unit, array.medium, array.take(None).tobytes()) for array in axes}) == 1:  # several images share one
        found = [(where, array) for where, array in found if not array.derived or array is axes[0]]
    counts = Counter(array.name for _, array in found)
    for where, array in found:
        name = array.name if counts[array.name] == 1 else f"{where}/{array.name}"
        contents.add(replace(array, name=name))


def _names_of_rows(unit: Any, number: int, primary: Any, planes: str | None) -> tuple[str, ...]:
    """Return names of the rows of an image that are planes of one star, () where they are not or it is not known.

    LAMOST (www.lamost.org, low resolution until DR7) keeps a star in five rows, the pilot survey another third one;
    UVES_popler (Murphy 2016) in nine; APOGEE's apStar has a star's weighted sums first, then its visits.
    """
    if planes is not None:
        names = tuple(planes.split(","))
        return names if planes != SPECTRA and len(unit.shape) == 2 and len(names) == unit.shape[0] else ()
    if "LAMOST" in str(primary.get("TELESCOP", "")) and len(unit.shape) == 2 and unit.shape[0] >= 3:
        third = "WAVELENGTH" if (np.diff(unit.data[2].astype(np.float64)) > 0).all() else "CONTINUUM_SUBTRACTED"
        return ("FLUX", "IVAR", third, "ANDMASK", "ORMASK")[: unit.shape[0]]
    popler = "UVES_popler" in str(primary.get("HISTORY", "")) or any(key.startswith("UP_") for key in primary)
    if popler and len(unit.shape) == 2:
        return ("FLUX", "ERROR", "FLUCTUATION", "CONTINUUM", "STATUS")[: unit.shape[0]]
    if "NVISITS" in primary and number:
        return (APSTAR.get(number, f"HDU{number}"),)
    return ()


def _of_lamost(array: Array) -> Array:
    """Return a column of LAMOST with what is known of it."""
    return replace(array, unit=array.unit or "Angstrom", medium="vacuum") if array.name == "WAVELENGTH" else array


def _columns(path: Path, unit: Any) -> Iterator[Array]:
    for column in unit.columns:
        inner = unit.columns.dtype[column.name]
        base, shape = inner.subdtype or (inner, ())
        if column.bscale not in (None, "", 1) or column.bzero not in (None, "", 0):
            base = np.dtype(np.float64)
        taken = partial(_column, path, unit, column.name)
        if column.format.lstrip("0123456789")[:1] in "PQ":
            base, shape, taken = np.dtype(object), (), partial(_ragged, path, column.name)
        yield Array(column.name, (unit.header["NAXIS2"], *shape), base, taken, unit=str(column.unit or ""))


def _column(path: Path, unit: Any, name: str, rows: Any) -> np.ndarray:
    with _faults(path):
        return np.asarray(unit.data[name] if rows is None else unit.data[rows][name])


def _ragged(path: Path, name: str, rows: Any) -> np.ndarray:
    raise DataError("has rows of differing lengths", where=f"{path}:{name}", remedy="pad them first")


def _image(path: Path, where: str, unit: Any, rows: tuple[str, ...]) -> Iterator[Array]:
    """Yield an image, or its rows by their names."""
    shape = unit.shape
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    scaled = "BSCALE" in unit.header or unit.header["BITPIX"] > 0
    base = np.dtype(np.float64) if scaled else np.dtype(f">f{-unit.header['BITPIX'] // 8}")
    spelled = str(unit.header.get("BUNIT", ""))
    for row, name in enumerate(rows):
        taken = partial(_pixels, path, unit, shape, row if len(shape) == 2 else None)
        array = Array(name, shape[-1:], base, taken, unit=spelled if len(rows) == 1 or name.upper() == "FLUX" else "")
        yield _of_lamost(array) if "ANDMASK" in rows else array
    if not rows:
        yield Array(
            where, shape, base, partial(_pixels, path, unit, shape, None), unit=spelled, planes=_maybe(unit, shape)
        )


def _axis(unit: Any) -> Iterator[Array]:
    """Yield the wavelengths that an image's header describes."""
    axis = header_wavelength(unit.header, unit.shape[-1])
    if axis is not None:
        wave_X, spelled, medium = axis
        yield Array.held(AXIS, wave_X, unit=spelled, medium=medium, derived=True)


def _maybe(unit: Any, shape: tuple[int, ...]) -> str:
    """Return why the rows of an image may not be spectra of a star each, "" where they are."""
    if len(shape) != 2 or shape[0] > MOST_PLANES:
        return ""
    if shape[1] >= FEWEST_PIXELS:
        rises = (np.diff(unit.data.reshape(shape).astype(np.float64)) > 0).all(axis=1)
        if rises.any():
            return f"of which row {int(np.argmax(rises))} rises from pixel to pixel, as wavelengths do"
    return MAYBE_PLANES


def _pixels(path: Path, unit: Any, shape: tuple[int, ...], row: int | None, rows: Any) -> np.ndarray:
    with _faults(path):
        whole = unit.data.reshape(shape)
        whole = whole if row is None else whole[row]
        return np.asarray(whole if rows is None else whole[rows])


def import_fits(path: Path) -> Any:
    """Return `astropy.io.fits`; raises `DataError` where it is not installed."""
    try:
        from astropy.io import fits
    except ImportError as problem:
        remedy = "pip install 'specvit[fits]'"
        raise DataError("is a FITS file, which astropy reads", where=str(path), remedy=remedy) from problem
    return fits
