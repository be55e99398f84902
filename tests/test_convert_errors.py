"""Errors and masks in other formats: what they are taken for, files of their own, and the mark that they give flux."""

from pathlib import Path
from typing import Any

import convert_inputs as make
import numpy as np
import pytest
from astropy.io import fits
from convert_inputs import (
    COARSE,
    FINE,
    FLUX_NX,
    LABELS,
    PATTERN,
    SNR,
    STARS,
    convert,
    converted,
    refusal,
)

from specvit.commands import data as data_cli
from specvit.data.shards import open_shard
from specvit.physics.instrument import STEP

KINDS = {
    ("Z_IVAR", ""): "ivar",
    ("flux_invvar_coadd", ""): "ivar",
    ("B_WEIGHT", ""): "ivar",
    ("var_inv", ""): "ivar",
    ("varflux", ""): "variance",
    ("STAT", "erg2 / (s2 cm4 Angstrom2)"): "variance",
    ("FLUX_ERROR_2", ""): "sigma",
    ("q", "erg / (s cm2 Angstrom)"): "sigma",
    ("q", "erg2 / (s2 cm4 Angstrom2)"): "variance",
    ("q", "s2 cm4 Angstrom2 / erg2"): "ivar",
    ("q", "10**-17 erg / (s cm2 Angstrom)"): "scaled",
    ("ivar", "erg / (s cm2 Angstrom)"): None,
    ("flux_error", "s2 cm4 Angstrom2 / erg2"): None,
    ("flux_error", "K"): None,
    ("inv_sigma", ""): None,
    ("sigma_inv", ""): None,
    ("err_inverse", ""): None,
    ("isig", ""): None,
    ("STAT", ""): None,
    ("q", ""): None,
}
"""What errors are by name and unit: `scaled` is 1 sigma in a unit 1e17 times smaller, None is unclear."""


@pytest.mark.slow
def test_what_errors_are_is_read_from_name_and_unit_or_asked_for(tmp_path: Path, capsys: Any) -> None:
    right = {"sigma": 100.0, "variance": 10.0, "ivar": 0.1, "scaled": 1e-15}
    for number, ((name, unit), kind) in enumerate(KINDS.items()):
        columns = {"wave": np.linspace(8400, 8800, 100)[None], "flux": np.ones((1, 100)), "log_g": np.ones(1)}
        units = {"wave": "Angstrom", "flux": "erg / (s cm2 Angstrom)", name: unit}
        source, out = tmp_path / f"{number}.fits", tmp_path / str(number)
        make.fits_table(source, {**columns, name: np.full((1, 100), 100.0)}, units)
        options = ["--error-name", name, "--wave", "keep", "--no-normalise"]
        if kind is None:
            said = refusal(capsys, source, out, *options)
            assert "; say which by --error-kind sigma|variance|ivar." in said, (name, unit)
        for asked in (kind,) if kind else ("sigma", "variance", "ivar"):
            assert convert(source, out / asked, *options, *(() if kind else ("--error-kind", asked))) == 0
            error_NP = open_shard(out / asked / "all_0" / "dataset.h5").error.open()[:]
            assert np.unique(error_NP) == pytest.approx([right[asked]], rel=1e-6, abs=0), (name, unit, asked)


