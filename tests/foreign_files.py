"""Spectra of others, made by a formula and written in the forms in which others write them.

Shape suffixes: X points of a source, P pixels, N spectra.
"""

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.wcs import WCS

from specvit.physics.instrument import STEP, wavelength

LINES = (7250.5, 7701.1, 8100.0, 8544.44, 8790.3)
"""Vacuum Angstrom of the lines of every spectrum; the second has no other depth in any."""
WIDTH = 1.5
"""Standard deviation of a line, Angstrom."""
FINE = np.arange(7000.0, 8950.0, 0.05)
"""Vacuum Angstrom, even."""
FINE_LOG = 10 ** np.arange(np.log10(7000.0), np.log10(8950.0), 3e-6)
STARS = [(4000.0, 1.5, -0.5), (4500.0, 2.0, 0.0), (5000.0, 4.5, 0.25), (5500.0, 3.0, -1.0), (6000.0, 5.0, -2.5)]
"""T_eff, log_g and M_H."""


def flux_of(star: tuple[float, float, float], wave_X: np.ndarray) -> np.ndarray:
    """Return flux per wavelength at vacuum Angstrom: a slope by T_eff, lines as deep as log_g and M_H say."""
    t_eff, log_g, m_h = star
    flux_X = 3e5 * (1 + (wave_X / 8000 - 1) * (t_eff / 4000 - 1))
    depths = (log_g / 8, 0.5, (m_h + 3) / 6, log_g / 10, 0.3)
    for centre, depth in zip(LINES, depths, strict=True):
        flux_X = flux_X * (1 - depth * np.exp(-0.5 * ((wave_X - centre) / WIDTH) ** 2))
    return flux_X


def expected(star: tuple[float, float, float]) -> np.ndarray:
    """Return the spectrum on the instrument's pixels, (P,): means over pixels, median 0.5."""
    inner = (np.arange(64) + 0.5) / 64 - 0.5
    mean_P = flux_of(star, wavelength()[:, None] + STEP * inner).mean(axis=1)
    return mean_P * (0.5 / np.median(mean_P))


def air(vacuum_X: np.ndarray) -> np.ndarray:
    """Return wavelengths in air by Ciddor (1996), another formula than the one that is tested."""
    s2_X = (1e4 / vacuum_X) ** 2
    return vacuum_X / (1 + 5.792105e-2 / (238.0185 - s2_X) + 1.67917e-3 / (57.362 - s2_X))


def name_of(star: tuple[float, float, float]) -> str:
    """Return the beginning of a file's name."""
    return "{:.0f}_{:.1f}_{:+.2f}".format(*star)


def table_of(stars: list[tuple[float, float, float]]) -> pd.DataFrame:
    """Return the labels as a table."""
    return pd.DataFrame(stars, columns=["T_eff", "log_g", "M_H"])


def text(
    path: Path, columns: dict[str, np.ndarray], *, separator: str = " ", header: str = "", number: str = "%.9g"
) -> None:
    """Write columns as a text, packed if its name says so."""
    rows = zip(*columns.values(), strict=True)
    lines = [header] if header else []
    lines += [separator.join(number % value for value in row) for row in rows]
    opener: Callable[..., Any] = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix, open)
    with opener(path, "wt") as stream:
        stream.write("\n".join(lines) + "\n")


def fits_table(path: Path, columns: dict[str, np.ndarray], units: dict[str, str] | None = None) -> None:
    """Write arrays as columns of a FITS table."""
    made = []
    for name, values in columns.items():
        size = "" if values.ndim == 1 else str(values.shape[1])
        made.append(fits.Column(name, f"{size}D", array=values, unit=(units or {}).get(name)))
    fits.BinTableHDU.from_columns(made).writeto(path)


def fits_image(path: Path, flux: np.ndarray, cards: dict[str, Any], **others: np.ndarray) -> None:
    """Write a spectrum as an image with a header, and more images by their names."""
    first = fits.PrimaryHDU(flux)
    first.header.update(cards)
    fits.HDUList([first, *(fits.ImageHDU(values, name=name) for name, values in others.items())]).writeto(path)


def log_axis(pixels: int, first: float, step: float) -> tuple[dict[str, Any], np.ndarray]:
    """Return the standard's cards of a logarithmic axis, and its wavelengths, Angstrom."""
    cards = {"CTYPE1": "WAVE-LOG", "CUNIT1": "Angstrom", "CRPIX1": 1.0, "CRVAL1": first, "CDELT1": step}
    header = fits.Header({**cards, "NAXIS": 1, "NAXIS1": pixels})
    return cards, np.asarray(WCS(header).all_pix2world(np.arange(pixels), 0)[0]) * 1e10


def hdf5(path: Path, arrays: dict[str, np.ndarray], units: dict[str, str] | None = None, **layout: Any) -> None:
    """Write arrays as datasets."""
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            big = layout if values.ndim == 2 else {}
            file.create_dataset(name, data=values, **big)
            if units and name in units:
                file[name].attrs["unit"] = units[name]
