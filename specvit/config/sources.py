"""How Hydra reads our configuration files, and which of Hydra's own settings a file or a command line may hold."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from specvit.config.build import flatten
from specvit.utils.errors import ConfigError
from specvit.utils.yaml_files import check_aliases

HYDRA_REMEDIES = {
    "hydra.run": "set tracking.folder=FOLDER",
    "hydra.output_subdir": "set tracking.folder=FOLDER",
    "hydra.sweep": "set sweep.folder=FOLDER, or tracking.folder=FOLDER for the runs",
    "hydra.mode": "add -m to the command, or name a study with sweeps=NAME",
    "hydra.sweeper": "type the values after -m, or write a study (docs/sweeps.md)",
    "hydra/sweeper": "type the values after -m, or write a study (docs/sweeps.md)",
    "hydra.searchpath": "put your files into ./conf",
    "hydra.verbose": "set tracking.progress=lines",
    "hydra.job": "leave it out: runs work in the folder where the command is given",
}
"""What to do instead of setting what specvit does not read, by the start of the name."""


class ConfFiles(FileConfigSource):
    """A folder of configuration files.

    An experiment without a header is `# @package _global_`: its keys cannot be meant for a section `experiment`.
    Files set nothing of Hydra but its launcher, because nothing else of it would have an effect.
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
            check_aliases(Path(file).read_text(encoding="utf-8"))  # which OmegaConf copies
            found = super().load_config(config_path)
        except UnicodeDecodeError as error:
            raise ConfigError("is not UTF-8 text", where=file, remedy="save it as UTF-8") from error
        except RecursionError as error:
            raise ConfigError("is nested too deeply", where=file, remedy="mend the brackets in it") from error
        except (yaml.YAMLError, ValueError) as error:  # the latter for a number of thousands of digits
            what = f"is not valid YAML ({' '.join(str(error).split())[:160]})"
            raise ConfigError(what, where=file, remedy="mend the line that it names") from error
        if not isinstance(found.config, DictConfig):
            raise ConfigError("expects keys with values", where=file, remedy="write, say, opt: {lr: 1.0e-3}")
        if config_path.startswith("experiment/"):
            found.header["package"] = found.header.get("package") or "_global_"
        if config_path != "config" and not config_path.startswith("hydra/"):
            _refuse_hydra_in(found, file)
        if _without_settings and is_laid_over(config_path):
            found.config = OmegaConf.create({"defaults": found.config.get("defaults", [])})
        return found


def is_laid_over(config_path: str) -> bool:
    """Say whether a file sets keys over those of the chosen groups: an experiment, or a site's conf/local.yaml."""
    return config_path == "local" or config_path.startswith("experiment/")


_without_settings: list[bool] = []


@contextlib.contextmanager
def without_settings() -> Iterator[None]:
    """Let experiments and conf/local.yaml choose groups within the block, and set no keys."""
    _without_settings.append(True)
    try:
        yield
    finally:
        _without_settings.pop()


def refuse_hydra(name: str, where: str = "") -> None:
    """Raise `ConfigError` for a setting of Hydra that has no effect here; `where` is the file that holds it."""
    if name in ("hydra/launcher", "hydra.launcher") or name.startswith("hydra.launcher."):
        return
    start = next((start for start in HYDRA_REMEDIES if re.match(rf"{re.escape(start)}\b", name)), "")
    remedy = HYDRA_REMEDIES.get(start, "leave it out; of Hydra's settings there are hydra/launcher and its keys")
    raise ConfigError("has no effect in specvit", where=f"{where}: {name}" if where else name, remedy=remedy)


def _refuse_hydra_in(found: ConfigResult, file: str) -> None:
    """Refuse what a file sets or chooses of Hydra."""
    plain: Any = OmegaConf.to_container(found.config, resolve=False)
    package = found.header.get("package") or ""
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
            if group.startswith("hydra"):
                refuse_hydra(group, file)
