"""Labels of spectra of others: whose they are, what they may be, and that copies of one star stay in one set."""

from pathlib import Path
from typing import Any

import foreign_files as make
import numpy as np
import pandas as pd
import pytest
from foreign_files import FINE, STARS
from test_foreign_faults import refusal
from test_foreign_formats import ONE, PATTERN, SNR, converted

from specvit.data import __main__ as data_cli
from specvit.data.foreign.names import naming_of
from specvit.data.foreign.options import Options
from specvit.data.foreign.split import shards_of
from specvit.data.shards import open_shard, read_labels
from specvit.errors import ConfigError

pytestmark = pytest.mark.slow

COARSE = FINE[::8]
STAR_FLUX = np.stack([make.flux_of(star, COARSE) for star in STARS])


def stars(path: Path, rows: int = 5, **arrays: Any) -> Path:
    """Write a table of stars without labels but those given."""
    np.savez(path, wave=COARSE, flux=np.resize(STAR_FLUX, (rows, len(COARSE))), **arrays)
    return path


def labels_in(out: Path) -> pd.DataFrame:
    return read_labels(open_shard(out / "all_0" / "dataset.h5"))


@pytest.mark.parametrize("form", ["NPZ", "FITS"])
def test_files_of_one_row_are_known_by_the_file_column(form: str, tmp_path: Path) -> None:
    folder, rows = tmp_path / "source", []
    folder.mkdir()
    for i, star in enumerate(STARS):
        wave, flux = COARSE[None], make.flux_of(star, COARSE)[None]
        if form == "NPZ":
            np.savez(folder / f"s{i}.npz", wave=wave, flux=flux)
        else:
            make.fits_table(folder / f"s{i}.fits", {"WAVE": wave, "FLUX": flux})
        rows.append({"file": f"s{i}.{form.lower()}", "T_eff": star[0], "log_g": star[1], "M_H": star[2]})
    pd.DataFrame(rows[::-1]).to_csv(tmp_path / "labels.csv", index=False)
    flux_NP, _, labels = converted(folder, *SNR, "--labels", str(tmp_path / "labels.csv"))
    np.testing.assert_array_equal(labels[["T_eff", "log_g", "M_H"]], np.array(STARS))
    for flux_P, star in zip(flux_NP, STARS, strict=True):
        np.testing.assert_allclose(flux_P, make.expected(star), atol=2e-3)


CSV = {
    "a file column for rows": (
        "file,T_eff\n" + "s.npz,4000\n" * 5,
        "labels.csv: names files in its column 'file', but the spectra are rows of a table; drop that column",
    ),
    "nothing in it": ("", "labels.csv: is no table of labels (No columns to parse from file)"),
    "lines longer than its head": (
        "T_eff,log_g\n" + "4000,4,9\n" * 5,
        "labels.csv: has more values in its lines than names of columns in its first",
    ),
    "another unit of T_eff": ("T_eff\n3.7\n3.8\n3.9\n4\n4\n", "set.npz row 0: label T_eff is 3.7 K, which no star has"),
    "another unit of log_g": ("log_g\n4\n45\n4\n4\n4\n", "set.npz row 1: label log_g is 45 dex, which no star has"),
    "no value": ("T_eff\n4000\n4000\n-9999\n4\n4\n", "set.npz row 2: label T_eff is -9999 K, which no star has"),
    "no label": ("name\na\nb\nc\nd\ne\n", "set.npz: has no labels"),
}


