"""`specvit data fetch`: observed stars out of a wheel, with their labels, wavelengths and errors; its refusals."""

import csv
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from shared import once
from star_wheels import (
    HALPHA_VACUUM,
    MISPRINT,
    NUMBERS,
    PLACE,
    TABLE,
    flux_of,
    labels_of,
    miles_files,
    stelib_files,
    table_text,
    write_wheel,
)

from specvit.commands import data as data_cli
from specvit.convert.libraries import RANGES, read_stars
from specvit.data.shards import open_shard, read_labels
from specvit.data.views import open_spectra
from specvit.physics.instrument import wavelength

WHEEL = "sdss_mangadap-4.5.0-py3-none-any.whl"


def fetch(library: str, source: Path, out: Path) -> int:
    return data_cli.main(["fetch", library, "--from", str(source), "--out", str(out)])


@pytest.fixture(scope="session")
def wheels(shared: Path) -> Path:
    def write(folder: Path) -> None:
        folder.mkdir()
        write_wheel(folder / WHEEL, {**miles_files(), **stelib_files()})

    return once(shared / "wheels", write) / WHEEL


@pytest.fixture(scope="session")
def miles(shared: Path, wheels: Path) -> Path:
    return once(shared / "miles", lambda folder: fetch("miles", wheels, folder)) / "miles"


def in_range(number: int) -> bool:
    return number % 60 < 40


@pytest.mark.slow
def test_miles_has_the_stars_in_range_with_their_labels_vacuum_wavelengths_and_errors(miles: Path, capsys) -> None:
    shard = open_shard(miles / "dataset.h5")
    labels, expected = read_labels(shard), [number for number in NUMBERS if in_range(number)]
    assert labels["star_id"].tolist() == expected
    known = np.array([[float(text) for text in labels_of(number)] for number in expected])
    np.testing.assert_array_equal(labels[["T_eff", "log_g", "M_H"]].to_numpy(), known)
    flux_NP, error_NP = open_spectra([miles / "dataset.h5"], -1).gather(np.arange(len(expected)))
    assert flux_NP.shape[1] == 4300
    assert shard.wave_P[flux_NP[10].argmin()] == pytest.approx(HALPHA_VACUUM, abs=0.5)
    assert np.diff(shard.wave_P) == pytest.approx(0.9, abs=1e-3)
    np.testing.assert_allclose(np.median(flux_NP, axis=1), 0.5, rtol=1e-6)
    source_P = flux_of(3540.5 + 0.9 * np.arange(4300), expected[3])
    np.testing.assert_allclose(flux_NP[3], 0.5 * source_P / np.median(source_P), rtol=1e-6)
    np.testing.assert_allclose(error_NP, 0.01, rtol=1e-6)
    assert (labels["snr"] == 50).all()
    with h5py.File(miles / "dataset.h5") as file:
        assert b"Falc\xc3\xb3n-Barroso et al. 2011" in file.attrs["cite"] and b"BSD" in file.attrs["licence"]
    assert data_cli.main(["inspect", str(miles / "dataset.h5")]) == 0
    assert "manifest.json: these bytes were written by `specvit data fetch`" in capsys.readouterr().out


