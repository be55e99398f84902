"""Where runs execute: `hydra/launcher` and its keys, typed or chosen by an experiment or conf/local.yaml."""

from collections.abc import Sequence
from typing import Any

from hydra import compose as hydra_compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf

from specvit.config.conf_files import CONFIG_NAME, hydra_loader, without_settings
from specvit.config.folders import conf_folders
from specvit.config.overrides import check_override, explained, parse, parse_single
from specvit.config.precedence import settings_of


def split_launcher(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides of the launcher, and the others without Hydra's default sweeper."""
    overrides = [text for text in overrides if text != "hydra/sweeper=basic"]
    launcher = [text for text in overrides if text.lstrip("+").startswith(("hydra/", "hydra."))]
    return launcher, [text for text in overrides if text not in launcher]


def runs_elsewhere(overrides: Sequence[str]) -> bool:
    """Return True if the command line, an experiment or conf/local.yaml chooses a launcher other than `inprocess`."""
    launcher, others = split_launcher(overrides)
    experiments = [text for text in others if text.startswith("experiment=")]
    local = any((folder / "local.yaml").exists() for folder in conf_folders())
    if launcher or not (experiments or local):
        return bool(launcher)
    return compose_launcher(experiments) != {"kind": "inprocess"}


def compose_launcher(overrides: Sequence[str]) -> dict[str, Any]:
    """Return `hydra.launcher` as a plain dict, as overrides or the experiment among them choose and set it.

    Its typed keys are not checked here but by the reader of the launcher's section. Keys of another launcher are
    dropped where conf/local.yaml sets them, or an experiment whose launcher a typed one replaces.
    """
    keys = [f"++{text.lstrip('+')}" for text in overrides if text.lstrip("+").startswith("hydra.launcher.")]
    groups = [text for text in overrides if not text.lstrip("+").startswith("hydra.launcher.")]
    with hydra_loader() as loader, explained(overrides):
        for text in overrides:
            check_override(parse_single(text), loader, of_run=False)
        composed = hydra_compose(CONFIG_NAME, groups, return_hydra_config=True)
        with without_settings():
            own = hydra_compose(CONFIG_NAME, groups, return_hydra_config=True).hydra.launcher
        others = [settings_of(f"hydra/launcher/{name}", loader) for name in loader.get_group_options("hydra/launcher")]
        files = ["local"] if loader.repository.config_exists("local") else []
        if any(text.startswith("hydra/launcher=") for text in groups):
            files += [text.replace("=", "/") for text in groups if text.startswith("experiment=")]
        for key in {key for file in files for key in settings_of(file, loader)}:
            name = key.removeprefix("hydra.launcher.")
            if name not in own and any(key in other for other in others):
                OmegaConf.set_struct(composed.hydra, False)
                composed.hydra.launcher.pop(name, None)
        ConfigLoaderImpl._apply_overrides_to_config(list(map(parse, keys)), composed)
        launcher: Any = OmegaConf.to_container(composed.hydra.launcher, resolve=True)
        return launcher
