"""What a checkpoint becomes: a trained model with all that it needs to read spectra and to speak in label units."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from specvit.config.schema import Config, LightGBMConfig, NetworkConfig, RidgeConfig, TemplateConfig
from specvit.data.batches import EvalData, Store
from specvit.data.labels import LabelScaler, TargetCoder, coder_from_dict
from specvit.data.noise import FluxNorm
from specvit.data.shards import same_wavelengths
from specvit.data.splits import open_split, split_manifest
from specvit.data.views import SpectraView
from specvit.models import build_model
from specvit.training import checkpoint
from specvit.training.task import Classification, Regression
from specvit.utils.errors import CheckpointError, DataError

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Predictor:
    """A model (normalised flux -> normalised labels), in evaluation mode, and the statistics of its training."""

    model: nn.Module
    coder: TargetCoder
    flux_norm: FluxNorm
    wave_P: np.ndarray
    epoch: int
    config: Config

    def check_pixels(self, spectra: SpectraView) -> None:
        """Raise `DataError` unless the spectra lie on the pixels that the run was trained on."""
        wave_P = self.wave_P
        if same_wavelengths(spectra.wave_P, wave_P):
            return
        what = f"has {spectra.num_pixels} pixels a spectrum, the run was trained on {len(wave_P)}"
        if spectra.num_pixels == len(wave_P):
            what = (
                f"starts at {spectra.wave_P[0]:.2f} Å, the run's spectra at {wave_P[0]:.2f} Å, or is spaced otherwise"
            )
        raise DataError(what, where=spectra.origins()[0][0], remedy="resample it to the training set's pixels")


PARTS: dict[type, checkpoint.Parts] = {
    RidgeConfig: {"model.weight": torch.Tensor, "model.bias": torch.Tensor},
    LightGBMConfig: {"model.text": str},
    TemplateConfig: {"model.manifest": dict},
}
"""What a model that was fitted in one go is saved as."""


def load_predictor(path: Path, config: Config, device: torch.device, run_id: str) -> Predictor:
    """Return the model of a run's best checkpoint.

    Raises `CheckpointError` for one that is damaged, incomplete or another run's, and `DataError` for lost templates.
    """
    content, coder = _read(path, config, run_id)
    flux_norm = FluxNorm(content["flux_mean_P"], content["flux_scale"])
    sizes = {"num_pixels": len(flux_norm.mean_P), "num_outputs": coder.num_outputs}
    if isinstance(config.model, NetworkConfig):
        model: nn.Module = build_model(config.model, **sizes, seed=0)
        fill(model, content["model"], str(path))
    else:
        model = _fitted(config, content["model"], coder, device, str(path))
    wave_P = content["wave_P"].numpy()
    return Predictor(model.to(device).eval(), coder, flux_norm.to(device), wave_P, content["epoch"], config)


def _read(path: Path, config: Config, run_id: str) -> tuple[dict[str, Any], TargetCoder]:
    """Return a checkpoint's content and its coder, all of it checked but a network's weights."""
    content, where, again = checkpoint.load(path), str(path), "train again from the beginning with train.rerun=true"
    checkpoint.check_parts(content, {**checkpoint.BEST, **PARTS.get(type(config.model), {})}, where)
    if content["run_id"] != run_id:
        what = f"belongs to run {content['run_id']}, and this is {run_id}"
        raise CheckpointError(what, where=where, remedy="put its own back, or train again with train.rerun=true")
    try:
        coder = coder_from_dict(content["coder"])
    except ValueError as problem:
        raise CheckpointError(f"has no sound coder ({problem})", where=where, remedy=again) from problem
    shape, model = content["flux_mean_P"].shape, content["model"]
    shapes = {"wave_P": (content["wave_P"].shape, shape)}
    if isinstance(config.model, RidgeConfig):
        shapes["model.weight"] = (model["weight"].shape, (*shape, coder.num_outputs))
        shapes["model.bias"] = (model["bias"].shape, (coder.num_outputs,))
    for name, (found, wanted) in shapes.items():
        if tuple(found) != tuple(wanted) or len(shape) != 1:
            what = f"has {name} of shape {tuple(found)} for a mean spectrum of shape {tuple(shape)}"
            raise CheckpointError(what, where=where, remedy=again)
    return content, coder


def _fitted(config: Config, state: dict[str, Any], coder: TargetCoder, device: torch.device, where: str) -> nn.Module:
    """Return a model that was fitted in one go; the templates of `model=template` are opened where they lie."""
    if isinstance(config.model, RidgeConfig):
        from specvit.estimators.ridge import Linear

        return Linear(state["weight"], state["bias"])
    if isinstance(config.model, LightGBMConfig):
        from lightgbm.basic import LightGBMError

        from specvit.estimators.lightgbm import Trees

        try:
            return Trees(state["text"])
        except LightGBMError as problem:
            what = f"has model.text that LightGBM cannot read ({str(problem).splitlines()[0]})"
            raise CheckpointError(what, where=where, remedy="train again with train.rerun=true") from problem
    assert isinstance(config.model, TemplateConfig)
    spectra = open_split(config.data, "train", lambda *_: None)
    if state["manifest"] != split_manifest(config.data, "train", spectra):
        remedy = "put the spectra that it was made from back, or train again"
        raise DataError("is not what the run's templates were", where="data.file_path", remedy=remedy)
    return open_templates(config, spectra, coder, device)


def open_templates(config: Config, spectra: SpectraView, coder: TargetCoder, device: torch.device) -> nn.Module:
    """Return the model of `model=template`: the training spectra without noise."""
    from specvit.estimators.template import Templates

    assert isinstance(config.model, TemplateConfig)
    store, targets_NK = Store(spectra, config.data, device), encoded(spectra, coder, config, device)
    return Templates(store, targets_NK, best=config.model.estimate == "best")


def eval_data(
    spectra: SpectraView, split: str, config: Config, coder: TargetCoder, flux_norm: FluxNorm, device: torch.device
) -> EvalData:
    """Return a validation or test view whose noise and statistics are those of the run."""
    return EvalData(
        store=Store(spectra, config.data, device),
        targets=encoded(spectra, coder, config, device),
        flux_norm=flux_norm.to(device),
        noise=config.noise,
        split=split,
        with_sigma=isinstance(config.model, TemplateConfig),
    )


def build_task(config: Config, coder: TargetCoder) -> Regression | Classification:
    """Return what is learnt, with the scale of the training labels."""
    if isinstance(coder, LabelScaler):
        return Regression(config.loss, coder.names, coder.offset, coder.scale)
    return Classification(config.loss)


def encoded(spectra: SpectraView, coder: TargetCoder, config: Config, device: torch.device) -> torch.Tensor:
    """Return the targets of all rows on the device."""
    return torch.from_numpy(np.ascontiguousarray(coder.encode(spectra.label_values(config.data.param)))).to(device)


def fill(model: nn.Module, weights: Weights, where: str, remedy: str = "") -> None:
    """Put weights into a model; raises `CheckpointError` naming `where` they come from if they do not fit."""
    try:
        model.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as problem:  # names that are no text, values that are no tensors
        reason = str(problem).splitlines()[1].strip() if "\n" in str(problem) else str(problem)
        remedy = remedy or "use the same model settings as the run that saved it"
        raise CheckpointError(f"does not fit the configured model ({reason})", where=where, remedy=remedy) from problem
