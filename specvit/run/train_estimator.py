"""Training of the models that are fitted in one go: ridge, trees, templates. Same rows, noise, records as a network.

Nothing is saved on the way: a run that was stopped starts again, and comes to the same result. Each training row has
one noise, keyed by (seed, row).
"""

import dataclasses
import functools
import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from specvit.config.build import to_plain
from specvit.config.schema import Config, LightGBMConfig, RidgeConfig, TemplateConfig
from specvit.data.batches import EvalData
from specvit.data.labels import coder_to_dict
from specvit.data.noise import FluxNorm, fit_flux_norm
from specvit.data.splits import Splits, file_mtimes, split_manifest
from specvit.run.job import RunContext
from specvit.run.predictor import build_task, eval_data, open_templates
from specvit.tracking.metric_files import FileTracker, StatusTracker, Trackers
from specvit.training import checkpoint
from specvit.training.device import hardware, resolve_device, set_up_torch
from specvit.training.loop import predict
from specvit.training.task import Regression
from specvit.utils.errors import ConfigError, Diverged, Pruned
from specvit.utils.provenance import made_by

SAY_SECONDS = 5.0


@dataclass
class Fit:
    """What the fitting of every kind of model works with."""

    job: RunContext
    task: Regression
    flux_norm: FluxNorm
    val: EvalData
    device: torch.device
    tracker: Trackers
    rows: list[dict[str, Any]] = field(default_factory=list)
    said: float = -math.inf
    started: float = field(default_factory=time.perf_counter)

    @functools.cached_property
    def train(self) -> EvalData:
        """The training rows, each with one noise; templates do without them."""
        config = self.job.config
        once = dataclasses.replace(config, noise=dataclasses.replace(config.noise, eval_seed=config.train.seed))
        splits = self.job.splits
        return eval_data(splits.train, "train", once, splits.coder, self.flux_norm, self.device)

    def note(self, step: int, train_scores: dict[str, float], val_scores: dict[str, float], **facts: float) -> None:
        """Take the scores of a step (so many trees; else there is one) on file; raises `Pruned`."""
        row = {"step": step, "epoch": step, **facts}
        row |= {f"train_{name}": value for name, value in train_scores.items()}
        row |= {f"val_{name}": value for name, value in val_scores.items()}
        self.rows.append(row)
        self.tracker.metrics(row)
        now = time.perf_counter()
        self.tracker.timing({"step": step, "epoch": step, "train_seconds": now - self.started, "val_seconds": 0.0})
        self.started = now
        if reason := self.job.pruner.prunes(row):
            raise Pruned(reason)

    def row(self, step: int) -> dict[str, Any]:
        """Return what was noted of a step."""
        return next(row for row in self.rows if row["step"] == step)

    def say(self, text: str, *, now: bool = False) -> None:
        """Print a line, at most every few seconds unless `now`."""
        moment = time.monotonic()
        if self.job.screen.style != "none" and (now or moment >= self.said + SAY_SECONDS):
            self.said = moment
            self.job.screen.say(text)


def describe_model(config: Config, splits: Splits) -> list[str]:
    """Return what the banner says of the model; raises `ConfigError` for too few spectra."""
    model, pixels = config.model, f"{splits.train.num_pixels:,} pixels"
    if isinstance(model, RidgeConfig):
        low, high = model.alpha_range
        return [f"ridge regression on {pixels}; {model.num_alphas} penalties from {low:g} to {high:g}"]
    if isinstance(model, LightGBMConfig):
        if len(splits.train) < 2 * model.min_leaf_rows:
            what = f"is {model.min_leaf_rows}, but a tree splits the {len(splits.train):,} training spectra in two"
            remedy = f"set model.min_leaf_rows={max(1, len(splits.train) // 20)}, or take more spectra"
            raise ConfigError(what, where="model.min_leaf_rows", remedy=remedy)
        until = f"until {model.patience} bring nothing" if model.patience else "all of them"
        return [f"at most {model.num_trees} trees of {model.num_leaves} leaves on {pixels}, {until}"]
    assert isinstance(model, TemplateConfig)
    what = "posterior mean over" if model.estimate == "mean" else "best fit among"
    return [f"{what} {len(splits.train):,} clean templates of {pixels}; it knows the errors of each spectrum"]


def train(job: RunContext) -> str:
    """Fit the model of one run; return "completed" or "early_stopped", raise `DataError`, `Diverged` or `Pruned`."""
    config, splits, folder, screen = job.config, job.splits, job.folder, job.screen
    device = resolve_device(config.train)
    if isinstance(config.model, LightGBMConfig):  # it reads rows on the host
        device = torch.device("cpu")
    set_up_torch(config.train, None, screen, device)
    maker = {**made_by(), **hardware(device)}
    folder.cut_back(0)
    facts = {"device": str(device), "precision": "32", "threads": torch.get_num_threads()}
    folder.note_progress(step=0, **facts)
    folder.record_attempt(event="ready", step=0, **facts, made_by=maker, files=file_mtimes(config.data, splits))
    screen.say(f"device {device}; {len(splits.train):,} training spectra, each with one noise")
    flux_norm = fit_flux_norm(splits.train, config.data.flux_norm, config.noise).to(device)
    task = build_task(config, splits.coder)
    assert isinstance(task, Regression)
    fit = Fit(
        job=job,
        task=task,
        flux_norm=flux_norm,
        val=eval_data(splits.val, "val", config, splits.coder, flux_norm, device),
        device=device,
        tracker=Trackers(FileTracker(folder.path), StatusTracker(folder, start_step=0, total_steps=_steps(config))),
    )
    model, best, early = _FITS[config.model.kind](fit)
    row = fit.row(best)
    if not math.isfinite(row["val_loss"]):
        raise Diverged("the validation loss is not finite")
    _save(fit, model, best)
    return "early_stopped" if early else "completed"


