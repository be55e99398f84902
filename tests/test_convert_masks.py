"""Bad points of other formats become masked pixels: which ones, what the others hold, how they are counted.

Shape suffixes: X points of a source, P pixels, N spectra.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import convert_inputs as make
import h5py
import numpy as np
import pytest
from convert_inputs import COARSE, FINE, FLUX_NX, LABELS, SNR, STARS, convert, converted, interrupt, refusal

from specvit.convert.resample import edges
from specvit.data.inspect import inspect_file
from specvit.data.shards import open_shard
from specvit.data.views import open_spectra
from specvit.physics.instrument import wavelength
from specvit.utils.quantities import ERROR, FLUX, MASKED

BAD_X = np.isin(np.arange(len(FINE)), [1500, *range(3000, 3040), 6100])
AS_IT_IS = ["--no-normalise"]


def source(path: Path, **arrays: Any) -> Path:
    """Write a table of stars, with errors of its own unless others are given."""
    np.savez(path, **{"wave": FINE, "flux": FLUX_NX, "ivar": (FLUX_NX / 50) ** -2, **LABELS, **arrays})
    return path


def with_bad_row(values_NX: np.ndarray, value: float) -> np.ndarray:
    """Return values that are `value` in the bad points of the second star."""
    return np.where(BAD_X & (np.arange(len(STARS)) == 1)[:, None], value, values_NX)


def near_bad(margin: float) -> np.ndarray:
    """Return which pixels (P,) come nearer than so many Angstrom to the bin of a bad point."""
    left_X, right_X = (edges(FINE)[part][BAD_X] for part in (np.s_[:-1], np.s_[1:]))
    pixels = itertools.pairwise(edges(wavelength()))
    return np.array([((right_X > low - margin) & (left_X < high + margin)).any() for low, high in pixels])


BAD = {
    "inverse variance of 0": {"ivar": with_bad_row((FLUX_NX / 50) ** -2, 0)},
    "negative error": {"ivar": None, "error": with_bad_row(FLUX_NX / 50, -1)},
    "error that stands for none": {"ivar": None, "error": with_bad_row(FLUX_NX / 50, 1e15)},
    "flux is not a number": {"flux": with_bad_row(FLUX_NX, np.nan)},
    "infinite flux": {"flux": with_bad_row(FLUX_NX, np.inf)},
}


@pytest.mark.parametrize("kind", BAD)
def test_pixels_that_draw_on_a_bad_point_are_masked_and_the_others_keep_their_bits(
    kind: str, tmp_path: Path, capsys: Any
) -> None:
    whole = converted(source(tmp_path / "whole.npz"), *AS_IT_IS, name="whole")
    capsys.readouterr()
    arrays: dict[str, Any] = BAD[kind]
    given = {"wave": FINE, "flux": FLUX_NX, "ivar": (FLUX_NX / 50) ** -2, **LABELS, **arrays}
    np.savez(tmp_path / "set.npz", **{name: values for name, values in given.items() if values is not None})
    flux_NP, error_NP, labels = converted(tmp_path / "set.npz", *AS_IT_IS)
    masked_NP = np.isnan(flux_NP)
    assert masked_NP[1, near_bad(0.0)].all() and not masked_NP[np.arange(5) != 1].any()
    assert not masked_NP[1, ~near_bad(0.5)].any()  # cubics reach two points further
    np.testing.assert_array_equal(np.isnan(error_NP), masked_NP)
    np.testing.assert_array_equal(flux_NP[~masked_NP], whole[0][~masked_NP])
    np.testing.assert_allclose(error_NP[~masked_NP], whole[1][~masked_NP], rtol=1e-6)
    assert labels["snr"][1] == np.median((flux_NP / error_NP)[1, ~masked_NP[1]])
    assert labels.drop(index=1).equals(whole[2].drop(index=1))
    with h5py.File(tmp_path / "out" / "all_0" / "dataset.h5") as file:
        assert file[MASKED][()].tolist() == masked_NP.sum(axis=1).tolist()
    assert f"note: {masked_NP.sum()} masked pixels in 1 spectrum: a model sees" in capsys.readouterr().out
    (output,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["outputs"]
    assert (output["masked_pixels"], output["masked_rows"]) == (masked_NP.sum(), 1)
    report = inspect_file(tmp_path / "out" / "all_0" / "dataset.h5")
    assert not any("not finite" in fault for fault in report.faults)


def test_a_set_without_bad_points_says_nothing_of_masked_pixels(tmp_path: Path, capsys: Any) -> None:
    converted(source(tmp_path / "set.npz"))
    with h5py.File(tmp_path / "out" / "all_0" / "dataset.h5") as file:
        assert MASKED not in file
    assert "masked" not in capsys.readouterr().out + (tmp_path / "out" / "manifest.json").read_text()


def test_the_median_is_that_of_the_other_pixels(tmp_path: Path) -> None:
    """Values under a mask are far from the star's: they move neither scale nor S/N."""
    flux_NX = with_bad_row(FLUX_NX, 1e12)
    ivar_NX = with_bad_row((FLUX_NX / 50) ** -2, 0)
    flux_NP, error_NP, labels = converted(source(tmp_path / "set.npz", flux=flux_NX, ivar=ivar_NX))
    np.testing.assert_allclose(np.nanmedian(flux_NP, axis=1), 0.5, rtol=1e-6)
    np.testing.assert_allclose(labels["snr"], np.nanmedian(flux_NP / error_NP, axis=1), rtol=1e-6)
    good_P = ~np.isnan(flux_NP[1])
    right_P = make.expected(STARS[1])[good_P]
    np.testing.assert_allclose(flux_NP[1, good_P], right_P * 0.5 / np.median(right_P), atol=2e-4)


