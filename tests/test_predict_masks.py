"""Masked pixels in `specvit predict`: one rule for arrays, shards and files of surveys; the mean spectrum fills them.

Shape suffixes: N spectra, P pixels.
"""

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from convert_inputs import convert
from test_predict import observed, predicted, run_of
from test_predict_sources import WAVE, spectra

import specvit
from specvit.commands import evaluate
from specvit.data.shards import write_shard
from specvit.utils.quantities import ERROR

__all__ = ["observed", "run_of", "spectra"]
FINER = 7099.0 + 0.25 * np.arange(523)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def desi(path: Path, wave: np.ndarray, flux_NX: np.ndarray, error_NX: np.ndarray) -> None:
    """Write spectra as a DESI coadd has them: an arm's images with units, and a table of targets."""
    labels = {"TARGETID": 10**9, "LOGG": 1 / 3, "TEFF": 500, "M_H": -0.1}
    targets = [fits.Column(name, "D", array=(1 + np.arange(12)) * value) for name, value in labels.items()]
    hdus: list[Any] = [fits.PrimaryHDU(), fits.BinTableHDU.from_columns(targets, name="FIBERMAP")]
    for name, values, unit in (
        ("Z_WAVELENGTH", wave, "Angstrom"),
        ("Z_FLUX", flux_NX, "10**-17 erg/(s cm2 Angstrom)"),
        ("Z_IVAR", np.where(error_NX > 0, 1 / np.maximum(error_NX, 1e-9) ** 2, 0), "10**+34 (s2 cm4 Angstrom2) / erg2"),
    ):
        hdus.append(fits.ImageHDU(values, name=name))
        hdus[-1].header["BUNIT"] = unit
    fits.HDUList(hdus).writeto(path)


@pytest.mark.parametrize("kind", ["vit", "ridge", "template"])
@pytest.mark.parametrize("finer", [False, True])
def test_a_survey_with_inverse_variances_of_0_is_predicted_as_its_conversion_is_evaluated(
    finer: bool, kind: str, run_of: Any, spectra: Any, tmp_path: Path, capsys: Any
) -> None:
    run = Path(shutil.copytree(run_of(kind), tmp_path / f"{kind}-run"))
    wave, flux_NX, error_NX = WAVE, spectra["flux"], spectra["error"]
    if finer:
        wave = FINER
        flux_NX, error_NX = (np.stack([np.interp(FINER, WAVE, row) for row in rows]) for rows in (flux_NX, error_NX))
    bad_NX = np.random.default_rng(0).uniform(size=flux_NX.shape) < (0.02 if finer else 0.1)
    bad_NX[::3] = False
    desi(Path("coadd.fits"), wave, np.where(bad_NX, 1e7, flux_NX), np.where(bad_NX, 0, error_NX))
    np.savetxt("pixels.txt", WAVE)
    target = ["--wave", "pixels.txt"] if finer else ["--wave", "keep"]
    assert convert("coadd.fits", "out", *target, "--flux-name", "Z_FLUX") == 0
    assert evaluate.main([str(run), "--data", "out/all_0/dataset.h5"]) == 0
    (scored,) = run.glob("evaluate-*/predictions.csv")
    expected = pd.read_csv(scored)
    table = predicted(run, "coadd.fits", "--flux-name", "Z_FLUX", *(["--resample"] if finer else []))
    np.testing.assert_array_equal(table["log_g"], expected["pred_log_g"])
    with h5py.File("out/all_0/dataset.h5") as file:
        share_N = np.isnan(file[ERROR][()]).mean(axis=1)
    np.testing.assert_allclose(table["masked"], share_N)
    assert (share_N > 0).tolist() == bad_NX.any(axis=1).tolist() and not table["not_finite"].any()
    pixels = f"sees the mean spectrum: {round(share_N.sum() * 256)} pixels of 8 of 12 spectra (masked)"
    assert pixels in capsys.readouterr().err
    again = predicted(run, "out/all_0/dataset.h5")
    pd.testing.assert_frame_equal(again.drop(columns=["file"]), table.drop(columns=["file"]), check_exact=True)


def test_a_linear_model_sees_the_mean_spectrum_there(run_of: Any, observed: Any) -> None:
    """By hand: normalised flux of 0 in those pixels, times the weights."""
    trained, flux_NP = specvit.load(run_of("ridge")), observed[1]["flux_NP"].astype(np.float32)
    run = trained.runs[0]
    masked_NP = np.random.default_rng(1).uniform(size=flux_NP.shape) < 0.15
    table = trained.predict(np.where(masked_NP, np.nan, flux_NP))
    mean_P = run.flux_norm.mean_P.numpy()
    seen_NP = np.where(masked_NP, 0.0, (flux_NP - mean_P) / run.flux_norm.scale)
    weight_PK, bias_K = (value.numpy().astype(float) for value in run.model.state_dict().values())
    label_N = (seen_NP.astype(float) @ weight_PK + bias_K)[:, 0] * run.coder.scale[0] + run.coder.offset[0]
    usable = table[~table["not_finite"]]
    assert len(usable) > 250
    np.testing.assert_allclose(usable["log_g"], label_N[usable.index], rtol=1e-4, atol=1e-4)
    by_hand = trained.predict(np.where(masked_NP, mean_P, flux_NP))
    np.testing.assert_array_equal(usable["log_g"], by_hand["log_g"][usable.index])


def test_arrays_follow_the_rule_of_files(run_of: Any, observed: Any) -> None:
    trained = specvit.load(run_of("vit"))
    flux_NP, error_NP = observed[1]["flux_NP"], observed[1]["error_NP"]
    masked_NP = np.random.default_rng(2).uniform(size=flux_NP.shape) < 0.1
    expected = trained.predict(np.ma.masked_array(flux_NP, masked_NP), error_NP)
    for bad_flux, bad_error in ((np.nan, 1.0), (np.inf, 1.0), (1.0, 0.0), (-7.0, -1.0), (1.0, np.nan), (1.0, np.inf)):
        flux_BP, error_BP = np.where(masked_NP, bad_flux, flux_NP), np.where(masked_NP, bad_error, error_NP)
        pd.testing.assert_frame_equal(trained.predict(flux_BP, error_BP), expected, check_exact=True)
    np.testing.assert_allclose(expected["masked"], masked_NP.mean(axis=1))
    assert not trained.predict(flux_NP)["masked"].any()
    raw = specvit.load(run_of("vit", "data.flux_norm=none"))
    assert raw.max_masked == 0 and trained.max_masked == 0.2
    table = raw.predict(np.where(masked_NP & (np.arange(300) == 5)[:, None], np.nan, flux_NP))
    assert np.flatnonzero(table["not_finite"]).tolist() == [5] and np.flatnonzero(table["masked"]).tolist() == [5]


def test_an_error_of_0_in_a_shard_that_counts_no_masked_pixels_is_taken_as_in_training(
    run_of: Any, observed: Any, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(run_of("ridge"), tmp_path / "ridge-run"))
    content = observed[1]
    content["error_NP"] = np.where(np.arange(256) < 200, 0, content["error_NP"])
    write_shard(Path("zero/stars.h5"), **content)
    assert evaluate.main([str(run), "--data", "zero/stars.h5", "--noise", "0"]) == 0
    expected = pd.read_csv(run / "evaluate-zero-stars-noise0" / "predictions.csv")
    table = predicted(run, "zero/stars.h5")
    np.testing.assert_array_equal(table["log_g"], expected["pred_log_g"])
    assert not table["masked"].any()
