"""Optuna's samplers and pruners as a study's file names them."""

import logging
import warnings
from typing import Any

import optuna

from specvit.study.search_space import Search, encoded
from specvit.utils.errors import ConfigError


def build_sampler(search: Search, seed: int) -> optuna.samplers.BaseSampler:
    """Return the sampler for one trial; raises `ConfigError` for an option that it does not have."""
    options = dict(search.sampler_options)
    seed %= 2**32
    samplers: dict[str, Any] = {
        "tpe": optuna.samplers.TPESampler,
        "cmaes": optuna.samplers.CmaEsSampler,
        "gp": optuna.samplers.GPSampler,
        "random": optuna.samplers.RandomSampler,
        "grid": optuna.samplers.GridSampler,
        "qmc": optuna.samplers.QMCSampler,
        "nsga2": optuna.samplers.NSGAIISampler,
    }
    if search.sampler == "tpe":
        options = {"constant_liar": True, **options}  # trials at work count as bad, so that workers spread out
    if search.sampler == "qmc":
        options, seed = {"scramble": True, **options}, search.seed  # its sequence is one, walked along in the storage
    if search.sampler == "grid":
        if bad := [dimension.key for dimension in search.space if dimension.choices is None or dimension.when]:
            raise ConfigError("needs choices without conditions", where=f"search.space.{bad[0]}")
        space = {d.key: [encoded(value) for value in d.choices or ()] for d in search.space}
        options, seed = {"search_space": space, **options}, search.seed
    return _built(samplers[search.sampler], "search.sampler", {**options, "seed": seed})


def build_pruner(search: Search) -> optuna.pruners.BasePruner:
    """Return the pruner; raises `ConfigError` for an option that it does not have."""
    options = dict(search.pruner_options)
    pruners: dict[str, Any] = {
        "none": optuna.pruners.NopPruner,
        "median": optuna.pruners.MedianPruner,
        "percentile": optuna.pruners.PercentilePruner,
        "halving": optuna.pruners.SuccessiveHalvingPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
        "patient": optuna.pruners.PatientPruner,
        "wilcoxon": optuna.pruners.WilcoxonPruner,
    }
    if search.pruner == "patient":
        options = {"wrapped_pruner": None, "patience": 5, **options}
    return _built(pruners[search.pruner], "search.pruner", options)


def _built(kind: Any, where: str, options: dict[str, Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is experimental in Optuna is our choice
            return kind(**options)
    except (TypeError, ValueError) as problem:
        raise ConfigError(str(problem), where=where, remedy="see Optuna's documentation for its options") from problem


def quiet() -> None:
    """Leave speaking to us."""
    optuna.logging.set_verbosity(logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
