"""Training spectra that are made as they are needed are those of `data=builtin`, and a run on them is exact, too."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from planted import At, OnceWritten, Stop
from toy_data import CLEAN, CPU, raw_norm
from whole_runs import STEADY, assert_same_run, only_run, same_content

from specvit.commands import evaluate
from specvit.commands.track import runs_in
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.schema import Config, DataConfig, NoiseConfig
from specvit.data.labels import ClassCoder, LabelScaler
from specvit.data.splits import is_synthetic, open_split, open_splits
from specvit.data.synthetic import PIECE_ROWS, SyntheticSpectra
from specvit.data.synthetic_batches import SyntheticTrainData
from specvit.physics.population import draw_stars
from specvit.run.run import run
from specvit.tracking.run_record import read_record
from specvit.training import checkpoint

ROWS, STEP_ROWS = 40, 16
STARS = SyntheticSpectra(np.arange(ROWS), seed=5, split="train", max_redshift=0.0)
PARAM = ("T_eff", "log_g")
UNCHANGED = LabelScaler(PARAM, (0.0, 0.0), (1.0, 1.0))
ALL_ON = NoiseConfig(noise_level=1.0)


def silent(*progress: object) -> None:
    """Report nothing."""


def made_data(
    spectra: SyntheticSpectra = STARS, noise: NoiseConfig = ALL_ON, *, endless: bool = False
) -> SyntheticTrainData:
    """Return training data whose targets are labels as they are, and whose flux is not normalised."""
    data = DataConfig(kind="synth", param=PARAM, endless=endless)
    norm = raw_norm(spectra.num_pixels)
    return SyntheticTrainData(spectra, UNCHANGED, data, norm, noise, seed=3, step_rows=STEP_ROWS, device=CPU)


def config_of(*overrides: str) -> Config:
    return build_config(compose(["data.num_samples=40", "train.batch_size=16", *overrides]))


def labels_seen(data: SyntheticTrainData, epochs: int) -> list[np.ndarray]:
    """Return the labels (rows, K) that each epoch trains on."""
    steps = range(data.steps_per_epoch)
    return [
        np.concatenate([data.batch(epoch * len(steps) + step).target.numpy() for step in steps])
        for epoch in range(epochs)
    ]


# the spectra


@pytest.mark.parametrize(
    ("split", "redshift", "prior"),
    [("train", 0.0, "uniform"), ("val", 0.001, "uniform"), ("train", 0.0, "published"), ("val", 0.0, "published")],
)
def test_made_spectra_are_those_of_the_built_in_set(split: str, redshift: float, prior: str) -> None:
    settings = ["data.builtin_seed=5", f"data.max_redshift={redshift}", "data.val_samples=40"]
    settings += [f"data.label_prior={prior}"]
    made, filed = (
        open_split(config_of(f"data={kind}", *settings).data, split, silent) for kind in ("synth", "builtin")
    )
    assert isinstance(made, SyntheticSpectra)
    index_B = np.array([39, 0, 7, 7, 21])
    for ours, theirs in zip(made.gather(index_B), filed.gather(index_B), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == np.float32
    np.testing.assert_array_equal(made.wave_P, filed.wave_P)
    assert set(filed.labels().columns) - set(made.labels().columns) == {"snr"}
    pd.testing.assert_frame_equal(made.labels(), filed.labels()[list(made.labels().columns)])
    assert (np.ptp(made.label_values(["redshift"])) > 0) == bool(redshift)
    on_nodes = np.isclose(made.label_values(["log_g"]) % 0.5, 0).mean()
    assert (on_nodes > 0.5) == (prior == "published")
    later = made.offset_by(1000)
    expected_NS = draw_stars(5, split, made.rows_N + 1000, max_redshift=redshift, label_prior=prior)
    np.testing.assert_array_equal(later.stars_NS, expected_NS)


def test_spectra_that_are_kept_are_those_that_are_made_again() -> None:
    rows, star = np.arange(PIECE_ROWS + 5), {"seed": 1, "split": "test", "max_redshift": 0.0}
    kept, again = (SyntheticSpectra(rows, **star, keep=keep) for keep in (True, False))
    assert (kept.contiguous, again.contiguous) == (True, False)
    for index_B in (rows, rows[30:60], rows[[254, 3, 251, 3]]):
        for ours, theirs in zip(kept.gather(index_B), again.gather(index_B), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_million_stars_cost_no_spectrum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SyntheticSpectra, "_simulate", None)
    started = time.perf_counter()
    view = open_split(config_of("data=synth", "data/size=1m", "data.num_samples=1000000").data, "train", silent)
    assert view.label_values(("log_g",)).shape == (1_000_000, 1)
    assert time.perf_counter() - started < 10
    assert isinstance(view, SyntheticSpectra)
    assert view.stars_NS.nbytes == 64_000_000
    assert not SyntheticSpectra(np.arange(1_000_000), seed=0, split="test", max_redshift=0.0, keep=True).keep


def test_a_file_given_for_a_split_is_taken_whole(toy_sets: Path) -> None:
    data = config_of("data=synth", f"data.test_path={toy_sets / 'test' / 'dataset.h5'}", "data.test_samples=3").data
    assert [is_synthetic(data, split) for split in ("train", "val", "test")] == [True, True, False]
    assert len(open_split(data, "test", silent)) == 64


# batches


@pytest.mark.parametrize("endless", [False, True])
@pytest.mark.parametrize("noise", [ALL_ON, CLEAN], ids=["noise", "clean"])
def test_a_batch_is_a_function_of_the_step_alone(endless: bool, noise: NoiseConfig) -> None:
    data = made_data(noise=noise, endless=endless)
    in_sequence = [data.batch(step) for step in range(6)]
    for step in (5, 0, 3):
        fresh = made_data(noise=noise, endless=endless).batch(step)
        assert torch.equal(fresh.flux_BP, in_sequence[step].flux_BP)
        assert torch.equal(fresh.target, in_sequence[step].target)
    assert torch.equal(data.batch(1).flux_BP, in_sequence[1].flux_BP)  # and back again


def test_a_batch_holds_the_spectra_of_its_targets() -> None:
    batch = made_data(noise=CLEAN).batch(1)
    labels_NK = STARS.label_values(PARAM).astype(np.float32)
    index_B = np.array([int(np.flatnonzero((labels_NK == target).all(axis=1))[0]) for target in batch.target.numpy()])
    flux_BP, _ = STARS.gather(index_B)
    np.testing.assert_allclose(batch.flux_BP.numpy(), np.clip(flux_BP, 0.0, None), rtol=1e-6)
    assert not batch.flux_BP.requires_grad


@pytest.mark.parametrize("redshift", [0.0, 0.001])
def test_a_batch_is_made_without_waiting_for_the_device(redshift: float) -> None:
    """On the device without content whatever asks for a value is an error."""
    nowhere = torch.device("meta")
    stars = SyntheticSpectra(np.arange(ROWS), seed=5, split="train", max_redshift=redshift)
    data = DataConfig(kind="synth", param=PARAM)
    norm = raw_norm(stars.num_pixels).to(nowhere)
    batch = SyntheticTrainData(stars, UNCHANGED, data, norm, CLEAN, seed=3, step_rows=STEP_ROWS, device=nowhere).batch(
        0
    )
    assert (batch.flux_BP.device, batch.flux_BP.shape) == (nowhere, (STEP_ROWS, 4096))


def test_every_epoch_of_a_fixed_set_has_the_same_stars_in_another_order() -> None:
    stars = SyntheticSpectra(np.arange(2 * STEP_ROWS), seed=5, split="train", max_redshift=0.0)
    first, second = labels_seen(made_data(stars, CLEAN), epochs=2)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(np.unique(first, axis=0), np.unique(second, axis=0))


def test_endless_epochs_never_repeat_a_star() -> None:
    epochs = labels_seen(made_data(noise=CLEAN, endless=True), epochs=4)
    steps = ROWS // STEP_ROWS
    assert len(np.unique(np.concatenate(epochs), axis=0)) == 4 * steps * STEP_ROWS
    later = SyntheticSpectra(np.arange(ROWS, 2 * ROWS), seed=5, split="train", max_redshift=0.0).label_values(PARAM)
    assert {tuple(row) for row in epochs[1]} <= {tuple(row) for row in later.astype(np.float32)}
    fixed = labels_seen(made_data(noise=CLEAN), epochs=1)
    np.testing.assert_array_equal(epochs[0], fixed[0])  # they begin alike


def test_classes_of_stars_that_come_later_are_those_of_their_labels() -> None:
    coder = ClassCoder(("log_g",), edges=(2.0, 4.0))
    data = DataConfig(kind="synth", param=("log_g",), class_edges=(2.0, 4.0), endless=True)
    made = SyntheticTrainData(STARS, coder, data, raw_norm(4096), CLEAN, seed=3, step_rows=STEP_ROWS, device=CPU)
    target = made.batch(2 * made.steps_per_epoch).target
    assert target.dtype == torch.int64
    assert set(target.tolist()) == {0, 1, 2}


def test_the_scaler_of_labels_is_that_of_the_first_epoch() -> None:
    plain = ["data=synth", "data.val_samples=8", "data.test_samples=8"]
    fixed, endless = (
        open_splits(config_of(*plain, f"data.endless={value}"), silent).coder for value in ("false", "true")
    )
    assert fixed == endless


# whole runs


@pytest.fixture(scope="module")
def small(tiny: list[str]) -> list[str]:
    """Return the overrides of a run on made spectra that trains in seconds."""
    model = [word for word in tiny if not word.startswith("data")]
    sizes = ["data.num_samples=96", "data.val_samples=24", "data.test_samples=32"]
    return ["data=synth", *sizes, *model]


@pytest.mark.slow
@pytest.mark.parametrize("endless", ["false", "true"])
def test_a_run_killed_in_an_epoch_ends_bitwise_equal(
    endless: str, trained: Any, unbroken: Callable[[list[str]], Path], small: list[str], tmp_path: Path
) -> None:
    words = [*small, *STEADY, f"data.endless={endless}", "data.max_redshift=0.001"]
    arguments = [*words, f"tracking.folder={tmp_path / 'runs'}"]
    kill = At("specvit.training.step.Learner.step", OnceWritten(Stop(signal.SIGKILL)), call=15)
    assert trained(arguments, kill).code == -signal.SIGKILL
    again = trained(arguments)
    assert again.code == 0, again.said
    assert "resuming from step 12 (epoch 2)" in again.said
    assert_same_run(only_run(tmp_path / "runs"), unbroken(words))


@pytest.mark.slow
def test_a_run_from_the_command_line_says_what_it_trains_on_and_can_be_evaluated(
    small: list[str], tmp_path: Path
) -> None:
    words = [*small, "data.endless=true", "data.param=T_eff,log_g", f"tracking.folder={tmp_path / 'runs'}"]
    command = [sys.executable, "-m", "specvit.train", *words, "train.threads=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "synthetic spectra, made on the device as it trains, from a physical model (data=synth)" in done.stdout
    assert "96 training spectra, made on cpu as they are needed, new ones each epoch; 6 steps" in done.stdout
    folder = only_run(tmp_path / "runs")
    table = pd.read_csv(folder / "predictions.csv")
    assert (table["file"] == "synth/test").all()
    assert table["row"].tolist() == list(range(32))
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["data"], summary["test_rows"]) == ("synth", 32)
    (found,) = runs_in([tmp_path / "runs"])
    record = read_record(found)
    assert (record.tags["data"], record.tags["rows"], record.params["data.endless"]) == ("synth", "96", "true")
    assert record.notes.startswith("Data: synthetic spectra, made by specvit as it trained")
    assert evaluate.main([str(folder)]) == 0
    assert (folder / "evaluate-test" / "predictions.csv").read_bytes() == (folder / "predictions.csv").read_bytes()
    assert "finished already" in subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.mark.slow
def test_where_validation_spectra_lie_changes_nothing(small: list[str], tmp_path: Path) -> None:
    kept, made = (
        run(build_config(compose([*small, *STEADY, f"data.resident={place}", f"tracking.folder={tmp_path / place}"])))
        for place in ("auto", "never")
    )
    assert kept.folder.name == made.folder.name
    for name in ("metrics.jsonl", "predictions.csv"):
        assert (kept.folder / name).read_bytes() == (made.folder / name).read_bytes()


@pytest.mark.slow
def test_a_run_on_made_spectra_scores_as_one_on_the_same_spectra_in_files(small: list[str], tmp_path: Path) -> None:
    words = [*small, *STEADY, "data.param=log_g"]
    results = [
        run(build_config(compose([f"data={kind}", *words[1:], f"tracking.folder={tmp_path / kind}"])))
        for kind in ("synth", "builtin")
    ]
    made, filed = (checkpoint.load(result.folder / "best.ckpt") for result in results)
    assert same_content(made["coder"], filed["coder"])
    assert torch.equal(made["flux_mean_P"], filed["flux_mean_P"])
    ours, theirs = (result.summary["test_mae"] for result in results)
    assert ours == pytest.approx(theirs, rel=1e-2)
