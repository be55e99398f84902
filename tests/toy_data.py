"""Small sets of spectra as the network sees them, with targets that tell which rows they are."""

from typing import Any

import torch

from specvit.config.schema import DataConfig, NoiseConfig
from specvit.data.batches import EvalData, SpectraStore, TrainData
from specvit.data.noise import FluxNorm
from specvit.data.views import Spectra

ROWS, PIXELS, STEP_ROWS = 80, 256, 16
CPU = torch.device("cpu")
CLEAN = NoiseConfig(noise_type="none")


def raw_norm(pixels: int = PIXELS) -> FluxNorm:
    return FluxNorm(torch.zeros(pixels), 1.0)


def train_data(spectra: Spectra, *, noise: NoiseConfig = CLEAN, order: str = "global", **data: Any) -> TrainData:
    """Return training data whose target is the number of the view's row and whose flux is not normalised."""
    store = SpectraStore(spectra, DataConfig(**data), CPU)
    rows = torch.arange(len(spectra))
    norm = raw_norm(spectra.num_pixels)
    return TrainData(store, rows, norm, noise, order=order, seed=3, step_rows=STEP_ROWS)


def eval_flux(spectra: Spectra, noise: NoiseConfig, split: str = "val") -> torch.Tensor:
    """Return the noisy, not normalised flux of a whole evaluation view."""
    store = SpectraStore(spectra, DataConfig(), CPU)
    data = EvalData(store, torch.zeros(len(spectra)), raw_norm(spectra.num_pixels), noise, split)
    return torch.cat([batch.flux_BP for batch in data.batches()])
