"""`python -m specvit.train [overrides]`: one run from a Hydra configuration.

With `sweeps=NAME` it is a study, with `-m` a plain grid, which is a study without a file; `specvit.sweep` makes both.
"""

import sys
import time
import traceback
from typing import TYPE_CHECKING

from specvit.config import compose as composer
from specvit.entry import user_facing
from specvit.errors import ConfigError, SpecvitError

if TYPE_CHECKING:
    from specvit.run import Result
    from specvit.sweep.order import Order

_outcomes: "list[Result | Exception]" = []
"""What became of each run of this process: Hydra's entry returns nothing, and prints a trace of what it sees raised."""


@user_facing
def main(arguments: list[str] | None = None) -> int:
    """Train what the command line says and return the process's exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    flags, overrides = split_flags(arguments)
    grid = bool({"-m", "--multirun"} & set(flags))
    if order := study_asked_for(flags, composer.tidy(overrides), tuple(arguments)):
        from specvit.sweep.driver import drive

        return drive(order)
    overrides = overrides if grid else composer.tidy(overrides)
    if "-sc" not in flags and "--shell-completion" not in flags:
        composer.check_overrides(overrides)
    composer.register()
    sys.argv = [sys.argv[0], *flags, *overrides]
    with composer.explained(overrides):
        _outcomes.clear()
        _hydra_entry()
    return _conclude(grid)


def study_asked_for(flags: list[str], overrides: list[str], words: tuple[str, ...]) -> "Order | None":
    """Return the study that a command line asks for: `sweeps=NAME`, or `-m` over one of our launchers; else None."""
    named = list(dict.fromkeys(text.partition("=")[2] for text in overrides if text.startswith("sweeps=")))
    if len(named) > 1:
        raise ConfigError(f"names {len(named)} studies", where="sweeps", remedy="start them one after the other")
    name = named[0] if named else None
    elsewhere = any(text.startswith("hydra/launcher=") and not text.endswith("=basic") for text in overrides)
    grid = bool({"-m", "--multirun"} & set(flags)) or elsewhere  # a single run, too, is made where the launcher says
    others = [flag for flag in flags if flag not in ("-m", "--multirun")]
    asked = [text for text in overrides if text.startswith("sweep.")]
    if others and (name is not None or asked):
        remedy = "sweep.dry_run=true shows what a study would run"
        raise ConfigError(f"does not go with {others[0]}", where="sweeps", remedy=remedy)
    if name == "":
        raise ConfigError("needs a name", where="sweeps", remedy="write sweeps=NAME; the studies lie in sweeps/")
    if others or (name is None and not grid):
        if asked and not others:
            remedy = "name a study with sweeps=NAME, or add -m for a grid"
            raise ConfigError("goes with a study", where=asked[0].partition("=")[0], remedy=remedy)
        return None
    from specvit.sweep.order import order_of

    return order_of(name, overrides, words)


def split_flags(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate Hydra's flags, with their values, from the overrides."""
    takes_value = (
        "-cp",
        "-cn",
        "-cd",
        "-p",
        "-c",
        "-i",
        "-sc",
        "--config-path",
        "--config-name",
        "--config-dir",
        "--package",
    )
    takes_value += ("--cfg", "--info", "--shell-completion")
    flags: list[str] = []
    overrides: list[str] = []
    waiting = False
    for argument in arguments:
        is_flag = argument.startswith("-")
        (flags if is_flag or waiting else overrides).append(argument)
        waiting = is_flag and argument in takes_value
    return flags, overrides


def _hydra_entry() -> None:
    """Hand over to Hydra, which composes and calls `task` (once, or once a grid point with `-m`)."""
    import hydra

    folder = str(composer.conf_dir())
    hydra.main(config_path=folder, config_name=composer.CONFIG_NAME, version_base=composer.VERSION_BASE)(_task)()


def _task(composed: object) -> None:
    """Make one run; what stops it is kept for the end, so that it stops no other run of a grid."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    from specvit.config.build import build_config
    from specvit.run import Result, run

    assert isinstance(composed, DictConfig)
    if any(isinstance(outcome, Result) and outcome.signal for outcome in _outcomes):
        return  # a signal that stopped one run of a grid is meant for the others, too
    try:
        overrides = HydraConfig.get().overrides.task
        _outcomes.append(run(build_config(composer.plain(composed, overrides))))
    except Exception as error:
        _outcomes.append(error)


def _conclude(grid: bool) -> int:
    """Return the exit code; what stopped a single run is raised, what stopped runs of a grid is printed."""
    from specvit.run import Result
    from specvit.tracking.courier import WAIT_SECONDS

    failures = [outcome for outcome in _outcomes if isinstance(outcome, Exception)]
    if failures and not grid:
        raise failures[0]
    codes = [0]
    until = time.monotonic() + WAIT_SECONDS  # for all couriers of a grid together
    for outcome in _outcomes:
        left = max(0.0, until - time.monotonic())
        if isinstance(outcome, Result) and outcome.courier and (words := outcome.courier.farewell(patience=left)):
            print(f"specvit: {words}", file=sys.stderr)
        if isinstance(outcome, SpecvitError):
            print(f"specvit: {outcome}", file=sys.stderr)
            codes.append(outcome.exit_code)
        elif isinstance(outcome, Exception):
            traceback.print_exception(outcome)
            codes.append(1)
        else:
            codes.append(outcome.exit_code)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
