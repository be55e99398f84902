"""The folders of configuration files, how Hydra reads them, and which of Hydra's own settings they may hold."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from specvit.config.build import flatten
from specvit.config.folders import conf_dir, conf_folders
from specvit.config.suggestions import OLDER_OPTIONS
from specvit.utils.errors import ConfigError
from specvit.utils.files import check_aliases

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # without it Hydra prints a trace and exits before we can explain

VERSION_BASE = "1.3"
CONFIG_NAME = "config"
SEARCH = "specvit searches by Optuna itself: write a study with `search:` (docs/sweeps.md) and type sweeps=NAME"
SWEEPERS = ("optuna", "ax", "nevergrad")
HYDRA_REMEDIES = {
    "hydra.run": "set tracking.folder=FOLDER",
    "hydra.output_subdir": "set tracking.folder=FOLDER",
    "hydra.sweep": "set sweep.folder=FOLDER, or tracking.folder=FOLDER for the runs",
    "hydra.mode": "add -m to the command, or name a study with sweeps=NAME",
    **dict.fromkeys(
        ("hydra.sweeper.n_trials", "hydra.sweeper.max_batch_size"),
        "write a study with a search, and type sweep.trials=N",
    ),
    "hydra.sweeper.n_jobs": "type hydra/launcher=local hydra.launcher.slots=N",
    "hydra.sweeper.storage": "write a study with a search, and type sweep.storage=URL",
    "hydra.sweeper.study_name": "write a study with a search, and type sweep.name=NAME",
    **dict.fromkeys(("hydra.sweeper.sampler", "hydra.sweeper.direction", "hydra.sweeper.search_space"), SEARCH),
    "hydra.sweeper": "type the values after -m, or write a study (docs/sweeps.md)",
    "hydra/sweeper": "type the values after -m, or write a study (docs/sweeps.md)",
    "hydra.searchpath": "put your files into ./conf",
    "hydra.verbose": "set tracking.progress=lines",
    "hydra.job": "leave it out: a run works in the folder from which the command is started",
}
"""The remedy for each of Hydra's settings that specvit does not read, by the start of its name."""


class ConfFiles(FileConfigSource):
    """A folder of configuration files.

    An experiment without a header is `# @package _global_`: its keys cannot be meant for a section `experiment`.
    Of Hydra's settings files may hold the launcher only, because the others would have no effect.
    """

    @staticmethod
    def scheme() -> str:
        """Return the prefix of its paths in Hydra's search path."""
        return "specvit"

    def load_config(self, config_path: str) -> ConfigResult:
        """Return the content of a file; raises `ConfigError` naming the file."""
        config_path = config_path.removeprefix("./")
        file = f"{self.path}/{self._normalize_file_name(config_path)}"
        try:
            check_aliases(Path(file).read_text(encoding="utf-8"))  # OmegaConf copies what aliases repeat
            result = super().load_config(config_path)
        except UnicodeDecodeError as error:
            raise ConfigError("is not UTF-8 text", where=file, remedy="save it as UTF-8") from error
        except RecursionError as error:
            raise ConfigError("is nested too deeply", where=file, remedy="check its brackets") from error
        except (yaml.YAMLError, ValueError) as error:  # the latter for a number of thousands of digits
            what = f"is not valid YAML ({' '.join(str(error).split())[:160]})"
            raise ConfigError(what, where=file, remedy="correct the line that it names") from error
        if not isinstance(result.config, DictConfig):
            raise ConfigError("expects keys with values", where=file, remedy="write, say, opt: {lr: 1.0e-3}")
        if config_path.startswith("experiment/"):
            result.header["package"] = result.header.get("package") or "_global_"
        if config_path != "config" and not config_path.startswith("hydra/"):
            _check_hydra_settings(result, file)
        if _without_settings and is_laid_over(config_path):
            result.config = OmegaConf.create({"defaults": result.config.get("defaults", [])})
        return result


class UserConf(SearchPathPlugin):
    """Makes Hydra read all files through `ConfFiles`, with a user's own `./conf` over the bundled one."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Put our folders first; raises `ConfigError` for a `./conf` of another program."""
        own, *bundled = _only_folder or conf_folders()
        if bundled and (own / f"{CONFIG_NAME}.yaml").exists():
            what = "specvit lays ./conf over its own files, and this one would replace them all"
            remedy = "start specvit elsewhere, or keep your settings in conf/local.yaml and conf/experiment/"
            raise ConfigError(what, where=str(own / f"{CONFIG_NAME}.yaml"), remedy=remedy)
        for folder in reversed([own, *bundled]):
            search_path.prepend("specvit", f"{ConfFiles.scheme()}://{folder}")


