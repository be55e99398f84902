"""Trains one run of a network: builds model, optimizer and data from the configuration, and starts the loop.

Imports torch; `run.py` imports this module only if there is something to compute, or weights to start from.
"""

import contextlib
import hashlib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from specvit.config.durations import check_rhythm
from specvit.config.schema import Config, NetworkConfig, ViTConfig
from specvit.data.batches import SpectraStore, TrainData, encoded, eval_data
from specvit.data.noise import FluxNorm, added_noise, fit_flux_norm
from specvit.data.splits import Splits, file_mtimes, is_synthetic, note_of_changes
from specvit.data.synthetic import SyntheticSpectra
from specvit.data.validate import check_view
from specvit.models import Network, ViT, build_model
from specvit.models.foreign_weights import in_own_names, named, note_of_epsilon, start_from
from specvit.run import kept_tokens
from specvit.run.context import RunContext
from specvit.run.kept_tokens import KeptTokens
from specvit.run.predictor import Weights, build_task, described, load_weights, num_outputs
from specvit.run_folder.folder import KEPT
from specvit.tracking.console import ProgressTracker
from specvit.tracking.metric_files import CompositeTracker, FileTracker, StatusTracker
from specvit.training import checkpoint
from specvit.training.checkpoint import CheckpointManager
from specvit.training.device import build_scaler, hardware, has_bf16, resolve_device, resolve_precision, set_up_torch
from specvit.training.loop import Callbacks, fit
from specvit.training.optimizer import build_optimizer
from specvit.training.recovery import faults_of_best, find_start
from specvit.training.schedule import build_rhythm, build_schedule
from specvit.training.state import TrainState
from specvit.training.step import Learner
from specvit.utils.errors import CheckpointError
from specvit.utils.files import write_text
from specvit.utils.provenance import changes, made_by

if TYPE_CHECKING:
    from specvit.data.synthetic_batches import SyntheticTrainData


def train(run: RunContext) -> str:
    """Train or resume one run; return the final state, or "interrupted".

    Raises `CheckpointError`, `DataError` for a spectrum that is not finite, `Diverged`, `Pruned`, and `Interrupted` by
    a signal before the loop or a second Ctrl-C in it.
    """
    faults = ""
    for _ in range(2):  # damaged best weights are repaired by starting once more
        ended, faults = _train(run)
        if not faults:
            return ended
        run.console.say(f"note: {faults}")
    remedy = "check the disk, then run the same command again to resume"
    raise CheckpointError(faults, where=str(run.folder.path), remedy=remedy)


def check_durations(config: Config, splits: Splits) -> None:
    """Raise `ConfigError` for durations in steps that do not go with those in epochs."""
    train = config.train
    check_rhythm(train.epochs, train.eval_every, train.log_every, _epoch_steps(config, splits))


def check_evaluation_rows(config: Config, splits: Splits) -> None:
    """Raise `DataError` for a validation or test spectrum from a file that is not finite, before training."""
    for split in ("val", "test"):
        if not is_synthetic(config.data, split):
            check_view(getattr(splits, split), config.data.storage)