def _steps(config: Config) -> int:
    return config.model.num_trees if isinstance(config.model, LightGBMConfig) else 1


def _save(fit: Fit, model: dict[str, Any], best: int) -> None:
    """Write `best.ckpt`, whole or not at all."""
    job = fit.job
    content = {
        "run_id": job.folder.run_id,
        "config": to_plain(job.config),
        "coder": coder_to_dict(job.splits.coder),
        "flux_mean_P": fit.flux_norm.mean_P.cpu(),
        "flux_scale": fit.flux_norm.scale,
        "wave_P": torch.from_numpy(job.splits.train.wave_P),
        "made_by": {**made_by(), **hardware(fit.device)},
        "epoch": best,
        "step": best,
        "model": model,
    }
    checkpoint.save(job.folder.file("best.ckpt"), content)


def _fit_ridge(fit: Fit) -> tuple[dict[str, Any], int, bool]:
    from specvit.estimators.ridge import Linear, solve, sum_up

    settings, total = fit.job.config.model, len(fit.train)
    assert isinstance(settings, RidgeConfig)
    moments = sum_up(fit.train.batches(), lambda rows: fit.say(f"summed up {rows:,} of {total:,} spectra"))
    alphas_A = np.geomspace(*settings.alpha_range, settings.num_alphas)
    fit.say(f"solving for {len(alphas_A)} penalties", now=True)
    weight_APK, bias_AK = (x.astype(np.float32) for x in solve(moments, alphas_A))
    each = Linear.of_all(weight_APK, bias_AK).to(fit.device)
    output_NX, target_NK = predict(each, fit.val)
    output_NAK = output_NX.reshape(len(output_NX), *bias_AK.shape)
    found = [fit.task.scores(output_NAK[:, number], target_NK) for number in range(len(alphas_A))]
    best = min(range(len(found)), key=lambda number: found[number]["loss"])
    scores, alpha = found[best], float(alphas_A[best])
    weight, bias = torch.from_numpy(weight_APK[best]), torch.from_numpy(bias_AK[best])
    model = Linear(weight, bias).to(fit.device)
    if best in (0, len(found) - 1) and len(found) > 1:
        end = "least" if best == 0 else "greatest"
        fit.say(f"note: the {end} penalty, {alpha:g}, is the best; widen model.alpha_range", now=True)
    fit.note(1, fit.task.scores(*predict(model, fit.train)), scores, alpha=alpha)
    fit.say(f"penalty {alpha:g}  val loss {scores['loss']:.4f}  val r2 {scores['r2']:.4f}", now=True)
    return {"weight": weight, "bias": bias}, 1, False


def _fit_trees(fit: Fit) -> tuple[dict[str, Any], int, bool]:
    from specvit.estimators.lightgbm import fit_trees

    config = fit.job.config
    assert isinstance(config.model, LightGBMConfig)
    targets = [view.targets.cpu().numpy() for view in (fit.train, fit.val)]

    def look(number: int, train_N: np.ndarray, val_N: np.ndarray) -> float:
        outputs = (output_N[:, None].astype(np.float32) for output_N in (train_N, val_N))
        train, val = (fit.task.scores(output, target) for output, target in zip(outputs, targets, strict=True))
        fit.note(number, {name: train[name] for name in ("loss", "r2", "mae")}, val)
        fit.say(f"{number} trees  loss {train['loss']:.4f}  val loss {val['loss']:.4f}  val r2 {val['r2']:.4f}")
        return val["loss"]

    fit.say("sorting pixels into bins", now=True)
    seed = config.train.seed
    found = fit_trees(fit.train, fit.val, config.model, config.loss, seed=seed, look=look)
    if not found.num_trees:
        raise Diverged("no tree lowered the validation loss" if fit.rows else "no tree could be grown")
    best = fit.row(found.num_trees)
    fit.say(f"{found.num_trees} trees  val loss {best['val_loss']:.4f}  val r2 {best['val_r2']:.4f}", now=True)
    return {"text": found.text}, found.num_trees, found.early


def _fit_templates(fit: Fit) -> tuple[dict[str, Any], int, bool]:
    job = fit.job
    model = open_templates(job.config, job.splits.train, job.splits.coder, fit.device)
    fit.say("comparing validation spectra with the templates", now=True)
    scores = fit.task.scores(*predict(model, fit.val))
    fit.note(1, {}, scores)
    fit.say(f"val loss {scores['loss']:.4f}  val r2 {scores['r2']:.4f}", now=True)
    return {"manifest": split_manifest(job.config.data, "train", job.splits.train)}, 1, False


_FITS = {"ridge": _fit_ridge, "lightgbm": _fit_trees, "template": _fit_templates}
