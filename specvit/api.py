"""What `import specvit` offers: trained runs as functions, records as DataFrames, runs and studies from Python.

Every function raises `SpecvitError`, a sentence with a remedy, for a user's mistake. For users: docs/api.md.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specvit.study.find import STUDIES, find_folder_of_runs, find_run, find_study
from specvit.utils.errors import ConfigError, SpecvitError

if TYPE_CHECKING:
    from specvit.run.ensemble import Ensemble
    from specvit.run.run import Result

__all__ = ["SpecvitError", "load", "read_metrics", "read_runs", "run_study", "run_training"]

Name = str | os.PathLike[str]
"""A folder, a name, or the hash of a run."""
FACTS = ("run_id", "folder", "setting", "seed", "state", "finished", "escape_step", "gap", "minutes")
"""Columns of `read_runs` beside configuration and scores; see `analysis.records`."""


def load(run_or_study: Name, *more_runs: Name, device: str = "auto") -> "Ensemble":
    """Return a trained run, several (such as seeds), or all seeds of a study's best setting, ready to predict.

    Prints what `specvit predict` does of a run that has not learnt or not finished. Computes with the threads and the
    determinism of the first run, which hold for all of torch in this process. Raises `SpecvitError`.
    """
    from specvit.run.ensemble import load_ensemble

    name = str(run_or_study)
    if any((place / "study.json").exists() for place in (Path(name), STUDIES / name)):
        from specvit.study.best import best_runs

        if more_runs:
            raise ConfigError("is a study, which goes alone", where=name, remedy="name runs, or one study")
        runs, choice = best_runs(find_study(name))
        print(choice)
    else:
        runs = [find_run(str(one))[0] for one in (name, *more_runs)]
    return load_ensemble(runs, device, print)


def read_runs(folder_or_study: Name) -> Any:
    """Return a DataFrame, a row a run, of a run folder, a study or a folder of runs; raises `SpecvitError`.

    Columns: `run_id`, `folder`, `setting` (what the study varies, but the seed), `seed`, `state`, `finished`,
    `escape_step` (of the study's threshold, or 0.1), `gap` (training less validation R²), `minutes`; each key of the
    configuration by its dotted name; each score of the summary (`test_r2`, ...). What a run lacks is NaN or None.
    """
    import pandas as pd

    from specvit.analysis import records
    from specvit.config.build import flatten, to_plain

    runs, notes = records.read_runs([find_folder_of_runs(str(folder_or_study))])
    for note in notes:
        warnings.warn(note, stacklevel=2)
    rows = []
    for run in records.rows_of(runs):
        facts = {name: getattr(run, name) for name in FACTS}
        summary = {name: value for name, value in run.outcome.summary.items() if isinstance(value, int | float)}
        scores = {name: value for name, value in summary.items() if name not in facts}
        rows.append({**facts, "setting": _setting(run.factors), **flatten(to_plain(run.config)), **scores})
    return pd.DataFrame(rows)


def read_metrics(run: Name) -> Any:
    """Return the DataFrame of a run's validations, as in `metrics.jsonl`: a row each; raises `SpecvitError`."""
    import pandas as pd

    from specvit.tracking import metric_files

    return pd.DataFrame(metric_files.read_metrics(find_run(str(run))[0].path))


def run_training(overrides: Sequence[str] = ()) -> "Result":
    """Train, resume or skip the run that `specvit train OVERRIDES` does; return its state, folder and summary.

    A run that fails is returned with its state, not raised. Raises `SpecvitError` for one that is impossible.
    """
    from specvit.commands import train

    words = _words(overrides)
    if train.study_asked_for({}, words, ()):
        raise ConfigError("asks for a study", where="run_training", remedy="use run_study")
    return train.train(words)


def run_study(study: str | Mapping[str, Any], overrides: Sequence[str] = ()) -> Path:
    """Start or resume the study that `specvit train sweeps=NAME OVERRIDES` does; return its folder when it has ended.

    A mapping has what a file in `sweeps/` has (docs/sweeps.md), and `name`. Runs that failed are in `read_runs` of the
    folder. Raises `SpecvitError` for a study that is impossible.
    """
    from specvit.config.overrides import bracket_lists
    from specvit.study.driver import drive, folder_of
    from specvit.study.request import study_request
    from specvit.study.schema import definition_of

    words = bracket_lists(_words(overrides), grid=True)
    if isinstance(study, str):
        request = study_request(study, words, (f"sweeps={study}", *words))
    else:
        plain = dict(study)
        name = plain.pop("name", None)
        if not isinstance(name, str) or not name:
            raise ConfigError("has no name", where="run_study", remedy='give it one: {"name": "patch", ...}')
        definition = definition_of(plain, name, where=f"study {name}")
        words = [f"sweep.name={name}", *words]  # which checks that it can be a folder's
        request = study_request(name, words, (f"sweeps={name}", *words), definition=definition)
    drive(request)
    return folder_of(request)


def _words(overrides: Sequence[str]) -> list[str]:
    """Return overrides as a list of `key=value`; raises `ConfigError` for one text or other values."""
    if isinstance(overrides, str) or not all(isinstance(word, str) for word in overrides):
        remedy = 'give a list of texts such as ["experiment=demo", "train.seed=2"]'
        raise ConfigError(f"expects a list of overrides, not {overrides!r}", where="overrides", remedy=remedy)
    if flags := [word for word in overrides if word.startswith("-")]:
        raise ConfigError("is a flag of the command line", where=flags[0], remedy="leave it out")
    return list(overrides)


def _setting(factors: dict[str, Any]) -> str:
    from specvit.study.table import setting_text

    return setting_text({key: value for key, value in factors.items() if value is not None})
