"""An imported configuration as an experiment: the file, its check, and the command that runs it."""

import os
import re
import shlex
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from specvit.config.build import build_config, flatten
from specvit.config.compose import compose
from specvit.config.schema import Config
from specvit.importing.read_file import flat, resolved
from specvit.importing.translate import FILES, translate
from specvit.importing.translation import ASKED, TAKEN, VERDICTS, Translation
from specvit.run_folder.identity import identity_of
from specvit.study.grid import as_overrides, as_text
from specvit.utils.errors import ConfigError, DataError
from specvit.utils.files import write_text
from specvit.utils.text import printable

HOME = "conf/experiment"
GROUPS = {"data.kind": "data", "model.kind": "model"}
"""Groups that an experiment chooses, by their keys."""
VARIABLE = re.compile(r"\$\{oc\.env:(\w+)\}")
OTHERS_DIFFER = (
    *("data.param", "data.label_norm", "noise.noise_level", "loss.name", "opt.type", "opt.lr", "opt.weight_decay"),
    *("opt.lr_sch", "train.gradient_clip"),
)
"""Keys whose usual value in other programs is not ours, so that a file that is silent means another."""
NO_FILE = "FILE"
"""Stands for a path that nothing states, in a command and while a configuration is checked."""


def import_configuration(plain: dict[str, Any], source: str, out: Path, say: Callable[[str], None]) -> Translation:
    """Write a file's settings as the experiment `out`, and `say` what became of its names and how to run it.

    Raises `ConfigError` for contradictions and for what could not run; nothing is written then.
    """
    found = translate(resolved(flat(plain)))
    missing = choose_groups(found)
    say_answers(found, source, say)
    config, fault = _checked_on_some_data(found.settings, missing)
    if fault:
        missing = ["data=hdf5", *FILES]
        say(f"with specvit's own spectra it cannot run, since {fault}")
    if text := not_stated(config, found.settings):
        say(text)
    head = header(found, source)
    write_new(out, f"# @package _global_\n{head}{_body(found.settings)}", say)
    base = f"experiment={out.stem}"
    if found.several:
        axes = [f"{key}={','.join(map(as_text, values))}" for key, values in found.several.items()]
        say(f"all values:  {command_at(out, HOME, ['-m', base, *axes])}")
    words = [base, *(key if "=" in key else f"{key}={NO_FILE}" for key in missing)]
    say(f"run it:  {command_at(out, HOME, words)}")
    return found


def say_answers(found: Translation, source: str, say: Callable[[str], None]) -> None:
    """Say what became of the names of a file; raises `ConfigError` for contradictions."""
    say("\n".join([f"{source}: {found.counts()}", *found.messages()]))
    found.faults.report()


def _checked_on_some_data(settings: dict[str, Any], missing: list[str]) -> tuple[Config, str]:
    """Return the configuration, and why it cannot run on specvit's spectra, if it states no others; else "".

    Raises `ConfigError` for what could not run on any.
    """
    try:
        return checked_config({**settings, **dict.fromkeys(missing, NO_FILE)}), ""
    except ConfigError as fault:
        if "data" in settings:
            raise
        config = checked_config({**settings, "data": "hdf5", **dict.fromkeys(FILES, NO_FILE)})
        return config, str(fault)


def choose_groups(found: Translation) -> list[str]:
    """Choose the group `data` where only its keys are stated; ask for what is missing, and return the missing paths."""
    settings, asked = found.settings, found.lines[ASKED]
    paths = [key for key in ("data.root", *FILES) if settings.get(key) is not None]
    if kind := settings.get("data.kind") or ("hdf5" if paths else None):
        settings.setdefault("data", kind)
    if "data" not in settings:
        text = "which spectra? specvit's own until you type data=bosz data.root=FOLDER, or data=hdf5 (docs/data.md)"
        asked.append(("(no data)", text))
    missing = [key for key in FILES if settings.get(key) is None] if settings.get("data") == "hdf5" else []
    if missing:
        asked.append(("(not stated)", f"which files? type {', '.join(f'{key}={NO_FILE}' for key in missing)}"))
    asked += [(f"${variable}", "not set here; set it where the run starts") for variable in _unset(settings)]
    return missing


