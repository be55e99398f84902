"""The grammar of overrides: what a command line may choose and set, and each fault of it as one sentence.

Overrides are checked before Hydra sees them, because Hydra lets `+new.key=1` through silently and says "Could not
override" where "did you mean" would help.
"""

import contextlib
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Transformer
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from specvit.config.conf_files import all_groups, hydra_loader, refuse_hydra, refuse_launcher
from specvit.config.foreign_keys import refuse_other_purpose
from specvit.config.model_kinds import refuse_foreign
from specvit.config.suggestions import OLDER_OPTIONS, is_known, known_keys, suggest
from specvit.utils.errors import ConfigError, Faults
from specvit.utils.text import nearest

LISTS = ("data.param", "data.file_path", "data.val_path", "data.test_path", "data.class_edges", "opt.betas")
LISTS += ("model.channels", "model.alpha_range")
PAIRS = ("opt.betas", "model.alpha_range")
"""Keys of `LISTS` whose value is two numbers, so that a single number is invalid."""
MAX_RUNS = 100_000
"""Most runs of one grid: planning more would take hours and gigabytes."""


def bracket_lists(overrides: Sequence[str], *, grid: bool = False) -> list[str]:
    """Return overrides in which `data.param=a,b` is a list, as its user means, and not a sweep over two values.

    In a `grid` commas mean several runs, except for keys of which a single value is invalid.
    """
    bracketed = []
    for text in overrides:
        name, equals, value = text.partition("=")
        listed = equals and name.lstrip("+") in (PAIRS if grid else LISTS) and "," in value and value[0] not in "[(\"'"
        bracketed.append(f"{name}=[{value}]" if listed else text)
    return bracketed


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise `ConfigError` for an override of an unknown key or option, also with `+` and `++`."""
    parsed, faults = [parse(text) for text in overrides], Faults()
    with hydra_loader() as loader:
        for override in parsed:
            with faults:
                check_override(override, loader)
    faults.report()
    typed = {override.key_or_group: override.is_sweep_override() for override in parsed}
    if "model.proj_fn" in typed and "model/tokenizer" in typed and (typed["model.proj_fn"] or typed["model/tokenizer"]):
        raise ConfigError("cannot be swept beside model.proj_fn", where="model/tokenizer", remedy="sweep one of them")


def parse(text: str) -> Override:
    """Return a parsed override; raises `ConfigError` for text that is not one."""
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


def parse_single(text: str) -> Override:
    """Return a parsed override of one value; raises `ConfigError` for several values."""
    override = parse(text)
    if override.is_sweep_override():
        raise multiple_values_error(text)
    return override


def chooses_file(override: Override, groups: Sequence[str]) -> bool:
    """Return True for an override that chooses a file of one of the `groups`."""
    return override.key_or_group in groups and not isinstance(override.value(), dict)


def check_override(override: Override, loader: ConfigLoaderImpl, *, of_run: bool = True) -> None:
    """Raise `ConfigError` for an override of an unknown key or option and, if it is `of_run`, of the launcher."""
    name = override.key_or_group
    if re.match(r"hydra\b", name):
        _check_hydra(override)
        if of_run:
            remedy = "type it on the command line, or choose it in an experiment"
            raise ConfigError("sets where runs execute, not what a run is", where=name, remedy=remedy)
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
                refuse_other_purpose(f"{name}.name", value, options, name)
                right = OLDER_OPTIONS.get(name, {}).get(str(value))
                close = f"it is called {right} here, " if right else nearest(str(value), options)
                raise ConfigError(
                    f"has no option {value!r}", where=name, remedy=f"{close}there are {', '.join(options)}"
                )
    elif "/" in name:
        groups = all_groups(loader)
        raise ConfigError("unknown group", where=name, remedy=f"{nearest(name, groups)}there are {', '.join(groups)}")
    elif not is_known(name):
        raise ConfigError("unknown key", where=name, remedy=suggest(name, [*all_groups(loader), "sweeps"]))


def _check_hydra(override: Override) -> None:
    """Raise `ConfigError` for a setting of Hydra without effect, or a launcher or sweeper of its own, by name."""
    choice = "" if override.is_sweep_override() or override.type == OverrideType.DEL else str(override.value())
    if override.key_or_group == "hydra/launcher":
        refuse_launcher(choice)
    refuse_hydra(override.key_or_group, choice=choice)


def choices_of(override: Override) -> list[Any]:
    """Return the values of an override, several in a sweep; raises `ConfigError` for a pattern without a match."""
    if not override.is_sweep_override():
        return [override.value()]
    if not override.is_discrete_sweep():
        return []
    with hydra_loader() as loader:
        override.config_loader = loader  # for glob(*)
        values = list(itertools.islice(override.sweep_iterator(transformer=Transformer.encode), MAX_RUNS + 1))
    if len(values) > MAX_RUNS:
        raise ConfigError(f"gives more than {MAX_RUNS:,} values", where=override.input_line or "", remedy="give fewer")
    if not values:
        raise ConfigError("matches no option", where=override.input_line or "", remedy="list the values")
    return [parse(f"a={value}").value() for value in values]


@contextlib.contextmanager
def explained(overrides: Sequence[str]) -> Iterator[None]:
    """Turn exceptions of Hydra and OmegaConf into `ConfigError`."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(error, overrides) from error


def multiple_values_error(override: str) -> ConfigError:
    """Return the error for a sweep where one run is expected."""
    return ConfigError("gives several values", where=override, remedy="write [a,b] for a list, or add -m for a sweep")


def _explain(error: Exception, overrides: Sequence[str]) -> ConfigError:
    text = " ".join(str(error).split("\nSee https")[0].split())
    if "Ambiguous value for argument" in text or "requires --multirun" in text:
        culprit = next((o for o in overrides if o in text), text)
        return multiple_values_error(culprit)
    if "Could not append" in text:
        culprit = next((o for o in overrides if o.startswith("+")), text)
        return ConfigError("already exists", where=culprit, remedy="type it without the plus sign")
    if key := re.search(r"Could not override '(model\.[\w.]+)'", text):
        refuse_foreign(key[1], None)
    if "tracking.tags" in text:
        return ConfigError("is a new name", where="tracking.tags", remedy="write +tracking.tags.NAME=VALUE")
    return ConfigError(
        text.rstrip("."), where="configuration", remedy="`specvit train --cfg job` shows the composed configuration"
    )
