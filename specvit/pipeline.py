"""From opened data to a tested model: builds the parts of one run and lets the engine work. Imports torch.

`run.py` decides whether a run is to be made at all; this module is imported when it is, or for weights to start from.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specvit.config.build import to_plain
from specvit.config.folder import RunFolder
from specvit.config.schema import Config, TrainConfig
from specvit.data.labels import LabelScaler, TargetCoder, coder_from_dict, coder_to_dict
from specvit.data.noise import FluxNorm, fit_flux_norm
from specvit.data.resident import EvalData, Store, TrainData
from specvit.data.splits import Splits
from specvit.data.views import Spectra
from specvit.engine import checkpoint
from specvit.engine.loop import Keeper, Learner, Ports, fit
from specvit.engine.optimizer import build_optimizer
from specvit.engine.precision import build_scaler, resolve_precision
from specvit.engine.preempt import SignalStop
from specvit.engine.schedule import build_schedule
from specvit.engine.state import TrainState
from specvit.engine.task import Classification, Regression
from specvit.errors import CheckpointError, ConfigError
from specvit.models import ViT, build_model
from specvit.models.cost import cost_of
from specvit.tracking.console import ProgressTracker, Screen
from specvit.tracking.files import FileTracker, StatusTracker, Trackers

DEFAULT_THREADS = torch.get_num_threads()
"""What torch found when it was imported; a grid's runs must not inherit each other's."""

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Trained:
    """A network with all that it needs to read spectra and to speak in label units."""

    model: ViT
    coder: TargetCoder
    flux_norm: FluxNorm
    wave_P: np.ndarray
    epoch: int
    config: Config


def resolve_device(train: TrainConfig) -> torch.device:
    """Return the device of `train.device`; raises `ConfigError` if it is not there."""
    name = train.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as problem:
        raise ConfigError(
            f"{name!r} is no device", where="train.device", remedy="use auto, cpu, cuda or cuda:N"
        ) from problem
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("no CUDA device is there", where="train.device", remedy="set train.device=cpu or auto")
        if (device.index or 0) >= torch.cuda.device_count():
            what = f"{name} is not there, {torch.cuda.device_count()} device(s) are"
            raise ConfigError(what, where="train.device", remedy="count from cuda:0")
    elif device.type != "cpu":
        raise ConfigError(f"{name!r} is not supported", where="train.device", remedy="use auto, cpu, cuda or cuda:N")
    return device


def train(
    config: Config, splits: Splits, weights: Weights | None, folder: RunFolder, screen: Screen, stop: SignalStop
) -> str:
    """Train one run to its end, or go on with it, and return the final state, or "interrupted".

    `weights` are those to start from, if any. Raises `CheckpointError`, `Diverged`, and `Interrupted` by a signal
    before the loop or a second Ctrl-C in it.
    """
    device = resolve_device(config.train)
    saved = _load_last(folder)
    set_up_torch(config.train, saved["threads"] if saved else None, screen)
    learner, state, keeper, flux_norm = _build(config, splits, weights, folder, device, saved)
    store = Store(splits.train, config.data, device)
    train_data = TrainData(
        store=store,
        targets=_targets(splits.train, splits.coder, config, device),
        flux_norm=flux_norm.to(device),
        noise=config.noise,
        order=config.data.order,
        seed=config.train.seed,
        step_rows=config.train.batch_size * config.train.accumulate,
    )
    facts = {"device": str(device), "precision": learner.precision, "threads": torch.get_num_threads()}
    folder.set_status("running", step=state.step, **facts)
    folder.record_attempt(event="ready", step=state.step, **facts)
    screen.say(f"device {device}, precision {learner.precision}")
    if learner.precision == "16-mixed" and device.type == "cpu":
        screen.say("note: 16-mixed is slow on a CPU; train.precision=auto takes what is fast here")
    screen.say(f"{len(splits.train):,} training spectra, {store.place}; {train_data.steps_per_epoch} steps an epoch")
    if state.step:
        screen.say(f"going on from step {state.step} (epoch {state.step // train_data.steps_per_epoch})")
    folder.cut_back(state.step)
    val_data = eval_data(splits.val, "val", config, splits.coder, flux_norm, device)
    progress = ProgressTracker(
        screen,
        epochs=config.train.epochs,
        steps_per_epoch=train_data.steps_per_epoch,
        step_rows=train_data.step_rows,
        start_step=state.step,
        score="r2" if config.model.task_type == "reg" else "accuracy",
    )
    status = StatusTracker(folder, start_step=state.step, total_steps=learner.schedule.total_steps)
    with progress, stop.deferred():
        ports = Ports(tracker=Trackers(FileTracker(folder.path), status, progress), stop=stop, keeper=keeper)
        return fit(learner, state, train_data, val_data, config.opt, ports)


def read_weights(name: str) -> tuple[Weights, str]:
    """Return the weights of a run (its best) or a file, and their digest; raises `CheckpointError`."""
    path = Path(name).expanduser()
    weights: Weights = checkpoint.load(path / "best.ckpt" if path.is_dir() else path)["model"]
    digest = hashlib.sha256()
    for parameter, value in sorted(weights.items()):
        digest.update(parameter.encode() + value.contiguous().numpy().tobytes())
    return weights, digest.hexdigest()[:16]


def check_weights(config: Config, splits: Splits, weights: Weights) -> None:
    """Raise `CheckpointError` if `weights` do not fit the configured model."""
    _fill(_new_model(config, splits), weights, str(config.train.init_from))


def load_trained(path: Path, config: Config, device: torch.device) -> Trained:
    """Return the network of a run's best checkpoint, in evaluation mode; raises `CheckpointError`."""
    content = checkpoint.load(path)
    coder = coder_from_dict(content["coder"])
    flux_norm = FluxNorm(content["flux_mean_P"], content["flux_scale"])
    model = build_model(config.model, num_pixels=len(flux_norm.mean_P), num_outputs=coder.num_outputs, seed=0)
    _fill(model, content["model"], str(path))
    wave_P = content["wave_P"].numpy()
    return Trained(model.to(device).eval(), coder, flux_norm.to(device), wave_P, content["epoch"], config)


