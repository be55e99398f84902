"""Spectra of others: bad ones left out, targets that cannot be, and what stands in for what the sources lack."""

import sys
from pathlib import Path
from typing import Any

import foreign_files as make
import h5py
import numpy as np
import pandas as pd
import pytest
from mounts import small_disk
from test_foreign_faults import BAD_ROW, FLUX, NAME, refusal, table
from test_foreign_formats import FINE, FLUX_NX, LABELS, ONE, PATTERN, SNR

from specvit.data import __main__ as data_cli
from specvit.data.shards import open_shard, read_labels


def test_bad_spectra_may_be_left_out_and_are_listed(tmp_path: Path, capsys: Any) -> None:
    rows = 40
    flux_NX = np.tile(FLUX, (rows, 1))[:, ::20]
    flux_NX[[7, 23], 900] = np.nan
    flux_NX[30] = 0
    np.savez(tmp_path / "set.npz", wave=FINE[::20], flux=flux_NX, log_g=np.arange(rows) / 10)
    command = ["convert", str(tmp_path / "set.npz"), str(tmp_path / "out"), *ONE, *SNR, "--skip-bad", "--shard", "25"]
    assert data_cli.main(command) == 0
    assert "note: 3 bad spectra were left out" in (said := capsys.readouterr().out)
    assert "row 7: flux is nan at 7900.00 Å" in said
    kept = [read_labels(open_shard(path))["log_g"] for path in sorted((tmp_path / "out").rglob("*.h5"))]
    assert [len(part) for part in kept] == [23, 14]
    expected = np.delete(np.arange(rows) / 10, [7, 23, 30])
    np.testing.assert_array_equal(np.concatenate(kept), expected)
    manifest = pd.read_json(tmp_path / "out" / "manifest.json", typ="series")
    assert [spectrum["row"] for spectrum in manifest["left_out"]] == [7, 23, 30]


def test_one_that_was_stopped_by_a_bad_spectrum_may_go_on_without_it(tmp_path: Path, capsys: Any) -> None:
    np.savez(tmp_path / "set.npz", wave=FINE, flux=BAD_ROW, **LABELS)
    assert "row 3: flux is nan" in refusal(capsys, tmp_path / "set.npz", tmp_path / "out", *SNR)
    command = ["convert", str(tmp_path / "set.npz"), str(tmp_path / "out"), *ONE, *SNR, "--skip-bad"]
    assert data_cli.main(command) == 0
    assert open_shard(tmp_path / "out" / "all_0" / "dataset.h5").rows == 4


def test_a_set_with_nothing_good_is_refused(tmp_path: Path, capsys: Any) -> None:
    np.savez(tmp_path / "set.npz", wave=FINE, flux=0 * FLUX_NX, **LABELS)
    said = refusal(capsys, tmp_path / "set.npz", tmp_path / "out", *SNR, "--skip-bad")
    assert "would hold no spectrum, since all 5 are bad; the first: " in said


def test_the_target_is_a_folder_of_its_own(tmp_path: Path, capsys: Any) -> None:
    table()(tmp_path)
    source, other = tmp_path / "set.npz", tmp_path / "other"
    assert "out.h5: is no folder, as these sources need" in refusal(capsys, source, tmp_path / "out.h5", *SNR)
    other.mkdir()
    (other / "mine").touch()
    assert "other: is a folder with other files in it (mine); name a new" in refusal(capsys, source, other, *SNR)
    assert [path.name for path in other.iterdir()] == ["mine"]
    for content in ("{}", "not even JSON"):
        (other / "manifest.json").write_text(content)
        said = refusal(capsys, source, other, *SNR)
        assert "other/manifest.json: is no manifest of a conversion; name another target, or remove it first" in said


def test_without_astropy_fits_files_ask_for_it(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make.fits_table(tmp_path / f"{NAME}.fits", {"wave": FINE, "flux": FLUX})
    monkeypatch.setitem(sys.modules, "astropy.io", None)
    said = refusal(capsys, tmp_path / f"{NAME}.fits", tmp_path / "out", *SNR, *PATTERN)
    assert "is a FITS file, which astropy reads; pip install 'specvit[fits]'" in said


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path: Path, capsys: Any) -> None:
    np.savez(tmp_path / "set.npz", wave=FINE[::20], flux=np.tile(FLUX, (200, 1))[:, ::20], log_g=np.arange(200) / 50)
    with small_disk(tmp_path / "disk", 4096) as disk:
        said = refusal(capsys, tmp_path / "set.npz", disk / "out", *SNR)
        assert "0.02 GB are needed but 0.00 GB are free" in said  # with the copy in which rows can be looked up
        assert list(disk.iterdir()) == []


def test_drawn_magnitudes_replace_those_of_the_source(tmp_path: Path, capsys: Any) -> None:
    options = ["--magnitudes", "20", "21", "--columns", "snr_source=snr", *ONE]
    table(mag=np.full(5, 7.0), error=FLUX_NX / 9, snr=np.full(5, 9.0))(tmp_path)
    assert data_cli.main(["convert", str(tmp_path / "set.npz"), str(tmp_path / "out"), *options]) == 0
    labels = read_labels(open_shard(tmp_path / "out" / "all_0" / "dataset.h5"))
    assert labels["mag"].between(20, 21).all() and (labels["snr_source"] == 9).all() and (labels["snr"] != 9).all()
    shown = capsys.readouterr().out
    assert "note: mag of the sources is replaced" in shown
    assert "note: errors are made, and those of the source (error) left out" in shown


def test_hdf5_in_the_layout_is_still_judged_as_such(write_set: Any, tmp_path: Path, capsys: Any) -> None:
    """One that lacks an array is a damaged shard, not a stranger's file."""
    path = write_set(tmp_path, 8)
    with h5py.File(path, "r+") as file:
        del file["dataset/arrays/flux/value"]
    assert data_cli.main(["convert", str(path), str(tmp_path / "target.h5")]) == 2
    assert "dataset/arrays/flux/value: is missing" in capsys.readouterr().err
