"""What a batch holds is a function of the configuration and the step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_data import CLEAN, STEP_ROWS, eval_flux, train_data

from specvit.config.schema import NoiseConfig
from specvit.data.noise import fit_flux_norm
from specvit.data.shards import write_shard
from specvit.data.views import Spectra, open_spectra


@pytest.mark.parametrize(
    ("layout", "setting", "place"),
    [
        ("contiguous", "auto", "mapped from files"),
        ("chunked", "auto", "in memory"),
        ("chunked", "never", "read from chunked files (slow)"),
        ("mixed", "auto", "in memory"),
        ("shards", "never", "mapped from files"),
    ],
)
@pytest.mark.parametrize("order", ["global", "block"])
def test_a_batch_is_a_function_of_the_step_wherever_the_rows_lie(
    layout: str, setting: str, place: str, order: str, files: dict[str, list[Path]], spectra: Spectra
) -> None:
    noise = NoiseConfig()
    reference = train_data(spectra, noise=noise, order=order)
    expected = {step: reference.batch(step) for step in range(8)}
    data = train_data(open_spectra(files[layout], -1), noise=noise, order=order, resident=setting)
    assert data.store.location == place
    for step in (6, 0, 7, 3, 3):
        batch = data.batch(step)
        assert torch.equal(batch.flux_BP, expected[step].flux_BP)
        assert torch.equal(batch.target, expected[step].target)


def test_a_batch_holds_the_spectra_of_its_targets(spectra: Spectra) -> None:
    batch = train_data(spectra).batch(4)
    expected, _ = spectra.gather(batch.target.numpy())
    assert torch.equal(batch.flux_BP, torch.from_numpy(expected))


def test_an_epoch_holds_each_row_at_most_once_and_the_next_another_order(files: dict[str, list[Path]]) -> None:
    data = train_data(open_spectra(files["contiguous"], 75))
    assert data.steps_per_epoch == 4
    epochs = [torch.cat([data.batch(4 * epoch + step).target for step in range(4)]).tolist() for epoch in (0, 1)]
    for rows in epochs:
        assert len(set(rows)) == 64
    assert epochs[0] != epochs[1]


def test_half_precision_storage_differs_only_by_rounding(files: dict[str, list[Path]], spectra: Spectra) -> None:
    exact = train_data(spectra).batch(0).flux_BP
    for layout in ("contiguous", "chunked"):
        rounded = train_data(open_spectra(files[layout], -1), storage="float16").batch(0).flux_BP
        assert rounded.dtype == torch.float32
        assert not torch.equal(rounded, exact)
        torch.testing.assert_close(rounded, exact, rtol=2**-11, atol=0)


def test_flux_is_clipped_at_zero_before_the_noise(stars: Any, tmp_path: Path) -> None:
    made = stars(STEP_ROWS)
    made["flux_NP"][:, 5] = -3.0
    write_shard(tmp_path / "a.h5", **made)
    spectra = open_spectra([tmp_path / "a.h5"], -1)
    assert train_data(spectra).batch(0).flux_BP[:, 5].tolist() == [0.0] * STEP_ROWS
    assert train_data(spectra, noise=NoiseConfig()).batch(0).flux_BP[:, 5].min() < 0
    assert eval_flux(spectra, CLEAN)[:, 5].tolist() == [0.0] * STEP_ROWS
    assert fit_flux_norm(spectra, "standard", CLEAN).mean_P[5] == 0
