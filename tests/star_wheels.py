"""Wheels with the names and forms of `sdss-mangadap`, made by hand: MILES's table, and spectra in FITS."""

import io
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

PLACE = "mangadap/data/spectral_templates"
TABLE = f"{PLACE}/miles/paramsMILES_v9.1.txt"
NUMBERS = [number for number in range(1, 986) if number != 970]
"""Of the spectra of MILES; 970 is in `omit/`."""
HALPHA_AIR, HALPHA_VACUUM = 6562.80, 6564.61
MISPRINT = 221
"""The table gives this star's number as `022.`."""
PATTERN = 60
"""Stars of the table repeat after so many."""


def labels_of(number: int) -> tuple[str, str, str]:
    """Return T_eff, log g and [Fe/H] as the table has them; of 60 stars 40 are in range and 2 lack a label."""
    place = number % PATTERN
    if place >= 42:
        return str(7000 + 500 * (place - 42)), "4.00", "0.00"
    if place >= 40:
        return ("4200", "4.60", "--") if place == 40 else ("--", "--", "--")
    return str(3800 + 60 * place), f"{1 + 0.1 * place:.2f}", f"{-2 + 0.06 * place:.2f}"


def table_line(number: int) -> str:
    """Return a star's line in the columns of the table."""
    t_eff, log_g, m_h = labels_of(number)
    catalogue, kind = (f"{number % 700:3d}", "M5.2 III") if number % 3 == 0 else ("", "sd:F")
    digits = "022." if number == MISPRINT else f"{number:04d}"
    left = f"{f'HD{number:06d}':<23}{digits}{catalogue:>6}   {kind:<15}"
    return f"{left} {t_eff:>5}   {log_g:>4}    {m_h:>5}   131      I      "


def table_text() -> str:
    """Return the whole table."""
    head = ["Name                  MILES   CaT   SpT            Teff   log g   [Fe/H]  Refs   Libraries"]
    head += ["                      s????   ", " - - - - - - - - - - - - -"]
    return "\n".join([*head, *map(table_line, range(1, 986)), ""])


def flux_of(wave_X: np.ndarray, number: int) -> np.ndarray:
    """Return a flux with a slope by the star and H alpha in air wavelengths, as deep as log g says."""
    depth = 0.1 * (number % PATTERN) / PATTERN + 0.3
    line_X = np.exp(-0.5 * ((wave_X - HALPHA_AIR) / 2) ** 2)
    return (1 + 1e-3 * (number % 7 + 1) * (wave_X - 5000) / 1000) * (1 - depth * line_X) + 1e-6 * number


def image(flux_X: np.ndarray, **cards: Any) -> bytes:
    """Return a FITS file of one image."""
    stream = io.BytesIO()
    fits.PrimaryHDU(flux_X, fits.Header(cards)).writeto(stream)
    return stream.getvalue()


@cache
def miles_files() -> dict[str, bytes]:
    """Return all files of MILES by their path in the wheel."""
    wave_X = 3540.5 + 0.9 * np.arange(4300)
    name = PLACE + "/miles/{}MILES_res2.50_star_m{:04d}V.fits"
    cards = {"CRPIX1": 1, "CRVAL1": 3540.5, "CDELT1": 0.9}
    files = {name.format("", number): image(flux_of(wave_X, number), **cards) for number in NUMBERS}
    files[name.format("omit/", 970)] = image(flux_of(wave_X, 970), **cards)
    return {**files, TABLE: table_text().encode()}


@cache
def stelib_files() -> dict[str, bytes]:
    """Return all files of STELIB and the table: HD 1 to 252 each on points of its own, a component and unknown stars.

    Of HD 2 some points in the instrument's range have no data, of HD 3 most, and HD 4 has an observer's mark.
    """
    files = {TABLE: table_text().encode()}
    names = {number: f"HD{number:06d}" for number in range(1, 252)} | {4: "HD000004ss"}
    for number, name in [*names.items(), (901, "HD000001A"), (902, "Feige110"), (903, "HD338529"), (904, "LTT4364")]:
        first, step = 3200 + 0.01 * (number % 50), 1.0 + 1e-5 * (number % 40)
        wave_X = first + step * np.arange(6700)
        flux_X = flux_of(wave_X, number).astype(np.float32)
        if number in (2, 3):
            flux_X[(wave_X > 8000) & (wave_X < 8000 + (50 if number == 2 else 900))] = 0
        cards = {"CTYPE1": "LINEAR", "CRVAL1": first, "CRPIX1": 1.0, "CDELT1": step, "CD1_1": step}
        files[f"{PLACE}/stelib/STELIB_v3.2_{name}.fits"] = image(flux_X, **cards)
    return files


def write_wheel(path: Path, files: dict[str, bytes]) -> Path:
    """Write files into a wheel."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path