@pytest.mark.parametrize("fault", CSV)
def test_a_table_of_labels_that_cannot_be(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, said = CSV[fault]
    (tmp_path / "labels.csv").write_text(content)
    source, out = stars(tmp_path / "set.npz"), tmp_path / "out"
    assert said in refusal(capsys, source, out, *SNR, "--labels", str(tmp_path / "labels.csv"))
    assert not out.exists()


@pytest.mark.parametrize(
    "content",
    [
        "log_g\n4\n3\n2\n1\n0\n",
        "log_g,who\n4,a\n3,b\n2,c\n1,d\n0,e\n",
        "log_g;T_eff\n4;5000\n3;5000\n2;5000\n1;5000\n0;5000\n",
        "T_eff  log_g\n 5000  4\n 5000  3\n5000 2\n5000 1\n5000 0\n",
        "# made by hand\nlog_g\tT_eff\n4\t5000\n3\t5000\n2\t5000\n1\t5000\n0\t5000\n",
    ],
)
def test_a_table_of_labels_in_any_separator(content: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(content)
    _, _, labels = converted(stars(tmp_path / "set.npz"), *SNR, "--labels", str(tmp_path / "labels.csv"))
    assert labels["log_g"].tolist() == [4, 3, 2, 1, 0]
    assert ("T_eff" in labels) == ("T_eff" in content)


def test_columns_name_those_of_the_table_of_labels(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("T_eff,feh\n" + "".join(f"{4000 + i},-{i}\n" for i in range(5)))
    options = ["--labels", str(tmp_path / "labels.csv"), "--columns", "M_H=feh"]
    _, _, labels = converted(stars(tmp_path / "set.npz"), *SNR, *options)
    assert labels["M_H"].tolist() == [0, -1, -2, -3, -4]


def test_what_is_unusual_is_said_and_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = stars(tmp_path / "set.npz", T_eff=[4000, 5000, 6000, 30_000, 200_000], log_g=np.arange(5.0))
    converted(source, *SNR)
    said = capsys.readouterr().out
    assert "note: labels: T_eff 4000 to 200000 K, log_g 0 to 4 dex\n" in said
    assert "WARNING: in 1 spectra T_eff is not within 1000 to 100000 K; is it what it is called" in said
    assert "log_g is not within" not in said
    assert "note: set.npz: flux from flux, wavelengths from wave\n" in said
    assert "note: wavelengths are taken as of vacuum; --air if they are of air\n" in said


def test_whole_numbers_stay_what_they_are(tmp_path: Path) -> None:
    numbers = 2**60 + np.arange(5)
    source = stars(tmp_path / "set.npz", T_eff=4000 + np.arange(5), source_id=numbers, height=np.arange(5))
    _, _, labels = converted(source, *SNR, "--columns", "mass=height")
    assert labels["source_id"].tolist() == numbers.tolist()
    assert [labels[name].dtype.kind for name in ("T_eff", "mass", "source_id")] == ["f", "f", "i"]


def test_a_label_that_is_no_number_is_left_out_as_bad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = stars(tmp_path / "set.npz", T_eff=[4000, np.nan, 5000, -9999, 6000])
    command = ["convert", str(source), str(tmp_path / "out"), *ONE, *SNR, "--skip-bad"]
    assert data_cli.main(command) == 0
    assert labels_in(tmp_path / "out")["T_eff"].tolist() == [4000, 5000, 6000]
    assert "row 1: label T_eff is nan" in capsys.readouterr().out
    left_out = pd.read_json(tmp_path / "out" / "manifest.json", typ="series")["left_out"]
    assert [spectrum["row"] for spectrum in left_out] == [1, 3]


def test_a_flux_of_which_snr_makes_no_errors_is_left_out_as_bad(tmp_path: Path) -> None:
    flux_NX = STAR_FLUX.copy()
    flux_NX[1, 2000:2010] = -1
    np.savez(tmp_path / "set.npz", wave=COARSE, flux=flux_NX, T_eff=4000 + np.arange(5))
    assert data_cli.main(["convert", str(tmp_path / "set.npz"), str(tmp_path / "out"), *ONE, *SNR, "--skip-bad"]) == 0
    assert labels_in(tmp_path / "out")["T_eff"].tolist() == [4000, 4002, 4003, 4004]


def test_negative_pixels_have_errors_of_the_instrument(tmp_path: Path) -> None:
    flux_NX = STAR_FLUX.copy()
    flux_NX[1, 2000:2010] = -0.1 * np.median(flux_NX)
    np.savez(tmp_path / "set.npz", wave=COARSE, flux=flux_NX, T_eff=4000 + np.arange(5))
    flux_NP, error_NP, _ = converted(tmp_path / "set.npz", "--magnitudes", "15", "15.1")
    assert flux_NP.min() < 0 < error_NP.min() and np.isfinite(error_NP).all()


def test_an_snr_that_is_replaced_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = stars(tmp_path / "set.npz", T_eff=4000 + np.arange(5), snr=np.full(5, 77.0))
    _, _, labels = converted(source, *SNR)
    assert labels["snr"].to_numpy().max() < 51
    assert "note: snr of the sources is replaced by the S/N that is measured" in capsys.readouterr().out


OPTIONS = {
    "two labels of one column": ({"columns": {"T_eff": "a", "log_g": "a"}}, "--columns: makes two labels of a"),
    "an snr for all": ({"fill": {"snr": 5.0}}, "--fill: gives snr, which is measured"),
    "no noise": ({"snr": float("inf")}, "--snr: is infinite, which leaves no errors"),
    "a share that is no number": ({"split": (0.8, float("nan"), 0.1)}, "--split: are no three shares"),
}


@pytest.mark.parametrize("fault", OPTIONS)
def test_options_that_cannot_be(fault: str) -> None:
    given, said = OPTIONS[fault]
    with pytest.raises(ConfigError) as caught:
        Options(**given).check()
    assert said in str(caught.value)


def test_resolution_is_not_passed_over_where_pixels_are_kept(write_set: Any, tmp_path: Path, capsys: Any) -> None:
    said = refusal(capsys, write_set(tmp_path / "source", 8), tmp_path / "out", "--resolution", "50000")
    assert (
        "--resolution: needs pixels to smooth onto, but these are kept; give --wave instrument or --wave FILE" in said
    )


@pytest.mark.parametrize(
    ("pattern", "name", "read"),
    [
        ("{T_eff}*{log_g}", "6000.csv", None),
        ("{T_eff}*{log_g}", "5000_4.5.csv", {"T_eff": 5000, "log_g": 4.5}),
        ("*{log_g}_x", "a12.5_x.csv", {"log_g": 12.5}),
        ("*_{T_eff}", "HD209458_5800.csv", {"T_eff": 5800}),
        (None, "bosz2024_mp_t5000_g+4.5.0_m+0.00_a+0.00_c+0.00_v0_r50000_resam.txt", None),
    ],
)
def test_a_number_in_a_name_is_read_whole(pattern: str | None, name: str, read: dict[str, float] | None) -> None:
    naming = naming_of(pattern, Path(name))
    assert (naming.labels_of(Path(name)) if naming else None) == read


def test_what_is_read_from_the_first_name_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make.text(tmp_path / "5000_4.5_0.25.txt", {"1": COARSE, "2": STAR_FLUX[2]})
    converted(tmp_path / "5000_4.5_0.25.txt", *PATTERN, *SNR)
    assert "note: 5000_4.5_0.25.txt is read as T_eff 5000, log_g 4.5, M_H 0.25\n" in capsys.readouterr().out


def test_copies_of_a_star_stay_in_one_set() -> None:
    rng = np.random.default_rng(1)
    star_N = rng.integers(0, 40, 1000)
    labels = pd.DataFrame({"T_eff": 4000.0 + star_N // 2, "log_g": star_N % 2, "C_M": 0.0, "snr": rng.random(1000)})
    shards, notes = shards_of(labels, Options(split=(0.6, 0.2, 0.2), shard=10_000))
    sets = [set(star_N[rows]) for rows in shards.values()]
    assert [len(rows) for rows in shards.values()] == pytest.approx([600, 200, 200], abs=30)
    assert sorted(np.concatenate(list(shards.values()))) == list(range(1000))
    assert sum(map(len, sets)) == len(set(star_N)) and len(set.union(*sets)) == len(set(star_N))
    assert (np.diff(star_N[shards["train_0/dataset.h5"]]) != 0).mean() > 0.8  # shuffled: a run may take the first ones
    assert notes == ["note: 960 spectra have all labels of another one; such copies of one star go into one set"]


def test_a_split_into_fewer_stars_than_sets_is_refused() -> None:
    labels = pd.DataFrame({"T_eff": np.repeat([4000.0, 5000.0], 50)})
    with pytest.raises(
        ConfigError, match=r"of 100 spectra leaves a set without any, since by their labels they are of 2"
    ):
        shards_of(labels, Options(split=(0.8, 0.1, 0.1)))


def test_labels_that_are_all_the_same_tell_no_stars_apart() -> None:
    labels = pd.DataFrame({"redshift": np.zeros(100), "mass": np.arange(100)})
    shards, notes = shards_of(labels, Options(split=(0.8, 0.1, 0.1)))
    assert [len(rows) for rows in shards.values()] == [80, 10, 10] and not notes