@pytest.mark.parametrize("options", [SNR, ["--magnitudes", "20", "21"]])
def test_made_errors_are_those_of_the_whole_star(options: list[str], tmp_path: Path) -> None:
    whole = converted(source(tmp_path / "whole.npz"), *options, *AS_IT_IS, name="whole")
    flux_NX = with_bad_row(FLUX_NX, np.nan)
    flux_NP, error_NP, labels = converted(source(tmp_path / "set.npz", flux=flux_NX), *options, *AS_IT_IS)
    masked_NP = np.isnan(flux_NP)
    assert masked_NP[1].any() and not masked_NP[0].any()
    np.testing.assert_array_equal(np.isnan(error_NP), masked_NP)
    np.testing.assert_allclose(error_NP[~masked_NP], whole[1][~masked_NP], rtol=3e-3)
    np.testing.assert_allclose(labels, whole[2], rtol=3e-3)


def test_a_mask_in_a_file_of_its_own_and_a_smoothed_spectrum(tmp_path: Path) -> None:
    """A Gaussian of four standard deviations reaches further than the pixels of the bad point."""
    np.savez(tmp_path / "mask.npz", mask=with_bad_row(np.zeros(FLUX_NX.shape, int), 8))
    masked = ["--source-mask", str(tmp_path / "mask.npz")]
    plain, _, _ = converted(source(tmp_path / "set.npz"), *masked, name="plain")
    smoothed, _, _ = converted(tmp_path / "set.npz", *masked, "--resolution", "20000", name="smoothed")
    wider = np.isnan(smoothed[1])
    assert wider[np.isnan(plain[1])].all() and wider.sum() > np.isnan(plain[1]).sum() + 10
    sigma = 8900 / 2.3548 * np.sqrt(5000**-2 - 20000**-2)
    assert not wider[~near_bad(4 * sigma + 0.5)].any()


