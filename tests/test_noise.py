"""Noise, and the normalisation of flux that has it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_data import CLEAN, CPU, PIXELS, ROWS, STEP_ROWS, eval_flux, raw_norm, train_data

from specvit.config.schema import DataConfig, NoiseConfig
from specvit.data import batches as resident
from specvit.data.batches import EvalData, SpectraStore, signal_to_noise
from specvit.data.noise import evaluation_noise, fit_flux_norm
from specvit.data.shards import write_shard
from specvit.data.views import Spectra, open_spectra


@pytest.mark.parametrize("noise", [CLEAN, NoiseConfig(noise_level=0.0)])
def test_the_error_array_never_reaches_the_network(noise: NoiseConfig, stars: Any, tmp_path: Path) -> None:
    for factor in (1, 50):
        made = stars(STEP_ROWS)
        write_shard(tmp_path / f"{factor}.h5", **made | {"error_NP": factor * made["error_NP"]})
    one, other = (open_spectra([tmp_path / f"{factor}.h5"], -1) for factor in (1, 50))
    assert not np.array_equal(one.gather(np.arange(3))[1], other.gather(np.arange(3))[1])
    assert torch.equal(train_data(one, noise=noise).batch(0).flux_BP, train_data(other, noise=noise).batch(0).flux_BP)
    assert torch.equal(eval_flux(one, noise), eval_flux(other, noise))
    norms = [fit_flux_norm(view, "standard", noise) for view in (one, other)]
    assert norms[0].scale == norms[1].scale


def residual_of(spectra: Spectra, noise: NoiseConfig, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noise (N, P) as it was added, and the error array of the same rows."""
    if split != "train":
        flux_NP, error_NP = map(torch.from_numpy, spectra.gather(np.arange(len(spectra))))
        return eval_flux(spectra, noise, split) - flux_NP, error_NP
    data = train_data(spectra, noise=noise)
    batches = [data.batch(step) for step in range(data.steps_per_epoch)]
    rows = torch.cat([batch.target for batch in batches]).numpy()
    flux_NP, error_NP = map(torch.from_numpy, spectra.gather(rows))
    return torch.cat([batch.flux_BP for batch in batches]) - flux_NP, error_NP


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("level", [0.5, 2.0])
@pytest.mark.parametrize("kind", ["heteroscedastic", "homoscedastic"])
def test_noise_has_the_sigma_that_was_asked_for(split: str, level: float, kind: str, spectra: Spectra) -> None:
    noise_NP, error_NP = residual_of(spectra, NoiseConfig(noise_level=level, noise_type=kind), split)
    if kind == "homoscedastic":
        error_NP = error_NP.median(dim=1, keepdim=True).values
    unit_NP = noise_NP / (level * error_NP)
    for half in (unit_NP[:, : PIXELS // 2], unit_NP[:, PIXELS // 2 :]):
        assert half.std().item() == pytest.approx(1.0, abs=0.03)
        assert half.mean().item() == pytest.approx(0.0, abs=0.05)


def test_training_noise_is_fresh_in_every_step(stars: Any, tmp_path: Path) -> None:
    write_shard(tmp_path / "a.h5", **stars(STEP_ROWS))  # one step an epoch: the same rows each time
    spectra = open_spectra([tmp_path / "a.h5"], -1)
    data = train_data(spectra, noise=NoiseConfig())
    seen = []
    for step in range(3):
        batch = data.batch(step)
        flux_BP, error_BP = map(torch.from_numpy, spectra.gather(batch.target.numpy()))
        unit_BP = (batch.flux_BP - flux_BP) / error_BP
        seen.append(unit_BP[batch.target.argsort()].flatten())
    correlation = torch.corrcoef(torch.stack(seen))
    assert correlation.fill_diagonal_(0).abs().max() < 0.06


def test_evaluation_noise_belongs_to_the_row(
    files: dict[str, list[Path]], spectra: Spectra, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = eval_flux(spectra, NoiseConfig())
    assert torch.equal(eval_flux(open_spectra(files["mixed"], 13), NoiseConfig()), whole[:13])
    subset = open_spectra(files["shards"], 20, subset="random", seed=4)
    assert torch.equal(eval_flux(subset, NoiseConfig()), whole[subset.rows_N])
    monkeypatch.setattr(resident, "EVAL_BATCH", 7)
    assert torch.equal(eval_flux(spectra, NoiseConfig()), whole)


def test_evaluation_noise_is_another_for_another_row_split_or_seed() -> None:
    rows = np.array([4, 5])
    unit = evaluation_noise(rows, 50, seed=42, split="val")
    assert np.array_equal(evaluation_noise(rows[1:], 50, seed=42, split="val")[0], unit[1])
    others = [evaluation_noise(rows, 50, seed=s, split=n)[0] for s, n in ((42, "test"), (43, "val"))]
    for other in (unit[1], *others):
        assert not np.isclose(other, unit[0]).any()


def test_an_evaluation_set_is_the_same_each_time_it_is_read(spectra: Spectra) -> None:
    data = EvalData(SpectraStore(spectra, DataConfig(), CPU), torch.arange(ROWS), raw_norm(), NoiseConfig(), "val")
    first, second = (torch.cat([batch.flux_BP for batch in data.batches()]) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.cat([batch.target for batch in data.batches()]), torch.arange(ROWS))


def test_signal_to_noise_is_the_median_of_flux_over_error_a_level(spectra: Spectra, stars: Any) -> None:
    made = stars(ROWS)
    expected = np.median(made["flux_NP"] / made["error_NP"], axis=1)
    np.testing.assert_allclose(signal_to_noise(spectra, NoiseConfig(noise_level=2.0)), expected / 2, rtol=1e-5)
    assert np.isinf(signal_to_noise(spectra, CLEAN)).all()


@pytest.mark.parametrize("level", [0.0, 1.0, 20.0])
def test_the_networks_input_has_mean_zero_and_unit_power(level: float, spectra: Spectra) -> None:
    noise = NoiseConfig(noise_level=level)
    data = replace(train_data(spectra, noise=noise), flux_norm=fit_flux_norm(spectra, "standard", noise))
    flux_NP = torch.cat([data.batch(step).flux_BP for step in range(data.steps_per_epoch)])
    assert flux_NP.mean().item() == pytest.approx(0.0, abs=0.02)
    assert flux_NP.square().mean().item() == pytest.approx(1.0, abs=0.03)


def test_the_mean_spectrum_is_that_of_all_training_rows(stars: Any, tmp_path: Path) -> None:
    made = stars(1500, pixels=16)
    write_shard(tmp_path / "a.h5", **made)
    norm = fit_flux_norm(open_spectra([tmp_path / "a.h5"], -1), "standard", CLEAN)
    np.testing.assert_allclose(norm.mean_P, made["flux_NP"].mean(axis=0), rtol=1e-6)
    assert norm.scale == pytest.approx(np.sqrt(made["flux_NP"].var(axis=0).mean()), rel=1e-5)
