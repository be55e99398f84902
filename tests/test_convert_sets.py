"""Sets of spectra in other formats: which files are read, what is left out, shards, splits, pixels, memory."""

import gzip
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import convert_inputs as make
import h5py
import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from convert_inputs import (
    COARSE,
    FINE,
    FLUX_NX,
    LABELS,
    ONE,
    PATTERN,
    SNR,
    STARS,
    convert,
    converted,
    refusal,
    shard_in,
)
from damage import damage_chunk, rewrite_chunked

from specvit.commands import data as data_cli
from specvit.convert.choose import Choice
from specvit.convert.contents import open_contents
from specvit.convert.unpack import is_needed
from specvit.data.shards import open_shard, read_labels
from specvit.data.views import open_spectra
from specvit.physics.instrument import STEP, wavelength
from specvit.utils.quantities import FLUX


def test_a_glob_in_quotes_names_files(tmp_path: Path) -> None:
    source = make.texts(tmp_path / "source")
    (source / "README.txt").write_text("read me")
    assert convert(source / "[45]*_*.txt", tmp_path / "out", *PATTERN, *SNR) == 0
    _, _, labels = shard_in(tmp_path / "out")
    assert labels["T_eff"].tolist() == [4000, 4500, 5000, 5500]


def test_folders_are_entered_through_links_each_once(tmp_path: Path) -> None:
    inner, outer = tmp_path / "library" / "real", tmp_path / "elsewhere"
    for folder, star in ((inner, STARS[0]), (outer, STARS[1])):
        folder.parent.mkdir(exist_ok=True)
        make.texts(folder, [star])
    (tmp_path / "library" / "link").symlink_to(outer)
    (inner / "loop").symlink_to(tmp_path / "library")
    _, _, labels = converted(tmp_path / "library", *PATTERN, *SNR)
    assert sorted(labels["T_eff"]) == [4000, 4500]


def test_a_dataset_of_nothing_is_passed_over(tmp_path: Path) -> None:
    make.hdf5(tmp_path / "set.h5", {"wave": FINE, "y": FLUX_NX, **LABELS})
    with h5py.File(tmp_path / "set.h5", "r+") as file:
        file["nothing"] = h5py.Empty("f8")
    assert (
        convert(
            tmp_path / "set.h5",
            tmp_path / "out",
            *SNR,
        )
        == 0
    )


def test_a_column_of_differing_lengths_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    ragged = np.empty(len(FINE), object)
    ragged[:] = [np.ones(1 + row % 3) for row in range(len(FINE))]
    columns = [fits.Column("wave", "D", array=FINE), fits.Column("flux", "D", array=FLUX_NX[0])]
    columns.append(fits.Column("lines", "PD()", array=ragged))
    fits.BinTableHDU.from_columns(columns).writeto(folder / f"{make.name_of(STARS[0])}.fits")
    flux_NP, _, _ = converted(folder, *PATTERN, *SNR)
    np.testing.assert_allclose(flux_NP[0], make.expected(STARS[0]), atol=2e-4)


def test_bad_spectra_may_be_left_out_and_are_listed(tmp_path: Path, capsys: Any) -> None:
    rows = 40
    flux_NX = np.tile(FLUX_NX[0], (rows, 1))[:, ::4]
    flux_NX[[7, 23], 900:1400] = np.nan
    flux_NX[30] = 0
    np.savez(tmp_path / "set.npz", wave=FINE[::4], flux=flux_NX, log_g=np.arange(rows) / 10)
    assert convert(tmp_path / "set.npz", tmp_path / "out", *SNR, "--skip-bad", "--shard", "25") == 0
    assert "note: 3 bad spectra were left out" in (said := capsys.readouterr().out)
    assert "row 7: has 28.8 % of its pixels masked, more than 20 % (the first: flux is nan at 7900.00 Å)" in said
    kept = [read_labels(open_shard(path))["log_g"] for path in sorted((tmp_path / "out").rglob("*.h5"))]
    assert [len(part) for part in kept] == [23, 14]
    expected = np.delete(np.arange(rows) / 10, [7, 23, 30])
    np.testing.assert_array_equal(np.concatenate(kept), expected)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [spectrum["row"] for spectrum in manifest["left_out"]] == [7, 23, 30]


