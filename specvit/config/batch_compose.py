"""Composing many runs: `compose` reads a hundred files each time, which a grid of hundreds of runs would wait for."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from specvit.config import compose as door
from specvit.config.precedence import Replaced


class Composer:
    """`compose` for many runs: each choice of files is composed once, keys are then set on copies, by Hydra's own code.

    Calling it gives what `compose.compose` gives.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` takes the place of all configuration files, for a study's own copy of them."""
        self.folder = folder
        self.replaced: list[Replaced] = []
        """The keys of experiments and conf/local.yaml that typed groups replaced."""
        self._chosen: dict[tuple[str, ...], door.Chosen] = {}
        self._parsed: dict[str, tuple[Override, bool]] = {}
        self._groups: list[str] = []

    def __call__(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Return the resolved config of `overrides` as a plain dict; raises `ConfigError`."""
        overrides = door.tidy(overrides)
        with door.only(self.folder):
            self._check_new(overrides)
            groups = tuple(text for text in overrides if self._parsed[text][1])
            if groups not in self._chosen:
                self._chosen[groups] = door.choose(groups)
            chosen = replace(self._chosen[groups], config=copy.deepcopy(self._chosen[groups].config))
            keys = [override for override, is_choice in map(self._parsed.__getitem__, overrides) if not is_choice]
            return door.set_keys(chosen, keys, overrides, self.replaced)

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
                if override.is_sweep_override():
                    raise door.several_values(text)
                self._parsed[text] = override, door.is_choice(override, self._groups)
