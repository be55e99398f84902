"""`python -m specvit.train [overrides]`: one run from a Hydra configuration.

With `sweeps=NAME` it is a study, with `-m` a plain grid, which is a study without a file.
"""

import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any

from specvit.commands.answer import FLAG, Answer, refuse_beside
from specvit.commands.entry import user_facing
from specvit.config.folders import conf_dir
from specvit.utils.errors import ConfigError
from specvit.utils.text import nearest

if TYPE_CHECKING:
    from specvit.config.precedence import Replaced
    from specvit.run.run import Result
    from specvit.study.request import StudyRequest

GRID = ("-m", "--multirun")
SHOWS = {"--help": (), "--cfg": ("job", "hydra"), "--info": ("defaults", "defaults-tree", "plugins", "searchpath")}
"""Flags that print something instead of training, with the values that they take."""
SHORT = {"-h": "--help", "-c": "--cfg", "-i": "--info", "-p": "--package"}
FLAGS = (*GRID, *SHOWS, "--resolve", "--package", FLAG)


@user_facing
def main(arguments: list[str] | None = None) -> int | Answer:
    """Train what the command line says and return the process's exit code, with `--json` what became of it."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    flags, overrides = split_flags(arguments)
    if in_json := FLAG in flags:
        _check_json(flags)
    if [flag for flag in flags if flag not in GRID] == ["--help"]:
        from specvit.commands.overrides import help_text

        print(help_text())
        return 0
    from specvit.config.overrides import bracket_lists  # Hydra, which help does without

    overrides = bracket_lists(overrides, grid=bool({*GRID} & {*flags}))
    if order := study_asked_for(flags, overrides, tuple(word for word in arguments if word != FLAG)):
        return _study(order, in_json=in_json)
    if flags:
        return _show(flags, overrides)
    result = train(overrides)
    if result.mlflow_sync and (words := result.mlflow_sync.closing_note()):
        print(f"specvit: {words}", file=sys.stderr)
    return Answer("train", _facts(result), result.exit_code) if in_json else result.exit_code


def _study(order: "StudyRequest", *, in_json: bool) -> int | Answer:
    """Run a study; in JSON its plan with `sweep.dry_run=true`, else its status in the end."""
    from specvit.study.driver import drive, folder_of, plan

    if in_json and order.options.dry_run:
        return Answer("train.plan", dataclasses.asdict(plan(order)))
    code = drive(order)
    if not in_json:
        return code
    from specvit.study.status import study_status
    from specvit.study.store import StudyFolder

    return Answer("sweep.status", study_status(StudyFolder(folder_of(order))).facts(), code)


def _check_json(flags: dict[str, str]) -> None:
    """Take the flag off the others; raises `ConfigError` for what does not go with it."""
    if value := flags.pop(FLAG):
        raise ConfigError("takes no value", where=f"{FLAG}={value}", remedy=f"write {FLAG}")
    refuse_beside([flag for flag in flags if flag not in GRID])


def _facts(result: "Result") -> dict[str, Any]:
    """Return how a run ended, as its document has it."""
    from specvit.study.find import find_run

    run, ended = find_run(str(result.folder))[0], {"state": result.state, "cause": result.cause or None}
    facts = {"run": run.path.name, "run_id": run.run_id, "folder": str(run.path), **ended}
    return {**facts, "remedy": result.remedy or None, "summary": result.summary or None}


def train(overrides: list[str]) -> "Result":
    """Compose and run one run, with notes on overrides that change less than they seem to; raises `SpecvitError`."""
    from specvit.config.build import build_config
    from specvit.config.compose import compose
    from specvit.config.precedence import replaced_lines
    from specvit.run.run import run
    from specvit.run_folder.identity import without_effect

    replaced: list[Replaced] = []
    config = build_config(compose(overrides, replaced=replaced))
    for line in replaced_lines(replaced):
        print(line, flush=True)
    if idle := without_effect(config, (text.lstrip("+").partition("=")[0] for text in overrides)):
        kind, has = config.model.kind, "have" if len(idle) > 1 else "has"
        print(f"note: {', '.join(idle)} {has} no effect on the result of this run (model.kind={kind})", flush=True)
    return run(config)


def study_asked_for(flags: dict[str, str], overrides: list[str], words: tuple[str, ...]) -> "StudyRequest | None":
    """Return the study that a command line asks for: `sweeps=NAME`, `-m`, or runs made elsewhere; else None."""
    from specvit.config.launcher import runs_elsewhere
    from specvit.study.options import IN_BACKGROUND, split_options

    named = list(dict.fromkeys(text.partition("=")[2] for text in overrides if text.startswith("sweeps=")))
    if len(named) > 1:
        raise ConfigError(f"names {len(named)} studies", where="sweeps", remedy="start them one after the other")
    name = named[0] if named else None
    others = [flag for flag in flags if flag not in GRID]
    asked = [text.lstrip("+") for text in overrides if text.lstrip("+").startswith("sweep.")]
    if others and (name is not None or asked):
        remedy = "sweep.dry_run=true shows what a study would run"
        raise ConfigError(f"does not go with {others[0]}", where="sweeps", remedy=remedy)
    if name == "":
        raise ConfigError("needs a name", where="sweeps", remedy="write sweeps=NAME; the studies are in sweeps/")
    if others:
        return None
    in_background = os.environ.pop(IN_BACKGROUND, None) is not None
    detaches = bool(asked) and split_options(overrides)[0].detach
    # a launcher makes a single run a study, and so does the background
    if not (name or {*GRID} & {*flags} or runs_elsewhere(overrides) or detaches):
        if asked:
            remedy = "name a study with sweeps=NAME, or add -m for a grid"
            raise ConfigError("needs a study", where=asked[0].partition("=")[0], remedy=remedy)
        return None
    from specvit.study.request import study_request

    return study_request(name, overrides, words, in_background=in_background)


def split_flags(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Separate flags, each with its value or "", from the overrides; raises `ConfigError` for one that is unknown."""
    flags: dict[str, str] = {}
    overrides: list[str] = []
    waiting = ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        name = SHORT.get(name, name)
        if waiting:
            flags[waiting], waiting = argument, ""
        elif not argument.startswith("-"):
            overrides.append(argument)
        elif name not in FLAGS:
            remedy = f"{nearest(name, FLAGS)}there are {', '.join(FLAGS)}"
            raise ConfigError("unknown flag", where=argument, remedy=remedy)
        else:
            flags[name] = value
            waiting = name if not equals and (SHOWS.get(name) or name == "--package") else ""
    if waiting:
        raise ConfigError("needs a value", where=waiting, remedy=f"such as {waiting} {SHOWS.get(waiting, ('opt',))[0]}")
    return flags, overrides


