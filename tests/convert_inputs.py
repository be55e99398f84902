"""Spectra in other formats: one formula, written in the forms in which surveys and libraries write theirs.

Shape suffixes: X points of a source, P pixels, N spectra.
"""

import bz2
import gzip
import lzma
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from specvit.commands import data as data_cli
from specvit.convert import conversion
from specvit.data.shards import open_shard, read_labels
from specvit.data.views import open_spectra
from specvit.physics.instrument import STEP, wavelength

Star = tuple[float, float, float]
"""T_eff, log_g and M_H."""
LINES = (7250.5, 7701.1, 8100.0, 8544.44, 8790.3)
"""Vacuum Angstrom of the lines of every spectrum; the depth of the second is the same in all."""
WIDTH = 1.5
"""Standard deviation of a line, Angstrom."""
FINE = 7000.0 + 0.25 * np.arange(7800)
"""Vacuum Angstrom, even."""
COARSE = FINE[::2]
FINE_LOG = 10 ** np.arange(np.log10(7000.0), np.log10(8950.0), 13e-6)
AIR_X = FINE[:7700]
"""The same numbers, as wavelengths in air."""
STARS: list[Star] = [(4000.0, 1.5, -0.5), (4500.0, 2.0, 0.0), (5000.0, 4.5, 0.25), (5500.0, 3.0, -1.0)]
STARS += [(6000.0, 5.0, -2.5)]
PATTERN = ["--names", "{T_eff}_{log_g}_{M_H}"]
SNR = ["--snr", "50"]
ONE = ["--workers", "1"]


def flux_of(star: Star, wave_X: np.ndarray) -> np.ndarray:
    """Return flux per wavelength at vacuum Angstrom: a slope by T_eff, lines as deep as log_g and M_H say."""
    t_eff, log_g, m_h = star
    flux_X = 3e5 * (1 + (wave_X / 8000 - 1) * (t_eff / 4000 - 1))
    depths = (log_g / 8, 0.5, (m_h + 3) / 6, log_g / 10, 0.3)
    for centre, depth in zip(LINES, depths, strict=True):
        flux_X = flux_X * (1 - depth * np.exp(-0.5 * ((wave_X - centre) / WIDTH) ** 2))
    return flux_X


@cache
def pixel_means(star: Star) -> np.ndarray:
    """Return the means of the flux over the instrument's pixels, (P,)."""
    inner = (np.arange(64) + 0.5) / 64 - 0.5
    return flux_of(star, wavelength()[:, None] + STEP * inner).mean(axis=1)


def expected(star: Star) -> np.ndarray:
    """Return the spectrum on the instrument's pixels, (P,), with a median of 0.5."""
    return pixel_means(star) * (0.5 / np.median(pixel_means(star)))


def air(vacuum_X: np.ndarray) -> np.ndarray:
    """Return wavelengths in air by Ciddor (1996), another formula than the one under test."""
    s2_X = (1e4 / vacuum_X) ** 2
    return vacuum_X / (1 + 5.792105e-2 / (238.0185 - s2_X) + 1.67917e-3 / (57.362 - s2_X))


def vacuum_of(air_X: np.ndarray) -> np.ndarray:
    """Return vacuum wavelengths by solving Ciddor's formula."""
    vacuum_X = air_X.copy()
    for _ in range(5):
        vacuum_X += air_X - air(vacuum_X)
    return vacuum_X


def name_of(star: Star) -> str:
    """Return the beginning of a file's name, which `PATTERN` reads."""
    return "{:.0f}_{:.1f}_{:+.2f}".format(*star)


def table_of(stars: list[Star]) -> pd.DataFrame:
    """Return the labels as a table."""
    return pd.DataFrame(stars, columns=["T_eff", "log_g", "M_H"])


LABELS = {name: values.to_numpy() for name, values in table_of(STARS).items()}
FLUX_NX = np.stack([flux_of(star, FINE) for star in STARS])


# writers


def text(
    path: Path, columns: dict[str, np.ndarray], *, separator: str = " ", header: str = "", number: str = "%.9g"
) -> None:
    """Write columns as a text, packed if its name says so."""
    line = separator.join([number] * len(columns))
    lines = [header] if header else []
    lines += [line % row for row in zip(*(values.tolist() for values in columns.values()), strict=True)]
    opener: Callable[..., Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(path.suffix, open)
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


def texts(folder: Path, stars: list[Star] = STARS, wave_X: np.ndarray = COARSE) -> Path:
    """Write a text for each star, named by its labels, into a new folder, and return the folder."""
    folder.mkdir()
    for star in stars:
        text(folder / f"{name_of(star)}.txt", {"1": wave_X, "2": flux_of(star, wave_X)})
    return folder


# conversions


def convert(source: Path | str, out: Path | str, *options: str) -> int:
    """Convert in this process and return the exit code."""
    return data_cli.main(["convert", str(source), str(out), *ONE, *options])


def converted(source: Path, *options: str, name: str = "out") -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Convert into a folder beside the source and return flux, error and labels of its one shard."""
    out = source.parent / name
    assert convert(source, out, *options) == 0
    return shard_in(out)


def shard_in(out: Path) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Return flux and error, (N, P), and labels of the one shard, which has the instrument's pixels."""
    shard = open_shard(out / "all_0" / "dataset.h5")
    np.testing.assert_allclose(shard.wave_P, wavelength(), atol=1e-9)
    flux_NP, error_NP = (values.copy() for values in open_spectra([shard.path], -1).gather(np.arange(shard.rows)))
    return flux_NP, error_NP, read_labels(shard)


def refusal(capsys: pytest.CaptureFixture[str], source: Path, out: Path, *options: str) -> str:
    """Return the one sentence with which the command ends."""
    capsys.readouterr()
    assert convert(source, out, *options) == 2
    shown = capsys.readouterr()
    assert re.fullmatch(r"specvit: [^\n]+[.?]\n", shown.err), shown.err
    assert "Traceback" not in shown.out + shown.err
    return shown.err


def interrupt(monkeypatch: pytest.MonkeyPatch, shard: str) -> None:
    """Have Ctrl-C come where the pieces of a shard would be made."""
    real = conversion.make_piece

    def breaks(recipe: Any, piece: Any) -> None:
        if shard in piece.path.name:
            raise KeyboardInterrupt
        real(recipe, piece)

    monkeypatch.setattr(conversion, "make_piece", breaks)
