"""From overrides to a resolved plain dict, composed by Hydra.

`python -m specvit.train` enters through `hydra.main` for `--help`, `--info` and completion; everything else calls
`compose`, or a `Composer` for many runs.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from specvit.config.conf_files import CONFIG_NAME, all_groups, composing_from, hydra_loader, without_settings
from specvit.config.fields import checked
from specvit.config.model_kinds import settle
from specvit.config.overrides import (
    bracket_lists,
    check_override,
    chooses_file,
    explained,
    multiple_values_error,
    parse,
)
from specvit.config.precedence import Replaced, replace_keys, replaced_keys, settings_of
from specvit.config.schema import ViTConfig
from specvit.utils.errors import ConfigError, Faults


def compose(
    overrides: Sequence[str] = (), folder: Path | None = None, replaced: list[Replaced] | None = None
) -> dict[str, Any]:
    """Return the resolved config of `overrides` as a plain dict; raises `ConfigError`.

    `folder` takes the place of all configuration files, for a study's own copy of them. The keys of an experiment or
    conf/local.yaml that typed groups replaced are added to `replaced`.
    """
    composer = Composer(folder)
    config = composer(overrides)
    if replaced is not None:
        replaced += composer.replaced
    return config


@dataclass(frozen=True)
class ComposedGroups:
    """What group choices compose to, before single keys are set."""

    config: DictConfig
    replaced: list[Replaced]
    """The keys of an experiment or conf/local.yaml that typed groups replaced."""
    tokenizer: tuple[str, str | None] | None
    """The typed `model/tokenizer`, and the `model.proj_fn` that it means."""


class Composer:
    """`compose` for many runs, in milliseconds each: Hydra reads a hundred files, which takes it a third of a second.

    Each choice of files is composed once; single keys are then set on copies, by Hydra's own code.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` takes the place of all configuration files, for a study's own copy of them."""
        self.folder = folder
        self.replaced: list[Replaced] = []
        """The keys of experiments and conf/local.yaml that typed groups replaced."""
        self._composed: dict[tuple[str, ...], ComposedGroups] = {}
        self._parsed: dict[str, tuple[Override, bool]] = {}
        """Each override that was typed before, and whether it chooses a file of a group."""
        self._groups: list[str] = []

    def __call__(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Return the resolved config of `overrides` as a plain dict; raises `ConfigError`."""
        overrides = bracket_lists(overrides)
        with composing_from(self.folder):
            self._parse_new(overrides)
            groups = tuple(text for text in overrides if self._parsed[text][1])
            if groups not in self._composed:
                self._composed[groups] = _compose_groups(groups)
            composed = replace(self._composed[groups], config=copy.deepcopy(self._composed[groups].config))
            keys = [override for override, is_choice in map(self._parsed.__getitem__, overrides) if not is_choice]
            self._set_keys(composed, keys, overrides)
            return _resolve(composed.config, overrides)

    def _parse_new(self, overrides: Sequence[str]) -> None:
        """Parse and check the overrides that were not typed before; raises `ConfigError`."""
        parsed = {text: parse(text) for text in overrides if text not in self._parsed}
        if not parsed:
            return
        with hydra_loader() as loader:
            self._groups = self._groups or all_groups(loader)
            faults = Faults()
            for text, override in parsed.items():
                with faults:
                    check_override(override, loader)
                    if override.is_sweep_override():
                        raise multiple_values_error(text)
            faults.report()
        self._parsed |= {text: (override, chooses_file(override, self._groups)) for text, override in parsed.items()}

    def _set_keys(self, composed: ComposedGroups, keys: Sequence[Override], overrides: Sequence[str]) -> None:
        """Set single keys in `composed.config`, and note in `self.replaced` what typed groups replaced."""
        with explained(overrides):
            ConfigLoaderImpl._apply_overrides_to_config(list(keys), composed.config)
        if composed.tokenizer:
            _refuse_disagreement(*composed.tokenizer, composed.config.model.proj_fn)
        typed = {override.key_or_group for override in keys}
        self.replaced += [one for one in composed.replaced if one.key not in typed and one not in self.replaced]


def _compose_groups(groups: Sequence[str]) -> ComposedGroups:
    """Return what group choices compose to; a typed group wins over keys that experiments and conf/local.yaml set."""
    with hydra_loader() as loader, explained(groups):
        config = hydra_compose(CONFIG_NAME, list(groups))
        choices = {override.key_or_group: str(override.value()) for override in map(parse, groups)}
        tokenizer = choices.get("model/tokenizer")
        meant = settings_of(f"model/tokenizer/{tokenizer}", loader).get("model.proj_fn") if tokenizer else None
        replaced: list[Replaced] = []
        if disputed := replaced_keys(choices, loader):
            with without_settings():
                replaced = replace_keys(config, disputed, hydra_compose(CONFIG_NAME, list(groups)))
        return ComposedGroups(config, replaced, (tokenizer, meant) if tokenizer else None)


def _resolve(composed: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Return a composed config as a plain dict with every interpolation resolved, without Hydra's own section.

    Of the section `model` only the keys of its kind remain; raises `ConfigError` for `overrides` of another kind.
    """
    with explained(()):
        resolved: Any = OmegaConf.to_container(composed, resolve=True)
    resolved.pop("hydra", None)
    settle(resolved, overrides)
    return resolved


def _refuse_disagreement(tokenizer: str, meant: str | None, composed: str) -> None:
    """Raise `ConfigError` where `model/tokenizer` means another `model.proj_fn` than was composed."""
    rules = ViTConfig.__dataclass_fields__["proj_fn"].metadata
    if meant is not None and checked(composed, str, rules, "model.proj_fn") != meant:
        what = f"model/tokenizer={tokenizer} means model.proj_fn={meant}, but another setting makes it {composed}"
        raise ConfigError(what, where="model.proj_fn", remedy="drop one of the two")