def test_errors_and_masks_may_lie_in_files_of_their_own(tmp_path: Path, capsys: Any) -> None:
    """One beside each star, or one for a table of stars; bad points are masked, and files belong to their sources."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number, star in enumerate(STARS):
        path = folder / f"{make.name_of(star)}.fits"
        make.fits_image(path, FLUX_NX[number], {"CRVAL1": 7000.0, "CDELT1": 0.25, "CUNIT1": "Angstrom"})
        fits.PrimaryHDU(FLUX_NX[number] / 50).writeto(path.with_name(f"{path.stem}_err.fits"))
    own = ["--source-error", "{name}_err.fits"]
    said = refusal(capsys, folder, tmp_path / "out", *PATTERN, *own)
    assert ":--source-error/PRIMARY: may be an error, a variance or an inverse variance; say which by" in said
    flux_NP, error_NP, labels = converted(folder, *PATTERN, *own, "--error-kind", "sigma", name="stars")
    assert len(labels) == 5
    np.testing.assert_allclose(labels["snr"], 50 * np.sqrt(STEP / 0.25), rtol=1e-3)  # of pixels of several points
    held = {"wave": FINE, "flux": FLUX_NX, **LABELS}
    np.savez(tmp_path / "set.npz", **held)
    np.savez(tmp_path / "other.npz", wave=FINE, ivar=(FLUX_NX / 50) ** -2)
    mask_NX = np.zeros(FLUX_NX.shape, np.int16)
    mask_NX[2, 3000:3100] = 4
    np.savez(tmp_path / "bad.npz", mask=mask_NX)
    other = ["--source-error", str(tmp_path / "other.npz")]
    found = converted(tmp_path / "set.npz", *other, name="table")
    np.testing.assert_allclose(found[0], flux_NP, rtol=1e-6)
    np.testing.assert_allclose(found[1], error_NP, rtol=1e-6)
    masked = [*other, "--source-mask", str(tmp_path / "bad.npz")]
    capsys.readouterr()
    found = converted(tmp_path / "set.npz", *masked, name="masked")
    masked_NP = np.isnan(found[0])
    assert f"note: {masked_NP.sum()} masked pixels in 1 spectrum" in capsys.readouterr().out
    assert np.flatnonzero(masked_NP.any(axis=1)).tolist() == [2] and masked_NP.sum() == pytest.approx(25 / STEP, abs=4)
    said = refusal(capsys, tmp_path / "set.npz", tmp_path / "few", *masked, "--max-masked", "0.01")
    assert "set.npz row 2: has 1.49 % of its pixels masked, more than 1 % (the first: flux is nan at 7750" in said
    said = refusal(capsys, folder, tmp_path / "x", *PATTERN, "--source-error", str(folder / "5000_4.5_+0.25_err.fits"))
    assert "is one file for 9 sources; put {name} in it" in said


@pytest.mark.parametrize("option", ["--source-error", "--source-mask"])
@pytest.mark.parametrize("points", [1, len(COARSE) - 1])
def test_a_file_beside_any_source_has_a_value_for_each_point(
    points: int, option: str, tmp_path: Path, capsys: Any
) -> None:
    folder = make.texts(tmp_path / "source", STARS[:2])
    for number, star in enumerate(STARS[:2]):
        length = points if number else len(COARSE)
        np.savez(folder / f"{make.name_of(star)}_own.npz", sigma=np.ones(length), mask=np.zeros(length, int))
    own = [option, "{name}_own.npz", *(SNR if option == "--source-mask" else [])]
    said = refusal(capsys, folder, tmp_path / "out", *PATTERN, *own)
    name = option + ("/mask" if option == "--source-mask" else "/sigma")
    assert f"4500_2.0_+0.00.txt:2: has shape ({len(COARSE)},) but {name} has ({points},)" in said
    assert said.endswith(f"; or name another by {option}.\n")


@pytest.mark.parametrize(("options", "observed"), [((), True), (SNR, False), (("--magnitudes", "20", "21"), False)])
def test_flux_with_errors_of_its_own_is_marked_as_observed(
    options: Any, observed: bool, tmp_path: Path, capsys: Any
) -> None:
    np.savez(tmp_path / "set.npz", wave=FINE, flux=FLUX_NX, ivar=(FLUX_NX / 9) ** -2, **LABELS)
    assert convert(tmp_path / "set.npz", tmp_path / "out", *options, "--split", "0.5,0.25,0.25") == 0
    said = capsys.readouterr().out
    assert "data.test_path='test_*/dataset.h5'\n" in said
    assert ("is marked as observed and gets no further noise" in said) == observed
    shard = tmp_path / "out" / "train_0" / "dataset.h5"
    for target in ([tmp_path / "one.h5"], [tmp_path / "again", "--shard", "2"]):  # the mark stays in later conversions
        assert data_cli.main(["convert", str(shard), *map(str, target)]) == 0
    for path in (shard, tmp_path / "one.h5", tmp_path / "again" / "all_0" / "dataset.h5"):
        assert open_shard(path).observed == observed
    assert convert(tmp_path / "set.npz", tmp_path / "whole", *options) == 0
    said = capsys.readouterr().out
    assert f"as the test set of a run:  data=hdf5 data.root={tmp_path / 'whole'} data.test_path='all_*/" in said
