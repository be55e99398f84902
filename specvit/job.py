"""One run at work, as its parts are handed from `run` to the pipeline. Needs no torch."""

from dataclasses import dataclass
from typing import Any

from specvit.config.folder import RunFolder
from specvit.config.schema import Config
from specvit.data.splits import Splits
from specvit.engine.preempt import SignalStop
from specvit.scores.ports import Pruner
from specvit.tracking.console import Screen


@dataclass(frozen=True)
class Job:
    """A run whose folder is claimed: what it is, what it works on, and its surroundings."""

    config: Config
    splits: Splits
    weights: Any
    """The weights to start from, by parameter name, or None."""
    folder: RunFolder
    screen: Screen
    stop: SignalStop
    pruner: Pruner
    tells: bool
    """Whether it tells MLflow itself; a study has one process that does so for all of its runs."""
