"""The one door to Hydra's composer: overrides in, a resolved plain dict out, faults as one sentence.

`python -m specvit.train` enters through `hydra.main` for `--help`, `--info` and completion; everything else calls
`compose`. Both pass `check_overrides` first, because Hydra itself lets `+new.key=1` through silently and says "Could
not override" where "did you mean" would help.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # without it Hydra prints a trace and exits before we can explain

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

from specvit.config.model_kinds import refuse_foreign, settle
from specvit.config.precedence import Replaced, replace_keys, replaced_keys, settings_of
from specvit.config.schema import ViTConfig
from specvit.config.sources import ConfFiles, refuse_hydra, without_settings
from specvit.config.suggestions import OLDER_OPTIONS, is_known, known_keys, nearest, suggest
from specvit.utils.errors import ConfigError

VERSION_BASE = "1.3"
CONFIG_NAME = "config"
LISTS = ("data.param", "data.file_path", "data.val_path", "data.test_path", "data.class_edges", "opt.betas")
LISTS += ("model.channels", "model.alpha_range")
PAIRS = ("opt.betas", "model.alpha_range")
"""Keys of `LISTS` whose value is two numbers, so that one of them cannot be a value."""
MAX_RUNS = 100_000
"""Of one grid: planning more would take hours and gigabytes."""


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
    """Has all files read by `ConfFiles`, and lays a user's own `./conf` over the bundled one."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Put our folders first; raises `ConfigError` for a `./conf` of another program."""
        own, *bundled = _alone or conf_folders()
        if bundled and (own / f"{CONFIG_NAME}.yaml").exists():
            what = "specvit lays ./conf over its own files, and this one would replace them all"
            remedy = "start specvit elsewhere, or keep your settings in conf/local.yaml and conf/experiment/"
            raise ConfigError(what, where=str(own / f"{CONFIG_NAME}.yaml"), remedy=remedy)
        for folder in reversed([own, *bundled]):
            search_path.prepend("specvit", f"{ConfFiles.scheme()}://{folder}")


def register() -> None:
    """Make Hydra look into the user's `./conf`; calling it again changes nothing."""
    if UserConf not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(UserConf)
        Plugins.instance().register(ConfFiles)


@dataclass(frozen=True)
class Chosen:
    """What group choices compose to, before single keys are set."""

    config: DictConfig
    replaced: list[Replaced]
    """The keys of an experiment or conf/local.yaml that typed groups replaced."""
    tokenizer: tuple[str, str | None] | None
    """The typed `model/tokenizer`, and the `model.proj_fn` that it means."""


def compose(
    overrides: Sequence[str] = (), folder: Path | None = None, replaced: list[Replaced] | None = None
) -> dict[str, Any]:
    """Return the resolved config of `overrides` as a plain dict; raises `ConfigError`.

    `folder` takes the place of all configuration files, for a study's own copy of them. `replaced` gets the keys of an
    experiment or conf/local.yaml that typed groups replaced.
    """
    overrides = tidy(overrides)
    with only(folder):
        check_overrides(overrides)
        with composer() as loader:
            names = all_groups(loader)
        parsed = {text: parse_one(text) for text in overrides}
        groups = [text for text, override in parsed.items() if is_choice(override, names)]
        keys = [override for text, override in parsed.items() if text not in groups]
        return set_keys(choose(groups), keys, overrides, replaced)


def choose(groups: Sequence[str]) -> Chosen:
    """Return what group choices compose to; a typed group wins over keys that experiments and conf/local.yaml set."""
    with composer() as loader, explained(groups):
        composed = hydra_compose(CONFIG_NAME, list(groups))
        choices = {override.key_or_group: str(override.value()) for override in map(parse, groups)}
        tokenizer = choices.get("model/tokenizer")
        meant = settings_of(f"model/tokenizer/{tokenizer}", loader).get("model.proj_fn") if tokenizer else None
        replaced: list[Replaced] = []
        if disputed := replaced_keys(choices, loader):
            with without_settings():
                replaced = replace_keys(composed, disputed, hydra_compose(CONFIG_NAME, list(groups)))
        return Chosen(composed, replaced, (tokenizer, meant) if tokenizer else None)


def set_keys(
    chosen: Chosen, keys: Sequence[Override], overrides: Sequence[str], replaced: list[Replaced] | None = None
) -> dict[str, Any]:
    """Return the resolved config of group choices with keys set, which changes `chosen.config`."""
    with explained(overrides):
        ConfigLoaderImpl._apply_overrides_to_config(list(keys), chosen.config)
    if chosen.tokenizer:
        refuse_disagreement(*chosen.tokenizer, chosen.config.model.proj_fn)
    if replaced is not None:
        typed = {override.key_or_group for override in keys}
        replaced += [one for one in chosen.replaced if one.key not in typed and one not in replaced]
    return plain(chosen.config, overrides)


