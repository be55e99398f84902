"""Composing many runs: `compose` reads a hundred files each time, which a grid of hundreds of runs would wait for."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from specvit.config import compose as door


class Composer:
    """`compose` for many runs: each choice of files is composed once, keys are then set on copies, by Hydra's own code.

    Calling it gives what `compose.compose` gives.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` takes the place of all configuration files, for a study's own copy of them."""
        self.folder = folder
        self._chosen: dict[tuple[str, ...], DictConfig] = {}
        self._parsed: dict[str, tuple[Override, bool]] = {}
        self._meanings: dict[str, str | None] = {}
        self._groups: list[str] = []

    def __call__(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Return the resolved config of `overrides` as a plain dict; raises `ConfigError`."""
        overrides = door.tidy(overrides)
        with door.only(self.folder):
            self._check_new(overrides)
            groups = tuple(text for text in overrides if self._parsed[text][1])
            if groups not in self._chosen:
                with door.composer(), door.explained(groups):
                    self._chosen[groups] = hydra_compose(door.CONFIG_NAME, list(groups))
            composed = copy.deepcopy(self._chosen[groups])
            with door.explained(overrides):
                keys = [self._parsed[text][0] for text in overrides if not self._parsed[text][1]]
                ConfigLoaderImpl._apply_overrides_to_config(keys, composed)
            self._check_tokenizer(groups, composed)
            return door.plain(composed, overrides)

    def _check_new(self, overrides: Sequence[str]) -> None:
        """Check and parse the overrides that did not come before; raises `ConfigError`."""
        new = [text for text in overrides if text not in self._parsed]
        if not new:
            return
        parsed = [door.parse(text) for text in new]
        with door.composer() as loader:
            self._groups = self._groups or door.all_groups(loader)
            for text, override in zip(new, parsed, strict=True):
                door.check_one(override, loader)
                name = override.key_or_group
                if override.is_sweep_override():
                    raise door.several_values(text)
                is_group = name in self._groups and not isinstance(override.value(), dict)
                self._parsed[text] = override, is_group or name.startswith("hydra")

    def _check_tokenizer(self, groups: Sequence[str], composed: DictConfig) -> None:
        typed = {override.key_or_group: override for override in (self._parsed[text][0] for text in groups)}
        if "model/tokenizer" in typed:
            choice = str(typed["model/tokenizer"].value())
            if choice not in self._meanings:
                self._meanings[choice] = door.meaning_of(choice)
            door.refuse_disagreement(choice, self._meanings[choice], composed.model.proj_fn)
