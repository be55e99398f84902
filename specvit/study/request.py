"""From a command line to a study: its definition, settings typed beside it, `sweep.*` options and launcher."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from specvit.cluster.slots import LauncherConfig, read_launcher
from specvit.cluster.slurm_settings import SlurmConfig, read_slurm
from specvit.config.launcher import compose_launcher, split_launcher
from specvit.config.overrides import check_overrides, choices_of, parse
from specvit.study.grid import product_grid
from specvit.study.options import SweepOptions, find_study, split_options
from specvit.study.schema import SEED, Definition, read_definition
from specvit.study.yaml_schema import Settings, Typed
from specvit.utils.errors import ConfigError


@dataclass(frozen=True)
class StudyRequest:
    """What the command line asks for."""

    definition: Definition
    typed: Settings
    options: SweepOptions
    launcher: LauncherConfig | SlurmConfig
    words: tuple[str, ...]
    """The command line, for starting it again in the background."""
    in_background: bool = False
    """True of the command that was started there."""

    @property
    def detaches(self) -> bool:
        """Whether it is to start again in the background, which the command there never does."""
        return self.options.detach and not self.in_background

    def count_trials(self, planned: Sequence[object]) -> int:
        """Return how many trials there are to be: those planned of a grid, those that a search is to ask for."""
        search = self.definition.search
        base = {**self.definition.overrides, **self.typed}
        return search.count(self.options.trials, base) if search else len(planned)


def study_request(
    name: str | None,
    overrides: list[str],
    words: tuple[str, ...],
    *,
    in_background: bool = False,
    definition: Definition | None = None,
) -> StudyRequest:
    """Return what a command line asks for: the study `name`, or without one a plain grid over the swept overrides.

    A `definition` takes the place of the study's file. Raises `ConfigError`.
    """
    overrides = [text for text in overrides if not text.startswith("sweeps=")]
    options, overrides = split_options(overrides)
    launcher, overrides = split_launcher(overrides)
    compose_launcher(launcher)  # its faults are reported first
    fixed, axes = parse_sweep(overrides)
    if name is not None:
        definition = definition or read_definition(find_study(name))
        if axes:
            key, values = next(iter(axes.items()))
            if key != SEED or definition.search is not None:
                what, remedy = "has several values", "a study's axes are in its file; give one value"
                raise ConfigError(what, where=key, remedy=remedy)
            definition = replace(definition, seeds=tuple(values))
    else:
        check_overrides(overrides)
        definition = _plain_grid(fixed, axes)
    if definition.search is None:
        _refuse_search_options(options)
    typed = _settings(fixed)
    return StudyRequest(definition, typed, options, _launcher(launcher, definition, typed), words, in_background)


def _launcher(typed: list[str], definition: Definition, settings: Settings) -> LauncherConfig | SlurmConfig:
    """Return the launcher that is typed, or else the one that the experiment of all runs chooses."""
    experiments = [str(settings["experiment"])] if "experiment" in settings else definition.values_of("experiment")
    chosen = [compose_launcher([*typed, f"experiment={name}"]) for name in dict.fromkeys(experiments)]
    chosen = chosen or [compose_launcher(typed)]
    if any(launcher != chosen[0] for launcher in chosen):
        what, remedy = "some choose another launcher than others", "type hydra/launcher=NAME, which holds for all runs"
        raise ConfigError(what, where="experiment", remedy=remedy)
    if "_target_" in chosen[0]:
        raise ConfigError("is not one of ours", where="hydra/launcher", remedy="use inprocess, local or slurm")
    return read_slurm(chosen[0]) if chosen[0].get("kind") == "slurm" else read_launcher(chosen[0])


def _refuse_search_options(options: SweepOptions) -> None:
    """Raise `ConfigError` for what only a search takes."""
    for name in ("trials", "storage"):
        if getattr(options, name) is not None:
            raise ConfigError("needs a search, and this is a grid", where=f"sweep.{name}", remedy="drop it")


def parse_sweep(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[Any]]]:
    """Return the overrides with one value, and the keys with several (`a,b`, `range(1,4)`) with their values.

    What is typed last for a key holds. Raises `ConfigError` for an interval, which needs a search, for an order by
    chance, and for several values of what makes no other run.
    """
    fixed: list[tuple[str, str]] = []
    axes: dict[str, list[Any]] = {}
    for text in overrides:
        override = parse(text)
        key = override.get_key_element().lstrip("+")
        if not override.is_sweep_override():
            axes.pop(key, None)
            fixed.append((key, text))
        elif override.is_discrete_sweep():
            _refuse_axis(key, override)
            fixed = [pair for pair in fixed if pair[0] != key]
            axes[key] = choices_of(override)
        else:
            what = "is an interval, from which a grid can take no values"
            raise ConfigError(what, where=text, remedy="list values, or write a study with a search (docs/sweeps.md)")
    return [text for _, text in fixed], axes


def _refuse_axis(key: str, override: Any) -> None:
    if getattr(override.value(), "shuffle", False):
        what, remedy = "is in another order each time", "list the values in the order in which they shall run"
        raise ConfigError(what, where=key, remedy=remedy)
    if key.startswith("tracking."):
        raise ConfigError("has several values, but none makes another run", where=key, remedy="give one value")


def _plain_grid(fixed: list[str], axes: dict[str, list[object]]) -> Definition:
    """Return a grid without a file, named by what was typed: the same command is the same grid."""
    text = json.dumps([sorted(fixed), axes], sort_keys=True)
    name = f"grid-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return Definition(name=name, grids=(product_grid(axes),))


def _settings(fixed: list[str]) -> Settings:
    """Return typed overrides as settings; the last one of a key holds."""
    found: Settings = {}
    for text in fixed:
        key, _, value = text.partition("=")
        found.pop(key, None)
        found[key] = Typed(value)
    return found
