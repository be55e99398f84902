"""Whatever is wrong with spectra in other formats or with the options: one sentence with file, row and remedy."""

import gzip
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import convert_inputs as make
import h5py
import numpy as np
import pytest
from astropy.io import fits
from convert_inputs import FINE, FLUX_NX, LABELS, PATTERN, SNR, refusal
from mounts import small_disk

from specvit.commands import data as data_cli
from specvit.convert.options import Options
from specvit.utils.errors import ConfigError

FLUX = FLUX_NX[0]
NAME = "4000_1.5_-0.5"
Fault = tuple[Callable[[Path], None], list[str], list[str]]
"""What writes the source, the options, and words of the sentence; an S/N is given unless options begin with `+own`."""


def spoilt(**values: float) -> Callable[[Path], None]:
    """Return a writer of one text in which flux or wave at a point is another value."""

    def write(folder: Path) -> None:
        columns = {"wave": FINE.copy(), "flux": FLUX.copy()}
        for name, value in values.items():
            columns[name][4001] = value
        make.text(folder / f"{NAME}.txt", columns, header="wave flux")

    return write


def text_of(content: str, name: str = f"{NAME}.txt") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(content)

    return write


def table(**arrays: Any) -> Callable[[Path], None]:
    """Return a writer of a table of stars, some arrays of which are replaced, or left out for None."""

    def write(folder: Path) -> None:
        given = {"wave": FINE, "flux": FLUX_NX, **LABELS, **arrays}
        np.savez(folder / "set.npz", **{name: values for name, values in given.items() if values is not None})

    return write


def two_lengths(folder: Path) -> None:
    spoilt()(folder)
    make.text(folder / "4500_2.0_0.0.txt", {"wave": FINE[:100], "flux": FLUX[:100]}, header="wave flux")


def shifted(folder: Path) -> None:
    spoilt()(folder)
    make.text(folder / "4500_2.0_0.0.txt", {"wave": FINE + 1, "flux": FLUX}, header="wave flux")


SOUND = spoilt()


def beside(content: str, write: Callable[[Path], None] = SOUND, name: str = "labels.csv") -> Callable[[Path], None]:
    """Return a writer of a source, and of a file beside it."""

    def write_both(folder: Path) -> None:
        write(folder)
        (folder.parent / name).write_text(content)

    return write_both


def third_column(folder: Path) -> None:
    make.text(folder / f"{NAME}.txt", {"1": FINE, "2": FLUX, "3": FLUX})


def planes(rows: int, rising: bool = False, **cards: object) -> Callable[[Path], None]:
    """Return a writer of an image of one star: its flux and what goes with it, a plane each."""

    def write(folder: Path) -> None:
        flux_RX = np.random.default_rng(0).uniform(0.5, 1.0, (rows, 1000))
        if rising:
            flux_RX[2] = np.linspace(8400, 8800, 1000)
        axis = {"CRVAL1": 8400.0, "CDELT1": 0.4, "CUNIT1": "Angstrom", **cards}
        make.fits_image(folder / "star.fits", flux_RX, axis)

    return write