@pytest.mark.slow
def test_what_became_of_each_file_is_counted_and_listed(miles: Path, wheels: Path, capsys) -> None:
    assert fetch("miles", wheels, miles.parent) == 0
    said = capsys.readouterr().out
    known = [n for n in NUMBERS if n != MISPRINT]
    out, unknown = sum(n % 60 >= 42 for n in known), sum(n % 60 in (40, 41) for n in known)
    taken = len(known) - out - unknown
    counts = f"{taken} of 984 spectra taken"
    assert counts in said and f"{out} left out: labels out of range" in said
    assert f"{unknown} left out: a label is not known" in said
    assert "1 left out: not in MILES's table" in said
    assert "cite: Sánchez-Blázquez et al. 2006" in said and "specvit train data=miles data.root=" in said
    assert said.endswith("it is finished: nothing to do\n")
    with (miles / "stars.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["star_id"]) for row in rows if row["star_id"]] == known and len(rows) == len(NUMBERS)
    assert [row["row"] for row in rows if not row["left_out"]] == list(map(str, range(taken)))
    assert rows[2] | {"row": "2"} == rows[2] and (rows[2]["name"], rows[2]["type"]) == ("HD000003", "M5.2 III")


@pytest.mark.slow
@pytest.mark.parametrize("unpacked", [False, True], ids=["folder of pip download", "unpacked"])
def test_a_folder_serves_as_the_wheel_does(unpacked: bool, miles: Path, wheels: Path, tmp_path: Path) -> None:
    source = wheels.parent
    if unpacked:
        with zipfile.ZipFile(wheels) as archive:
            archive.extractall(tmp_path / "site")
        source = tmp_path / "site"
    assert fetch("miles", source, tmp_path / "out") == 0
    for name in ("dataset.h5", "stars.csv", "manifest.json"):
        assert (tmp_path / "out" / "miles" / name).read_bytes() == (miles / name).read_bytes(), name


@pytest.mark.slow
def test_what_was_fetched_is_never_replaced(miles: Path, wheels: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    shutil.copytree(miles.parent, out)
    table = miles_files()[TABLE].replace(b"3860", b"3861")
    other = write_wheel(tmp_path / "other.whl", miles_files() | {TABLE: table})
    before = (out / "miles" / "dataset.h5").read_bytes()
    assert fetch("miles", other, out) == 2
    assert "was made of other files, or by another specvit; name another target" in capsys.readouterr().err
    assert (out / "miles" / "dataset.h5").read_bytes() == before
    (out / "miles" / "dataset.h5").write_bytes(before[:-1])
    assert fetch("miles", wheels, out) == 2
    assert "is not what its manifest says" in capsys.readouterr().err


@pytest.mark.slow
def test_stelib_is_matched_by_name_and_its_holes_are_masked(wheels: Path, tmp_path: Path, capsys) -> None:
    assert fetch("stelib", wheels, tmp_path) == 0
    said = capsys.readouterr().out
    shard = open_shard(tmp_path / "stelib" / "dataset.h5")
    expected = [n for n in range(1, 252) if in_range(n) and n != 3]
    labels = read_labels(shard)
    assert labels["star_id"].tolist() == expected, "HD000001A is another star, HD000004ss is HD 4"
    assert "5 left out: not in MILES's table" in said
    assert "1 left out: no data in more than 10% of the pixels" in said and "specvit evaluate RUN --data" in said
    np.testing.assert_allclose(shard.wave_P, wavelength())
    flux_NP, error_NP = open_spectra([tmp_path / "stelib" / "dataset.h5"], -1).gather(np.arange(len(expected)))
    assert (error_NP[0] == error_NP[0, 0]).all() and error_NP[0, 0] == pytest.approx(0.01, rel=1e-6)
    masked = shard.wave_P[error_NP[1] > 0.5]
    assert 8001 < masked.min() < 8005 and 8050 < masked.max() < 8054 and (np.diff(masked) < 0.5).all()
    assert np.median(flux_NP / error_NP, axis=1) == pytest.approx(50, rel=1e-3)
    hole = flux_NP[1][error_NP[1] > 0.5]
    assert (np.abs(hole - 0.5) < 0.01).all(), "interpolated, not 0"
    assert data_cli.main(["inspect", str(tmp_path / "stelib" / "dataset.h5")]) == 0


def damage_spectrum(files: dict[str, bytes]) -> dict[str, bytes]:
    return files | {f"{PLACE}/miles/MILES_res2.50_star_m0001V.fits": b"SIMPLE  =                    T"}


REFUSED: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], str]] = {
    "another wheel": (lambda files: {"numpy/__init__.py": b""}, "has 0 of the 984 spectra of miles; name the wheel"),
    "a spectrum is missing": (lambda files: dict(list(files.items())[1:]), "has 983 of the 984 spectra of miles"),
    "no table": (lambda files: {n: c for n, c in files.items() if n != TABLE}, "has no miles/paramsMILES_v9.1.txt"),
    "half a table": (lambda files: files | {TABLE: files[TABLE][:40_000]}, "stars, not the 984 of MILES"),
    "a spectrum is not one": (damage_spectrum, "m0001V.fits: cannot be read"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_a_wheel_that_is_not_what_it_should_be_is_refused(case: str, tmp_path: Path, capsys) -> None:
    change, words = REFUSED[case]
    source = write_wheel(tmp_path / WHEEL, change(miles_files()))
    assert fetch("miles", source, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert list(tmp_path.rglob("*.h5")) == [] and not (tmp_path / "out" / "miles").exists()


def test_no_wheel_half_a_wheel_and_an_empty_folder_are_refused(tmp_path: Path, capsys) -> None:
    half = write_wheel(tmp_path / "half.whl", {f"{PLACE}/miles/MILES_res2.50_star_m0001V.fits": b"0" * 5000})
    half.write_bytes(half.read_bytes()[:-60])
    (tmp_path / "empty").mkdir()
    cases = {"missing.whl": "is not there; get it: pip download", "half.whl": "is not the wheel, or is damaged"}
    for name, words in {**cases, "empty": "has 0 of the 984 spectra"}.items():
        assert fetch("miles", tmp_path / name, tmp_path / "out") == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_damaged_byte_of_the_wheel_is_refused(tmp_path: Path, capsys) -> None:
    files = {f"{PLACE}/miles/MILES_res2.50_star_m{n:04d}V.fits": b"0" * 3000 for n in NUMBERS}
    path = write_wheel(tmp_path / WHEEL, files | {TABLE: table_text().encode()})
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo(TABLE).header_offset + 400
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)
    assert fetch("miles", path, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "is not the wheel, or is damaged" in said and said.count("\n") == 1


def test_the_table_is_read_in_its_own_form() -> None:
    stars = read_stars(table_text(), "table")
    assert (stars[3].name, stars[3].type, stars[4].type) == ("HD000003", "M5.2 III", "sd:F")
    assert stars[1].labels == {"T_eff": 3860.0, "log_g": 1.1, "M_H": -1.94}
    assert np.isnan(stars[40].labels["M_H"]) and stars[40].labels["T_eff"] == 4200
    assert [stars[n].why_not for n in (1, 40, 41, 45)] == ["", *["a label is not known"] * 2, "labels out of range"]
    assert set(RANGES) == set(stars[1].labels)
    assert json.dumps(stars[1].labels)
