"""A run before it computes: its folder by configuration and data, and the context of its training. Needs no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specvit.config.schema import Config
from specvit.config.tracking_uri import check_names, resolve_uri
from specvit.data.splits import Splits, manifest, needs_files, open_splits
from specvit.run_folder.folder import RunFolder, find_folder
from specvit.run_folder.identity import default_name, identity_of, run_id
from specvit.tracking.console import Console
from specvit.training.protocols import Pruner
from specvit.training.signals import SignalStop
from specvit.utils.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class LocatedRun:
    """A run's folder, which may not exist yet, and the identity that it is named after."""

    folder: RunFolder
    identity: dict[str, Any]
    splits: Splits | None
    """Opened data, if the identity needed it; that of built-in spectra is known without them."""
    weights: Any
    """The weights to start from, if any."""


@dataclass(frozen=True)
class RunContext:
    """A run whose folder is claimed: what training and evaluation need."""

    config: Config
    splits: Splits
    weights: Any
    """The weights to start from, by parameter name, or None."""
    folder: RunFolder
    console: Console
    stop: SignalStop
    pruner: Pruner
    syncs_mlflow: bool
    """Whether it starts its own synchronisation to MLflow; a study has one process for all of its runs."""


def locate(config: Config, report: Callable[[str, int, int], None], splits: Splits | None = None) -> LocatedRun:
    """Return the folder of the run of `config`; raises `SpecvitError` for data or weights that cannot be read.

    Also raises it for names that MLflow would refuse. `splits` are its data if they are open already.
    """
    weights, digest = _initial_weights(config)
    if splits is None and needs_files(config.data):
        splits = open_splits(config, report)
    identity = identity_of(config, manifest(config.data, splits), digest)
    name = config.tracking.name or default_name(config)
    folder = find_folder(Path(config.tracking.folder), run_id(identity), name)
    check_names(config.tracking.experiment, config.tracking.tags)
    if config.tracking.live:
        resolve_uri(config.tracking.uri, folder.path)
    return LocatedRun(folder, identity, splits, weights)


def _initial_weights(config: Config) -> tuple[Any, dict[str, Any] | None]:
    """Return the weights to start from, read once, and their digest, which is part of the identity."""
    if config.train.init_from is None:
        return None, None
    from specvit.run import train_network
    from specvit.training.checkpoint import AGAIN

    try:
        weights = train_network.read_weights(config.train.init_from)
    except CheckpointError as problem:
        remedy = "name a run folder with a best.ckpt, or a file of weights"
        remedy = remedy if problem.remedy == AGAIN else problem.remedy
        raise ConfigError(f"{problem.where} {problem.what}", where="train.init_from", remedy=remedy) from problem
    return weights, {"init_from": weights.digest}
