"""Sets of spectra of others: labels beside them, shards, splits, pixels of one's own."""

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import foreign_files as make
import h5py
import numpy as np
import pandas as pd
import pytest
from damage import rewrite_chunked
from foreign_files import FINE, STARS
from test_foreign_formats import FLUX_NX, LABELS, ONE, PATTERN, SNR, converted

from specvit.data import __main__ as data_cli
from specvit.data.foreign.choose import Choice
from specvit.data.foreign.contents import open_contents
from specvit.data.foreign.unpack import is_needed
from specvit.data.shards import open_shard, read_labels
from specvit.data.views import open_spectra
from specvit.physics.instrument import wavelength

pytestmark = pytest.mark.slow


def test_labels_of_a_csv_file_reach_their_spectra(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    (folder / "cool").mkdir(parents=True)
    rows = []
    for i, star in enumerate(STARS):
        name = f"{'cool/' * (i < 2)}spectrum_{i}.txt"
        make.text(folder / name, {"1": FINE, "2": make.flux_of(star, FINE)})
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


def test_a_table_of_stars_may_have_its_labels_in_a_csv_file(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    np.savez(folder / "set.npz", wave=FINE, flux=FLUX_NX)
    make.table_of(STARS).to_csv(tmp_path / "labels.csv", index=False)
    _, _, labels = converted(folder, *SNR, "--labels", str(tmp_path / "labels.csv"))
    np.testing.assert_array_equal(labels[["T_eff", "log_g", "M_H"]].to_numpy(), np.array(STARS))


def test_files_of_the_layout_are_cut_into_shards_without_a_changed_bit(write_set: Any, tmp_path: Path) -> None:
    paths = [write_set(tmp_path / "source" / name, 30, seed=i, kind=["a"] * 30) for i, name in enumerate("ab")]
    rewrite_chunked(paths[0])
    assert data_cli.main(["convert", *map(str, paths), str(tmp_path / "out"), "--shard", "16", *ONE]) == 0
    made = [tmp_path / "out" / f"all_{i}" / "dataset.h5" for i in range(4)]
    source, target = open_spectra(paths, -1), open_spectra(made, -1)
    assert [shard.rows for shard in target.shards] == [16, 16, 16, 12]
    assert target.contiguous
    for expected_NP, found_NP in zip(source.gather(np.arange(60)), target.gather(np.arange(60)), strict=True):
        assert found_NP.tobytes() == expected_NP.tobytes()
    assert target.labels().equals(source.labels())
    assert target.manifest(("log_g",)) == source.manifest(("log_g",))


def test_a_chunked_file_of_the_layout_is_split_without_a_changed_bit(write_set: Any, tmp_path: Path) -> None:
    path = write_set(tmp_path / "source", 50)
    rewrite_chunked(path)
    command = ["convert", str(path), str(tmp_path / "out"), "--split", "0.6,0.2,0.2", *ONE]
    assert data_cli.main(command) == 0
    source = open_spectra([path], -1)
    rows_of = {row["T_eff"]: row for row in source.labels().to_dict("records")}
    flux_NP, error_NP = source.gather(np.arange(50))
    at = {t: i for i, t in enumerate(source.labels()["T_eff"])}
    seen = 0
    for made in sorted((tmp_path / "out").glob("*/dataset.h5")):
        view = open_spectra([made], -1)
        labels = view.labels().to_dict("records")
        numbers = [at[row["T_eff"]] for row in labels]
        assert labels == [rows_of[row["T_eff"]] for row in labels]
        for all_NP, found_NP in zip((flux_NP, error_NP), view.gather(np.arange(len(view))), strict=True):
            assert found_NP.tobytes() == all_NP[numbers].tobytes()
        seen += len(view)
    assert seen == 50


def test_a_third_column_is_an_error_only_if_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    make.text(
        folder / "5000_4.5_0.25.txt", {"1": FINE, "2": make.flux_of(STARS[2], FINE), "3": np.full(len(FINE), 9e3)}
    )
    assert data_cli.main(["convert", str(folder), str(tmp_path / "out"), *PATTERN, *ONE]) == 2
    said = capsys.readouterr().err
    assert "has no errors by a name known; it holds 1 (39000,) float64, 2 (39000,) float64, 3 (39000,)" in said
    assert data_cli.main(["convert", str(folder), str(tmp_path / "out"), *PATTERN, "--error-name", "3"]) == 2
    assert "may be an error, a variance or an inverse variance; say which by --error-kind" in capsys.readouterr().err
    _, error_NP, _ = converted(folder, *PATTERN, "--error-name", "3", "--error-kind", "sigma")
    assert np.ptp(error_NP) < 0.02 * error_NP.mean()


def test_pixels_of_ones_own_and_a_resolution_for_them(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    np.savez(folder / "set.npz", wave=FINE, flux=FLUX_NX, **LABELS)
    own_P = np.arange(7200.0, 8800.0, 0.8)
    np.savetxt(tmp_path / "pixels.txt", own_P)
    options = ["--wave", str(tmp_path / "pixels.txt"), "--resolution", "inf", "--to-resolution", "3000"]
    out = tmp_path / "out"
    assert data_cli.main(["convert", str(folder), str(out), *ONE, *SNR, *options, "--no-normalise"]) == 0
    shard = open_shard(out / "all_0" / "dataset.h5")
    np.testing.assert_array_equal(shard.wave_P, own_P)
    flux_NP, _ = open_spectra([shard.path], -1).gather(np.arange(len(STARS)))
    centre, width = make.LINES[2], np.hypot(np.hypot(make.WIDTH, make.LINES[2] / 3000 / 2.3548), 0.8 / 12**0.5)
    near = np.abs(own_P - centre) < 6
    for flux_P, star in zip(flux_NP[:, near], STARS, strict=True):
        clean_P = 3e5 * (1 + (own_P[near] / 8000 - 1) * (star[0] / 4000 - 1))
        depth = (star[2] + 3) / 6 * make.WIDTH / width
        expected_P = clean_P * (1 - depth * np.exp(-0.5 * ((own_P[near] - centre) / width) ** 2))
        np.testing.assert_allclose(flux_P, expected_P, rtol=2e-3)


def test_a_glob_in_quotes_names_files(tmp_path: Path) -> None:
    for star in STARS:
        make.text(tmp_path / f"{make.name_of(star)}.txt", {"1": FINE, "2": make.flux_of(star, FINE)})
    (tmp_path / "README.txt").write_text("read me")
    command = ["convert", str(tmp_path / "[45]*_*.txt"), str(tmp_path / "out"), *PATTERN, *SNR, *ONE]
    assert data_cli.main(command) == 0
    labels = read_labels(open_shard(tmp_path / "out" / "all_0" / "dataset.h5"))
    assert labels["T_eff"].tolist() == [4000, 4500, 5000, 5500]


def test_a_split_gives_every_spectrum_once_and_shuffled(tmp_path: Path) -> None:
    rows = 200
    t_eff = 4000.0 + np.arange(rows)
    wave = np.linspace(7000, 9000, 3000)
    flux_NX = 1 + t_eff[:, None] / 1e4 * np.sin(wave / 100)
    np.savez_compressed(tmp_path / "set.npz", wave=wave, flux=flux_NX, T_eff=t_eff)
    command = ["convert", str(tmp_path / "set.npz"), str(tmp_path / "out"), "--split", "0.7,0.2,0.1", "--shard", "50"]
    assert data_cli.main([*command, *SNR, *ONE, "--seed", "3"]) == 0
    found = {}
    for split in ("train", "val", "test"):
        view = open_spectra(sorted((tmp_path / "out").glob(f"{split}_*/dataset.h5")), -1)
        found[split] = view.labels()["T_eff"].to_numpy()
        flux_NP, _ = view.gather(np.arange(len(view)))
        for t, flux_P in zip(found[split], flux_NP, strict=True):  # each still has its own spectrum
            at_P = np.interp(wavelength(), wave, 1 + t / 1e4 * np.sin(wave / 100))
            np.testing.assert_allclose(flux_P, at_P * 0.5 / np.median(at_P), atol=0.01)
    assert {split: len(values) for split, values in found.items()} == {"train": 140, "val": 40, "test": 20}
    np.testing.assert_array_equal(np.sort(np.concatenate(list(found.values()))), t_eff)
    assert abs(np.corrcoef(found["train"], np.arange(140))[0, 1]) < 0.25


def test_memory_is_bounded_by_pieces(tmp_path: Path) -> None:
    """However long a row is: 64 MB of rows are made at once, as float64 beside the float32 that was read."""
    rows, points = 400, 120_000
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file["wave"], file["log_g"] = np.linspace(7000, 9000, points), np.arange(rows) / 100
        flux = file.create_dataset("flux", (rows, points), np.float32)
        for row in range(rows):
            flux[row] = 1
    tracemalloc.start()
    assert data_cli.main(["convert", str(tmp_path / "set.h5"), str(tmp_path / "out"), *ONE, "--snr", "9"]) == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 140e6 < 4 * rows * points


def test_folders_are_entered_through_links_each_once(tmp_path: Path) -> None:
    inner, outer = tmp_path / "library" / "real", tmp_path / "elsewhere"
    for folder, star in ((inner, STARS[0]), (outer, STARS[1])):
        folder.mkdir(parents=True)
        make.text(folder / f"{make.name_of(star)}.txt", {"1": FINE, "2": make.flux_of(star, FINE)})
    (tmp_path / "library" / "link").symlink_to(outer)
    (inner / "loop").symlink_to(tmp_path / "library")
    _, _, labels = converted(tmp_path / "library", *PATTERN, *SNR)
    assert sorted(labels["T_eff"]) == [4000, 4500]


def test_a_packed_table_of_fits_is_opened_without_its_rows(tmp_path: Path) -> None:
    make.fits_table(tmp_path / "set.fits", {"FLUX": np.ones((1000, 2000)), "LOGG": np.ones(1000)})
    (tmp_path / "set.fits.gz").write_bytes(gzip.compress((tmp_path / "set.fits").read_bytes(), 1))
    tracemalloc.start()
    with open_contents(tmp_path / "set.fits.gz") as contents:
        assert contents.arrays["FLUX"].shape == (1000, 2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


def test_tables_of_pandas_are_read_only_where_they_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make.hdf5(tmp_path / "set.h5", {"wave": FINE, "flux": FLUX_NX})
    make.table_of(STARS).to_hdf(tmp_path / "set.h5", key="stars", mode="r+", format="table")
    with open_contents(tmp_path / "set.h5") as contents:
        assert contents.arrays["stars/T_eff"].shape == (5,)
    monkeypatch.setattr(pd, "read_hdf", lambda *given: pytest.fail("it was read"))
    with open_contents(tmp_path / "set.h5", ("wave", "flux")) as contents:
        assert set(contents.arrays) == {"wave", "flux"}


@pytest.mark.parametrize(("high", "copied"), [(700, True), (300, False)])
def test_chunks_are_unpacked_once(high: int, copied: bool, tmp_path: Path) -> None:
    """Rows are read in steps of chunks; a file whose chunks have more rows than a piece is copied first."""
    rows = 1500
    make.hdf5(tmp_path / "set.h5", {"wave": FINE[::10], "flux": np.ones((rows, 3900))}, chunks=(high, 100))
    with open_contents(tmp_path / "set.h5") as contents:
        array = contents.arrays["flux"]
        assert [len(piece) % high for piece in array.pieces()][:-1] == [0] * (-(-rows // high) - 1)
        assert is_needed(contents, Choice("flux", "wave", spectra=rows), 512) == copied
