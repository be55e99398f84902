"""`specvit data inspect` finds what is wrong in a file, all of it, with rows."""

import shlex
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from damage import damage_chunk, packed_by_blosc, table

from specvit.commands import data as data_cli
from specvit.data.inspect import inspect_file, inspect_files
from specvit.utils.quantities import ERROR, FLUX, PARAMS, WAVE


@pytest.fixture
def sound(write_set, tmp_path: Path) -> Path:
    return write_set(tmp_path / "sound", 12)


def faults(path: Path) -> str:
    return "\n".join(inspect_file(path).faults)


def change(path: Path, name: str, where: object, value: object) -> None:
    with h5py.File(path, "r+") as file:
        file[name][where] = value


def test_a_sound_file_has_no_fault(sound: Path) -> None:
    report = inspect_file(sound)
    assert report.faults == []
    assert {FLUX, ERROR, WAVE, "log_g"} <= {column.name for column in report.columns}


@pytest.mark.parametrize(
    ("name", "where", "value", "expected"),
    [
        (FLUX, (3, 7), np.nan, "flux is not finite in 1 row: 3"),
        (FLUX, (slice(2, 5), 0), np.inf, "flux is not finite in 3 rows: 2, 3, 4"),
        (FLUX, 6, 0.5, "flux is the same in every pixel in 1 row: 6"),
        (ERROR, (8, 1), 0.0, "error is zero or negative in 1 row: 8"),
        (ERROR, (9, 1), -1.0, "error is zero or negative in 1 row: 9"),
        (ERROR, (1, 1), np.nan, "error is not finite in 1 row: 1"),
        (WAVE, 5, 0.0, "does not rise at pixel 5"),
        (WAVE, 5, np.nan, "is not finite at pixel 5"),
    ],
)
def test_a_bad_value_is_named_with_its_rows(sound: Path, name: str, where: object, value: float, expected: str) -> None:
    change(sound, name, where, value)
    assert expected in faults(sound)


def test_dark_spectra_are_found(sound: Path) -> None:
    with h5py.File(sound, "r+") as file:
        file[FLUX][4] = -file[FLUX][4]
    assert "flux has a median of zero or less in 1 row: 4" in faults(sound)


def test_repeated_rows_are_found_within_and_between_files(sound: Path, write_set, tmp_path: Path) -> None:
    with h5py.File(sound, "r+") as file:
        file[FLUX][10] = file[FLUX][2]
    assert "1 rows repeat the flux of an earlier one: 10 = 2" in faults(sound)
    twin = write_set(tmp_path / "twin", 12)
    found = inspect_files([sound, twin])[1].faults
    assert any("11 spectra are in another file" in fault for fault in found)


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("log_g", np.inf, "label log_g is infinite in 1 row: 5"),
        ("T_eff", -10.0, "label T_eff is outside 1000 to 100000 K in 1 row: 5"),
        ("log_g", 44.4, "label log_g is outside -2 to 10 dex in 1 row: 5"),
    ],
)
def test_bad_labels_are_found(write_set, stars, tmp_path: Path, column: str, value: float, expected: str) -> None:
    labels = stars(12)["labels"][column].to_numpy(copy=True)
    labels[5] = value
    assert expected in faults(write_set(tmp_path / "bad", 12, **{column: labels}))


def test_a_missing_label_is_a_note(write_set, stars, tmp_path: Path) -> None:
    labels = stars(12)["labels"]["M_H"].to_numpy(copy=True)
    labels[[3, 5]] = np.nan
    report = inspect_file(write_set(tmp_path / "gaps", 12, M_H=labels))
    assert report.faults == []
    assert "note: label M_H is missing (NaN) in 2 rows: 3, 5" in report.notes


def test_all_missing_pieces_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "parts.h5"
    with h5py.File(path, "w") as file:
        file[FLUX] = np.random.default_rng(0).normal(1, 0.1, (4, 16)).astype(np.float32)
    text = faults(path)
    assert all(f"{name}: is missing" in text for name in (ERROR, WAVE))
    assert "has no label table" in text


def test_wrong_lengths_and_types_are_found(sound: Path, tmp_path: Path) -> None:
    with h5py.File(sound, "r+") as file:
        del file[ERROR], file[WAVE]
        file[ERROR] = np.ones((12, 8), dtype=np.float32)
        file[WAVE] = np.arange(7.0)
    text = faults(sound)
    assert "has shape (12, 8)" in text
    assert "has shape (7,) for 256 pixels" in text
    with h5py.File(sound, "r+") as file:
        del file[FLUX]
        file[FLUX] = np.ones((12, 256), dtype=np.int16)
    assert "has type int16" in faults(sound)


