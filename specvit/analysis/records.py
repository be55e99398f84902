"""Runs of any state with what was varied among them: a study's factors, or the settings in which plain runs differ."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specvit.analysis.runs import runs_in
from specvit.config.build import build_config, flatten
from specvit.config.schema import Config, NetworkConfig
from specvit.config.suggestions import nearest
from specvit.run_folder.folder import RESUMABLE, RunFolder
from specvit.run_folder.identity import identity_of
from specvit.study.results import NOT_LEARNT, Outcome, escape_step, outcome_of, ranked_value, value_of
from specvit.study.schema import ESCAPED, SEED, Definition, Table, definition_of
from specvit.study.store import WAITING, StudyFolder
from specvit.study.table import factors_of
from specvit.study.trial_queue import group_of
from specvit.utils.errors import ConfigError, FolderError, SpecvitError
from specvit.utils.yaml_files import read_yaml

ESCAPE = Table(metric=ESCAPED, of="val_r2", above=0.1)
"""Off the plateau, unless a study says otherwise: validation R² above this for the first time."""
TEST_R2 = "test_r2"
SPLITS, ENDS = ("test_", "val_", "train_"), ("_low", "_high", "_rows")
"""What the names of metrics begin with; those of ends of intervals, and counts, are not offered."""


@dataclass(frozen=True)
class Case:
    """One run: what was varied, its seed, what became of it, and what it has on file."""

    run_id: str
    factors: dict[str, Any]
    seed: int
    state: str
    config: Config
    outcome: Outcome
    escape: Table = ESCAPE
    """What `escape_step` means in its study."""

    def value(self, metric: str) -> float | None:
        """Return a metric, `escape_step` among them; None where the run has none."""
        return self.escape_step if metric == ESCAPED else value_of(self.outcome, metric)

    @property
    def escape_step(self) -> float | None:
        """The first step off the plateau, as far as epochs show; None for a model that is fitted in one go."""
        return escape_step(self.outcome, self.escape) if self.trains_by_steps else None

    @property
    def trains_by_steps(self) -> bool:
        """Whether it is a network with an epoch on file."""
        return isinstance(self.config.model, NetworkConfig) and bool(self.outcome.rows)

    @property
    def finished(self) -> bool:
        """Whether it came to its end and learnt something."""
        return group_of(self.state) == "finished"

    @property
    def unlearnt(self) -> bool:
        """Whether it ended without having learnt, through no stop from outside."""
        return self.state in NOT_LEARNT

    def ranked(self, metric: str) -> float | None:
        """Return what it counts for where settings are compared, see `ranked_value`; `escape_step` however it ended."""
        if metric == ESCAPED:
            return self.escape_step if self.finished or self.unlearnt else None
        return ranked_value(self.value(metric), self.state, metric)

    @property
    def minutes(self) -> float | None:
        """Wall-clock minutes of training and validation."""
        return self.outcome.train_seconds / 60 or None


def cases_in(folders: Sequence[Path]) -> tuple[list[Case], list[str]]:
    """Return the runs of studies and folders, each once, and notes; raises `FolderError` where there is none."""
    found: dict[Path, Case] = {}
    plain: list[tuple[RunFolder, Config]] = []
    unreadable = 0
    for folder in folders:
        if (folder / "study.json").exists():
            study = StudyFolder(folder)
            about = study.about()
            table = Table(**about.get("table") or {})
            escape = ESCAPE if table.of is None else table
            trials = study.trials()
            factors_of_all = [{k: v for k, v in factors_of(trial).items() if k != SEED} for trial in trials]
            if about.get("kind") == "grid":
                factors_of_all = _independent(factors_of_all)
            if about.get("definition"):
                factors_of_all = _joined(
                    factors_of_all, definition_of(about["definition"], study.name, where="study.json")
                )
            for trial, factors in zip(trials, factors_of_all, strict=True):
                config, state = build_config(trial.config), study.state(trial)
                case = Case(trial.run_id, factors, config.train.seed, state, config, outcome_of(trial.run), escape)
                found[trial.run.path.resolve()] = case
            continue
        for run in runs_in(folder):
            try:
                plain.append((run, build_config(read_yaml(run.file("config.yaml")))))
            except (OSError, SpecvitError):
                unreadable += 1
    varied = _varied([config for _, config in plain])
    for (run, config), factors in zip(plain, varied, strict=True):
        state = WAITING if (state := run.state()) in RESUMABLE else state  # as a study has it: it goes on
        found.setdefault(run.path, Case(run.run_id, factors, config.train.seed, state, config, outcome_of(run)))
    if not found:
        where = ", ".join(map(str, folders))
        raise FolderError("holds no run", where=where, remedy="name a study in multirun/, or a folder of runs")
    return list(found.values()), [f"note: {unreadable} run(s) left out: no config.yaml to read"] if unreadable else []


def metric_of(folders: Sequence[Path]) -> str:
    """Return the metric of a study's own table, that of several folders or of plain runs being test R²."""
    study = len(folders) == 1 and (folders[0] / "study.json").exists()
    return (StudyFolder(folders[0]).about().get("table") or {}).get("metric") or TEST_R2 if study else TEST_R2


