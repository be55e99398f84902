"""FITS: columns of tables, images, and the wavelengths that a header describes; astropy does the reading.

Shape suffixes: X pixels along the first axis of an image.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from specvit.convert.contents import UNPACKING, Array, Contents, damaged, suffixes
from specvit.utils.errors import DataError

AXIS = "wavelength of the header"
MOST_PLANES, FEWEST_PIXELS = 16, 32
"""An image of so few rows may be one star: its flux, errors, wavelengths and masks, a plane each."""
DAMAGE = (OSError, ValueError, TypeError, KeyError, *UNPACKING)


@contextmanager
def opened(path: Path) -> Iterator[Contents]:
    """Give the columns and images of a FITS file as arrays; raises `DataError`."""
    fits = _astropy(path)
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
                _fill(contents, units)
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


def _fill(contents: Contents, units: Any) -> None:
    """Put in what all units of the file hold; names that occur twice get the name of their unit in front."""
    found: list[tuple[str, Array]] = []
    for number, unit in enumerate(units):
        where = unit.name or f"HDU{number}"
        where += str(number) if where in (other for other, _ in found) else ""
        if hasattr(unit, "columns"):
            found += [(where, array) for array in _columns(contents.path, unit)]
        elif unit.shape and 0 not in unit.shape:
            found += [(where, array) for array in _image(contents.path, where, unit, units[0].header)]
    names = [array.name for _, array in found]
    for where, array in found:
        name = array.name if names.count(array.name) == 1 else f"{where}/{array.name}"
        contents.add(replace(array, name=name))


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


def _image(path: Path, where: str, unit: Any, primary: Any) -> Iterator[Array]:
    shape = unit.shape
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    scaled = "BSCALE" in unit.header or unit.header["BITPIX"] > 0
    base = np.dtype(np.float64) if scaled else np.dtype(f">f{-unit.header['BITPIX'] // 8}")
    planes = _planes(unit, shape, primary) if len(shape) == 2 and shape[0] <= MOST_PLANES else ""
    taken = partial(_pixels, path, unit, shape)
    yield Array(where, shape, base, taken, unit=str(unit.header.get("BUNIT", "")), planes=planes)
    axis = header_wavelength(unit.header, shape[-1])
    if axis is not None:
        wave_X, spelled, medium = axis
        yield Array.held(AXIS, wave_X, unit=spelled, medium=medium, derived=True)


def _planes(unit: Any, shape: tuple[int, ...], primary: Any) -> str:
    """Return why the rows of an image are not spectra of a star each, "" where they may be.

    LAMOST (www.lamost.org) keeps flux, inverse variance, wavelength and masks of one star in five rows; UVES_popler
    (Murphy 2016) flux, error and continuum; APOGEE's apStar the two sums of a star's visits and the visits.
    """
    if "LAMOST" in str(primary.get("TELESCOP", "")):
        return "flux, inverse variance, wavelength and masks of one star, as LAMOST writes them"
    if "UVES_popler" in str(primary.get("HISTORY", "")) or any(key.startswith("UP_") for key in primary):
        return "flux, error and continuum of one star, as UVES_popler writes them"
    if "NVISITS" in primary:
        return "sums of one star's visits, and the visits, as apStar has them"
    if shape[1] >= FEWEST_PIXELS:
        rises = (np.diff(unit.data.reshape(shape).astype(np.float64)) > 0).all(axis=1)
        if rises.any():
            return f"row {int(np.argmax(rises))} rises from pixel to pixel, as wavelengths do"
    return ""


def _pixels(path: Path, unit: Any, shape: tuple[int, ...], rows: Any) -> np.ndarray:
    with _faults(path):
        whole = unit.data.reshape(shape)
        return np.asarray(whole if rows is None else whole[rows])


def _astropy(path: Path) -> Any:
    try:
        from astropy.io import fits
    except ImportError as problem:
        remedy = "pip install 'specvit[fits]'"
        raise DataError("is a FITS file, which astropy reads", where=str(path), remedy=remedy) from problem
    return fits
