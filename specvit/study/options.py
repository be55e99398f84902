"""What a study is started with: its file, and the `sweep.*` options. Imports nothing of Hydra."""

import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specvit.config.fields import build, hints_of, key
from specvit.study.yaml_schema import Typed, meaning
from specvit.utils.errors import ConfigError
from specvit.utils.text import holds_secret, nearest

IN_BACKGROUND = "SPECVIT_IN_BACKGROUND"
"""Environment variable of a command that `sweep.detach` started; its cost was confirmed in the foreground."""


@dataclass(frozen=True)
class SweepOptions:
    """The `sweep.*` keys: how a study is run, never what its runs compute. Each may change when a study is resumed."""

    name: str | None = None
    """The study's folder in `multirun/`; None: the name of its file."""
    folder: str = "multirun"
    dry_run: bool = False
    """Say what would run, what is there and what it costs; start nothing."""
    detach: bool = False
    """Start in the background and print pid and log."""
    retry: bool = False
    """Try failed runs again."""
    extend: bool = False
    """Accept a definition that has changed: runs that are finished stay."""
    max_parallel: int | None = key(None, low=1)
    """Workers at once, over whatever the launcher has."""
    trials: int | None = key(None, low=1)
    """Another number of trials than the file's."""
    hours: float | None = key(None, above=0)
    failures: int | None = key(None, low=1)
    """Start no further run after so many hours, or with so many failed ones."""
    health_minutes: float | None = key(None, above=0)
    """From the start of a run to the first check of its health, instead of the study's."""
    storage: str | None = None
    """Optuna's storage: sqlite:////FILE, postgresql+psycopg://USER@HOST/DB, ...; None: a journal file in the study."""


def sweeps_dirs() -> list[Path]:
    """Return the folders with studies: the user's own `./sweeps` first, then the bundled one."""
    package = Path(__file__).resolve().parents[1]
    bundled = package / "sweeps" if (package / "sweeps").is_dir() else package.parent / "sweeps"
    own = Path.cwd() / "sweeps"
    return [own, bundled] if own.is_dir() and not (bundled.is_dir() and own.samefile(bundled)) else [bundled]


def study_files() -> dict[str, Path]:
    """Return the file of each study by its name; a user's own one hides a bundled one."""
    return {path.stem: path for folder in reversed(sweeps_dirs()) for path in sorted(folder.glob("*.yaml"))}


def find_study(name: str) -> Path:
    """Return the file of a study; raises `ConfigError` with the names that there are."""
    files = study_files()
    if name not in files:
        close = f"write sweeps={stem}; " if (stem := Path(name).stem) in files else nearest(name, files)
        remedy = f"{close}there are {', '.join(sorted(files)) or 'none'}"
        raise ConfigError(f"has no study {name!r}", where="sweeps", remedy=remedy)
    return files[name]


def split_options(overrides: list[str]) -> tuple[SweepOptions, list[str]]:
    """Return the `sweep.*` options among overrides, and the others; raises `ConfigError` for one it does not know."""
    typed: dict[str, Any] = {}
    others = []
    for text in overrides:
        name, equals, value = text.lstrip("+").partition("=")
        if name.startswith("sweep.") and equals:
            typed[name.removeprefix("sweep.")] = value
        else:
            others.append(text)
    texts = [name for name, kind in hints_of(SweepOptions).items() if str in (kind, *typing.get_args(kind))]
    for name, value in typed.items():
        if value.strip() and (name not in texts or value == "null"):
            typed[name] = meaning(Typed(value))
    options: SweepOptions = build(SweepOptions, typed, "sweep.")
    if options.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+-]*", options.name):
        what = f"{options.name!r} cannot be a folder's name"
        raise ConfigError(what, where="sweep.name", remedy="use letters, digits and . _ = + -")
    if options.storage is not None and holds_secret(options.storage):
        what = "holds a password or token, which would appear in the study's record and reports"
        remedy = (
            "leave it out: PostgreSQL takes it from PGPASSWORD or ~/.pgpass, MySQL from ?read_default_file=~/.my.cnf"
        )
        raise ConfigError(what, where="sweep.storage", remedy=remedy)
    return options, others
