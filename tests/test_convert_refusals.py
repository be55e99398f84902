"""Whatever is wrong with spectra in other formats or with the options: one sentence with file, row and remedy."""

import gzip
import sys
from pathlib import Path
from typing import Any

import convert_inputs as make
import h5py
import numpy as np
import pytest
from astropy.io import fits
from convert_faults import (
    FLUX,
    LABEL_FAULTS,
    NAME,
    OPTION_FAULTS,
    VALUE_FAULTS,
    WAVELENGTH_FAULTS,
    Fault,
    spoilt,
    table,
    text_of,
)
from convert_inputs import FINE, FLUX_NX, PATTERN, SNR, refusal
from mounts import small_disk

from specvit.commands import data as data_cli
from specvit.convert.options import Options
from specvit.utils.errors import ConfigError

# files


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
    make.fits_image(folder / f"{NAME}.fits", FLUX, {"CRVAL1": 7000.0, "CDELT1": 0.25})
    halve(folder / f"{NAME}.fits")


def other_bytes(folder: Path) -> None:
    """Write a packed file in the middle of which a block of a kind begins that there is not."""
    make.fits_table(folder / "table", {"wave": FINE, "flux": FLUX})
    content = (folder / "table").read_bytes()
    (folder / "table").unlink()
    first, second = (gzip.compress(half, 1) for half in (content[:60_000], content[60_000:]))
    (folder / f"{NAME}.fits.gz").write_bytes(first + second[:10] + b"\xff" + second[11:])


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


DAMAGED: dict[str, Fault] = {
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


@pytest.mark.parametrize("faults", [LABEL_FAULTS, WAVELENGTH_FAULTS, VALUE_FAULTS, OPTION_FAULTS, DAMAGED])
def test_a_fault_ends_in_one_sentence_and_no_shard(
    faults: dict[str, Fault], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = []
    for number, (fault, (write, options, words)) in enumerate(faults.items()):
        folder, out = tmp_path / str(number) / "source", tmp_path / str(number) / "out"
        folder.mkdir(parents=True)
        write(folder)
        given = [option.format(folder=folder) if "{folder}" in option else option for option in options]
        given = given[1:] if given[:1] == ["+own"] else [*SNR, *given]
        sentence = refusal(capsys, folder, out, *given)
        wrong += [(fault, word, sentence) for word in words if word not in sentence]
        wrong += [(fault, "has a target")] if out.exists() else []
    assert not wrong


def test_options_that_cannot_be() -> None:
    faults = {
        "--columns: makes two labels of a": {"columns": {"T_eff": "a", "log_g": "a"}},
        "--fill: gives snr, which is measured": {"fill": {"snr": 5.0}},
        "--snr: expects a number above 0, not inf": {"snr": float("inf")},
        "--split: are not three shares": {"split": (0.8, 0.3, -0.1)},
        "--split: expects a number, not nan": {"split": (0.8, float("nan"), 0.1)},
    }
    for words, options in faults.items():
        with pytest.raises(ConfigError) as caught:
            Options(**options).check()
        assert words in str(caught.value)


def test_resolution_is_not_passed_over_where_pixels_are_kept(write_set: Any, tmp_path: Path, capsys: Any) -> None:
    sentence = refusal(capsys, write_set(tmp_path / "source", 8), tmp_path / "out", "--resolution", "50000")
    words = "--resolution: needs pixels to smooth onto, but these are kept; give --wave instrument or --wave FILE"
    assert words in sentence


def test_a_set_with_nothing_good_is_refused(tmp_path: Path, capsys: Any) -> None:
    table(flux=0 * FLUX_NX)(tmp_path)
    sentence = refusal(capsys, tmp_path / "set.npz", tmp_path / "out", *SNR, "--skip-bad")
    assert "would hold no spectrum, since all 5 are bad; the first: " in sentence


def test_the_target_is_a_folder_of_its_own(tmp_path: Path, capsys: Any) -> None:
    table()(tmp_path)
    source, other = tmp_path / "set.npz", tmp_path / "other"
    assert "out.h5: is not a folder, as these sources need" in refusal(capsys, source, tmp_path / "out.h5", *SNR)
    other.mkdir()
    (other / "mine").touch()
    assert "other: is a folder with other files in it (mine); name a new" in refusal(capsys, source, other, *SNR)
    assert [path.name for path in other.iterdir()] == ["mine"]
    for content in ("{}", "not even JSON"):
        (other / "manifest.json").write_text(content)
        said = refusal(capsys, source, other, *SNR)
        assert "other/manifest.json: is not a manifest of a conversion; name another target, or remove it first" in said


def test_without_astropy_fits_files_ask_for_it(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make.fits_table(tmp_path / f"{NAME}.fits", {"wave": FINE, "flux": FLUX})
    monkeypatch.setitem(sys.modules, "astropy.io", None)
    said = refusal(capsys, tmp_path / f"{NAME}.fits", tmp_path / "out", *SNR, *PATTERN)
    assert "is a FITS file, which astropy reads; pip install 'specvit[fits]'" in said


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path: Path, capsys: Any) -> None:
    np.savez(tmp_path / "set.npz", wave=FINE[::4], flux=np.tile(FLUX, (200, 1))[:, ::4], log_g=np.arange(200) / 50)
    with small_disk(tmp_path / "disk", 4096) as disk:
        said = refusal(capsys, tmp_path / "set.npz", disk / "out", *SNR)
        assert "0.02 GB are needed but 0.00 GB are free" in said  # with the copy in which rows can be looked up
        assert list(disk.iterdir()) == []


def test_hdf5_in_the_layout_is_still_judged_as_such(write_set: Any, tmp_path: Path, capsys: Any) -> None:
    """One that lacks an array is a damaged shard, not a stranger's file."""
    path = write_set(tmp_path, 8)
    with h5py.File(path, "r+") as file:
        del file["dataset/arrays/flux/value"]
    assert data_cli.main(["convert", str(path), str(tmp_path / "target.h5")]) == 2
    assert "dataset/arrays/flux/value: is missing" in capsys.readouterr().err
