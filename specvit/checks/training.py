"""What a network learns in a few steps: can it overfit, which learning rate suits, how long will it take. K labels."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from specvit.checks.rules import Measure
from specvit.config.schema import CNNConfig, Config, ViTConfig
from specvit.data.noise import FluxNorm, fit_flux_norm
from specvit.data.splits import Splits
from specvit.run.kept_tokens import KeptTokens
from specvit.run.train_network import build_learner, train_data
from specvit.training.loop import evaluate
from specvit.training.state import TrainState
from specvit.training.step import Learner
from specvit.training.task import Classification
from specvit.utils.errors import is_out_of_memory
from specvit.utils.quantities import Batch

OVERFIT_ROWS, OVERFIT_STEPS, OVERFIT_RATE = 32, 300, 5e-3
"""The tuning checklist's overfit test, with half as many steps again: sound networks took up to 220, not 200."""
CHECK_EVERY = 10
RATES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
WARM_STEPS, TIMED_STEPS = 2, 10
MOST_RATE_STEPS, LEAST_RATE_STEPS = 60, 20
LEAST_FALL = 0.1
"""Of the first loss, which is of one batch and so uncertain by some percent."""
OVERFIT_SECONDS = RATE_SECONDS = 45.0
"""At most about this long for each of the two tests; what a network cannot do in that time is not judged."""


@dataclass(frozen=True)
class TrainingFacts:
    """What the report shows of the first steps."""

    overfit_steps: int
    overfit_score: float
    """Least R² of a label, or accuracy, after these steps on the same few rows."""
    step_seconds: float
    hours: float
    """Forecast of the steps of the whole run, without validations."""
    rate_steps: int
    """Steps at each rate; 0 if they would take too long."""
    curves: dict[float, list[float]]
    """Loss of each step by learning rate."""

    @property
    def losses(self) -> dict[float, float]:
        """Mean loss of the last quarter of the steps by learning rate."""
        return {rate: _end(curve) for rate, curve in self.curves.items()}


@dataclass(frozen=True)
class Subject:
    """A run's data, the weights to start from, the device, the normaliser of its flux and the tokens that it keeps."""

    splits: Splits
    weights: Any
    device: torch.device
    flux_norm: FluxNorm
    kept: KeptTokens | None = None

    def learner(self, config: Config) -> tuple[Learner, TrainState]:
        """Return a new copy of the network with its optimizer, for a configuration of the same noise."""
        taken = (config, self.splits, self.weights, self.device)
        return build_learner(*taken, flux_norm=self.flux_norm, kept=self.kept)[:2]

    def batches(self, config: Config) -> Any:
        """Return the training rows by step; to be closed."""
        return contextlib.closing(train_data(config, self.splits, self.flux_norm, self.device))


def training_checks(config: Config, subject: Subject) -> tuple[TrainingFacts, list[Measure]]:
    """Return what copies of a run's network do in their first steps, and the measures of it."""
    measures = []
    steps, score = overfit(config, subject)
    classifies = config.model.task_type == "cls"
    if steps == OVERFIT_STEPS or _fits(score, classifies=classifies):
        measures.append(Measure("overfit_classes" if classifies else "overfit", score))
    try:
        seconds, total_steps = step_seconds(config, subject)
    except Exception as problem:
        if not is_out_of_memory(problem):
            raise
        measures.append(Measure("memory", math.inf, "out of memory in a step"))
        return TrainingFacts(steps, score, math.nan, math.nan, 0, {}), measures
    rates = sorted({*RATES, config.opt.lr}, reverse=True)
    count = min(MOST_RATE_STEPS, total_steps, int(RATE_SECONDS / seconds / len(rates)))
    curves = {}
    if count >= LEAST_RATE_STEPS:
        curves = {rate: loss_curve(config, subject, rate=rate, steps=count) for rate in rates}
        measures += judge_rate(config.opt.lr, curves)
    hours = seconds * total_steps / 3600
    return TrainingFacts(steps, score, seconds, hours, count if curves else 0, curves), measures


