"""Faulty spectra, labels and options for `specvit data convert`: a writer, the options, words of the refusal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import convert_inputs as make
import numpy as np
from convert_inputs import FINE, FLUX_NX, LABELS, PATTERN

FLUX = FLUX_NX[0]
NAME = "4000_1.5_-0.5"
Fault = tuple[Callable[[Path], None], list[str], list[str]]
"""What writes the source, the options, and words of the sentence; an S/N is given unless options begin with `+own`."""


def spoilt(points: int | slice = 4001, **values: float) -> Callable[[Path], None]:
    """Return a writer of one text in which flux or wave at a point, or at several, is another value."""

    def write(folder: Path) -> None:
        columns = {"wave": FINE.copy(), "flux": FLUX.copy()}
        for name, value in values.items():
            columns[name][points] = value
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


CSV = ["--labels", "{folder}/../labels.csv"]
WAVE_TWICE = np.where(np.arange(len(FINE)) == 6000, FINE[5999], FINE)
HOLE = np.delete(np.arange(len(FINE)), np.s_[4000:4020])
NO_T = table(T_eff=None, log_g=None, M_H=None)
MANY = slice(4000, 5700)
"""Points of a quarter of the pixels."""
IN_MANY = np.isin(np.arange(len(FINE)), np.arange(len(FINE))[MANY])
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
    "an empty label": (beside(f"file,T_eff\n{NAME}.txt,\n"), CSV, [f"{NAME}.txt: label T_eff is nan"]),
    "no label of several": (
        beside(f"file,T_eff,log_g\n{NAME}.txt,,\n"),
        [*CSV, "--fill", "redshift=0"],
        [f"{NAME}.txt: has none of the labels T_eff, log_g; correct it, or leave bad spectra out by --skip-bad"],
    ),
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
        ["set.npz row 2: label log_g is inf; correct it"],
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
        [f"{NAME}.txt: says no unit of its wavelengths, 7000 to 8499.75, which cover 7100.0-8850.0 Å in none"],
    ),
    "two units": (
        lambda folder: make.text(folder / f"{NAME}.txt", {"1": np.linspace(600, 12_000, len(FINE)), "2": FLUX}),
        PATTERN,
        ["600 to 12000, which cover 7100-8850 Å as A or nm; give --unit"],
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
        ["one.txt:1: holds 1 wavelength; at least two are needed"],
    ),
    "one pixel": (
        beside("8000\n", table(), "one.txt"),
        ["--unit", "A", "--wave", "{folder}/../one.txt"],
        ["one.txt:1: holds 1 wavelength; at least two are needed"],
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
    "flux is not a number": (
        spoilt(MANY, flux=np.nan),
        PATTERN,
        [
            f"{NAME}.txt: has 24.3 % of its pixels masked, more than 20 % (the first: flux is nan at 8000.00 Å); ",
            "leave such spectra out by --skip-bad, or set --max-masked higher",
        ],
    ),
    "flux is not a number in a table": (
        table(flux=BAD_ROW),
        ["--max-masked", "0.5"],
        ["set.npz row 3: has 100 % of its pixels masked, more than 50 % (the first: flux is nan at 7099.75 Å)"],
    ),
    "an error of zero": (
        table(error=np.where(IN_MANY, 0, FLUX_NX / 9)),
        ["+own"],
        ["set.npz row 0: has 24.3 % of its pixels masked", "(the first: error is 0 at 8000.00 Å)"],
    ),
    "a pixel that is masked": (
        table(ivar=np.where(IN_MANY, 0, 1 / FLUX_NX)),
        ["+own"],
        ["set.npz row 0: has 24.3 % of", "(the first: inverse variance is 0 at 8000.00 Å)"],
    ),
    "an error that stands for none": (
        table(error=np.where(IN_MANY, 1e10 * FLUX_NX, FLUX_NX / 9)),
        ["+own"],
        ["set.npz row 0: has 24.3 % of", "(the first: error is 3", " at 8000.00 Å)"],
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
    "S/N of nothing": (table(), ["+own", "--snr", "0"], ["--snr: expects a number above 0, not 0"]),
    "two kinds of errors": (table(), ["--magnitudes", "20", "21"], ["--snr and --magnitudes: exclude each other"]),
    "magnitudes the wrong way": (
        table(),
        ["+own", "--magnitudes", "22", "20"],
        ["--magnitudes: 22 to 20 is not a range"],
    ),
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
    "resolution too low": (table(), ["--resolution", "2000"], ["--resolution: is 2000, below the 5000 to smooth to"]),
    "shares": (table(), ["--split", "0.8,0.1,0.2"], ["--split: are not three shares that add up to 1"]),
    "two shares": (table(), ["--split", "0.8,0.2"], ["'0.8,0.2' is not three numbers between commas"]),
    "an empty share": (table(), ["--split", "0.9,0.05,0.05"], ["--split: of 5 spectra leaves a set without any"]),
    "more than all pixels": (
        table(),
        ["--max-masked", "1"],
        ["--max-masked: expects a number from 0 to 0.99, not 1.0"],
    ),
    "a shard of none": (table(), ["--shard", "0"], ["argument --shard: '0' is not a whole number of at least 1"]),
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
