"""Flux that is marked as observed: neither clipped at 0 nor noised again, in training, evaluation and prediction.

Legend: N rows, P pixels.
"""

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from specvit.commands import evaluate, predict
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.schema import Config
from specvit.data.batches import TrainData, eval_data, signal_to_noise
from specvit.data.inspect import inspect_file
from specvit.data.noise import FluxNorm, fit_flux_norm
from specvit.data.shards import write_shard
from specvit.data.splits import open_splits
from specvit.data.views import epoch_order, open_spectra
from specvit.run.context import locate
from specvit.run.run import run
from specvit.run.train_network import train_data
from specvit.utils.errors import DataError
from specvit.utils.quantities import FLUX

WAVE_P = 7100 + 0.5 * np.arange(64)
NAMES = ("train_0", "train_1", "val", "test")


def mark(*paths: Path, value: Any = True) -> None:
    for path in paths:
        with h5py.File(path, "r+") as file:
            file[FLUX].attrs["observed"] = value


@pytest.fixture
def faint(tmp_path: Path) -> Path:
    """Return sets whose label is the height of the flux, far below its errors; that of the test set has them in it."""
    root = tmp_path / "faint"
    for number, (name, rows) in enumerate({"train_0": 1500, "train_1": 500, "val": 500, "test": 1000}.items()):
        rng = np.random.default_rng(number)
        label_N = rng.uniform(1, 5, rows)
        flux_NP = 0.01 * label_N[:, None] * np.ones(64)
        flux_NP += rng.normal(0, 0.1, flux_NP.shape) if name == "test" else 0
        labels = pd.DataFrame({"log_g": label_N})
        path = root / name / "dataset.h5"
        write_shard(path, wave_P=WAVE_P, flux_NP=flux_NP, error_NP=np.full_like(flux_NP, 0.1), labels=labels)
    return root


@pytest.fixture
def marked(sets: Path) -> Path:
    """Return the toy sets, all marked as observed, with some flux below 0."""
    for name in NAMES:
        with h5py.File(sets / name / "dataset.h5", "r+") as file:
            file[FLUX][:, 10:14] = -0.2
    mark(*(sets / name / "dataset.h5" for name in NAMES))
    return sets


def configured(tiny: list[str], root: Path, *more: str) -> Config:
    return build_config(compose([*tiny, f"data.root={root}", *more]))


def in_standard_errors(error_N: Any) -> float:
    """Return the size of the mean error over its standard error."""
    return float(abs(np.mean(error_N)) / (np.std(error_N, ddof=1) / np.sqrt(len(error_N))))


def test_predictions_for_faint_observed_spectra_are_unbiased(tiny: list[str], faint: Path, tmp_path: Path) -> None:
    """A model of clean flux with noise meets flux like that in observed spectra, of which many pixels are below 0."""
    base = [text for text in tiny if not text.startswith("model.")]
    bias = {}
    mark(faint / "test" / "dataset.h5")
    for observed in (False, True):
        more = ("model=ridge", f"tracking.folder={tmp_path / str(observed)}")
        more = more if observed else (*more, "data.observed=false")
        folder = run(configured(base, faint, *more)).folder
        table = pd.read_csv(folder / "predictions.csv")
        bias[observed] = in_standard_errors(table.pred_log_g - table.true_log_g)
    assert bias[True] < 3
    assert bias[False] > 10
    test = open_spectra([faint / "test" / "dataset.h5"], -1)
    flux_NP, label_N = test.gather(np.arange(1000))[0], test.label_values(["log_g"])[:, 0]
    assert (flux_NP < 0).mean() > 0.3
    for name, seen_NP in (("as observed", flux_NP), ("clipped", np.maximum(flux_NP, 0))):
        np.savez(tmp_path / "faint.npz", wave=WAVE_P, flux=seen_NP)
        words = [folder, tmp_path / "faint.npz", "--out", tmp_path / "out.csv", "--no-normalise"]
        assert predict.main(list(map(str, words))) == 0
        bias[name] = in_standard_errors(pd.read_csv(tmp_path / "out.csv")["log_g"] - label_N)
    assert bias["as observed"] == pytest.approx(bias[True], rel=1e-3) and bias["clipped"] > 10