def test_a_label_table_of_another_length_is_found(sound: Path) -> None:
    table = pd.read_hdf(sound).iloc[:9]
    with h5py.File(sound, "r+") as file:
        del file[PARAMS]
    table.to_hdf(sound, key=PARAMS, mode="a", format="table")
    assert "has 9 label rows but 12 spectra" in faults(sound)


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_truncated_files_are_one_fault_and_exit_code_1(sound: Path, keep: int, capsys) -> None:
    sound.write_bytes(sound.read_bytes()[:keep])
    assert data_cli.main(["inspect", str(sound)]) == 1
    heard = capsys.readouterr()
    assert heard.out.count("FAULT") == 1
    assert heard.err == ""


def test_a_file_that_changed_is_scanned_again_and_an_unchanged_one_is_not(sound: Path, cache: Path) -> None:
    assert inspect_files([sound])[0].faults == []
    (known,) = [p for p in (cache / "inspect").iterdir() if str(sound) in p.read_text()]
    known.write_text(known.read_text().replace('"faults": []', '"faults": ["from the cache"]'))
    assert inspect_files([sound])[0].faults == ["from the cache"]
    change(sound, FLUX, (0, 0), np.nan)
    assert "flux is not finite in 1 row: 0" in inspect_files([sound])[0].faults


def test_a_missing_file_is_one_sentence(capsys) -> None:
    assert data_cli.main(["inspect", "nowhere.h5"]) == 2
    assert capsys.readouterr().err.strip() == "specvit: nowhere.h5: is not there; check the path."


def test_a_folder_of_shards_is_answered_with_their_pattern(sound: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "out" / "all_0").mkdir(parents=True)
    (tmp_path / "out" / "all_0" / "dataset.h5").symlink_to(sound)
    assert data_cli.main(["inspect", str(tmp_path / "out")]) == 1
    fault = f"FAULT: is a folder of shards; `specvit data inspect {tmp_path}/out/*/dataset.h5` checks them\n"
    assert fault in capsys.readouterr().out


@pytest.mark.parametrize("name", [FLUX, ERROR])
def test_rows_of_a_damaged_chunk_are_named_with_the_filter_and_the_others_checked(
    sound: Path, name: str, capsys
) -> None:
    change(sound, FLUX, 11, 0.5)
    damage_chunk(sound, name, chunk=1)
    assert data_cli.main(["inspect", str(sound)]) == 1
    text = capsys.readouterr().out
    assert (
        f"FAULT: {name}: damaged, cannot be read (deflate) in 4 rows: 4, 5, 6, 7; copy or make the file again\n" in text
    )
    assert "FAULT: flux is the same in every pixel in 1 row: 11" in text
    assert text.count("FAULT") == 2


def test_a_filter_that_is_not_installed_is_named_with_the_remedy(sound: Path, capsys) -> None:
    packed_by_blosc(sound)
    assert data_cli.main(["inspect", str(sound)]) == 1
    text = capsys.readouterr().out
    assert f"FAULT: {FLUX}: is packed by the filter blosc (32001), which `pip install hdf5plugin` brings" in text


def test_labels_of_the_layout_that_a_file_does_not_have_are_a_note(sound: Path, capsys) -> None:
    table(lambda labels: labels[["log_g", "T_eff"]])(sound)
    assert data_cli.main(["inspect", str(sound)]) == 0
    text = capsys.readouterr().out
    assert "note: labels of the layout that it does not have: M_H, a_M, C_M, mag, redshift, snr\n  no fault" in text


def test_a_file_in_another_format_is_answered_with_convert(tmp_path: Path, capsys) -> None:
    fits.PrimaryHDU(np.ones(9)).writeto(tmp_path / "a star.fits")
    np.savez(tmp_path / "set.npz", flux=np.ones(9))
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file["flux"] = np.ones(9)
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    assert data_cli.main(["inspect", *paths]) == 1
    text = capsys.readouterr().out
    assert text.count("FAULT") == 3
    for path in paths:
        assert f"FAULT: is not a shard; `specvit data convert {shlex.quote(path)} OUT` makes shards of it\n" in text


def test_a_report_on_linked_values_is_not_kept(sound: Path, write_set, tmp_path: Path) -> None:
    other = write_set(tmp_path / "other", 12)
    with h5py.File(sound, "r+") as file:
        del file[FLUX]
        file[FLUX] = h5py.ExternalLink("../other/dataset.h5", FLUX)
    assert inspect_files([sound])[0].faults == []
    change(other, FLUX, 3, np.nan)
    assert inspect_files([sound])[0].faults == ["flux is not finite in 1 row: 3"]