def register() -> None:
    """Make Hydra search the user's `./conf`; idempotent."""
    if UserConf not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(UserConf)
        Plugins.instance().register(ConfFiles)


_only_folder: list[Path] = []
"""The folder that `composing_from` set, if any."""


@contextlib.contextmanager
def composing_from(folder: Path | None) -> Iterator[None]:
    """Compose from `folder` alone within the block."""
    before = list(_only_folder)
    _only_folder[:] = [folder] if folder else []
    try:
        yield
    finally:
        _only_folder[:] = before


@contextlib.contextmanager
def hydra_loader() -> Iterator[ConfigLoaderImpl]:
    """Initialise Hydra with our folders, inside or outside of a running `hydra.main`; yields its loader."""
    register()
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(_only_folder[0] if _only_folder else conf_dir()), version_base=VERSION_BASE):
            loader = GlobalHydra.instance().config_loader()
            assert isinstance(loader, ConfigLoaderImpl)
            yield loader
    finally:
        GlobalHydra.instance().hydra = before


def all_groups(loader: ConfigLoaderImpl, parent: str = "") -> list[str]:
    """Return the names of all groups of files, such as `model/tokenizer`."""
    found = []
    for group in loader.list_groups(parent):
        if (full := f"{parent}/{group}" if parent else group) != "hydra":
            found += [full, *all_groups(loader, full)]
    return found


def is_laid_over(config_path: str) -> bool:
    """Return True for a file whose keys override those of the chosen groups: an experiment or conf/local.yaml."""
    return config_path == "local" or config_path.startswith("experiment/")


_without_settings: list[bool] = []


@contextlib.contextmanager
def without_settings() -> Iterator[None]:
    """Within the block, experiments and conf/local.yaml choose groups only; their keys are ignored."""
    _without_settings.append(True)
    try:
        yield
    finally:
        _without_settings.pop()


def refuse_launcher(choice: str, where: str = "") -> None:
    """Raise `ConfigError` for a launcher of Hydra's or of a plugin of its; `where` is the file that chooses it."""
    if right := OLDER_OPTIONS["hydra/launcher"].get(choice):
        what = f"{choice} is Hydra's, which can neither resume runs nor record how they end"
        name = f"{where}: hydra/launcher" if where else "hydra/launcher"
        raise ConfigError(
            what,
            where=name,
            remedy=f"use hydra/launcher={right} (docs/slurm.md)" if right == "slurm" else f"use hydra/launcher={right}",
        )


def refuse_hydra(name: str, where: str = "", choice: str = "") -> None:
    """Raise `ConfigError` for a setting of Hydra that has no effect here, or the `choice` of a group.

    `where` is the file that holds it.
    """
    if name in ("hydra/launcher", "hydra.launcher") or name.startswith("hydra.launcher."):
        return
    start = next((start for start in HYDRA_REMEDIES if re.match(rf"{re.escape(start)}\b", name)), "")
    remedy = HYDRA_REMEDIES.get(start, "leave it out; of Hydra's settings only hydra/launcher has an effect")
    if name == "hydra/sweeper" and choice in SWEEPERS:
        name, remedy = f"{name}={choice}", SEARCH
    raise ConfigError("has no effect in specvit", where=f"{where}: {name}" if where else name, remedy=remedy)


def _check_hydra_settings(result: ConfigResult, file: str) -> None:
    """Raise `ConfigError` for settings or groups of Hydra in a file, other than its launcher."""
    plain: Any = OmegaConf.to_container(result.config, resolve=False)
    package = result.header.get("package") or ""
    settings = {package: plain} if package.startswith("hydra") else plain
    if isinstance(settings.get("hydra"), dict):
        for name in flatten(settings["hydra"], "hydra."):
            refuse_hydra(name, file)
    elif "hydra" in settings:
        refuse_hydra("hydra", file)
    defaults = plain.get("defaults")
    for entry in defaults if isinstance(defaults, list) else []:
        for choice in entry if isinstance(entry, dict) else [entry]:
            group = str(choice).rpartition(" ")[2].partition("@")[0].lstrip("/")
            option = str(entry[choice]) if isinstance(entry, dict) else ""
            if group == "hydra/launcher":
                refuse_launcher(option, file)
            if group.startswith("hydra"):
                refuse_hydra(group, file, option)