def _show(flags: dict[str, str], overrides: list[str]) -> int:
    """Print the configuration, or what Hydra knows of its files, instead of training."""
    from specvit.config.compose import compose
    from specvit.config.launcher import compose_launcher, split_launcher
    from specvit.config.overrides import check_overrides

    shows = [flag for flag in flags if flag in SHOWS]
    if len(shows) > 1:
        raise ConfigError(f"does not go with {shows[1]}", where=shows[0], remedy="give one of them")
    flag = shows[0] if shows else ""
    if flag and SHOWS[flag] and flags[flag] not in SHOWS[flag]:
        what = f"expects {' or '.join(SHOWS[flag])}, not {flags[flag]!r}"
        raise ConfigError(what, where=flag, remedy="--cfg job shows the configuration")
    launcher, others = split_launcher(overrides)
    if launcher:
        compose_launcher(launcher)
    check_overrides(others)
    if flags.get(flag) == "job":
        print(_section_text(compose(others), flags.get("--package")), end="")
        return 0
    if alone := [name for name in flags if name in ("--resolve", "--package")]:
        raise ConfigError("needs --cfg job", where=alone[0], remedy="add that, or leave it out")
    return _hydra([flag, flags[flag], *overrides])


def _section_text(plain: Any, section: str | None) -> str:
    """Return the configuration, or one section of it, as YAML."""
    import yaml

    for name in (section or "").split(".") if section else []:
        if not isinstance(plain, dict) or name not in plain:
            raise ConfigError("unknown section", where=f"--package {section}", remedy="name one of --cfg job")
        plain = plain[name]
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _hydra(words: list[str]) -> int:
    """Hand over to Hydra, which prints what `words` ask for."""
    import hydra

    from specvit.config.conf_files import CONFIG_NAME, VERSION_BASE, register
    from specvit.config.overrides import explained

    register()
    sys.argv = [sys.argv[0], *words]
    folder = str(conf_dir())
    with explained(words):
        hydra.main(config_path=folder, config_name=CONFIG_NAME, version_base=VERSION_BASE)(print)()
    return 0