def overfit(config: Config, subject: Subject) -> tuple[int, float]:
    """Return steps and the least R² or the accuracy of a copy trained on a few rows without noise, dropout and decay.

    It stops at a score that passes, after `OVERFIT_STEPS`, or after `OVERFIT_SECONDS`.
    """
    model = config.model
    if isinstance(model, ViTConfig):
        model = replace(model, dropout=0.0)
    elif isinstance(model, CNNConfig):
        model = replace(model, head_dropout=0.0)
    rows = min(OVERFIT_ROWS, len(subject.splits.train))
    opt = replace(_constant(config, OVERFIT_RATE).opt, weight_decay=0.0)
    train = replace(config.train, batch_size=rows, accumulate=1, precision="32")
    noise = replace(config.noise, noise_type="none")
    config = replace(config, model=model, opt=opt, train=train, noise=noise)
    splits, kind = subject.splits, config.data.flux_norm
    subject = replace(subject, flux_norm=fit_flux_norm(splits.train, kind, noise, fills=splits.masked))
    learner, state = subject.learner(config)
    with subject.batches(config) as data:
        batch = data.batch(0)
    classifies, started, score = model.task_type == "cls", time.monotonic(), -math.inf
    while state.step < OVERFIT_STEPS and time.monotonic() - started < OVERFIT_SECONDS:
        learner.step(batch, state)
        state.step += 1
        if state.step % CHECK_EVERY == 0:
            score = _score(learner, batch)
            if _fits(score, classifies=classifies):
                break
    return state.step, score


def step_seconds(config: Config, subject: Subject) -> tuple[float, int]:
    """Return seconds of a step of the run as it is configured, mean of `TIMED_STEPS`, and how many steps it has."""
    learner, state = subject.learner(config)
    with subject.batches(config) as data:
        started = 0.0
        for number in range(WARM_STEPS + TIMED_STEPS):
            if number == WARM_STEPS:
                _wait(subject.device)
                started = time.perf_counter()
            learner.step(data.batch(state.step), state)
            state.step += 1
    _wait(subject.device)
    return (time.perf_counter() - started) / TIMED_STEPS, learner.schedule.total_steps


def loss_curve(config: Config, subject: Subject, *, rate: float, steps: int) -> list[float]:
    """Return the loss of each step of a copy at a constant rate, on the run's own rows and noise.

    It is infinite in steps that were not finite.
    """
    config, sums = _constant(config, rate), []
    learner, state = subject.learner(config)
    with subject.batches(config) as data:
        for _ in range(steps):
            learner.step(data.batch(state.step), state)
            state.step += 1
            sums.append(torch.cat([state.sums["loss"], state.sums["steps"]]))  # read once, in the end
    sums_T2 = torch.stack(sums).cpu()
    loss_T, finite_T = sums_T2.diff(dim=0, prepend=torch.zeros(1, 2, dtype=torch.float64)).T
    return torch.where(finite_T > 0, loss_T, torch.inf).tolist()


def judge_rate(rate: float, curves: dict[float, list[float]]) -> list[Measure]:
    """Return how much of the best rate's fall of the loss the configured rate misses, and whether it is off by much.

    The loss at a rate is the mean of the last quarter of its steps. Nothing is judged unless a rate lowers the loss by
    `LEAST_FALL`.
    """
    ends = {one: _end(curve) for one, curve in curves.items()}
    best = min(ends, key=lambda one: ends[one])
    first = next(iter(curves.values()))[0]
    fall = first - ends[best]
    if not fall > LEAST_FALL * abs(first):
        return []
    missed = (ends[rate] - ends[best]) / fall
    word = f"{rate:g} is too {'small' if rate < best else 'large'}; least loss at {best:g}"
    where = word if missed > 0 else f"{rate:g} has the least loss"
    return [Measure("lr_test", min(missed, 1e6), where, f"opt.lr={best:g}")]


def _end(curve: list[float]) -> float:
    last = curve[-max(1, len(curve) // 4) :]
    return sum(last) / len(last)


def _constant(config: Config, rate: float) -> Config:
    return replace(config, opt=replace(config.opt, lr=rate, lr_sch="constant", warmup_epochs=0.0))


def _fits(score: float, *, classifies: bool) -> bool:
    return Measure("overfit_classes" if classifies else "overfit", score).kept


def _score(learner: Learner, batch: Batch) -> float:
    """Return the accuracy, or the least R² of a label, of rows that the learner was trained on."""
    scores = evaluate(learner, _OneBatch(batch))
    if isinstance(learner.task, Classification):
        return scores["accuracy"]
    return min(value for name, value in scores.items() if name == "r2" or name.startswith("r2_"))


@dataclass(frozen=True)
class _OneBatch:
    """The rows of one batch as a set to evaluate."""

    batch: Batch

    def __len__(self) -> int:
        return len(self.batch.target)

    def batches(self) -> Iterator[Batch]:
        yield self.batch


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