def test_shards_of_a_conversion_that_was_stopped_count_as_those_of_one_that_was_not(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = source(tmp_path / "set.npz", ivar=np.where(BAD_X, 0, (FLUX_NX / 50) ** -2))
    assert convert(path, tmp_path / "whole", "--shard", "2") == 0
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "masked pixels" in line]
    with monkeypatch.context() as patch:
        interrupt(patch, "all_1")
        assert convert(path, tmp_path / "out", "--shard", "2") == 130
    assert convert(path, tmp_path / "out", "--shard", "2") == 0
    assert said in capsys.readouterr().out and said.endswith(
        " in 5 spectra: a model sees its mean training spectrum there"
    )
    for name in ("manifest.json", "all_0/dataset.h5", "all_1/dataset.h5", "all_2/dataset.h5"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_share_that_is_allowed_is_of_the_pixels_that_are_made(tmp_path: Path, capsys: Any) -> None:
    """Points beyond the instrument's pixels do not count; `--max-masked` is part of what was asked for."""
    bad_X = (FINE < 7050) | ((FINE > 8000) & (FINE < 8300))
    path = source(tmp_path / "set.npz", flux=np.where(bad_X, np.nan, FLUX_NX))
    assert np.isnan(converted(path)[0]).mean() == pytest.approx(300 / 1750, abs=2e-3)
    said = refusal(capsys, path, tmp_path / "few", "--max-masked", "0.1")
    assert (
        "set.npz row 0: has 17.2 % of its pixels masked, more than 10 % (the first: flux is nan at 8000.25 Å)" in said
    )
    said = refusal(capsys, path, tmp_path / "out", "--max-masked", "0.3")
    assert "was made with no --max-masked, and not with --max-masked 0.3" in said


def mask_shard(path: Path) -> np.ndarray:
    """Mask pixels of every third row of a shard, whose stored values are of any kind; return which."""
    with h5py.File(path, "r+") as file:
        flux_NP, error_NP = file[FLUX][()], file[ERROR][()]
        masked_NP = np.random.default_rng(0).uniform(size=flux_NP.shape) < 0.1
        masked_NP[1::3] = masked_NP[2::3] = False
        odd_NP = masked_NP & (np.arange(masked_NP.shape[1]) % 2 == 1)
        file[FLUX][()], file[ERROR][()] = np.where(odd_NP, np.nan, flux_NP), np.where(masked_NP & ~odd_NP, 0, error_NP)
        file[MASKED] = masked_NP.sum(axis=1)
    return masked_NP


def test_shards_with_masked_pixels_are_cut_and_split_with_those_without(
    write_set: Any, tmp_path: Path, capsys: Any
) -> None:
    paths = [write_set(tmp_path / "source" / name, 30, seed=i) for i, name in enumerate("ab")]
    masked_NP = mask_shard(paths[1])
    assert make.data_cli.main(["convert", *map(str, paths), str(tmp_path / "out"), "--shard", "16", *make.ONE]) == 0
    assert f"note: {masked_NP.sum()} masked pixels in 10 spectra: " in capsys.readouterr().out
    made = [tmp_path / "out" / f"all_{i}" / "dataset.h5" for i in range(4)]
    before, after = open_spectra(paths, -1), open_spectra(made, -1)
    for one_NP, other_NP in zip(before.gather(np.arange(60)), after.gather(np.arange(60)), strict=True):
        assert one_NP.tobytes() == other_NP.tobytes()
    assert after.manifest(("log_g",)) == before.manifest(("log_g",))
    assert open_shard(made[0]).masked_N is None and "masked_pixels" not in after.labels()
    assert convert(paths[1], tmp_path / "split", "--split", "0.6,0.2,0.2") == 0
    parts = [open_shard(path).masked_N for path in sorted((tmp_path / "split").glob("*/dataset.h5"))]
    assert sum(int(part.sum()) for part in parts if part is not None) == masked_NP.sum()
    said = refusal(capsys, paths[1], tmp_path / "made", *SNR)
    assert "--snr: replaces errors, which mark the masked pixels of " in said


def test_an_older_conversion_is_finished_unless_it_left_out_what_is_masked_now(tmp_path: Path, capsys: Any) -> None:
    path = source(tmp_path / "set.npz", wave=COARSE, flux=FLUX_NX[:, ::2], ivar=np.ones((5, len(COARSE))))
    for name, bad in (("sound", False), ("left", True)):
        asked = (path, tmp_path / name, *(["--skip-bad"] if bad else []))
        assert convert(*asked) == 0
        manifest = tmp_path / name / "manifest.json"
        known = json.loads(manifest.read_text())
        left_out = [{"file": "set.npz", "row": 2, "why": "flux is nan"}] if bad else []
        manifest.write_text(json.dumps({**known, "format": 4, "left_out": left_out}))
        assert convert(*asked) == (2 if bad else 0)
    shown = capsys.readouterr()
    assert "sound is finished: nothing to do" in shown.out
    assert "left: was made by an older specvit, which left out spectra with any bad pixel; name another" in shown.err


def test_a_label_may_be_missing_where_there_are_several(tmp_path: Path, capsys: Any) -> None:
    labels = {**LABELS, "M_H": np.where(np.arange(5) % 2, np.nan, LABELS["M_H"])}
    path = source(tmp_path / "set.npz", **labels)
    _, _, found = converted(path)
    np.testing.assert_array_equal(found["M_H"], labels["M_H"])
    said = "note: missing labels: M_H in 2 of 5 spectra, stored as NaN; --skip-bad leaves such spectra out"
    assert said in capsys.readouterr().out
    assert "was made with no --skip-bad, and not with --skip-bad" in refusal(
        capsys, path, tmp_path / "out", "--skip-bad"
    )
    _, _, found = converted(path, "--skip-bad", name="left out")
    np.testing.assert_array_equal(found["M_H"], LABELS["M_H"][::2])
    assert convert(path, tmp_path / "left out", "--skip-bad") == 0
    assert "is finished: nothing to do" in capsys.readouterr().out
    labels = {name: np.where(np.arange(5) == 4, np.nan, values) for name, values in LABELS.items()}
    said = refusal(capsys, source(tmp_path / "none.npz", **labels), tmp_path / "none", "--fill", "redshift=0")
    assert "none.npz row 4: has none of the labels T_eff, log_g, M_H; correct it" in said