def test_training_and_evaluation_see_the_flux_as_it_is(tiny: list[str], marked: Path) -> None:
    config = configured(tiny, marked, "data.flux_norm=none")
    splits = open_splits(config, lambda *_: None)
    norm = FluxNorm(torch.zeros(256), 1.0)
    train = train_data(config, splits, norm, torch.device("cpu"))
    assert isinstance(train, TrainData)
    rows_B = epoch_order(192, seed=config.train.seed, epoch=0, order="global")[48:64]
    assert torch.equal(train.batch(3).flux_BP, torch.from_numpy(splits.train.gather(rows_B)[0]))
    assert train.batch(3).flux_BP.min() < -0.1
    val = eval_data(splits.val, "val", config, splits.coder, norm, torch.device("cpu"))
    assert torch.equal(next(val.batches()).flux_BP, torch.from_numpy(splits.val.gather(np.arange(48))[0]))
    flux_NP = splits.train.gather(np.arange(192))[0].astype(np.float64)
    fitted = fit_flux_norm(splits.train, "standard", config.noise)
    np.testing.assert_allclose(fitted.mean_P, flux_NP.mean(0), rtol=1e-6)
    assert fitted.scale == pytest.approx(flux_NP.var(axis=0).mean() ** 0.5)


def test_signal_to_noise_is_that_of_the_own_errors(tiny: list[str], marked: Path) -> None:
    view = open_spectra([marked / "test" / "dataset.h5"], -1)
    flux_NP, error_NP = view.gather(np.arange(64))
    own_N = np.median(flux_NP / error_NP, axis=1)
    for more, factor in (((), 1), (("noise=none",), 1), (("noise.on_observed=add", "noise.noise_level=2"), 5**0.5)):
        noise = configured(tiny, marked, *more).noise
        np.testing.assert_allclose(signal_to_noise(view, noise), own_N / factor, rtol=1e-6)


@pytest.mark.slow
def test_the_mark_and_its_override_decide_which_run_it_is(tiny: list[str], marked: Path, tmp_path: Path) -> None:
    plain = Path(shutil.copytree(marked, tmp_path / "plain"))
    mark(*(plain / name / "dataset.h5" for name in NAMES), value=False)

    def run_id(root: Path, *more: str) -> str:
        return locate(configured(tiny, root, *more), lambda *_: None).folder.run_id

    assert run_id(plain) == run_id(plain, "data.observed=false") == run_id(marked, "data.observed=false")
    assert (
        run_id(marked) == run_id(marked, "data.observed=true") == run_id(plain, "data.observed=true") != run_id(plain)
    )
    assert run_id(marked, "noise.on_observed=add") not in (run_id(marked), run_id(plain))


def test_templates_are_weighed_by_the_own_errors_of_observed_spectra(
    tiny: list[str], marked: Path, tmp_path: Path
) -> None:
    mark(*(marked / name / "dataset.h5" for name in NAMES[:2]), value=False)
    base = [text for text in tiny if not text.startswith("model.")]
    tables = []
    for level in (0.5, 2):
        keys = ("model=template", f"noise.noise_level={level}", f"tracking.folder={tmp_path / str(level)}")
        tables.append(pd.read_csv(run(configured(base, marked, *keys)).folder / "predictions.csv"))
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.slow
def test_what_has_no_effect_or_is_unclear_is_refused(
    tiny: list[str], marked: Path, refused: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*tiny, f"data.root={marked}", f"tracking.folder={tmp_path / 'out'}", "train.epochs=1"]
    said = refused([*arguments, "noise.noise_level=2"])
    assert "noise.noise_level: is 2, but all flux is observed, which gets no further noise" in said
    said = refused([*arguments, "data.observed=false", "noise.on_observed=add"])
    assert "noise.on_observed: is add, but no flux is marked as observed" in said
    assert "data.observed: is set, but every spectrum is made by specvit" in refused(["data.observed=true"])
    folder = run(build_config(compose(arguments))).folder
    said = capsys.readouterr().out
    assert "note: observed flux (training, validation, test set): no noise is added, and it is not clipped at 0" in said
    assert evaluate.main([str(folder), "--noise", "0.5,1"]) == 2
    assert "--noise: has no effect: the flux is marked as observed" in capsys.readouterr().err
    assert evaluate.main([str(folder)]) == 0
    assert "note: the flux is observed" in capsys.readouterr().out
    path = marked / "train_0" / "dataset.h5"
    assert any("marked as observed" in note for note in inspect_file(path).notes)
    mark(path, value=False)
    assert "is marked as observed, and " in refused(arguments)
    mark(path, value="yes")
    with pytest.raises(DataError, match="neither true nor false"):
        open_spectra([path], -1)
