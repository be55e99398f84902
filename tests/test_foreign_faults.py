"""Whatever is wrong with spectra of others or with what is asked of them: one sentence with file, row and remedy."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_files as make
import numpy as np
import pytest
from test_foreign_formats import FINE, FLUX_NX, LABELS, ONE, PATTERN, SNR, STARS

from specvit.data import __main__ as data_cli

pytestmark = pytest.mark.slow

FLUX = make.flux_of(STARS[0], FINE)
NAME = "4000_1.5_-0.5"


def refusal(capsys: pytest.CaptureFixture[str], folder: Path, out: Path, *options: str) -> str:
    """Return the one sentence with which the command ends."""
    assert data_cli.main(["convert", str(folder), str(out), *ONE, *options]) == 2
    shown = capsys.readouterr()
    assert re.fullmatch(r"specvit: [^\n]+[.?]\n", shown.err), shown.err
    assert "Traceback" not in shown.out + shown.err
    return shown.err


def spoilt(**values: float) -> Callable[[Path], None]:
    """Return a writer of one text in which flux or wave at a point is another value."""

    def write(folder: Path) -> None:
        columns = {"wave": FINE.copy(), "flux": FLUX.copy()}
        for name, value in values.items():
            columns[name][20_001] = value
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


def labelled(content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        spoilt()(folder)
        (folder.parent / "labels.csv").write_text(content)

    return write


CSV = ["--labels", "{folder}/../labels.csv"]
WAVE_TWICE = np.where(np.arange(len(FINE)) == 30_000, FINE[29_999], FINE)
HOLE = np.delete(np.arange(len(FINE)), np.s_[20_000:20_100])
NO_T = table(T_eff=None, log_g=None, M_H=None)
BAD_ROW = np.where(np.arange(5)[:, None] == 3, np.nan, FLUX_NX)
FAULTS: dict[str, tuple[Callable[[Path], None], list[str], list[str]]] = {
    # labels
    "no labels": (spoilt(), [], [f"{NAME}.txt: says nothing of its labels", "give --labels FILE.csv, or --names"]),
    "another name": (text_of("7000 1\n9000 1\n", "README.txt"), PATTERN, ["README.txt: its name does not fit --names"]),
    "a label missing in the CSV": (labelled("file,T_eff\nx.txt,3\n"), CSV, ["labels.csv: has no row for ", NAME]),
    "no file column": (labelled("name,T_eff\nx.txt,3\n"), CSV, ["has no column 'file'; it has name, T_eff"]),
    "a label that is no number": (
        labelled(f"file,T_eff\n{NAME}.txt,hot\n"),
        CSV,
        ["labels.csv:T_eff: is 'hot' in row 0; labels are numbers"],
    ),
    "an empty label": (labelled(f"file,T_eff,log_g\n{NAME}.txt,,3\n"), CSV, [f"{NAME}.txt: label T_eff is nan"]),
    "a file twice in the CSV": (
        labelled("file,T_eff\na.txt,3\na.txt,4\n"),
        CSV,
        ["names a.txt in row 0 and again in row 1"],
    ),
    "an unknown column": (
        labelled(f"file,teff\n{NAME}.txt,3\n"),
        [*CSV, "--columns", "log_g=logg"],
        ["has no column 'logg' (--columns); it has teff"],
    ),
    "an unknown array": (table(), ["--columns", "a_M=alpha"], ["no array called 'alpha' (--columns a_M=)", "wave (39"]),
    "an array by another name": (table(), ["--flux-name", "fluxx"], ["did you mean flux? ", "T_eff (5,) float64"]),
    "a table without labels": (NO_T, [], ["set.npz: has no labels; give --labels FILE.csv, --columns LABEL=NAME"]),
    "a label is not finite": (
        table(log_g=np.array([1, 2, np.inf, 4, 5])),
        [],
        ["set.npz row 2: label log_g is inf; mend it"],
    ),
    # wavelengths
    "uncovered": (
        lambda folder: make.text(folder / f"{NAME}.txt", {"1": FINE[:30_000], "2": FLUX[:30_000]}),
        [*PATTERN, "--unit", "A"],
        [f"{NAME}.txt: covers 7000.0-8500.0 Å but 7100.0-8850.0 Å are needed"],
    ),
    "uncovered in any unit": (
        lambda folder: make.text(folder / f"{NAME}.txt", {"1": FINE[:30_000], "2": FLUX[:30_000]}),
        PATTERN,
        [f"{NAME}.txt: says no unit of its wavelengths, 7000 to 8499.95, which reach over 7100.0-8850.0 Å in none"],
    ),
    "two units": (
        lambda folder: make.text(folder / f"{NAME}.txt", {"1": np.linspace(600, 12_000, len(FINE)), "2": FLUX}),
        PATTERN,
        ["600 to 12000, which reach over 7100-8850 Å as A or nm; give --unit"],
    ),
    "no length": (
        lambda folder: make.text(folder / f"{NAME}.txt", {"1": FINE, "2": FLUX}, header="wave[1/cm] flux"),
        PATTERN,
        [f"{NAME}.txt:wave[1/cm]: has wavelengths in '1/cm', which is no length known; give --unit"],
    ),
    "a wavelength twice": (
        lambda folder: make.text(folder / f"{NAME}.txt", {"1": WAVE_TWICE, "2": FLUX}),
        PATTERN,
        ["wavelengths do not rise at point 30000 (8499.9500, 8499.9500 Å); sort them"],
    ),
    "a wavelength not finite": (spoilt(wave=np.nan), PATTERN, ["wavelengths do not rise at point 20001 ("]),
    "a hole": (
        lambda folder: make.text(folder / f"{NAME}.txt", {"1": FINE[HOLE], "2": FLUX[HOLE]}),
        PATTERN,
        ["has a hole of 5.05 Å after 7999.95 Å"],
    ),
    "too coarse": (
        lambda folder: make.text(folder / f"{NAME}.txt", {"1": FINE[::60], "2": FLUX[::60]}),
        PATTERN,
        [f"{NAME}.txt: has a point each 3.00 Å for pixels of 0.43 Å; take finer spectra"],
    ),
    "three points": (text_of("7000 1\n8000 2\n9000 1\n"), PATTERN, ["has a point each 1000.00 Å for pixels of 0.43 Å"]),
    "no file of wavelengths": (
        table(wave=None),
        ["--source-wave", "nowhere.txt"],
        ["nowhere.txt: is not there"],
    ),
    "no file of pixels": (table(), ["--wave", "nowhere"], ["nowhere: is not there; check the path"]),
    "other wavelengths than flux": (
        table(wave=FINE[:-1]),
        [],
        ["set.npz:flux: has shape (5, 39000) but wave has (38999,)"],
    ),
    "spectra in columns": (table(flux=FLUX_NX.T), [], ["turn the array, so that a spectrum is a row"]),
    "other wavelengths to keep": (
        shifted,
        [*PATTERN, "--wave", "keep", "--unit", "A"],
        ["4500_2.0_0.0.txt: has other wavelengths than the first spectrum; leave out --wave keep"],
    ),
    "no unit to keep": (spoilt(), [*PATTERN, "--wave", "keep"], ["says no unit of its wavelengths; give --unit"]),
    "ragged": (two_lengths, PATTERN, ["4500_2.0_0.0.txt: covers 7000.0-7004.9 Å but 7100.0-8850.0 Å are needed"]),
    # values
    "flux is not a number": (spoilt(flux=np.nan), PATTERN, [f"{NAME}.txt: flux is nan at 8000.05 Å; mend it, or"]),
    "flux is not a number in a table": (table(flux=BAD_ROW), [], ["set.npz row 3: flux is nan at 7099.95 Å"]),
    "an error of zero": (
        table(error=np.where(np.arange(len(FINE)) == 20_000, 0, FLUX_NX / 9)),
        ["+own"],
        ["set.npz row 0: error is 0 at 8000.00 Å"],
    ),
    "a pixel that is masked": (
        table(ivar=np.where(np.arange(len(FINE)) == 20_000, 0, 1 / FLUX_NX)),
        ["+own"],
        ["set.npz row 0: error is inf at 8000.00 Å"],
    ),
    "dark": (table(flux=-FLUX_NX), [], ["set.npz row 0: has a median flux of -", "or --no-normalise"]),
    "no errors": (
        table(),
        ["+own"],
        ["set.npz: has no errors by a name known; it holds wave", "--magnitudes LOW HIGH"],
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
        ["set.h5: has no flux by a name known; it holds M_H (5,) float64, T_eff (5,)", "x (5, 39000) float64"],
    ),
    "nothing like wavelengths": (
        lambda folder: make.hdf5(folder / "set.h5", {"flux": FLUX_NX, **LABELS}),
        [],
        ["set.h5: has no wavelengths by a name known", "give --wave-name NAME or --source-wave FILE"],
    ),
    # options
    "S/N of nothing": (table(), ["+own", "--snr", "0"], ["--snr: 0 is not above 0"]),
    "two kinds of errors": (table(), ["--magnitudes", "20", "21"], ["--snr and --magnitudes: exclude each other"]),
    "magnitudes the wrong way": (table(), ["+own", "--magnitudes", "22", "20"], ["--magnitudes: 22 to 20 is no range"]),
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
    "shares": (table(), ["--split", "0.8,0.1,0.2"], ["--split: are no three shares that make 1"]),
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


def check(
    fault: tuple[Callable[[Path], None], list[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Convert what a fault writes with its options, and find its words in the one sentence, and nothing written."""
    write, options, said = fault
    folder, out = tmp_path / "source", tmp_path / "out"
    folder.mkdir()
    write(folder)
    given = [option.format(folder=folder) if "{folder}" in option else option for option in options]
    given = given[1:] if given[:1] == ["+own"] else [*SNR, *given]
    sentence = refusal(capsys, folder, out, *given)
    for words in said:
        assert words in sentence
    assert not out.exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_in_one_sentence_and_no_shard(fault: str, tmp_path: Path, capsys: Any) -> None:
    check(FAULTS[fault], tmp_path, capsys)