def test_snr_is_the_median_flux_over_an_error_that_is_the_same_in_every_pixel(tmp_path: Path) -> None:
    flux_NX = FLUX_NX[:, ::2].copy()
    flux_NX[1, 2000:2010] = -1
    flux_NX[3] *= -1
    held = {"wave": COARSE, "flux": flux_NX, "T_eff": 4000 + np.arange(5)}
    np.savez(tmp_path / "set.npz", **held)
    options = ["--skip-bad", "--no-normalise"]
    flux_NP, error_NP, labels = converted(tmp_path / "set.npz", *SNR, *options)
    assert labels["T_eff"].tolist() == [4000, 4001, 4002, 4004]  # the fourth has a negative median
    assert flux_NP[1].min() < 0 and (error_NP == error_NP[:, :1]).all()
    np.testing.assert_allclose(error_NP[:, 0], np.median(flux_NP, axis=1) / 50, rtol=1e-6)
    np.testing.assert_allclose(labels["snr"], 50, rtol=1e-6)


def test_negative_pixels_have_errors_of_the_instrument(tmp_path: Path) -> None:
    flux_NX = FLUX_NX[:, ::2].copy()
    flux_NX[1, 2000:2010] = -0.1 * np.median(flux_NX)
    np.savez(tmp_path / "set.npz", wave=COARSE, flux=flux_NX, T_eff=4000 + np.arange(5))
    flux_NP, error_NP, _ = converted(tmp_path / "set.npz", "--magnitudes", "15", "15.1")
    assert flux_NP.min() < 0 < error_NP.min() and np.isfinite(error_NP).all()


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
    assert convert(path, tmp_path / "out", "--split", "0.6,0.2,0.2") == 0
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