def eval_data(
    spectra: Spectra, split: str, config: Config, coder: TargetCoder, flux_norm: FluxNorm, device: torch.device
) -> EvalData:
    """Return a validation or test view whose noise and statistics are those of the run."""
    targets = _targets(spectra, coder, config, device)
    store = Store(spectra, config.data, device)
    return EvalData(store=store, targets=targets, flux_norm=flux_norm.to(device), noise=config.noise, split=split)


def build_task(config: Config, coder: TargetCoder) -> Regression | Classification:
    """Return what is learnt, with the scale of the training labels."""
    if isinstance(coder, LabelScaler):
        return Regression(config.loss, coder.names, coder.offset, coder.scale)
    return Classification(config.loss)


def _build(
    config: Config,
    splits: Splits,
    weights: Weights | None,
    folder: RunFolder,
    device: torch.device,
    saved: dict[str, Any] | None,
) -> tuple[Learner, TrainState, Keeper, FluxNorm]:
    """Build model, optimizer and state, and fill them from a checkpoint where there is one."""
    if saved:
        flux_norm = FluxNorm(saved["flux_mean_P"], saved["flux_scale"])
    else:
        flux_norm = fit_flux_norm(splits.train, config.data.flux_norm, config.noise)
    precision = saved["precision"] if saved else resolve_precision(config.train.precision, device)
    model = _new_model(config, splits)
    model.checkpoint_blocks = config.train.checkpoint_blocks
    if weights and not saved:
        _fill(model, weights, str(config.train.init_from))
    model.to(device)
    parts = {name: parameters for name, parameters in model.parts().items() if parameters}
    task = build_task(config, splits.coder)
    learner = Learner(
        module=model,
        parts=parts,
        task=task,
        optimizer=build_optimizer(model, config.opt),
        scaler=build_scaler(precision, device),
        schedule=build_schedule(config.opt, epochs=config.train.epochs, steps_per_epoch=_epoch_steps(config, splits)),
        train=config.train,
        precision=precision,
        device=device,
    )
    state = TrainState.from_plain(saved["state"]) if saved else TrainState()
    state.start_sums(task=task.num_sums, norms=len(parts) + 1, device=device)
    if saved:
        model.load_state_dict(saved["model"])
        learner.optimizer.load_state_dict(saved["optimizer"])
        learner.scaler.load_state_dict(saved["scaler"])
    if config.train.compile:
        model.compile()
    constants = {
        "run_id": folder.run_id,
        "config": to_plain(config),
        "coder": coder_to_dict(splits.coder),
        "flux_mean_P": flux_norm.mean_P,
        "flux_scale": flux_norm.scale,
        "wave_P": torch.from_numpy(splits.train.wave_P),
        "precision": precision,
        "threads": torch.get_num_threads(),
    }
    return learner, state, Keeper(folder.file("last.ckpt"), folder.file("best.ckpt"), constants), flux_norm


def describe_model(config: Config, splits: Splits) -> list[str]:
    """Return the printed summary: parameters by part, tokens, FLOPs a spectrum."""
    return cost_of(_new_model(config, splits)).lines()


def _new_model(config: Config, splits: Splits) -> ViT:
    pixels, outputs = splits.train.num_pixels, splits.coder.num_outputs
    return build_model(config.model, num_pixels=pixels, num_outputs=outputs, seed=config.train.seed)


def _epoch_steps(config: Config, splits: Splits) -> int:
    return len(splits.train) // (config.train.batch_size * config.train.accumulate)


def _targets(spectra: Spectra, coder: TargetCoder, config: Config, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(coder.encode(spectra.label_values(config.data.param)))).to(device)


def _load_last(folder: RunFolder) -> dict[str, Any] | None:
    path = folder.file("last.ckpt")
    if not path.exists():
        return None
    saved = checkpoint.load(path)
    if saved["run_id"] != folder.run_id:
        what = f"belongs to run {saved['run_id']}, not to {folder.run_id}"
        raise CheckpointError(what, where=str(path), remedy="move it away")
    return saved


def _fill(model: ViT, weights: Weights, where: str) -> None:
    """Put weights into a model; raises `CheckpointError` naming `where` they come from if they do not fit."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as problem:
        reason = str(problem).splitlines()[1].strip() if "\n" in str(problem) else str(problem)
        remedy = "use the same model settings as the run that saved it"
        raise CheckpointError(f"does not fit the configured model ({reason})", where=where, remedy=remedy) from problem


def set_up_torch(train: TrainConfig, saved_threads: int | None, screen: Screen) -> None:
    """Set threads and determinism; a resumed run gets the thread count it began with, on which its bits depend."""
    threads = saved_threads or train.threads or DEFAULT_THREADS
    if saved_threads and train.threads and train.threads != saved_threads:
        screen.say(f"note: going on with {saved_threads} threads, as this run began, not train.threads={train.threads}")
    if threads > len(os.sched_getaffinity(0)):
        screen.say(f"note: {threads} threads on fewer cores; a run that began on more may differ in its last bits")
    torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(train.deterministic)
    # Without this, determinism makes torch fill every empty() it hands out.
    flags: Any = torch.utils.deterministic
    flags.fill_uninitialized_memory = False
    # Float32 means float32: by default a convolution, so C1D, would run in TF32 and a linear layer, so SW, would not.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