def _unset(settings: Mapping[str, Any]) -> list[str]:
    """Return the environment variables that settings name and this process lacks."""
    return [name for name in dict.fromkeys(VARIABLE.findall(str(list(settings.values())))) if name not in os.environ]


def groups_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the groups that settings choose, by name or by key, in order."""
    by_key = {group: settings[key] for key, group in GROUPS.items() if key in settings}
    return dict(sorted({**by_key, **{key: value for key, value in settings.items() if "." not in key}}.items()))


def checked_config(settings: Mapping[str, Any], composer: Callable[[list[str]], dict[str, Any]] = compose) -> Config:
    """Return the configuration of a run with these settings; raises `ConfigError`. A `Composer` is faster for many."""
    keys = {f"{'+' * key.startswith('tracking.tags.')}{key}": value for key, value in settings.items() if "." in key}
    overrides = as_overrides({**groups_of(settings), **keys})
    for name in _unset(settings):
        overrides = [text.replace(f"${{oc.env:{name}}}", "not-set") for text in overrides]
    return build_config(composer(overrides))


def not_stated(config: Config, settings: Mapping[str, Any]) -> str:
    """Return a sentence on the values that are specvit's and not those of the reference network and its training."""
    own, reference = (flatten(identity_of(one, {})["config"]) for one in (config, Config()))
    other = [f"{key}={value}" for key, value in own.items() if key not in settings and value != reference.get(key)]
    same = [f"{key}={value}" for key, value in own.items() if key not in settings and key in OTHERS_DIFFER]
    said = [("what is not stated is as in specvit's default run", other), ("and as in the reference", same)]
    return "; ".join(f"{words}: {', '.join(keys)}" for words, keys in said if keys)


def header(found: Translation, source: str) -> str:
    """Return the comments at the top of a file: its question and source, and what was not taken over."""
    question = str(found.settings.get("tracking.notes") or f"not stated in {source}; write it here.")
    lines = [f"Question: {question}", "Cost: not known yet.", "Expected: not stated."]
    lines += [f"Source: {source}, by `specvit import`.", *found.messages([one for one in VERDICTS if one != TAKEN])]
    return "".join(f"# {printable(' '.join(line.split(chr(10))))}".rstrip() + "\n" for line in lines)


def _body(settings: Mapping[str, Any]) -> str:
    """Return groups and keys as YAML."""
    chosen = [{f"override /{group}": value} for group, value in groups_of(settings).items()]
    nested: dict[str, Any] = {"defaults": chosen} if chosen else {}
    for key, value in settings.items():
        *sections, leaf = key.split(".")
        if sections:
            reduce(lambda inner, section: inner.setdefault(section, {}), sections, nested)[leaf] = value
    return as_yaml(nested)


def as_yaml(plain: dict[str, Any]) -> str:
    """Return a dict as YAML, its innermost lists on one line."""
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


def write_new(out: Path, text: str, say: Callable[[str], None]) -> None:
    """Write a file that is not there yet, or is the same; raises `DataError` for another one."""
    if out.exists() and out.read_text(encoding="utf-8", errors="replace") != text:
        raise DataError("already exists", where=str(out), remedy="choose another --out, or remove it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)
    say(f"written: {out}")


def command_at(out: Path, home: str, words: list[str]) -> str:
    """Return a `specvit train` command that runs: where `home` has the file, or here with a copy of it in `home`."""
    folder, parts = out.absolute().parent, Path(home).parts
    if folder.parts[-len(parts) :] != parts:
        before = f"mkdir -p {home} && cp {shlex.quote(str(out))} {home}/ && "
    else:
        root = folder.parents[len(parts) - 1]
        before = "" if root == Path.cwd() else f"cd {shlex.quote(str(root))} && "
    return f"{before}specvit train {shlex.join(words)}"
