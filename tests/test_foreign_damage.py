"""Files of others that are damaged or not what they seem: one sentence; and what is beside the spectra does no harm."""

import gzip
from collections.abc import Callable
from pathlib import Path

import foreign_files as make
import h5py
import numpy as np
import pytest
from astropy.io import fits
from test_foreign_faults import FLUX, NAME, check, spoilt, table, text_of
from test_foreign_formats import FINE, FLUX_NX, LABELS, ONE, PATTERN, SNR, STARS, converted

from specvit.data import __main__ as data_cli

pytestmark = pytest.mark.slow


def cut_short(folder: Path) -> None:
    spoilt()(folder)
    packed = gzip.compress((folder / f"{NAME}.txt").read_bytes())
    (folder / f"{NAME}.txt").unlink()
    (folder / f"{NAME}.txt.gz").write_bytes(packed[: len(packed) // 2])


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_table(folder: Path) -> None:
    make.fits_table(folder / f"{NAME}.fits", {"wave": FINE, "flux": FLUX})
    halve(folder / f"{NAME}.fits")


def cut_image(folder: Path) -> None:
    make.fits_image(folder / f"{NAME}.fits", FLUX, {"CRVAL1": 7000.0, "CDELT1": 0.05})
    halve(folder / f"{NAME}.fits")


def other_bytes(folder: Path) -> None:
    flux = FLUX * np.random.default_rng(0).random(len(FLUX))
    make.fits_table(folder / "table", {"wave": FINE, "flux": flux})
    packed = bytearray(gzip.compress((folder / "table").read_bytes(), 1))
    packed[len(packed) // 2 : len(packed) // 2 + 400] = b"\xff" * 400
    (folder / "table").unlink()
    (folder / f"{NAME}.fits.gz").write_bytes(packed)


def ragged_flux(folder: Path) -> None:
    rows = np.array([FLUX[:5], FLUX[:9]], object)
    columns = [fits.Column("wave", "D", array=FINE[:2]), fits.Column("flux", "PD()", array=rows)]
    fits.BinTableHDU.from_columns(columns).writeto(folder / f"{NAME}.fits")


def two_kinds(folder: Path) -> None:
    spoilt()(folder)
    table()(folder)


def other_columns(folder: Path) -> None:
    spoilt()(folder)
    make.text(folder / "4500_2.0_0.0.txt", {"wave": FINE, "light": FLUX}, header="wave light")


FAULTS: dict[str, tuple[Callable[[Path], None], list[str], list[str]]] = {
    "words between numbers": (
        text_of("".join(f"{wave:.2f} {'dark' if i == 5 else 1}\n" for i, wave in enumerate(FINE[::10]))),
        PATTERN,
        [f"{NAME}.txt:2: is not all numbers: 'dark' in row 5"],
    ),
    "a line of another length": (
        text_of("7000 1\n7001 1\n7002 1 7\n9000 1\n"),
        PATTERN,
        [f"{NAME}.txt: cannot be read (Error tokenizing data. C error: Expected 2 fields in line 3, saw 3)"],
    ),
    "lines longer than the names": (
        text_of("wave flux\n1 7000 1\n2 9000 1\n"),
        PATTERN,
        [f"{NAME}.txt: has 3 values in its first line for 2 names of columns; give each column one name"],
    ),
    "names with spaces": (
        text_of("wave flux (Jy) more\n7000 1 1\n"),
        PATTERN,
        [f"{NAME}.txt: has 3 values in its first line for 4 names of columns"],
    ),
    "one line": (text_of("8000 1\n"), [*PATTERN, "--unit", "A"], [f"{NAME}.txt: has one point; leave it out"]),
    "nothing in it": (text_of("# only words\n"), PATTERN, [f"{NAME}.txt: has no line of numbers"]),
    # files
    "not there": (lambda folder: folder.rmdir(), PATTERN, ["source: is not there; check the path"]),
    "an empty folder": (lambda folder: None, PATTERN, ["source: holds no file of a known kind"]),
    "two kinds": (
        two_kinds,
        PATTERN,
        ["source: hold 1 text and 1 NPZ files", "glob in quotes"],
    ),
    "a packed file cut short": (cut_short, PATTERN, [f"{NAME}.txt.gz: is truncated; copy it again"]),
    "a FITS table cut short": (cut_table, PATTERN, [f"{NAME}.fits: cannot be read (buffer is too small"]),
    "a FITS image cut short": (cut_image, PATTERN, [f"{NAME}.fits: cannot be read (buffer is too small"]),
    "a packed FITS file with other bytes in it": (
        other_bytes,
        PATTERN,
        [f"{NAME}.fits.gz: cannot be read (Error -3 while decompressing data"],
    ),
    "columns of rows of differing lengths": (
        ragged_flux,
        [*PATTERN, "--flux-name", "flux"],
        [f"{NAME}.fits:flux: has rows of differing lengths; pad them first"],
    ),
    "a FITS file that is none": (text_of("SIMPLE", f"{NAME}.fits"), PATTERN, [f"{NAME}.fits: cannot be read"]),
    "an NPZ file that is none": (text_of("PK", "set.npz"), [], ["set.npz: cannot be read (File is not a zip file)"]),
    "other columns in the second": (
        other_columns,
        PATTERN,
        ["4500_2.0_0.0.txt: has no column 'flux'; it has wave, light"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_files_ends_in_one_sentence(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(FAULTS[fault], tmp_path, capsys)


@pytest.mark.parametrize("whose", ["pixels", "spectra"])
def test_one_wavelength_is_no_grid(whose: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.txt").write_text("8000\n")
    option = {"pixels": "--wave", "spectra": "--source-wave"}[whose]
    given = [*SNR, "--unit", "A", option, str(tmp_path / "one.txt")]
    check((table(), given, ["one.txt:1: holds 1 wavelength(s); at least two are needed"]), tmp_path, capsys)


def test_a_dataset_of_nothing_is_passed_over(tmp_path: Path) -> None:
    make.hdf5(tmp_path / "set.h5", {"wave": FINE, "y": FLUX_NX, **LABELS})
    with h5py.File(tmp_path / "set.h5", "r+") as file:
        file["nothing"] = h5py.Empty("f8")
    assert data_cli.main(["convert", str(tmp_path / "set.h5"), str(tmp_path / "out"), *SNR, *ONE]) == 0


def test_a_column_of_differing_lengths_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    ragged = np.empty(len(FINE), object)
    ragged[:] = [np.ones(1 + row % 3) for row in range(len(FINE))]
    columns = [fits.Column("wave", "D", array=FINE), fits.Column("flux", "D", array=FLUX)]
    columns.append(fits.Column("lines", "PD()", array=ragged))
    fits.BinTableHDU.from_columns(columns).writeto(folder / f"{NAME}.fits")
    flux_NP, _, _ = converted(folder, *PATTERN, *SNR)
    np.testing.assert_allclose(flux_NP[0], make.expected(STARS[0]), atol=2e-4)