def _train(run: RunContext) -> tuple[str, str]:
    """Return the state, and what is wrong with the best weights if the run has ended."""
    config, splits, folder, console = run.config, run.splits, run.folder, run.console
    device, epoch_steps = resolve_device(config.train.device), _epoch_steps(config, splits)
    rhythm = build_rhythm(config.train, epoch_steps)
    start = find_start(folder, rhythm)
    origin = {**made_by(), **hardware(device)}
    changed = _report_changes(run, start.saved, origin)
    if start.note:
        console.say(start.note)
    set_up_torch(config.train, start.saved["threads"] if start.saved else None, console.say, device)
    learner, state, checkpoints, flux_norm = _build(run, device, start.saved, origin)
    data = train_data(config, splits, flux_norm, device)
    facts = {"device": str(device), "precision": learner.precision, "threads": torch.get_num_threads()}
    folder.note_progress(step=state.step, **facts)
    folder.record_attempt(event="ready", step=state.step, **facts, **changed)
    console.say(f"device {device}, precision {learner.precision}")
    if learner.precision == "16-mixed" and device.type == "cpu":
        console.say("note: 16-mixed is slow on a CPU; train.precision=auto takes what is fast here")
    if learner.precision == "bf16-mixed" and device.type == "cuda" and not has_bf16(device):
        console.say("note: this GPU only emulates bf16, slowly; train.precision=16-mixed is fast here")
    console.say(f"{len(splits.train):,} training spectra, {data.location}; {epoch_steps} steps an epoch")
    for note in data.io_notes(state.step):
        console.say(note)
    if state.step:
        console.say(f"resuming from step {state.step} (epoch {rhythm.epoch(state.step):.4g})")
    folder.cut_back(state.step)
    val_data = eval_data(splits.val, "val", config, splits.coder, flux_norm, device)
    progress = ProgressTracker(
        console,
        epochs=config.train.epochs,
        steps_per_epoch=epoch_steps,
        step_rows=data.step_rows,
        start_step=state.step,
        score="r2" if config.model.task_type == "reg" else "accuracy",
    )
    status = StatusTracker(folder, start_step=state.step, total_steps=learner.schedule.total_steps)
    with contextlib.closing(data), progress, run.stop.deferred():
        tracker = CompositeTracker(FileTracker(folder.path), status, progress)
        callbacks = Callbacks(tracker=tracker, stop=run.stop, checkpoints=checkpoints, pruner=run.pruner)
        ended = fit(learner, state, data, val_data, config.opt, callbacks)
    return ended, faults_of_best(folder, state, rhythm) if state.ended else ""


def _report_changes(run: RunContext, saved: dict[str, Any] | None, origin: dict[str, str]) -> dict[str, Any]:
    """Print what has changed since the run was saved, and return facts for `attempts.jsonl`."""
    mtimes = file_mtimes(run.config.data, run.splits)
    notes = []
    if saved:
        notes += changes(saved.get("made_by", {}), origin)
        notes += [note] if (note := note_of_changes(run.folder.attempts(), mtimes)) else []
    for note in notes:
        run.console.say(note)
    return {"made_by": origin, "files": mtimes, **({"changed": notes} if notes else {})}


def train_data(
    config: Config, splits: Splits, flux_norm: FluxNorm, device: torch.device
) -> "TrainData | SyntheticTrainData":
    """Return the training rows, step by step: noise, normalised flux and encoded labels."""
    step_rows, seed = config.train.batch_size * config.train.accumulate, config.train.seed
    if isinstance(splits.train, SyntheticSpectra):
        from specvit.data.synthetic_batches import (
            SyntheticTrainData,  # imports scipy, which other runs do not need
        )

        return SyntheticTrainData(
            spectra=splits.train,
            coder=splits.coder,
            data=config.data,
            flux_norm=flux_norm.to(device),
            noise=config.noise,
            seed=seed,
            step_rows=step_rows,
            device=device,
        )
    return TrainData(
        store=SpectraStore(splits.train, config.data, device),
        targets=encoded(splits.train, splits.coder, config, device),
        flux_norm=flux_norm.to(device),
        noise=added_noise(splits.train, config.noise),
        order=config.data.order,
        seed=seed,
        step_rows=step_rows,
    )


