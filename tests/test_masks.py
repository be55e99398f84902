"""Masked pixels: their stored values have no influence, no noise is drawn there, and runs resume exactly.

Legend: N rows, P pixels.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from whole_runs import assert_same_run

from specvit.commands import data as data_cli
from specvit.commands import evaluate
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.schema import Config, NoiseConfig
from specvit.data.batches import TrainData, signal_to_noise
from specvit.data.inspect import inspect_file
from specvit.data.noise import fit_flux_norm, sigma_of
from specvit.data.splits import open_splits
from specvit.data.views import Spectra, epoch_order, open_spectra
from specvit.run.context import locate
from specvit.run.run import run
from specvit.run.train_network import train_data
from specvit.training.signals import SignalStop
from specvit.utils.errors import DataError
from specvit.utils.quantities import ERROR, FLUX, MASKED

NAMES = ("train_0", "train_1", "val", "test")
STORED = {"flux": (np.nan, np.inf, 7.0, -3.0), "error": (1.0, -2.0, np.nan, 0.0)}
"""What a masked pixel may hold: the flux or the error is unusable, and the other one may be anything."""


def mask(root: Path, other: int = 0) -> Path:
    """Mask a tenth of the pixels of every other row in all sets, storing other values for another `other`."""
    for number, name in enumerate(NAMES):
        with h5py.File(root / name / "dataset.h5", "r+") as file:
            flux_NP, error_NP = file[FLUX][()], file[ERROR][()]
            masked_NP = np.random.default_rng(number).uniform(size=flux_NP.shape) < 0.1
            masked_NP[::2] = False
            kind = (np.arange(flux_NP.size).reshape(flux_NP.shape) + other) % 4
            flux_NP[masked_NP] = np.array(STORED["flux"])[kind[masked_NP]]
            error_NP[masked_NP] = np.array(STORED["error"])[kind[masked_NP]]
            file[FLUX][()], file[ERROR][()] = flux_NP, error_NP
            file[MASKED] = masked_NP.sum(axis=1)
    return root


@pytest.fixture
def masked(sets: Path) -> Path:
    return mask(sets)


def configured(tiny: list[str], root: Path, *more: str) -> Config:
    return build_config(compose([*tiny, f"data.root={root}", *more]))


@pytest.mark.slow
def test_what_is_stored_in_a_masked_pixel_has_no_influence(
    tiny: list[str], toy_sets: Path, masked: Path, tmp_path: Path
) -> None:
    """Neither on a prediction, nor on a metric, nor on the name of a run, whatever the model and the normalisation."""
    other = mask(Path(shutil.copytree(toy_sets, tmp_path / "other")), other=1)
    base = [text for text in tiny if not text.startswith("model.")]
    for case in (
        (*tiny, "train.epochs=1"),
        (*tiny, "train.epochs=1", "data.flux_norm=none", "noise=homoscedastic"),
        (*base, "model=ridge"),
        (*base, "model=template", "noise=homoscedastic"),
    ):
        folders = [
            run(configured([*case], root, f"tracking.folder={tmp_path / root.name}")).folder for root in (masked, other)
        ]
        assert folders[0].name == folders[1].name
        for name in ("predictions.csv", "metrics.jsonl"):
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), (case, name)
        table = pd.read_csv(folders[0] / "predictions.csv")
        assert np.isfinite(table[["snr", "pred_log_g"]].to_numpy()).all()


@pytest.mark.parametrize("flux_norm", ["standard", "none"])
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_the_network_sees_the_mean_there_and_no_noise(
    flux_norm: str, storage: str, tiny: list[str], toy_sets: Path, masked: Path
) -> None:
    config = configured(tiny, masked, f"data.flux_norm={flux_norm}", f"data.storage={storage}")
    splits = open_splits(config, lambda *_: None)
    norm = fit_flux_norm(splits.train, flux_norm, config.noise, fills=splits.masked)
    train = train_data(config, splits, norm, torch.device("cpu"))
    assert isinstance(train, TrainData)
    rows_B = epoch_order(192, seed=config.train.seed, epoch=0, order="global")[32:48]
    masked_BP = torch.from_numpy(np.isnan(splits.train.gather(rows_B)[0]))
    flux_BP = train.batch(2).flux_BP
    assert norm.fill_P is not None
    expected_BP = torch.zeros(16, 256) if flux_norm == "standard" else norm.fill_P.expand(16, 256)
    assert masked_BP.any()
    assert torch.equal(flux_BP[masked_BP], expected_BP[masked_BP])
    plain = open_splits(configured(tiny, toy_sets, f"data.storage={storage}"), lambda *_: None)
    whole = train_data(config, plain, norm, torch.device("cpu")).batch(2).flux_BP  # the same noise elsewhere
    assert torch.equal(flux_BP[~masked_BP], whole[~masked_BP])


def test_statistics_are_over_the_other_pixels(masked: Path) -> None:
    view = open_spectra([masked / "train_0" / "dataset.h5"], -1)
    flux_NP, error_NP = (values.astype(np.float64) for values in view.gather(np.arange(96)))
    assert np.array_equal(np.isnan(flux_NP), np.isnan(error_NP))
    norm = fit_flux_norm(view, "standard", NoiseConfig(), fills=True)
    np.testing.assert_allclose(norm.mean_P, np.nanmean(flux_NP, axis=0), rtol=1e-6)
    power = np.nanvar(flux_NP, axis=0).mean() + np.nanmean(np.square(error_NP))
    assert norm.scale == pytest.approx(power**0.5, rel=1e-6)
    snr_N = np.nanmedian(flux_NP / error_NP, axis=1)
    np.testing.assert_allclose(signal_to_noise(view, NoiseConfig()), snr_N, rtol=1e-6)
    sigma = sigma_of(torch.from_numpy(error_NP), NoiseConfig(noise_type="homoscedastic"))
    lower_N = [np.sort(row[~np.isnan(row)])[((~np.isnan(row)).sum() - 1) // 2] for row in error_NP]
    assert sigma is not None
    np.testing.assert_array_equal(sigma[:, 0], lower_N)


@pytest.mark.slow
def test_masked_pixels_are_counted_in_banner_and_name_and_the_share_is_limited(
    tiny: list[str], masked: Path, toy_sets: Path, refused: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = open_splits(configured(tiny, masked), lambda *_: None)
    assert isinstance(splits.train, Spectra)
    assert splits.train.masked_N is not None
    count = int(splits.train.masked_N.sum())
    located = locate(configured(tiny, masked), lambda *_: None)
    assert located.identity["data"]["train"]["masked"] == count
    folder = run(configured(tiny, masked, f"tracking.folder={tmp_path / 'out'}", "train.epochs=1")).folder
    said = capsys.readouterr().out
    assert f"model sees the mean spectrum: {count:,} pixels of 96 of 192 training rows" in said
    assert evaluate.main([str(folder)]) == 0
    assert "note: masked pixels, in which the model sees the mean spectrum" in capsys.readouterr().out
    counts_N = open_spectra([masked / "train_0" / "dataset.h5"], -1).masked_N
    assert counts_N is not None
    rows = np.flatnonzero(counts_N > 25.6).tolist()
    said = refused([*tiny, f"data.root={masked}", "data.max_masked=0.1"])
    assert f"train_0/dataset.h5 row {rows[0]}: has " in said
    assert "% of its pixels masked, more than data.max_masked=0.1, and so have " in said
    plain = run(configured(tiny, toy_sets, f"tracking.folder={tmp_path / 'out'}", "train.epochs=1")).folder
    norms = [torch.load(path / "best.ckpt", weights_only=True) for path in (folder, plain)]
    assert ["flux_fill_P" in norm for norm in norms] == [True, False]


def test_a_pixel_beyond_those_that_the_file_counts_is_refused(masked: Path, refused: Any, tiny: list[str]) -> None:
    path = masked / "test" / "dataset.h5"
    assert inspect_file(path).faults == []
    assert any("note: masked pixels: " in note and note.endswith(", in 32 rows") for note in inspect_file(path).notes)
    with h5py.File(path, "r+") as file:
        file[FLUX][2, 5] = np.nan
    with pytest.raises(DataError, match=r"row 2: has 1 masked pixels, and dataset/masked_pixels says 0"):
        open_spectra([path], -1).gather(np.arange(8))
    assert "row 2: has 1 masked pixels" in refused([*tiny, f"data.root={masked}"])
    assert f"masked pixels are not as many as {MASKED} says in 1 row: 2" in inspect_file(path).faults


def test_convert_counts_pixels_that_a_run_would_refuse(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = sets / "val" / "dataset.h5"
    with h5py.File(source, "r+") as file:
        file[ERROR][1, 3] = 0.0
    assert data_cli.main(["convert", str(source), str(tmp_path / "zero.h5")]) == 0
    assert open_spectra([tmp_path / "zero.h5"], -1).masked_N is None
    with h5py.File(source, "r+") as file:
        file[FLUX][5, 7:9] = np.nan
    capsys.readouterr()
    assert data_cli.main(["convert", str(source), str(tmp_path / "new.h5")]) == 0
    assert "note: 3 pixels are masked" in capsys.readouterr().out
    view = open_spectra([tmp_path / "new.h5"], -1)
    assert view.masked_N is not None
    assert np.flatnonzero(view.masked_N).tolist() == [1, 5]
    assert data_cli.main(["convert", str(tmp_path / "new.h5"), str(tmp_path / "again.h5")]) == 0
    assert open_spectra([tmp_path / "again.h5"], -1).manifest(("log_g",)) == view.manifest(("log_g",))


def test_a_run_without_a_mean_spectrum_refuses_masked_pixels_later(
    tiny: list[str], toy_sets: Path, masked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = (f"tracking.folder={tmp_path / 'out'}", "train.epochs=1")
    file = str(masked / "test" / "dataset.h5")
    raw = run(configured(tiny, toy_sets, *keys, "data.flux_norm=none")).folder
    assert evaluate.main([str(raw), "--data", file]) == 2
    assert "row 1: has masked pixels, and the run kept no mean spectrum to fill them with" in capsys.readouterr().err
    centred = run(configured(tiny, toy_sets, *keys)).folder
    assert evaluate.main([str(centred), "--data", file]) == 0
    table = json.loads((centred / "evaluate-test-dataset" / "summary.json").read_text())
    assert np.isfinite(table["test_r2"])


@pytest.mark.slow
def test_a_run_that_is_stopped_ends_as_one_that_is_not(
    tiny: list[str], masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("data.flux_norm=none", "model.dropout=0.1", "train.epochs=3")
    whole = run(configured(tiny, masked, f"tracking.folder={tmp_path / 'whole'}", *keys)).folder
    calls = []

    def interrupts(_: SignalStop) -> bool:
        calls.append(None)
        if len(calls) == 18:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(SignalStop, "requested", interrupts)
    config = configured(tiny, masked, f"tracking.folder={tmp_path / 'stopped'}", *keys)
    stopped = run(config)
    assert not stopped.summary
    assert run(config).folder == stopped.folder
    assert len(calls) == 18 + 24  # resumed after the first epoch
    assert_same_run(stopped.folder, whole)