CSV = ["--labels", "{folder}/../labels.csv"]
WAVE_TWICE = np.where(np.arange(len(FINE)) == 6000, FINE[5999], FINE)
HOLE = np.delete(np.arange(len(FINE)), np.s_[4000:4020])
NO_T = table(T_eff=None, log_g=None, M_H=None)
BAD_ROW = np.where(np.arange(5)[:, None] == 3, np.nan, FLUX_NX)
LABEL_FAULTS: dict[str, Fault] = {
    "no labels": (spoilt(), [], [f"{NAME}.txt: says nothing of its labels", "give --labels FILE.csv, or --names"]),
    "another name": (text_of("7000 1\n9000 1\n", "README.txt"), PATTERN, ["README.txt: its name does not fit --names"]),
    "a label missing in the CSV": (beside("file,T_eff\nx.txt,3\n"), CSV, ["labels.csv: has no row for ", NAME]),
    "no file column": (beside("name,T_eff\nx.txt,3\n"), CSV, ["has no column 'file'; it has name, T_eff"]),
    "a label that is not a number": (
        beside(f"file,T_eff\n{NAME}.txt,hot\n"),
        CSV,
        ["labels.csv:T_eff: is 'hot' in row 0; labels are numbers"],
    ),
    "an empty label": (beside(f"file,T_eff,log_g\n{NAME}.txt,,3\n"), CSV, [f"{NAME}.txt: label T_eff is nan"]),
    "a file twice in the CSV": (
        beside("file,T_eff\na.txt,3\na.txt,4\n"),
        CSV,
        ["names a.txt in row 0 and again in row 1"],
    ),
    "an unknown column": (
        beside(f"file,teff\n{NAME}.txt,3\n"),
        [*CSV, "--columns", "log_g=logg"],
        ["has no column 'logg' (--columns); it has teff"],
    ),
    "an unknown array": (
        table(),
        ["--columns", "a_M=alpha"],
        ["no array called 'alpha' (--columns a_M=)", "wave (7800"],
    ),
    "an array by another name": (table(), ["--flux-name", "fluxx"], ["did you mean flux? ", "T_eff (5,) float64"]),
    "a table without labels": (NO_T, [], ["set.npz: has no labels; give --labels FILE.csv, --columns LABEL=NAME"]),
    "a file column for rows": (
        beside("file,T_eff\n" + "s.npz,4000\n" * 5, NO_T),
        CSV,
        ["labels.csv: names files in its column 'file', but the spectra are rows of a table; drop that column"],
    ),
    "a CSV with nothing in it": (
        beside("", NO_T),
        CSV,
        ["labels.csv: is not a table of labels (No columns to parse from file)"],
    ),
    "lines of a CSV longer than its head": (
        beside("T_eff,log_g\n" + "4000,4,9\n" * 5, NO_T),
        CSV,
        ["labels.csv: has more values in its lines than names of columns in its first"],
    ),
    "another unit of T_eff": (
        beside("T_eff\n3.7\n3.8\n3.9\n4\n4\n", NO_T),
        CSV,
        ["set.npz row 0: label T_eff is 3.7 K, which no star has"],
    ),
    "another unit of log_g": (
        beside("log_g\n4\n45\n4\n4\n4\n", NO_T),
        CSV,
        ["set.npz row 1: label log_g is 45 dex, which no star has"],
    ),
    "a value that stands for none": (
        beside("T_eff\n4000\n4000\n-9999\n4\n4\n", NO_T),
        CSV,
        ["set.npz row 2: label T_eff is -9999 K, which no star has"],
    ),
    "no label in a CSV": (beside("name\na\nb\nc\nd\ne\n", NO_T), CSV, ["set.npz: has no labels"]),
    "a label is not finite": (
        table(log_g=np.array([1, 2, np.inf, 4, 5])),
        [],
        ["set.npz row 2: label log_g is inf; mend it"],
    ),
}
WAVELENGTH_FAULTS: dict[str, Fault] = {
    "uncovered": (
        lambda folder: make.text(folder / f"{NAME}.txt", {"1": FINE[:6000], "2": FLUX[:6000]}),
        [*PATTERN, "--unit", "A"],
        [f"{NAME}.txt: covers 7000.0-8499.8 Å but 7100.0-8850.0 Å are needed"],
    ),
    "uncovered in any unit": (
        lambda folder: make.text(folder / f"{NAME}.txt", {"1": FINE[:6000], "2": FLUX[:6000]}),
        PATTERN,
        [f"{NAME}.txt: says no unit of its wavelengths, 7000 to 8499.75, which reach over 7100.0-8850.0 Å in none"],
    ),
    "two units": (
        lambda folder: make.text(folder / f"{NAME}.txt", {"1": np.linspace(600, 12_000, len(FINE)), "2": FLUX}),
        PATTERN,
        ["600 to 12000, which reach over 7100-8850 Å as A or nm; give --unit"],
    ),
    "no length": (
        lambda folder: make.text(folder / f"{NAME}.txt", {"1": FINE, "2": FLUX}, header="wave[1/cm] flux"),
        PATTERN,
        [f"{NAME}.txt:wave[1/cm]: has wavelengths in '1/cm', which is not a known unit of length; give --unit"],
    ),
    "a wavelength twice": (
        lambda folder: make.text(folder / f"{NAME}.txt", {"1": WAVE_TWICE, "2": FLUX}),
        PATTERN,
        ["wavelengths do not rise at point 6000 (8499.7500, 8499.7500 Å); sort them"],
    ),
    "a wavelength not finite": (spoilt(wave=np.nan), PATTERN, ["wavelengths do not rise at point 4001 ("]),
    "a hole": (
        lambda folder: make.text(folder / f"{NAME}.txt", {"1": FINE[HOLE], "2": FLUX[HOLE]}),
        PATTERN,
        ["has a hole of 5.25 Å after 7999.75 Å"],
    ),
    "too coarse": (
        lambda folder: make.text(folder / f"{NAME}.txt", {"1": FINE[::12], "2": FLUX[::12]}),
        PATTERN,
        [f"{NAME}.txt: has a point each 3.00 Å for pixels of 0.43 Å; take finer spectra"],
    ),
    "three points": (text_of("7000 1\n8000 2\n9000 1\n"), PATTERN, ["has a point each 1000.00 Å for pixels of 0.43 Å"]),
    "no file of wavelengths": (
        table(wave=None),
        ["--source-wave", "nowhere.txt"],
        ["nowhere.txt: is not there"],
    ),
    "one wavelength": (
        beside("8000\n", table(), "one.txt"),
        ["--unit", "A", "--source-wave", "{folder}/../one.txt"],
        ["one.txt:1: holds 1 wavelength(s); at least two are needed"],
    ),
    "one pixel": (
        beside("8000\n", table(), "one.txt"),
        ["--unit", "A", "--wave", "{folder}/../one.txt"],
        ["one.txt:1: holds 1 wavelength(s); at least two are needed"],
    ),
    "no file of pixels": (table(), ["--wave", "nowhere"], ["nowhere: is not there; check the path"]),
    "other wavelengths than flux": (
        table(wave=FINE[:-1]),
        [],
        ["set.npz:flux: has shape (5, 7800) but wave has (7799,)"],
    ),
    "spectra in columns": (table(flux=FLUX_NX.T), [], ["turn the array, so that a spectrum is a row"]),
    "other wavelengths to keep": (
        shifted,
        [*PATTERN, "--wave", "keep", "--unit", "A"],
        ["4500_2.0_0.0.txt: has other wavelengths than the first spectrum; leave out --wave keep"],
    ),
    "no unit to keep": (spoilt(), [*PATTERN, "--wave", "keep"], ["says no unit of its wavelengths; give --unit"]),
    "ragged": (two_lengths, PATTERN, ["4500_2.0_0.0.txt: covers 7000.0-7024.8 Å but 7100.0-8850.0 Å are needed"]),
}
VALUE_FAULTS: dict[str, Fault] = {
    "flux is not a number": (spoilt(flux=np.nan), PATTERN, [f"{NAME}.txt: flux is nan at 8000.25 Å; mend it, or"]),
    "flux is not a number in a table": (table(flux=BAD_ROW), [], ["set.npz row 3: flux is nan at 7099.75 Å"]),
    "an error of zero": (
        table(error=np.where(np.arange(len(FINE)) == 4000, 0, FLUX_NX / 9)),
        ["+own"],
        ["set.npz row 0: error is 0 at 8000.00 Å"],
    ),
    "a pixel that is masked": (
        table(ivar=np.where(np.arange(len(FINE)) == 4000, 0, 1 / FLUX_NX)),
        ["+own"],
        ["set.npz row 0: error is inf at 8000.00 Å"],
    ),
    "dark": (table(flux=-FLUX_NX), [], ["set.npz row 0: has a median flux of -", "or --no-normalise"]),
    "no errors": (
        table(),
        ["+own"],
        ["set.npz: has no errors by a name known; it holds wave", "--magnitudes LOW HIGH"],
    ),
    "no errors in a text": (
        third_column,
        ["+own", *PATTERN],
        ["has no errors by a name known; it holds 1 (7800,) float64, 2 (7800,) float64, 3 (7800,)"],
    ),
    "errors of an unknown kind": (
        third_column,
        ["+own", *PATTERN, "--error-name", "3"],
        ["may be an error, a variance or an inverse variance; say which by --error-kind"],
    ),
    **{
        f"planes of one star, {words}": (
            write,
            ["--fill", "log_g=4.4", "--wave", "keep"],
            [words, "rows that are not a spectrum each"],
        )
        for words, write in {
            "row 2 rises from pixel to pixel, as wavelengths do": planes(3, rising=True),
            "as LAMOST writes them": planes(5, TELESCOP="LAMOST"),
            "as UVES_popler writes them": planes(5, HISTORY="made by UVES_popler"),
            "as apStar has them": planes(4, NVISITS=2),
        }.items()
    },
    "flux per frequency": (
        lambda folder: make.fits_table(folder / f"{NAME}.fits", {"wave": FINE, "flux": FLUX}, {"flux": "erg/s/cm2/Hz"}),
        PATTERN,
        [f"{NAME}.fits:flux: is per frequency (erg/s/cm2/Hz)"],
    ),
    "two that may be the flux": (
        lambda folder: make.hdf5(folder / "set.h5", {"a/flux": FLUX_NX, "b/flux": FLUX_NX, "wave": FINE, **LABELS}),
        [],
        ["set.h5: may have the flux in a/flux and b/flux; say which by --flux-name"],
    ),
    "nothing like a flux": (
        lambda folder: make.hdf5(folder / "set.h5", {"x": FLUX_NX, "y": FLUX_NX, "wave": FINE, **LABELS}),
        [],
        ["set.h5: has no flux by a name known; it holds M_H (5,) float64, T_eff (5,)", "x (5, 7800) float64"],
    ),
    "nothing like wavelengths": (
        lambda folder: make.hdf5(folder / "set.h5", {"flux": FLUX_NX, **LABELS}),
        [],
        ["set.h5: has no wavelengths by a name known", "give --wave-name NAME or --source-wave FILE"],
    ),
}
OPTION_FAULTS: dict[str, Fault] = {
    "S/N of nothing": (table(), ["+own", "--snr", "0"], ["--snr: 0 is not above 0"]),
    "two kinds of errors": (table(), ["--magnitudes", "20", "21"], ["--snr and --magnitudes: exclude each other"]),
    "magnitudes the wrong way": (table(), ["+own", "--magnitudes", "22", "20"], ["--magnitudes: 22 to 20 is not a range"]),
    "magnitudes on other pixels": (
        table(),
        ["+own", "--magnitudes", "20", "21", "--wave", "keep", "--unit", "A"],
        ["--magnitudes: needs the instrument's pixels"],
    ),
    "names of a table": (
        table(),
        PATTERN,
        ["--names: is for files of one spectrum each, but", "holds 5; leave it out"],
    ),
    "names and a table of labels": (spoilt(), [*PATTERN, *CSV], ["--names and --labels: both say what the labels are"]),
    "resolution too low": (table(), ["--resolution", "2000"], ["--resolution: is 2000, below the 5000 to come to"]),
    "shares": (table(), ["--split", "0.8,0.1,0.2"], ["--split: are not three shares that add up to 1"]),
    "two shares": (table(), ["--split", "0.8,0.2"], ["'0.8,0.2' is not three numbers between commas"]),
    "an empty share": (table(), ["--split", "0.9,0.05,0.05"], ["--split: of 5 spectra leaves a set without any"]),
    "a shard of none": (table(), ["--shard", "0"], ["argument --shard: must be at least 1"]),
    "a fill without value": (table(), ["--fill", "C_M"], ["'C_M' is not LABEL=..."]),
    "a label twice": (
        table(),
        ["--fill", "log_g=3"],
        ["--fill: gives log_g, which the sources have themselves"],
    ),
    "smoothing and keeping": (
        table(),
        ["--wave", "keep", "--resolution", "50000"],
        ["--resolution: needs pixels to smooth onto"],
    ),
}


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
        "--snr: is infinite, which leaves no errors": {"snr": float("inf")},
        "--split: are not three shares": {"split": (0.8, float("nan"), 0.1)},
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
