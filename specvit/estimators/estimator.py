"""The interface of a model that is fitted in one go, and what the fit works with. Legend: N rows, K labels."""

import functools
import math
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
from torch import nn

from specvit.config.schema import Config, ModelConfig
from specvit.data.batches import EvalData, eval_data
from specvit.data.labels import TargetCoder
from specvit.data.noise import FluxNorm
from specvit.data.splits import Splits
from specvit.tracking.console import Console
from specvit.training.checkpoint import Parts
from specvit.training.protocols import Pruner, Tracker
from specvit.training.task import Regression
from specvit.utils.errors import Pruned

Section = TypeVar("Section", bound=ModelConfig)

PRINT_SECONDS = 5.0
"""Least time between two lines of progress."""


@dataclass(frozen=True)
class Fitted:
    """A fitted model: its part of the checkpoint, the step (such as number of trees) it is from, and how it ended."""

    parts: dict[str, Any]
    best_step: int = 1
    stopped_early: bool = False


class Estimator(ABC, Generic[Section]):
    """A model that is fitted in one go: no epochs, and nothing saved before it is complete."""

    parts: ClassVar[Parts]
    """What a checkpoint holds of it, and of which type."""
    on_host: ClassVar[bool] = False
    """Whether it computes on the CPU whatever `train.device` is."""

    def __init__(self, config: Config) -> None:
        """`settings` is the section `model`."""
        self.config = config
        self.settings = cast("Section", config.model)

    @property
    def num_steps(self) -> int:
        """The highest step that it can record."""
        return 1

    @abstractmethod
    def describe(self, splits: Splits) -> str:
        """Return one line for the banner; raises `ConfigError` for too few spectra."""

    @abstractmethod
    def fit(self, context: "FitContext") -> Fitted:
        """Fit on the training rows, choose by the validation rows; raises `DataError`, `Diverged` or `Pruned`.

        `context.record` must be called for the step that `Fitted` names: its validation scores are the run's.
        """

    @abstractmethod
    def load(self, parts: dict[str, Any], coder: TargetCoder, device: torch.device, where: str) -> nn.Module:
        """Return the model, flux (B, P) -> normalised labels (B, K); raises `CheckpointError` naming `where`."""

    def part_shapes(self, num_pixels: int, num_outputs: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of those parts that are tensors."""
        return {}


@dataclass
class FitContext:
    """What the fit of every estimator works with."""

    config: Config
    splits: Splits
    task: Regression
    flux_norm: FluxNorm
    val: EvalData
    device: torch.device
    tracker: Tracker
    console: Console
    pruner: Pruner
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The recorded rows of `metrics.jsonl`."""
    _printed: float = -math.inf
    _recorded: float = field(default_factory=time.perf_counter)

    @functools.cached_property
    def train(self) -> EvalData:
        """The training rows, each with one noise realisation, keyed by (seed, row)."""
        noise = replace(self.config.noise, eval_seed=self.config.train.seed)
        config = replace(self.config, noise=noise)
        return eval_data(self.splits.train, "train", config, self.splits.coder, self.flux_norm, self.device)

    def record(self, step: int, train_scores: dict[str, float], val_scores: dict[str, float], **facts: float) -> None:
        """Record the scores of a step; raises `Pruned`."""
        row = {"step": step, "epoch": step, **facts}
        row |= {f"train_{name}": value for name, value in train_scores.items()}
        row |= {f"val_{name}": value for name, value in val_scores.items()}
        self.rows.append(row)
        self.tracker.metrics(row)
        now = time.perf_counter()
        self.tracker.timing({"step": step, "epoch": step, "train_seconds": now - self._recorded, "val_seconds": 0.0})
        self._recorded = now
        if reason := self.pruner.prunes(row):
            raise Pruned(reason)

    def row(self, step: int) -> dict[str, Any]:
        """Return the recorded row of a step."""
        return next(row for row in self.rows if row["step"] == step)

    def say(self, text: str, *, now: bool = False) -> None:
        """Print a line of progress, at most every `PRINT_SECONDS` unless `now`."""
        moment = time.monotonic()
        if self.console.style != "none" and (now or moment >= self._printed + PRINT_SECONDS):
            self._printed = moment
            self.console.say(text)
