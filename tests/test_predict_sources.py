"""`specvit predict` on spectra in other formats: read as `specvit data convert` reads them, refused in one sentence."""

import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from convert_inputs import air, fits_image, fits_table, hdf5, text
from test_predict import predicted, refusal

from specvit.commands import predict
from specvit.data.noise import evaluation_noise
from specvit.data.shards import write_shard
from specvit.utils.quantities import PARAMS

WAVE = 7100.0 + 0.5 * np.arange(256)
AS_IT_IS = ["--no-normalise"]
STEP = 0.5


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def ridge(reference_run: Any, scored: list[str]) -> Path:
    words = [word for word in scored if not word.startswith(("model.", "train.", "opt."))]
    return reference_run([*words, "train.threads=1", "model=ridge"])


@pytest.fixture
def spectra(stars: Any) -> dict[str, Any]:
    """Return twelve noisy spectra as arrays of a survey: two of them have a pixel below 0."""
    content = stars(12, seed=9)
    content["flux_NP"] = content["flux_NP"] + 0.5 * content["error_NP"] * evaluation_noise(
        np.arange(12), 256, seed=3, split="observed"
    )
    return {"wave": WAVE, "flux": content["flux_NP"], "error": content["error_NP"]}


@pytest.fixture
def expected(ridge: Path, spectra: dict[str, Any], stars: Any) -> pd.DataFrame:
    """Return the predictions of the same spectra in a shard, without names and rows."""
    arrays = {"flux_NP": spectra["flux"], "error_NP": spectra["error"], "labels": stars(12)["labels"]}
    write_shard(Path("shard/stars.h5"), wave_P=WAVE, **arrays)
    return predicted(ridge, "shard/stars.h5").drop(columns=["file", "row"])


def wide_text(path: Path, spectra: dict[str, Any]) -> None:
    columns = {f"flux_{wave:.2f}": flux_N for wave, flux_N in zip(WAVE, spectra["flux"].T, strict=True)}
    pd.DataFrame(columns).to_csv(path, index=False)


def without_labels(path: Path, spectra: dict[str, Any]) -> None:
    arrays = {"flux_NP": spectra["flux"], "error_NP": spectra["error"], "labels": pd.DataFrame({"x": np.zeros(12)})}
    write_shard(path, wave_P=WAVE, **arrays)
    with h5py.File(path, "r+") as file:
        del file[PARAMS]


FORMS: dict[str, tuple[str, Callable[[Path, dict[str, Any]], None], list[str]]] = {
    "FITS table": (
        "s.fits",
        lambda path, of: fits_table(path, {**of, "wave": np.tile(WAVE, (12, 1))}),
        ["--unit", "A"],
    ),
    "FITS image": (
        "s.fits",
        lambda path, of: fits_image(
            path, of["flux"], {"CRVAL1": 7100.0, "CDELT1": STEP, "CUNIT1": "Angstrom"}, error=of["error"]
        ),
        [],
    ),
    "NPZ, compressed": ("s.npz", lambda path, of: np.savez_compressed(path, **of), []),
    "HDF5, chunked, float32 wavelengths, ivar": (
        "s.h5",
        lambda path, of: hdf5(
            path, {"wave": WAVE.astype("f4"), "flux": of["flux"], "ivar": of["error"] ** -2}, chunks=(5, 100)
        ),
        [],
    ),
    "nanometres, reversed": (
        "s.npz",
        lambda path, of: np.savez(path, wave=WAVE[::-1] / 10, flux=of["flux"][:, ::-1], error=of["error"][:, ::-1]),
        [],
    ),
    "a spectrum a line": ("s.csv", wide_text, []),
    "a shard without labels": ("s.h5", without_labels, []),
}


@pytest.mark.parametrize("form", FORMS)
def test_any_form_gives_what_a_shard_gives(form: str, ridge: Path, spectra: Any, expected: pd.DataFrame) -> None:
    name, write, options = FORMS[form]
    write(Path(name), spectra)
    shard = form == "a shard without labels"
    table = predicted(ridge, name, *([] if shard else AS_IT_IS), *options)
    assert set(table["file"]) == {name} and table["row"].tolist() == list(range(12))
    pd.testing.assert_frame_equal(table[list(expected)], expected, rtol=1e-4)


def test_files_of_one_spectrum_are_rows_in_their_order(ridge: Path, spectra: Any, expected: pd.DataFrame) -> None:
    Path("stars/b").mkdir(parents=True)
    for row in range(12):
        columns = {"wave": WAVE, "flux": spectra["flux"][row], "err": spectra["error"][row]}
        suffix = ".csv.gz" if row == 3 else ".csv"
        text(Path(f"stars/{'b/' if row > 9 else ''}s{row}{suffix}"), columns, separator=",", header="wave,flux,err")
    assert predict.main([str(ridge), "stars", "--out", "stars/out.csv", *AS_IT_IS]) == 0
    assert predict.main([str(ridge), "stars", "--out", "stars/out.csv", *AS_IT_IS]) == 0  # which is not a source
    table = pd.read_csv("stars/out.csv")
    assert table["file"].tolist()[:4] == ["b/s10.csv", "b/s11.csv", "s0.csv", "s1.csv"]
    order = [int(Path(name).name.split(".")[0][1:]) for name in table["file"]]
    pd.testing.assert_frame_equal(table[list(expected)], expected.loc[order].reset_index(drop=True), rtol=1e-4)
    assert len(predicted(ridge, "stars/s*.csv", *AS_IT_IS)) == 9


