"""One run at work, as its parts are handed from `run` to the pipeline. Needs no torch."""

from dataclasses import dataclass
from typing import Any

from specvit.config.schema import Config
from specvit.data.splits import Splits
from specvit.run_folder.folder import RunFolder
from specvit.tracking.console import Screen
from specvit.training.protocols import Pruner
from specvit.training.signals import SignalStop


@dataclass(frozen=True)
class RunContext:
    """A run whose folder is claimed: what it is, what it works on, and its surroundings."""

    config: Config
    splits: Splits
    weights: Any
    """The weights to start from, by parameter name, or None."""
    folder: RunFolder
    screen: Screen
    stop: SignalStop
    pruner: Pruner
    syncs_mlflow: bool
    """Whether it tells MLflow itself; a study has one process that does so for all of its runs."""