def split_launcher(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides that say where runs are made, and the others; the sweeper that there is needs no choice."""
    overrides = [text for text in overrides if text != "hydra/sweeper=basic"]
    launcher = [text for text in overrides if text.lstrip("+").startswith(("hydra/", "hydra."))]
    return launcher, [text for text in overrides if text not in launcher]


def is_made_elsewhere(overrides: Sequence[str]) -> bool:
    """Say whether a launcher is typed, or an experiment or conf/local.yaml has one other than the command's process."""
    launcher, others = split_launcher(overrides)
    experiments = [text for text in others if text.startswith("experiment=")]
    local = any((folder / "local.yaml").exists() for folder in conf_folders())
    if launcher or not (experiments or local):
        return bool(launcher)
    return compose_launcher(experiments) != {"kind": "inprocess"}


def compose_launcher(overrides: Sequence[str]) -> dict[str, Any]:
    """Return `hydra.launcher` as a plain dict, as overrides or the experiment among them choose and set it.

    Its typed keys are taken as they are: whoever reads them knows what there is. Keys for another launcher are left
    out where conf/local.yaml sets them, or an experiment for a launcher that a typed one replaces.
    """
    keys = [f"++{text.lstrip('+')}" for text in overrides if text.lstrip("+").startswith("hydra.launcher.")]
    groups = [text for text in overrides if not text.lstrip("+").startswith("hydra.launcher.")]
    with composer() as loader, explained(overrides):
        for text in overrides:
            check_one(parse_one(text), loader, of_run=False)
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


def tidy(overrides: Sequence[str], *, grid: bool = False) -> list[str]:
    """Return overrides in which `data.param=a,b` is a list, as its user means, and not a sweep over two values.

    In a `grid` commas mean several runs, but where one of the values alone cannot be one.
    """
    tidied = []
    for text in overrides:
        name, equals, value = text.partition("=")
        listed = equals and name.lstrip("+") in (PAIRS if grid else LISTS) and "," in value and value[0] not in "[(\"'"
        tidied.append(f"{name}=[{value}]" if listed else text)
    return tidied


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise `ConfigError` for an override that names no known key or option, `+` and `++` included."""
    parsed = [parse(text) for text in overrides]
    with composer() as loader:
        for override in parsed:
            check_one(override, loader)
    typed = {override.key_or_group: override.is_sweep_override() for override in parsed}
    if "model.proj_fn" in typed and "model/tokenizer" in typed and (typed["model.proj_fn"] or typed["model/tokenizer"]):
        raise ConfigError("cannot be swept beside model.proj_fn", where="model/tokenizer", remedy="sweep one of them")


def parse(text: str) -> Override:
    """Return an override taken apart; raises `ConfigError` for what is none."""
    if text.lstrip("+~").startswith("="):
        raise ConfigError(f"{text!r} is not an override", remedy="write key=value, or --help")
    try:
        return OverridesParser.create().parse_override(text)
    except (HydraException, ValueError, RecursionError) as error:
        if isinstance(error, ValueError | RecursionError):
            what = "is nested too deeply" if isinstance(error, RecursionError) else "has a number that is too long"
            raise ConfigError(what, where=f"{text[:40]}...", remedy="write a shorter value") from error
        if "=" not in text:
            raise ConfigError(f"{text!r} is not an override", remedy="write key=value, or --help") from error
        reason = str(error).splitlines()[-2 if "See https" in str(error) else -1]
        remedy = "put quotes around special characters, such as key='\"a b\"'"
        raise ConfigError(f"cannot be read ({reason.strip()})", where=text, remedy=remedy) from error


def parse_one(text: str) -> Override:
    """Return an override with one value taken apart; raises `ConfigError` for several."""
    override = parse(text)
    if override.is_sweep_override():
        raise several_values(text)
    return override


def is_choice(override: Override, groups: Sequence[str]) -> bool:
    """Say whether an override chooses a file of one of the `groups`."""
    return override.key_or_group in groups and not isinstance(override.value(), dict)


def check_one(override: Override, loader: ConfigLoaderImpl, *, of_run: bool = True) -> None:
    """Raise `ConfigError` for an override that names no known key or option, or if it is `of_run` the launcher."""
    name = override.key_or_group
    if re.match(r"hydra\b", name):
        refuse_hydra(name)
        if of_run:
            remedy = "type it on the command line, or choose it in an experiment"
            raise ConfigError("says where runs are made, not what a run is", where=name, remedy=remedy)
    if name.startswith("hydra.launcher."):
        return
    options = loader.get_group_options(name.replace(".", "/")) if name != "." else []
    if override.type == OverrideType.DEL:
        raise ConfigError("cannot be removed", where=name, remedy="set it to null or to another value")
    if options and not (name in known_keys() and isinstance(override.value(), dict)):
        if "." in name:
            choice = str(override.value()) if str(override.value()) in options else options[-1]
            what, remedy = "is a group of files", f"choose one with {name.replace('.', '/')}={choice}"
            raise ConfigError(what, where=name, remedy=remedy)
        if override.type in (OverrideType.ADD, OverrideType.FORCE_ADD):
            raise ConfigError("already exists", where=f"+{name}", remedy="type it without the plus sign")
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
        values = list(itertools.islice(override.sweep_iterator(transformer=Transformer.encode), MAX_RUNS + 1))
    if len(values) > MAX_RUNS:
        raise ConfigError(f"gives more than {MAX_RUNS:,} values", where=override.input_line or "", remedy="give fewer")
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


def refuse_disagreement(tokenizer: str, meant: str | None, composed: str) -> None:
    """Raise `ConfigError` where `model/tokenizer` means another `model.proj_fn` than was composed."""
    aliases = ViTConfig.__dataclass_fields__["proj_fn"].metadata["aliases"]
    if meant is not None and aliases.get(composed, composed) != meant:
        what = f"model/tokenizer={tokenizer} means model.proj_fn={meant}, but another setting makes it {composed}"
        raise ConfigError(what, where="model.proj_fn", remedy="drop one of the two")


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
        return ConfigError("already exists", where=culprit, remedy="type it without the plus sign")
    if key := re.search(r"Could not override '(model\.\w+)'", text):
        refuse_foreign(key[1], None)
    if "tracking.tags" in text:
        return ConfigError("is a new name", where="tracking.tags", remedy="write +tracking.tags.NAME=VALUE")
    return ConfigError(
        text.rstrip("."), where="configuration", remedy="`specvit train --cfg job` shows what is composed"
    )
