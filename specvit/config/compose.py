"""The one door to Hydra's composer: overrides in, a resolved plain dict out, faults as one sentence.

`python -m specvit.train` enters through `hydra.main` for its flags (`--help`, `--cfg`, `-m`, completion); everything
else calls `compose`. Both pass `check_overrides` first, because Hydra itself lets `+new.key=1` through silently and
says "Could not override" where "did you mean" would help.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # without it Hydra prints a trace and exits before we can explain

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Transformer
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from specvit.config.kinds import refuse_foreign, settle
from specvit.config.schema import ViTConfig
from specvit.config.spelling import OLDER_OPTIONS, is_known, known_keys, nearest, suggest
from specvit.errors import ConfigError

VERSION_BASE = "1.3"
CONFIG_NAME = "config"
LISTS = ("data.param", "data.file_path", "data.val_path", "data.test_path", "data.class_edges", "opt.betas")
LISTS += ("model.channels", "model.alpha_range")


def conf_dir() -> Path:
    """Return the bundled `conf/`: inside an installed package, else at the top of the source tree."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def conf_folders() -> list[Path]:
    """Return the folders that are composed from: a user's own `./conf`, if there is one, over the bundled one."""
    own = Path.cwd() / "conf"
    return [own, conf_dir()] if own.is_dir() and not own.samefile(conf_dir()) else [conf_dir()]


class UserConf(SearchPathPlugin):
    """Lays a user's own `./conf` over the bundled one."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Put `./conf` first, unless it is the bundled folder itself; raises `ConfigError` for another program's."""
        own, *bundled = conf_folders()
        if bundled and not _alone:
            if (own / f"{CONFIG_NAME}.yaml").exists():
                what = "specvit lays ./conf over its own files, and this one would replace them all"
                remedy = "start specvit elsewhere, or keep your settings in conf/local.yaml and conf/experiment/"
                raise ConfigError(what, where=str(own / f"{CONFIG_NAME}.yaml"), remedy=remedy)
            search_path.prepend("user", f"file://{own}")


def register() -> None:
    """Make Hydra look into the user's `./conf`; calling it again changes nothing."""
    if UserConf not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(UserConf)


def compose(overrides: Sequence[str] = (), folder: Path | None = None) -> dict[str, Any]:
    """Return the resolved config of `overrides` as a plain dict; raises `ConfigError`.

    `folder` takes the place of all configuration files, for a study's own copy of them.
    """
    overrides = tidy(overrides)
    with only(folder):
        check_overrides(overrides)
        with composer(), explained(overrides):
            return plain(hydra_compose(CONFIG_NAME, list(overrides)), overrides)


def compose_launcher(overrides: Sequence[str]) -> dict[str, Any]:
    """Return `hydra.launcher` as a plain dict, as `hydra/launcher=...` among the overrides chooses it.

    Its keys are taken as they are typed: whoever reads them knows what there is.
    """
    forced = [f"++{text.lstrip('+')}" if text.lstrip("+").startswith("hydra.launcher.") else text for text in overrides]
    with composer() as loader, explained(overrides):
        for text in overrides:
            check_one(parse(text), loader)
        composed = hydra_compose(CONFIG_NAME, forced, return_hydra_config=True)
        found: Any = OmegaConf.to_container(composed.hydra.launcher, resolve=True)
        return found


_alone: list[Path] = []
"""The one folder to compose from, while there is one."""


@contextlib.contextmanager
def only(folder: Path | None) -> Iterator[None]:
    """Compose from `folder` alone within the block."""
    before = list(_alone)
    _alone[:] = [folder] if folder else []
    try:
        yield
    finally:
        _alone[:] = before


