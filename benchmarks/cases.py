"""What is timed and checked: two sizes of the network, a training view over a real file, and specvit's own learner."""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from specvit.config.schema import DataConfig, LossConfig, NetworkConfig, NoiseConfig, OptConfig, TrainConfig, ViTConfig
from specvit.data.batches import SpectraStore, TrainData
from specvit.data.labels import LabelScaler
from specvit.data.noise import FluxNorm
from specvit.data.shards import open_shards
from specvit.data.synthetic import SyntheticSpectra
from specvit.data.synthetic_batches import SyntheticTrainData
from specvit.data.views import Spectra
from specvit.models import ViT, build_model
from specvit.training.device import build_scaler, resolve_precision
from specvit.training.optimizer import build_optimizer
from specvit.training.schedule import build_schedule
from specvit.training.state import TrainState
from specvit.training.step import Learner
from specvit.training.task import Regression
from specvit.utils.quantities import ERROR, FLUX, NUM_PIXELS, WAVE

SMALL = ViTConfig(
    patch_size=64,
    stride_size=64,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=256,
    dropout=0.1,
)
"""The demonstration's size, with dropout."""
REFERENCE = ViTConfig()
ROWS = 8192


@dataclass(frozen=True)
class Case:
    """A network, its batch and the number format of its forward pass."""

    name: str
    model: NetworkConfig
    batch_size: int
    precision: str = "auto"
    optimizer: str = "AdamW"
    accumulate: int = 1
    checkpoint_blocks: bool = False


def train_data(
    path: Path, batch_size: int, device: torch.device, *, rows: int = ROWS, resident: str = "auto"
) -> TrainData:
    """Return a real training view over a file of random spectra, which is made if it is not there."""
    if not path.exists():
        rng = np.random.default_rng(0)
        with h5py.File(path, "w") as file:
            file[WAVE] = np.linspace(7100.0, 8850.0, NUM_PIXELS)
            file[FLUX] = rng.normal(0.5, 0.05, (rows, NUM_PIXELS)).astype(np.float32)
            file[ERROR] = np.full((rows, NUM_PIXELS), 0.05, dtype=np.float32)
    store = SpectraStore(Spectra(open_shards([path]), np.arange(rows)), DataConfig(resident=resident), device)
    return TrainData(
        store=store,
        targets=torch.randn(rows, 1, generator=torch.Generator().manual_seed(0)).to(device),
        flux_norm=FluxNorm(torch.full((NUM_PIXELS,), 0.5), 0.07).to(device),
        noise=NoiseConfig(),
        order="global",
        seed=1,
        step_rows=batch_size,
    )


def made_data(rows: int, device: torch.device) -> SyntheticTrainData:
    """Return a training view of `rows` clean spectra that are made on the device, as they are."""
    return SyntheticTrainData(
        spectra=SyntheticSpectra(np.arange(rows), seed=0, split="train", max_redshift=0.001),
        coder=LabelScaler(("log_g",), (0.0,), (1.0,)),
        data=DataConfig(kind="synth"),
        flux_norm=FluxNorm(torch.zeros(NUM_PIXELS), 1.0).to(device),
        noise=NoiseConfig(noise_type="none"),
        seed=1,
        step_rows=rows // 2,
        device=device,
    )


def make_learner(case: Case, data: TrainData, device: torch.device) -> tuple[Learner, TrainState]:
    """Return a learner and its state as `specvit train` builds them."""
    train = TrainConfig(batch_size=case.batch_size, precision=case.precision, accumulate=case.accumulate)
    precision, opt = resolve_precision(case.precision, device), OptConfig(type=case.optimizer)
    model = build_model(case.model, num_pixels=NUM_PIXELS, num_outputs=1, seed=1).to(device)
    if isinstance(model, ViT):
        model.checkpoint_blocks = case.checkpoint_blocks
    learner = Learner(
        module=model,
        task=Regression(LossConfig(), ("log_g",), (0.0,), (1.0,)),
        optimizer=build_optimizer(model, {name: part for name, part in model.parts().items() if part}, opt),
        scaler=build_scaler(precision, device),
        schedule=build_schedule(opt, epochs=10**6, steps_per_epoch=data.steps_per_epoch),
        train=train,
        precision=precision,
        device=device,
    )
    state = TrainState()
    state.start_sums(task=Regression.num_sums, norms=len(learner.optimizer.parts) + 1, device=device)
    return learner, state