@dataclass(frozen=True)
class InitialWeights:
    """Weights to start from, by specvit's names."""

    values: Weights
    foreign: bool
    """Whether no specvit run saved them: tokenizer and encoder must fit, other parts may be missing."""
    norm_note: str = ""
    """How the epsilon of their layer norms differs from specvit's, for weights of another program."""

    @property
    def digest(self) -> str:
        """Their part of the run's identity."""
        digest = hashlib.sha256()
        for parameter, value in sorted(self.values.items()):
            digest.update(parameter.encode() + value.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def read_weights(name: str) -> InitialWeights:
    """Return the weights of a run (its best), a checkpoint or a state dict; raises `CheckpointError`."""
    path = Path(name).expanduser()
    path = path / "best.ckpt" if path.is_dir() else path
    content = _read_safetensors(path) if path.suffix == ".safetensors" else checkpoint.read(path)
    foreign = not isinstance(content, dict) or not isinstance(content.get("format"), int)
    weights = _state_dict(content) if foreign else checkpoint.check_format(content, path).get("model")
    if not isinstance(weights, dict) or not weights or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        remedy = "name a run of model=vit or model=cnn, or a state dict"
        raise CheckpointError("holds no network's weights", where=str(path), remedy=remedy)
    weights = in_own_names(weights, str(path)) if foreign else weights
    if infinite := [parameter for parameter, value in weights.items() if not checkpoint.is_finite(value)]:
        what = f"{named(infinite)} {'is' if len(infinite) == 1 else 'are'} not finite"
        raise CheckpointError(what, where=str(path), remedy="name weights of a run that did not diverge")
    return InitialWeights(weights, foreign, note_of_epsilon(path) if foreign else "")


def _read_safetensors(path: Path) -> Any:
    try:
        library: Any = importlib.import_module("safetensors.torch")
    except ImportError as problem:
        raise CheckpointError(
            "needs the package safetensors", where=str(path), remedy="pip install safetensors"
        ) from problem
    try:
        return library.load_file(path)
    except FileNotFoundError as problem:
        raise CheckpointError("is not there", where=str(path), remedy="name a file of weights") from problem
    except Exception as problem:  # of the library's own kind
        what = f"cannot be read as safetensors ({problem})"
        raise CheckpointError(what, where=str(path), remedy="name a whole file") from problem


def _state_dict(content: Any) -> Any:
    """Return the tensors by name in what another program saved: bare, or beside an optimizer and other records."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        return None
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}


def check_weights(config: Config, splits: Splits, weights: InitialWeights) -> list[str]:
    """Raise `CheckpointError` if `weights` do not fit the configured model; return notes on what was not taken."""
    return _start_from(_new_model(config, splits, kept_tokens.preview(config, splits)), config, weights)


def _start_from(model: Network, config: Config, weights: InitialWeights) -> list[str]:
    """Put the initial weights into a model; return a note on those of other programs."""
    where = f"train.init_from={config.train.init_from}"
    if not weights.foreign:
        load_weights(model, weights.values, where)
        return []
    lacking, over = start_from(model, weights.values, where)
    parts = ["weights without a record of their model"]
    if isinstance(config.model, ViTConfig):
        parts.append(f"model.num_attention_heads={config.model.num_attention_heads} must be theirs")
    parts += [f"as model.init makes them: {named(lacking)}"] if lacking else []
    parts += [f"left out: {named(over)}"] if over else []
    parts += [weights.norm_note] if weights.norm_note and isinstance(config.model, ViTConfig) else []
    return [f"note: {where}: {'; '.join(parts)}"]


def _build(
    run: RunContext, device: torch.device, saved: dict[str, Any] | None, origin: dict[str, str]
) -> tuple[Learner, TrainState, CheckpointManager, FluxNorm]:
    """Build model, optimizer and state, and load them from the checkpoint if there is one."""
    config, splits, folder = run.config, run.splits, run.folder
    if saved:
        checkpoint.check_parts(saved, checkpoint.CONSTANTS, str(folder.file("last.ckpt")))
    flux_norm, kept = statistics(config, splits, saved)
    learner, state, _ = build_learner(config, splits, run.weights, device, saved, flux_norm, kept)
    if kept and isinstance(config.model, ViTConfig):
        write_text(folder.file(KEPT), kept_tokens.table_of(kept, config.model, splits.train.wave_P))
    if saved:
        remedy = "use the specvit that saved it, or start from nothing with train.rerun=true"
        load_weights(learner.module, saved["model"], "the run's checkpoint", remedy)
        learner.optimizer.load_state_dict(saved["optimizer"])
        learner.scaler.load_state_dict(saved["scaler"])
    if config.train.compile:
        torch._dynamo.reset()  # its cache of eight variants a function may hold those of other runs of this process
        learner.module.compile()
    constants = {
        **described(run, flux_norm, (saved or {}).get("training_range")),
        **({"kept_tokens": kept.to_plain()} if kept else {}),
        "precision": learner.precision,
        "threads": torch.get_num_threads(),
        "made_by": origin,
    }
    return learner, state, CheckpointManager(folder.file("last.ckpt"), folder.file("best.ckpt"), constants), flux_norm


def statistics(
    config: Config, splits: Splits, saved: dict[str, Any] | None = None, flux_norm: FluxNorm | None = None
) -> tuple[FluxNorm, KeptTokens | None]:
    """Return the normaliser, unless it is given, and the kept tokens of a checkpoint or, without one, of the rows."""
    if saved:
        norm = FluxNorm(saved["flux_mean_P"], saved["flux_scale"], saved.get("flux_fill_P"))
        return norm, kept_tokens.from_checkpoint(saved, config, len(norm.mean_P), "the run's checkpoint")
    norm = flux_norm or fit_flux_norm(splits.train, config.data.flux_norm, config.noise, fills=splits.masked)
    return norm, kept_tokens.choose(config, splits, norm.fill_P)


def build_learner(
    config: Config,
    splits: Splits,
    weights: Any,
    device: torch.device,
    saved: dict[str, Any] | None = None,
    flux_norm: FluxNorm | None = None,
    kept: KeptTokens | None = None,
) -> tuple[Learner, TrainState, FluxNorm]:
    """Return what takes a run's steps; `weights` are those to start from, `saved` has state and precision.

    `flux_norm` and `kept` are what `statistics` returns if they are known already.
    """
    if flux_norm is None or kept is None:
        flux_norm, kept = statistics(config, splits, saved, flux_norm)
    precision = saved["precision"] if saved else resolve_precision(config.train.precision, device)
    model = _new_model(config, splits, kept)
    if isinstance(model, ViT):
        model.checkpoint_blocks = config.train.checkpoint_blocks
    if weights and not saved:
        _start_from(model, config, weights)
    model.to(device)
    parts = {name: parameters for name, parameters in model.parts().items() if parameters}
    task = build_task(config, splits.coder, splits.train)
    learner = Learner(
        module=model,
        task=task,
        optimizer=build_optimizer(model, parts, config.opt),
        scaler=build_scaler(precision, device),
        schedule=build_schedule(config.opt, epochs=config.train.epochs, steps_per_epoch=_epoch_steps(config, splits)),
        train=config.train,
        precision=precision,
        device=device,
    )
    state = TrainState.from_plain(saved["state"]) if saved else TrainState()
    state.start_sums(task=task.num_sums, norms=len(parts) + 1, device=device)
    return learner, state, flux_norm


def describe_model(config: Config, splits: Splits) -> list[str]:
    """Return the printed summary: parameters by part, tokens, FLOPs a spectrum."""
    return _new_model(config, splits, kept_tokens.preview(config, splits)).cost().lines()


def _new_model(config: Config, splits: Splits, kept: KeptTokens | None) -> Network:
    assert isinstance(config.model, NetworkConfig)
    sizes = {"num_pixels": splits.train.num_pixels, "num_outputs": num_outputs(config, splits.coder)}
    return build_model(config.model, **sizes, seed=config.train.seed, kept=kept.tokens if kept else None)


def _epoch_steps(config: Config, splits: Splits) -> int:
    return len(splits.train) // (config.train.batch_size * config.train.accumulate)