def test_pixels_of_ones_own_and_a_resolution_for_them(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    np.savez(folder / "set.npz", wave=FINE, flux=FLUX_NX, **LABELS)
    own_P = np.arange(7200.0, 8800.0, 0.8)
    np.savetxt(tmp_path / "pixels.txt", own_P)
    options = ["--wave", str(tmp_path / "pixels.txt"), "--resolution", "inf", "--to-resolution", "3000"]
    out = tmp_path / "out"
    assert convert(folder, out, *SNR, *options, "--no-normalise") == 0
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


def test_a_split_gives_every_spectrum_once_and_shuffled(tmp_path: Path) -> None:
    rows = 200
    t_eff = 4000.0 + np.arange(rows)
    wave = np.linspace(7000, 9000, 3000)
    flux_NX = 1 + t_eff[:, None] / 1e4 * np.sin(wave / 100)
    np.savez_compressed(tmp_path / "set.npz", wave=wave, flux=flux_NX, T_eff=t_eff)
    options = ["--split", "0.7,0.2,0.1", "--shard", "50", "--seed", "3"]
    assert convert(tmp_path / "set.npz", tmp_path / "out", *SNR, *options) == 0
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


@pytest.mark.slow
def test_memory_is_bounded_by_pieces(tmp_path: Path) -> None:
    """However long a row is: 64 MB of rows are made at once, as float64 beside the float32 that was read."""
    rows, points = 400, 120_000
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file["wave"], file["log_g"] = np.linspace(7000, 9000, points), np.arange(rows) / 100
        flux = file.create_dataset("flux", (rows, points), np.float32)
        for row in range(rows):
            flux[row] = 1
    tracemalloc.start()
    assert convert(tmp_path / "set.h5", tmp_path / "out", "--snr", "9") == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 140e6 < 4 * rows * points


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


def test_chunks_are_unpacked_once(tmp_path: Path) -> None:
    """Rows are read in steps of chunks; a file whose chunks have more rows than a piece is copied first."""
    rows = 1500
    for high, copied in ((700, True), (300, False)):
        path = tmp_path / f"{high}.h5"
        make.hdf5(path, {"wave": FINE[::2], "flux": np.ones((rows, 3900))}, chunks=(high, 100))
        with open_contents(path) as contents:
            array = contents.arrays["flux"]
            assert [len(piece) % high for piece in array.pieces()][:-1] == [0] * (-(-rows // high) - 1)
            assert is_needed(contents, Choice("flux", "wave", spectra=rows), 512) == copied


def test_an_axis_without_a_unit_is_in_angstrom_and_that_is_said(tmp_path: Path, capsys: Any) -> None:
    """Also where the standard would have metres; with pixels that are kept nothing else tells the unit."""
    axes = {
        "linear": {"CRVAL1": 3540.5, "CDELT1": 0.9, "CRPIX1": 1.0},
        "WAVE": {"CRVAL1": 3540.5, "CDELT1": 0.9, "CRPIX1": 1.0, "CTYPE1": "WAVE"},
        "WAVE-LOG": {"CRVAL1": 3540.5, "CDELT1": 0.9, "CRPIX1": 1.0, "CTYPE1": "WAVE-LOG"},
        "nm of IRAF": {"CRVAL1": 354.05, "CDELT1": 0.09, "CRPIX1": 1.0, "WAT1_001": "wtype=linear units=nm"},
    }
    keep = ["--wave", "keep", "--fill", "log_g=4", *SNR]
    for name, cards in axes.items():
        source = tmp_path / f"{name}.fits"
        make.fits_image(source, np.ones(100) + np.arange(100) / 99, cards)
        assert convert(source, tmp_path / name, *keep) == 0
        wave_P = open_shard(tmp_path / name / "all_0" / "dataset.h5").wave_P
        expected_P = 3540.5 + 0.9 * np.arange(100)
        if name == "WAVE-LOG":
            expected_P = 3540.5 * np.exp(0.9 * np.arange(100) / 3540.5)
        np.testing.assert_allclose(wave_P, expected_P, rtol=1e-12, err_msg=name)
        said = "note: the header gives no unit (CUNIT1): wavelengths are taken as Angstrom; --unit overrules it"
        assert (said in capsys.readouterr().out) == ("IRAF" not in name), name
    make.fits_image(tmp_path / "log.fits", np.ones(100), {"CRVAL1": 3.85, "CDELT1": 1e-4})
    assert "says no unit of its wavelengths; give --unit" in refusal(
        capsys, tmp_path / "log.fits", tmp_path / "x", *keep
    )


def test_texts_npz_and_hdf5_are_converted_without_astropy(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units are compared only where they are spelt alike; a FITS file says what to install."""
    make.fits_table(tmp_path / "set.fits", {"wave": np.tile(FINE, (5, 1)), "flux": FLUX_NX})
    for name in [name for name in sys.modules if name.partition(".")[0] == "astropy"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "astropy", None)
    make.texts(tmp_path / "texts")
    lines = [
        "wave [nm],flux [Jy/erg],error [Jy/erg]",
        *(f"{w / 10},{f},{f / 9}" for w, f in zip(FINE, FLUX_NX[0], strict=True)),
    ]
    (tmp_path / "5000_4.5_0.csv").write_text("\n".join(lines).replace("Jy/erg", "adu"))
    (tmp_path / "6000_4.5_0.csv").write_text("\n".join(lines).replace("flux [Jy/erg]", "flux [1e3 adu]"))
    np.savez(tmp_path / "set.npz", wave=FINE, flux=FLUX_NX, ivar=(FLUX_NX / 9) ** -2, **LABELS)
    make.hdf5(tmp_path / "set.h5", {"wave": FINE, "flux": FLUX_NX, **LABELS}, {"flux": "adu"})
    converted(tmp_path / "texts", *PATTERN, *SNR, name="1")
    _, _, labels = converted(tmp_path / "5000_4.5_0.csv", *PATTERN, name="2")
    assert labels["snr"][0] == pytest.approx(9 * np.sqrt(STEP / 0.25), rel=1e-3)
    converted(tmp_path / "set.npz", name="3")
    converted(tmp_path / "set.h5", *SNR, name="4")
    said = refusal(capsys, tmp_path / "6000_4.5_0.csv", tmp_path / "x", *PATTERN)
    assert "has the unit [Jy/erg] for a flux in [1e3 adu]; `pip install 'specvit[fits]'` lets them be compared" in said
    said = refusal(capsys, tmp_path / "set.fits", tmp_path / "x", *SNR)
    assert "is a FITS file, which astropy reads; pip install 'specvit[fits]'" in said


def test_of_a_damaged_file_the_spectra_that_can_be_read_are_kept(write_set: Any, tmp_path: Path) -> None:
    source = write_set(tmp_path / "source", 12)
    damage_chunk(source, FLUX, chunk=1)
    out = tmp_path / "out"
    assert data_cli.main(["convert", str(source), str(out), *ONE, "--shard", "50", "--skip-bad"]) == 0
    left_out = [spectrum["row"] for spectrum in json.loads((out / "manifest.json").read_text())["left_out"]]
    assert left_out == [4, 5, 6, 7]


def test_npz_of_another_packing_says_what_writes_a_known_one(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, wave=FINE, flux=FLUX_NX, **LABELS)
    content = bytearray(path.read_bytes())
    for head, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = content.find(head)
        while at >= 0:
            content[at + offset] = 98  # PPMd
            at = content.find(head, at + 4)
    path.write_bytes(content)
    said = refusal(capsys, path, tmp_path / "out", *SNR)
    assert "is packed in a way that Python cannot unpack" in said and "write it by numpy.savez_compressed" in said
