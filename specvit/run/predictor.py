"""A checkpoint as a predictor: the trained model, how its input is normalised, and the units of its labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from specvit.config.build import to_plain
from specvit.config.schema import Config, NetworkConfig
from specvit.data.labels import LabelScaler, TargetCoder, coder_from_dict, coder_to_dict
from specvit.data.noise import FluxNorm
from specvit.data.shards import same_wavelengths
from specvit.data.training_range import TrainingRange, fit_range, range_from_plain, range_to_plain
from specvit.data.views import SpectraView
from specvit.estimators import build_estimator
from specvit.metrics.distributions import BY_LOSS
from specvit.models import build_model
from specvit.run import kept_tokens
from specvit.run.context import RunContext
from specvit.training import checkpoint
from specvit.training.task import Classification, Regression
from specvit.utils.errors import CheckpointError, DataError

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Predictor:
    """A model (normalised flux -> the outputs that its `task` decodes), in evaluation mode, and training statistics."""

    model: nn.Module
    coder: TargetCoder
    flux_norm: FluxNorm
    wave_P: np.ndarray
    epoch: int | float
    config: Config
    training_range: TrainingRange | None = None
    """None for a checkpoint that an older specvit wrote."""

    @property
    def task(self) -> Regression | Classification:
        """What the outputs mean: `decode` gives labels or locations, `uncertainty` standard deviations, label units."""
        return build_task(self.config, self.coder)

    def check_pixels(self, spectra: SpectraView) -> None:
        """Raise `DataError` unless the spectra have the wavelengths that the run was trained on."""
        wave_P = self.wave_P
        if same_wavelengths(spectra.wave_P, wave_P):
            return
        what = f"has {spectra.num_pixels} pixels a spectrum, the run was trained on {len(wave_P)}"
        if spectra.num_pixels == len(wave_P):
            starts = f"starts at {spectra.wave_P[0]:.2f} Å, the run's spectra at {wave_P[0]:.2f} Å"
            what = f"{starts}, or is spaced otherwise"
        raise DataError(what, where=spectra.origins()[0][0], remedy="resample it to the training set's pixels")


def load_predictor(path: Path, config: Config, device: torch.device, run_id: str) -> Predictor:
    """Return the model of a run's best checkpoint.

    Raises `CheckpointError` for one that is damaged, incomplete or of another run, and `DataError` for lost templates.
    """
    content, coder = _load_checked(path, config, run_id)
    flux_norm = FluxNorm(content["flux_mean_P"], content["flux_scale"], content.get("flux_fill_P"))
    if isinstance(config.model, NetworkConfig):
        sizes = {"num_pixels": len(flux_norm.mean_P), "num_outputs": num_outputs(config, coder)}
        kept = kept_tokens.from_checkpoint(content, config, sizes["num_pixels"], str(path))
        model: nn.Module = build_model(config.model, **sizes, seed=0, kept=kept.tokens if kept else None)
        load_weights(model, content["model"], str(path))
    else:
        model = build_estimator(config).load(content["model"], coder, device, str(path))
    wave_P = content["wave_P"].numpy()
    known = range_from_plain(content.get("training_range"))
    return Predictor(model.to(device).eval(), coder, flux_norm.to(device), wave_P, content["epoch"], config, known)


def _load_checked(path: Path, config: Config, run_id: str) -> tuple[dict[str, Any], TargetCoder]:
    """Return a checkpoint's content and its coder, all of it checked but a network's weights."""
    content, where, again = checkpoint.load(path), str(path), "train again from the beginning with train.rerun=true"
    estimator = None if isinstance(config.model, NetworkConfig) else build_estimator(config)
    parts = {f"model.{name}": kind for name, kind in estimator.parts.items()} if estimator else {}
    checkpoint.check_parts(content, {**checkpoint.BEST, **parts}, where)
    if content["run_id"] != run_id:
        what = f"belongs to run {content['run_id']}, and this is {run_id}"
        raise CheckpointError(what, where=where, remedy="put its own back, or train again with train.rerun=true")
    try:
        coder = coder_from_dict(content["coder"])
    except ValueError as problem:
        raise CheckpointError(f"has no valid coder ({problem})", where=where, remedy=again) from problem
    shape = tuple(content["flux_mean_P"].shape)
    shapes = {"wave_P": (content["wave_P"].shape, shape)}
    if estimator and len(shape) == 1:
        for name, expected in estimator.part_shapes(shape[0], coder.num_outputs).items():
            shapes[f"model.{name}"] = (content["model"][name].shape, expected)
    for name, (actual, expected) in shapes.items():
        if tuple(actual) != expected or len(shape) != 1:
            what = f"has {name} of shape {tuple(actual)} for a mean spectrum of shape {shape}"
            raise CheckpointError(what, where=where, remedy=again)
    return content, coder


def described(run: RunContext, flux_norm: FluxNorm, known_range: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what a checkpoint holds beside weights: what a trained model needs to predict."""
    splits = run.splits
    return {
        "run_id": run.folder.run_id,
        "config": to_plain(run.config),
        "coder": coder_to_dict(splits.coder),
        "flux_mean_P": flux_norm.mean_P.cpu(),
        "flux_scale": flux_norm.scale,
        **({} if flux_norm.fill_P is None else {"flux_fill_P": flux_norm.fill_P.cpu()}),
        "training_range": known_range or range_to_plain(fit_range(splits.train, flux_norm, run.config.noise)),
        "wave_P": torch.from_numpy(splits.train.wave_P),
    }


def build_task(config: Config, coder: TargetCoder, train: SpectraView | None = None) -> Regression | Classification:
    """Return regression or classification, with the scale of the training labels; a training loop needs `train`."""
    if isinstance(coder, LabelScaler):
        partial = train is not None and bool(np.isnan(train.label_values(coder.names)).any())
        return Regression(config.loss, coder.names, coder.offset, coder.scale, partial)
    return Classification(config.loss)


def num_outputs(config: Config, coder: TargetCoder) -> int:
    """Return how many outputs a network has: with a loss that assumes a distribution, also a log scale a label."""
    return coder.num_outputs * (2 if config.loss.name in BY_LOSS else 1)


def load_weights(model: nn.Module, weights: Weights, where: str, remedy: str = "") -> None:
    """Put weights into a model; raises `CheckpointError` naming `where` they come from if they do not fit."""
    try:
        model.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as problem:  # names that are not text, values that are not tensors
        reason = str(problem).splitlines()[1].strip() if "\n" in str(problem) else str(problem)
        remedy = remedy or "use the model settings, labels and kind of loss of the run that saved it"
        raise CheckpointError(f"does not fit the configured model ({reason})", where=where, remedy=remedy) from problem