def is_search(folders: Sequence[Path]) -> bool:
    """Say whether all of the folders are studies that sample their settings."""
    return all(
        (folder / "study.json").exists() and StudyFolder(folder).about().get("kind") == "search" for folder in folders
    )


def check_metric(cases: Sequence[Case], metric: str) -> None:
    """Raise `ConfigError` for a metric that no run has; while none has any, each name may be one."""
    records = [record for case in cases for record in (case.outcome.summary, case.outcome.best_row)]
    known = {name for record in records for name, value in record.items() if isinstance(value, int | float)}
    if known and metric not in known | {"train_seconds", ESCAPED}:
        named = sorted(name for name in known if name.startswith(SPLITS) and not name.endswith(ENDS))
        remedy = f"{nearest(metric, named)}there are {', '.join(named)}"
        raise ConfigError("is a metric that no run has", where=f"--metric {metric}", remedy=remedy)


def _independent(factors_of_all: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the factors of a grid without those that follow from the others, such as what a cell sets."""
    kept = list(dict.fromkeys(key for factors in factors_of_all for key in factors))
    for key in reversed(kept.copy()):
        others = [other for other in kept if other != key]
        follows: dict[str, set[str]] = {}
        for factors in factors_of_all:
            follows.setdefault(repr([factors.get(other) for other in others]), set()).add(repr(factors.get(key)))
        if others and all(len(values) == 1 for values in follows.values()):
            kept = others
    return [{key: factors[key] for key in kept if key in factors} for factors in factors_of_all]


def _joined(factors_of_all: Sequence[dict[str, Any]], definition: Definition) -> list[dict[str, Any]]:
    """Return the factors with those that one axis moves together as one, such as patch and stride: "64, 32".

    They stay apart where another axis moves one of them, or where a run has only some of them.
    """
    moved = [
        *(axis for grid in definition.grids for axis in grid.axes),
        *(definition.search.space if definition.search else ()),
    ]
    axes = list(dict.fromkeys(tuple(one.keys) for one in moved))
    kept = set(itertools.chain.from_iterable(factors_of_all))
    for axis in axes:
        tied = [key for key in axis if key in kept]
        elsewhere = set(itertools.chain.from_iterable(other for other in axes if other != axis))
        if len(tied) > 1 and elsewhere.isdisjoint(tied) and all(set(tied) <= set(one) for one in factors_of_all):
            factors_of_all = [_as_one(factors, tied) for factors in factors_of_all]
    return list(factors_of_all)


def _as_one(factors: dict[str, Any], tied: Sequence[str]) -> dict[str, Any]:
    """Return factors with `tied` ones as a single one, in the place of the first."""
    whole = {", ".join(tied): ", ".join(str(factors[key]) for key in tied)}
    parts = (whole if key == tied[0] else {} if key in tied else {key: value} for key, value in factors.items())
    return dict(itertools.chain.from_iterable(part.items() for part in parts))


def _varied(configs: Sequence[Config]) -> list[dict[str, Any]]:
    """Return of each configuration the settings in which they differ, the seed aside."""
    named = [flatten(identity_of(config, {})["config"]) for config in configs]
    for settings, config in zip(named, configs, strict=True):
        settings |= {"data.num_samples": config.data.num_samples}
        settings.pop(SEED, None)
    keys = dict.fromkeys(key for settings in named for key in settings)
    differ = [key for key in keys if len({repr(settings.get(key)) for settings in named}) > 1]
    return [{key: settings.get(key) for key in differ} for settings in named]
