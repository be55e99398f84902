"""All checks of a configuration before a run, as `specvit doctor [overrides]` reports them. Makes no run folder."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from specvit.checks.data import data_checks
from specvit.checks.network import NetworkFacts, network_checks, table_checks
from specvit.checks.rules import Measure
from specvit.checks.training import Subject, TrainingFacts, training_checks
from specvit.config.schema import Config, NetworkConfig
from specvit.data.noise import fit_flux_norm
from specvit.data.splits import SPLITS, open_splits
from specvit.run.context import locate
from specvit.run.train_network import build_learner, check_durations, check_evaluation_rows, statistics, train_data
from specvit.training.device import resolve_device, set_up_torch


@dataclass(frozen=True)
class Checkup:
    """What was found: spectra of each split, the network and its first steps (None for an estimator), every measure."""

    spectra: dict[str, int]
    pixels: int
    network: NetworkFacts | None
    training: TrainingFacts | None
    measures: list[Measure]


def check_up(
    config: Config, report: Callable[[str, int, int], None], say: Callable[[str], None], *, trains: bool = True
) -> Checkup:
    """Check what `specvit train` would run; raises `SpecvitError` for what it would refuse.

    `report` is called while built-in spectra are made, `say` with notes. `trains`: whether copies of
    the network take steps.
    """
    device = resolve_device(config.train.device)
    located = locate(config, report)
    splits = located.splits or open_splits(config, report)
    check_evaluation_rows(config, splits)
    network, training, measures = None, None, []
    if isinstance(config.model, NetworkConfig):
        check_durations(config, splits)
        set_up_torch(config.train, None, say, device)
        flux_norm, kept = statistics(config, splits)
        learner, _, _ = build_learner(config, splits, located.weights, device, flux_norm=flux_norm, kept=kept)
        with contextlib.closing(train_data(config, splits, flux_norm, device)) as data:
            network, measures = network_checks(config, learner, data.batch(0))
        measures += table_checks(config, len(splits.train))
        if trains:
            training, more = training_checks(config, Subject(splits, located.weights, device, flux_norm, kept))
            measures += more
    else:
        flux_norm = fit_flux_norm(splits.train, config.data.flux_norm, config.noise, fills=splits.masked)
    measures += data_checks(config, splits, flux_norm)
    spectra = {name: len(getattr(splits, name)) for name in SPLITS}
    return Checkup(spectra, splits.train.num_pixels, network, training, measures)
