"""Labels of spectra in other formats: whose they are, what they may be, and that copies of a star stay in one set."""

from pathlib import Path
from typing import Any

import convert_inputs as make
import numpy as np
import pandas as pd
import pytest
from convert_inputs import COARSE, FLUX_NX, SNR, STARS, converted

from specvit.convert.options import Options
from specvit.convert.split import shards_of
from specvit.utils.errors import ConfigError

STAR_FLUX = FLUX_NX[:, ::2]


def stars(path: Path, **arrays: Any) -> Path:
    """Write a table of five stars without labels but those given."""
    np.savez(path, **{"wave": COARSE, "flux": STAR_FLUX, **arrays})
    return path


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


def test_a_label_called_fe_h_in_brackets_gets_a_name_that_runs_take(tmp_path: Path) -> None:
    """As an array of NPZ, a field of HDF5, a column of FITS and of a CSV file, and as `--columns` names it."""
    metals = np.arange(5) / 10
    stars(tmp_path / "plain.npz")
    pd.DataFrame({"[Fe/H]": metals, "log_g": 4.0}).to_csv(tmp_path / "labels.csv", index=False)
    stars(tmp_path / "set.npz", **{"[Fe/H]": metals})
    fits_set = {"WAVE": np.tile(COARSE, (5, 1)), "FLUX": STAR_FLUX, "[Fe/H]": metals}
    make.fits_table(tmp_path / "set.fits", fits_set)
    records = np.rec.fromarrays([metals, metals], names=["[Fe/H]", "log_g"])
    make.hdf5(tmp_path / "set.h5", {"wave": COARSE, "flux": STAR_FLUX, "params": records})
    cases = {
        "plain.npz": ["--labels", str(tmp_path / "labels.csv")],
        "set.npz": [],
        "set.fits": [],
        "set.h5": [],
    }
    for name, options in {**cases, "set.npz ": ["--columns", "M_H=[Fe/H]"]}.items():
        _, _, labels = converted(tmp_path / name.strip(), *SNR, *options, name=f"out {name}".replace(".", "_"))
        column = "M_H" if "--columns" in options else "Fe_H"
        np.testing.assert_array_equal(labels[column], metals, err_msg=name)
        assert not any("[" in str(label) for label in labels)


def test_labels_of_a_csv_file_reach_their_spectra(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    (folder / "cool").mkdir(parents=True)
    rows = []
    for i, star in enumerate(STARS):
        name = f"{'cool/' * (i < 2)}spectrum_{i}.txt"
        make.text(folder / name, {"1": make.FINE, "2": make.flux_of(star, make.FINE)})
        rows.append(
            {"file": name if i else "spectrum_0.txt", "Teff": star[0], "logg": star[1], "feh": star[2], "who": "x"}
        )
    rows.append({"file": "another.txt", "Teff": 1, "logg": 1, "feh": 1, "who": "y"})
    pd.DataFrame(rows[::-1]).to_csv(folder / "labels.csv", index=False)
    options = ["--labels", str(folder / "labels.csv"), "--columns", "M_H=feh", "--fill", "redshift=0,C_M=0.1"]
    flux_NP, _, labels = converted(folder, *SNR, *options)
    assert list(labels.columns) == ["T_eff", "log_g", "M_H", "C_M", "redshift", "snr"]
    assert set(labels["C_M"]) == {0.1}
    for row, values in enumerate(labels[["T_eff", "log_g", "M_H"]].to_numpy()):
        np.testing.assert_allclose(flux_NP[row], make.expected(tuple(values)), atol=2e-4)


def test_a_table_of_labels_in_any_separator(tmp_path: Path) -> None:
    tables = [
        "log_g\n4\n3\n2\n1\n0\n",
        "log_g,who\n4,a\n3,b\n2,c\n1,d\n0,e\n",
        "log_g;T_eff\n4;5000\n3;5000\n2;5000\n1;5000\n0;5000\n",
        "T_eff  log_g\n 5000  4\n 5000  3\n5000 2\n5000 1\n5000 0\n",
        "# made by hand\nlog_g\tT_eff\n4\t5000\n3\t5000\n2\t5000\n1\t5000\n0\t5000\n",
    ]
    source = stars(tmp_path / "set.npz")
    for number, content in enumerate(tables):
        (tmp_path / "labels.csv").write_text(content)
        _, _, labels = converted(source, *SNR, "--labels", str(tmp_path / "labels.csv"), name=str(number))
        assert labels["log_g"].tolist() == [4, 3, 2, 1, 0], content
        assert ("T_eff" in labels) == ("T_eff" in content), content


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
    _, _, labels = converted(source, *SNR, "--skip-bad")
    assert labels["T_eff"].tolist() == [4000, 5000, 6000]
    assert "row 1: label T_eff is nan" in capsys.readouterr().out
    left_out = pd.read_json(tmp_path / "out" / "manifest.json", typ="series")["left_out"]
    assert [spectrum["row"] for spectrum in left_out] == [1, 3]


def test_an_snr_that_is_replaced_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = stars(tmp_path / "set.npz", T_eff=4000 + np.arange(5), snr=np.full(5, 77.0))
    _, _, labels = converted(source, *SNR)
    assert labels["snr"].to_numpy().max() < 51
    assert "note: snr of the sources is replaced by the S/N that is measured" in capsys.readouterr().out


def test_drawn_magnitudes_replace_those_of_the_source(tmp_path: Path, capsys: Any) -> None:
    source = stars(tmp_path / "set.npz", mag=np.full(5, 7.0), error=STAR_FLUX / 9, snr=np.full(5, 9.0))
    _, _, labels = converted(source, "--magnitudes", "20", "21", "--columns", "snr_source=snr")
    assert labels["mag"].between(20, 21).all() and (labels["snr_source"] == 9).all() and (labels["snr"] != 9).all()
    shown = capsys.readouterr().out
    assert "note: mag of the sources is replaced" in shown
    assert "note: errors are made; those of the source (error), and what they mark as bad" in shown


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
