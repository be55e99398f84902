"""The command line takes precedence: a typed group wins over keys that an experiment or conf/local.yaml sets.

Hydra merges both after the groups, so that beside a run's own config.yaml as an experiment `data/size=2k` would have
no effect. A typed group sets the keys in which the options of its group differ: `opt=sgd` the optimizer and its rate.
The other keys of its files are defaults, which experiments and sites may set.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.default_element import ConfigDefault
from omegaconf import DictConfig, OmegaConf, open_dict

from specvit.config.build import flatten
from specvit.config.model_kinds import kinds_with

FILES = ("data.file_path", "data.val_path", "data.test_path")


class Replaced(NamedTuple):
    """A key that a typed choice replaced: `choice` such as opt=sgd, the key's `value` before, the file that set it."""

    choice: str
    key: str
    value: Any
    file: str


def replaced_lines(replaced: Iterable[Replaced]) -> list[str]:
    """Return one sentence for each choice that replaced keys of a file."""
    lines: dict[tuple[str, str], list[str]] = {}
    for choice, key, value, file in replaced:
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        lines.setdefault((choice, file), []).append(f"{key}={shown}")
    return [f"{choice} replaces {', '.join(keys)} of {file}" for (choice, file), keys in lines.items()]


def replaced_keys(choices: Mapping[str, str], loader: ConfigLoaderImpl) -> dict[str, tuple[str, str]]:
    """Return the keys that typed choices of groups replace, each with the choice and the file that sets it."""
    laid_over: dict[str, str] = {}
    if loader.repository.config_exists("local"):
        laid_over |= dict.fromkeys(settings_of("local", loader), "conf/local.yaml")
    if experiment := choices.get("experiment"):
        laid_over |= dict.fromkeys(settings_of(f"experiment/{experiment}", loader), f"experiment {experiment}")
    replaced = {}
    for group, option in choices.items() if laid_over else ():
        keys = decided_keys(group, option, loader) if group != "experiment" else []
        replaced |= {key: (f"{group}={option}", laid_over[key]) for key in keys if key in laid_over}
    return replaced


def decided_keys(group: str, option: str, loader: ConfigLoaderImpl) -> list[str]:
    """Return the keys that an option of a group decides: those that another option sets differently or not at all.

    Keys that a model of another kind cannot have do not count.
    """
    own = settings_of(f"{group}/{option}", loader)
    others = [settings_of(f"{group}/{name}", loader) for name in loader.get_group_options(group) if name != option]

    def differs(key: str, value: Any) -> bool:
        kinds = kinds_with(key)
        return any(
            key not in other or other[key] != value
            for other in others
            if not kinds or other.get("model.kind", kinds[0]) in kinds
        )

    return [key for key, value in own.items() if _has_value(key, value, own) and differs(key, value)]


def _has_value(key: str, value: Any, option: dict[str, Any]) -> bool:
    """Return False for a key whose value an option leaves to the site or the user: a folder, the files to read."""
    if value is None:
        return key != "data.root" and not (key in FILES and option.get("data.kind") == "hdf5")
    return not str(value).startswith("${oc.env:")


def settings_of(path: str, loader: ConfigLoaderImpl) -> dict[str, Any]:
    """Return the unresolved keys that a file sets, including those of its defaults list."""
    file = loader.repository.load_config(path)
    if file is None:
        return {}
    group = path.rpartition("/")[0]
    package = file.header.get("package") or group.replace("/", ".")
    plain: Any = OmegaConf.to_container(file.config, resolve=False) if isinstance(file.config, DictConfig) else {}
    own = flatten(plain, "" if package in ("_global_", "") else f"{package}.")
    settings: dict[str, Any] = {}
    bases = [default.path for default in file.defaults_list or [] if isinstance(default, ConfigDefault)]
    for base in [*bases, *["_self_"] * ("_self_" not in bases)]:
        if base == "_self_":
            settings |= own
        elif base is not None:
            settings |= settings_of(base.lstrip("/") if base.startswith("/") else f"{group}/{base}", loader)
    return settings


def replace_keys(composed: DictConfig, keys: dict[str, tuple[str, str]], bare: DictConfig) -> list[Replaced]:
    """Set keys to their values in `bare`, composed without experiments' keys; return those that changed."""
    replaced = []
    for key, (choice, file) in keys.items():
        section, _, name = key.rpartition(".")
        old, new = OmegaConf.select(composed, section), OmegaConf.select(bare, section)
        if not isinstance(old, DictConfig) or not isinstance(new, DictConfig):
            continue
        before: Any = OmegaConf.to_container(old, resolve=False)
        after: Any = OmegaConf.to_container(new, resolve=False)
        if name in after and before.get(name) != after[name]:
            with open_dict(old):
                old[name] = after[name]
            replaced.append(Replaced(choice, key, before.get(name), file))
    return replaced