def plain(composed: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Return a composed config as a plain dict with every interpolation resolved, without Hydra's own section.

    Of the section `model` the keys of its kind are left; raises `ConfigError` for `overrides` of another kind.
    """
    with explained(()):
        resolved: Any = OmegaConf.to_container(composed, resolve=True)
    resolved.pop("hydra", None)
    settle(resolved, overrides)
    return resolved


def tidy(overrides: Sequence[str]) -> list[str]:
    """Return overrides in which `data.param=a,b` is a list, as its user means, and not a sweep over two values."""
    tidied = []
    for text in overrides:
        name, equals, value = text.partition("=")
        listed = equals and name.lstrip("+") in LISTS and "," in value and value[0] not in "[(\"'"
        tidied.append(f"{name}=[{value}]" if listed else text)
    return tidied


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise `ConfigError` for an override that names no known key or option, `+` and `++` included."""
    parsed = [parse(text) for text in overrides]
    with composer() as loader:
        for override in parsed:
            check_one(override, loader)
    _check_tokenizer_agreement(list(overrides), parsed)


def parse(text: str) -> Override:
    """Return an override taken apart; raises `ConfigError` for what is none."""
    if text.lstrip("+~").startswith("="):
        raise ConfigError(f"{text!r} is not an override", remedy="write key=value, or --help")
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        if "=" not in text:
            raise ConfigError(f"{text!r} is not an override", remedy="write key=value, or --help") from error
        reason = str(error).splitlines()[-2 if "See https" in str(error) else -1]
        remedy = "put quotes around special characters, such as key='\"a b\"'"
        raise ConfigError(f"cannot be read ({reason.strip()})", where=text, remedy=remedy) from error


def check_one(override: Override, loader: ConfigLoaderImpl) -> None:
    """Raise `ConfigError` for an override that names no known key or option."""
    name = override.key_or_group
    if name == "hydra" or (name.startswith(("hydra.", "hydra/")) and name != "hydra/launcher"):
        return
    options = loader.get_group_options(name.replace(".", "/")) if name != "." else []
    if override.type == OverrideType.DEL:
        raise ConfigError("cannot be removed", where=name, remedy="set it to null or to another value")
    if options and not (name in known_keys() and isinstance(override.value(), dict)):
        if "." in name:
            what, remedy = "is a group of files", f"choose one with {name.replace('.', '/')}={options[0]}"
            raise ConfigError(what, where=name, remedy=remedy)
        if override.type in (OverrideType.ADD, OverrideType.FORCE_ADD):
            raise ConfigError("is there already", where=f"+{name}", remedy="type it without the plus sign")
        for value in choices_of(override):
            if str(value) not in options:
                right = OLDER_OPTIONS.get(name, {}).get(str(value))
                close = f"it is called {right} here, " if right else nearest(str(value), options)
                raise ConfigError(
                    f"has no option {value!r}", where=name, remedy=f"{close}there are {', '.join(options)}"
                )
    elif "/" in name:
        groups = all_groups(loader)
        raise ConfigError("unknown group", where=name, remedy=f"{nearest(name, groups)}there are {', '.join(groups)}")
    elif not is_known(name):
        raise ConfigError("unknown key", where=name, remedy=suggest(name))


def choices_of(override: Override) -> list[Any]:
    """Return what an override chooses, several in a sweep; raises `ConfigError` for a pattern that fits none."""
    if not override.is_sweep_override():
        return [override.value()]
    if not override.is_discrete_sweep():
        return []
    with composer() as loader:
        override.config_loader = loader  # for glob(*)
        values = list(override.sweep_iterator(transformer=Transformer.encode))
    if not values:
        raise ConfigError("fits no option", where=override.input_line or "", remedy="list the values")
    return [parse(f"a={value}").value() for value in values]


def all_groups(loader: ConfigLoaderImpl, parent: str = "") -> list[str]:
    """Return the names of all groups of files, such as `model/tokenizer`."""
    found = []
    for group in loader.list_groups(parent):
        if (full := f"{parent}/{group}" if parent else group) != "hydra":
            found += [full, *all_groups(loader, full)]
    return found


def _check_tokenizer_agreement(overrides: list[str], parsed: list[Override]) -> None:
    """Refuse `model/tokenizer=sw` where a key makes it another: typed beside it, or set by conf/local.yaml."""
    typed = {override.key_or_group: override for override in parsed}
    if "model/tokenizer" not in typed:
        return
    group = typed["model/tokenizer"]
    if "model.proj_fn" in typed and (group.is_sweep_override() or typed["model.proj_fn"].is_sweep_override()):
        raise ConfigError("cannot be swept beside model.proj_fn", where="model/tokenizer", remedy="sweep one of them")
    fixed = [text for text, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]
    for choice in map(str, choices_of(group)):
        meant = meaning_of(choice)
        with composer(), explained(overrides):
            composed = hydra_compose(CONFIG_NAME, [*fixed, f"model/tokenizer={choice}"]).model.proj_fn
        refuse_disagreement(choice, meant, composed)


def meaning_of(tokenizer: str) -> str | None:
    """Return what the file of a `model/tokenizer` sets `model.proj_fn` to, if it does."""
    with composer() as loader, explained(()):
        file = loader.repository.load_config(f"model/tokenizer/{tokenizer}")
        return OmegaConf.select(file.config, "proj_fn") if file else None


def refuse_disagreement(tokenizer: str, meant: str | None, composed: str) -> None:
    """Raise `ConfigError` where `model/tokenizer` means another `model.proj_fn` than was composed."""
    aliases = ViTConfig.__dataclass_fields__["proj_fn"].metadata["aliases"]
    if meant is not None and aliases.get(composed, composed) != meant:
        what = f"model/tokenizer={tokenizer} means model.proj_fn={meant}, but another setting makes it {composed}"
        raise ConfigError(what, where="model.proj_fn", remedy="drop one of the two (also look into conf/local.yaml)")


@contextlib.contextmanager
def composer() -> Iterator[ConfigLoaderImpl]:
    """Give Hydra's composer our folder, inside or outside of a running `hydra.main`; yields its loader."""
    register()
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(_alone[0] if _alone else conf_dir()), version_base=VERSION_BASE):
            loader = GlobalHydra.instance().config_loader()
            assert isinstance(loader, ConfigLoaderImpl)
            yield loader
    finally:
        GlobalHydra.instance().hydra = before


@contextlib.contextmanager
def explained(overrides: Sequence[str]) -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise into one sentence."""
    try:
        yield
    except yaml.YAMLError as error:
        what = f"is no valid YAML ({' '.join(str(error).split())[:160]})"
        raise ConfigError(what, where="configuration file", remedy="mend the line that it names") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(error, overrides) from error


def several_values(override: str) -> ConfigError:
    """Return the error of a sweep where one run is meant."""
    return ConfigError("gives several values", where=override, remedy="write [a,b] for a list, or add -m for a sweep")


def _explain(error: Exception, overrides: Sequence[str]) -> ConfigError:
    text = " ".join(str(error).split("\nSee https")[0].split())
    if "Ambiguous value for argument" in text or "requires --multirun" in text:
        culprit = next((o for o in overrides if o in text), text)
        return several_values(culprit)
    if "Could not append" in text:
        culprit = next((o for o in overrides if o.startswith("+")), text)
        return ConfigError("is there already", where=culprit, remedy="type it without the plus sign")
    if key := re.search(r"Could not override '(model\.\w+)'", text):
        refuse_foreign(key[1], None)
    if "tracking.tags" in text:
        return ConfigError("is a new name", where="tracking.tags", remedy="write +tracking.tags.NAME=VALUE")
    return ConfigError(
        text.rstrip("."), where="configuration", remedy="`specvit train --cfg job` shows what is composed"
    )
