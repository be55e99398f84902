"""What can be typed after `specvit train`, for its help and for completion. Reads names of files, composes nothing."""

import dataclasses
import textwrap

from specvit.config.folders import conf_folders
from specvit.config.suggestions import known_keys
from specvit.study.options import SweepOptions, study_files

HELP = """\
specvit train [overrides]      one run: HDF5 spectra -> 1-D Vision Transformer -> test score
specvit train -m key=a,b       a plain grid of runs
specvit train sweeps=NAME      a study from sweeps/NAME.yaml

Groups: choose a file with group=option
{groups}

Studies: run one with sweeps=NAME
{studies}
  {sweep_keys}

Keys: override with section.key=value
{keys}

Try:  specvit train experiment=demo              the demonstration run
      specvit train model.proj_fn=SW opt.lr=1.5e-4
      specvit train --cfg job                    every key with its value; others: --info, --package, --resolve
      specvit train sweeps=NAME sweep.dry_run=true
      specvit train experiment=demo --json       how it ended as one JSON document; notes go to standard error
The same command resumes where it stopped. Keys are explained in the files of conf/."""


def groups() -> dict[str, list[str]]:
    """Return the options of each group of configuration files, such as `model/size` or `hydra/launcher`."""
    found: dict[str, set[str]] = {}
    for folder in conf_folders():
        for file in folder.glob("*/**/*.yaml"):
            found.setdefault(str(file.parent.relative_to(folder)), set()).add(file.stem)
    return {group: sorted(found[group]) for group in sorted(found)}


def sweep_keys() -> list[str]:
    """Return the `sweep.*` keys."""
    return [f"sweep.{field.name}" for field in dataclasses.fields(SweepOptions)]


def help_text() -> str:
    """Return the text of `specvit train --help`."""
    keys: dict[str, list[str]] = {}
    for dotted, is_section in known_keys().items():
        if not is_section:
            section, _, key = dotted.partition(".")
            keys.setdefault(section, []).append(key)
    lines = "\n".join(_wrapped(f"{group}: ", options) for group, options in groups().items())
    sections = "\n".join(_wrapped(f"{section}: ", names) for section, names in keys.items())
    studies, options = _wrapped("", sorted(study_files())), _wrapped("", sweep_keys())
    return HELP.format(groups=lines, studies=studies, sweep_keys=options.strip(), keys=sections)


def completions(current: str) -> list[str]:
    """Return the overrides that begin with `current`; those that end in `=` or `.` want more."""
    name, equals, _ = current.partition("=")
    choices = {**groups(), "sweeps": sorted(study_files())}
    if equals:
        return [text for option in choices.get(name, []) if (text := f"{name}={option}").startswith(current)]
    keys = [f"{key}=" for key, is_section in known_keys().items() if not is_section] + [f"{k}=" for k in sweep_keys()]
    if "." not in current:  # a hundred keys at once would hide the groups
        keys = list(dict.fromkeys(f"{key.partition('.')[0]}." for key in keys))
    return [text for text in [*(f"{group}=" for group in choices), *keys] if text.startswith(current)]


def _wrapped(head: str, names: list[str]) -> str:
    first, rest = f"  {head}", "    "
    return textwrap.fill(", ".join(names), 118, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