def test_spectra_on_other_wavelengths_are_resampled_only_if_asked_for(
    ridge: Path, stars: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The toy spectra have no line narrower than forty pixels, so that finer points give the same labels."""
    fine = 7099.0 + 0.125 * np.arange(1040)
    flux_NX = np.stack([np.interp(fine, WAVE, flux_P) for flux_P in stars(5, seed=4)["flux_NP"]])
    np.savez("fine.npz", wave=fine, flux=flux_NX)
    said = refusal(capsys, ridge, "fine.npz", "--unit", "A")
    what = "fine.npz row 0: has 1040 pixels, 7099.00-7228.88 Å, 0.125 Å apart in vacuum; the run was trained on 256"
    assert what in said and said.endswith("--resample brings them to the run's pixels.")
    write_shard(Path("coarse.h5"), **stars(5, seed=4))
    expected = predicted(ridge, "coarse.h5")["log_g"]
    np.testing.assert_allclose(predicted(ridge, "fine.npz", "--resample", *AS_IT_IS)["log_g"], expected, atol=0.02)
    said = refusal(capsys, ridge, "fine.npz", "--resolution", "20000")
    assert "--resolution: needs pixels to smooth onto, but these are kept; add --resample." in said
    said = refusal(capsys, ridge, "fine.npz", "--resample", "--resolution", "20000")
    assert said.endswith("give --to-resolution R.")
    np.savez("red.npz", wave=fine + 60, flux=flux_NX)
    said = refusal(capsys, ridge, "red.npz", "--unit", "A")
    assert said.endswith("; name spectra that cover the run's pixels.")
    said = refusal(capsys, ridge, "red.npz", "--unit", "A", "--resample")
    assert "covers 7159.0-7288.9 Å but 7099.8-7227.8 Å are needed; name spectra that cover" in said
    write_shard(Path("other.h5"), **{**stars(5), "wave_P": WAVE + 3})
    assert "other.h5: has 256 pixels, 7103.00-7230.50" in refusal(capsys, ridge, "other.h5")


def test_what_would_be_silently_wrong_is_refused(ridge: Path, spectra: Any, capsys: pytest.CaptureFixture[str]) -> None:
    hdf5(Path("jansky.h5"), {k: spectra[k] for k in ("wave", "flux")}, units={"flux": "mJy"})
    assert "flux: is per frequency (mJy); make it energy per wavelength first." in refusal(capsys, ridge, "jansky.h5")
    np.savez("air.npz", wave_air=WAVE, flux=spectra["flux"])
    said = refusal(capsys, ridge, "air.npz", "--unit", "A")
    assert "has 256 pixels, 7101.96-7229.49 Å, 0.5001 Å apart in vacuum; the run was trained on 256" in said
    np.savez("air_of_run.npz", wave_air=air(WAVE), flux=spectra["flux"])
    right = predicted(ridge, "air_of_run.npz", "--unit", "A", *AS_IT_IS)
    np.testing.assert_allclose(right["log_g"], predicted(ridge, "air.npz", "--vacuum", *AS_IT_IS)["log_g"], rtol=1e-4)
    np.savez("bare.npz", flux=spectra["flux"])
    assert "has no wavelengths by a name known" in refusal(capsys, ridge, "bare.npz")
    np.savez("ragged.npz", wave=WAVE, flux=np.array([WAVE, WAVE[1:]], object))
    what = "it holds wave (256,) float64; of Python objects, which are not read: flux; give --flux-name NAME, or save"
    assert what in refusal(capsys, ridge, "ragged.npz")
    np.savez("pixels.npz", wave=np.arange(256.0), flux=spectra["flux"])
    assert "says no unit of its wavelengths, 0 to 255" in refusal(capsys, ridge, "pixels.npz")
    for words, said in (
        (["ghost.fits"], "ghost.fits: is not there; check the path."),
        (["air.npz", "--out", "x.txt"], "--out x.txt: is neither .csv nor .parquet; name it so."),
        (["air.npz", "--out", "no/x.csv"], "is in no, which is not a folder"),
        (["air.npz", "--labels", "x.csv"], "--help shows what it takes."),
    ):
        assert said in refusal(capsys, ridge, *words), words
    wide_text(Path("table.csv"), spectra)
    before = Path("table.csv").read_bytes()
    assert "--out: is the source; name another file." in refusal(capsys, ridge, "table.csv", "--out", "table.csv")
    assert Path("table.csv").read_bytes() == before


def test_bad_pixels_cost_their_spectrum_alone(ridge: Path, spectra: Any, expected: pd.DataFrame, capsys: Any) -> None:
    spectra["flux"][2, 40:100], spectra["error"][7, :52], spectra["flux"][4] = np.nan, 1e12, np.nan
    np.savez("holes.npz", **spectra)
    table = predicted(ridge, "holes.npz", *AS_IT_IS)
    assert np.flatnonzero(table["not_finite"]).tolist() == [2, 4, 7] and table["log_g"].isna().sum() == 3
    assert table["masked"][[2, 3, 4, 7]].tolist() == [60 / 256, 0, 1, 52 / 256]
    kept = [row for row in range(12) if row not in (2, 4, 7)]
    pd.testing.assert_frame_equal(table.loc[kept, list(expected)], expected.loc[kept], rtol=1e-4)
    said = capsys.readouterr().err
    assert "note: 3 of 12 spectra have no prediction (not_finite); the first: holes.npz row 2: 23.4 % of its" in said
    assert " pixels are masked, more than 20 %\n" in said
    np.savez("holes.npz", **{name: values[4:] if name != "wave" else values for name, values in spectra.items()})
    predicted(ridge, "holes.npz", *AS_IT_IS)
    what = "holes.npz row 0: has 100 % of its pixels masked, more than 99 % (the first: flux is nan at 7100.00 Å)"
    assert what in capsys.readouterr().err


def test_a_damaged_file_ends_it_or_is_left_without_prediction(ridge: Path, spectra: Any, capsys: Any) -> None:
    Path("stars").mkdir()
    for row in range(4):
        text(Path(f"stars/s{row}.csv.gz"), {"wave": WAVE, "flux": spectra["flux"][row]}, header="wave flux")
    whole = Path("stars/s2.csv.gz").read_bytes()
    Path("stars/s2.csv.gz").write_bytes(whole[: len(whole) // 2])
    what = "s2.csv.gz: is truncated; copy it again"
    assert f"{what}, or leave it without prediction by --skip-bad." in refusal(capsys, ridge, "stars")
    assert f"{what}." in refusal(capsys, ridge, "stars/s2.csv.gz", "--skip-bad"), "the only file"
    Path("tables").mkdir()
    for name in ("a", "b"):
        np.savez(f"tables/{name}.npz", **spectra)
    Path("tables/b.npz").write_bytes(Path("tables/b.npz").read_bytes()[:-100])
    for words in ([], ["--skip-bad"]):
        said = refusal(capsys, ridge, "tables", *words)
        assert "tables/b.npz: cannot be read" in said and "--skip-bad" not in said, "how many spectra is unknown"
    Path("bad").mkdir()
    for name in ("a", "b"):
        Path(f"bad/{name}.csv.gz").write_bytes(whole[:9])
    assert "bad/b.csv.gz: is truncated; copy it again." in refusal(capsys, ridge, "bad", "--skip-bad"), "no whole file"
    Path("stars/s0.csv.gz").write_bytes(whole[: len(whole) // 3])
    assert "s0.csv.gz: is truncated; copy it again, or leave" in refusal(capsys, ridge, "stars"), "the first file"
    table = predicted(ridge, "stars", "--skip-bad", *AS_IT_IS)
    assert table["not_finite"].tolist() == [True, False, True, False] and len(table) == 4
    assert "2 of 4 spectra have no prediction (not_finite); the first: " in capsys.readouterr().err
    Path("stars/s0.csv.gz").unlink()
    with gzip.open("stars/s2.csv.gz", "wt") as stream:
        stream.write("wave flux\n" + "\n".join(f"{wave} 1" for wave in WAVE[:100]))
    assert "has 100 pixels" in refusal(capsys, ridge, "stars")


@pytest.mark.slow
def test_a_source_larger_than_what_is_held_is_streamed(ridge: Path, spectra: Any) -> None:
    """24,000 spectra, 98 MB unpacked, from a compressed file: never a third of that in memory, whatever the rows."""
    np.savez("few.npz", **spectra)
    predicted(ridge, "few.npz", *AS_IT_IS)  # whatever is imported and cached once
    np.savez_compressed("many.npz", wave=WAVE, flux=np.tile(spectra["flux"], (2000, 1)), error=np.ones((24_000, 256)))
    tracemalloc.start()
    table = predict.main([str(ridge), "many.npz", "--out", "out.parquet", *AS_IT_IS])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert table == 0 and peak < 32e6, peak
    labels = pd.read_parquet("out.parquet")["log_g"].to_numpy().reshape(2000, 12)
    np.testing.assert_allclose(labels, np.broadcast_to(labels[0], (2000, 12)), rtol=1e-5)
