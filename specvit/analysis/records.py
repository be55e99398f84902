"""Run folders to records: factors, seed, state, configuration and scores of each run; predictions on demand.

All views of `specvit analysis` start here. Reads folders of runs and of studies; imports no torch.

Shape suffixes: N test rows.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from specvit.config.build import build_config, flatten
from specvit.config.schema import Config, NetworkConfig, effective_level
from specvit.config.suggestions import nearest
from specvit.data.synthetic import GENERATOR_VERSION
from specvit.metrics.metrics import REGRESSION
from specvit.metrics.statistics import RegressionRows
from specvit.run_folder.folder import DONE, RESUMABLE, RunFolder
from specvit.run_folder.identity import identity_of
from specvit.study.results import NOT_LEARNT, Outcome, escape_step, outcome_of, ranked_value, value_of
from specvit.study.schema import ESCAPED, SEED, Definition, Table, definition_of
from specvit.study.store import WAITING, StudyFolder, Trial
from specvit.study.table import factors_of
from specvit.study.trial_queue import group_of
from specvit.utils.errors import ConfigError, FolderError, SpecvitError
from specvit.utils.files import read_json, read_yaml

Array = np.ndarray
ESCAPE = Table(metric=ESCAPED, of="val_r2", above=0.1)
"""Default of a study's threshold for leaving the plateau: the first validation R² above 0.1."""
TEST_R2 = "test_r2"
SPLITS, INTERVAL_ENDS = ("test_", "val_", "train_"), ("_low", "_high", "_rows")
"""Prefixes of metric names; suffixes of interval ends and counts, which are not suggested as metrics."""
RESULTS = ("config.yaml", "summary.json", "predictions.csv")


T = TypeVar("T")


def grouped(items: Iterable[T], keys: Iterable[str]) -> dict[str, list[T]]:
    """Return the items by their keys, in the order of first appearance."""
    groups: dict[str, list[T]] = {}
    for item, key in zip(items, keys, strict=True):
        groups.setdefault(key, []).append(item)
    return groups


@dataclass(frozen=True)
class Record:
    """One run: its factors, seed, state, configuration and scores."""

    run_id: str
    factors: dict[str, Any]
    seed: int
    state: str
    config: Config
    outcome: Outcome
    escape: Table = ESCAPE
    """How its study defines `escape_step`."""

    def value(self, metric: str) -> float | None:
        """Return a metric, or `escape_step`; None if the run does not have it."""
        return self.escape_step if metric == ESCAPED else value_of(self.outcome, metric)

    @property
    def escape_step(self) -> float | None:
        """The first recorded step off the plateau; None if there is none, or the model is not trained in steps."""
        return escape_step(self.outcome, self.escape) if self.trains_by_steps else None

    @property
    def trains_by_steps(self) -> bool:
        """Whether it is a network with at least one recorded epoch."""
        return isinstance(self.config.model, NetworkConfig) and bool(self.outcome.rows)

    @property
    def finished(self) -> bool:
        """Whether it ended normally and learnt something."""
        return group_of(self.state) == "finished"

    @property
    def unlearnt(self) -> bool:
        """Whether it ended by itself without having learnt."""
        return self.state in NOT_LEARNT

    def ranked(self, metric: str) -> float | None:
        """Return its value in comparisons of settings, see `ranked_value`; `escape_step` of any ended run."""
        if metric == ESCAPED:
            return self.escape_step if self.finished or self.unlearnt else None
        return ranked_value(self.value(metric), self.state, metric)

    @property
    def minutes(self) -> float | None:
        """Wall-clock minutes of training and validation."""
        return self.outcome.train_seconds / 60 or None


@dataclass(frozen=True)
class FinishedRun:
    """A finished run with its test predictions of one label, in the label's unit."""

    run_id: str
    folder: Path
    config: Config
    identity: dict[str, Any]
    """What determines the run id, see `run_folder.identity`."""
    true_N: Array
    predicted_N: Array
    snr_N: Array
    mag_N: Array
    best_epoch: int | None

    @property
    def rows(self) -> int:
        """The number of training rows."""
        train = self.identity["data"]["train"]
        return int(train["rows"] if "builtin" in train else train["shape"][0])

    @property
    def seed(self) -> int:
        """The seed of its training."""
        return self.config.train.seed

    def r2(self, inside_N: Array) -> float | None:
        """Return R² over the chosen rows, about their own mean; None where it is undefined."""
        if inside_N.sum() < 2:
            return None
        r2 = REGRESSION["r2"].function(RegressionRows(self.true_N[inside_N], self.predicted_N[inside_N]))
        return r2 if np.isfinite(r2) else None


@dataclass(frozen=True)
class Source:
    """A run folder, and the trial of a study that it belongs to if it is read through one."""

    run: RunFolder
    study: StudyFolder | None = None
    trial: Trial | None = None

    @property
    def state(self) -> str:
        """The state in its study; the run's own state otherwise."""
        return self.study.state(self.trial) if self.study and self.trial else self.run.state()

    def config(self) -> Config:
        """Return its configuration; raises `OSError` or `SpecvitError`."""
        return build_config(self.trial.config if self.trial else read_yaml(self.run.file("config.yaml")))


def is_study(folder: Path) -> bool:
    """Return whether a folder is a study."""
    return (folder / "study.json").exists()


def sources_in(folder: Path) -> Iterator[Source]:
    """Yield the runs of a run folder, a study, or a folder of runs; raises `FolderError`."""
    if not folder.is_dir():
        raise FolderError(
            "is not a folder", where=str(folder), remedy="name a run folder, a study, or a folder of runs"
        )
    if is_study(folder):
        study = StudyFolder(folder)
        study.about()  # raises for a study of another format
        for trial in study.trials():
            yield Source(RunFolder(trial.run.path.resolve(), trial.run_id), study, trial)
        return
    for path in [folder] if (folder / "run.json").exists() else sorted(folder.iterdir()):
        about = read_json(path / "run.json")
        if isinstance(about, dict) and "run_id" in about:
            yield Source(RunFolder(path.resolve(), about["run_id"]))
        elif path is folder:
            raise FolderError("has a damaged run.json", where=str(folder), remedy="train it again")


def read_records(folders: Sequence[Path]) -> tuple[list[Record], list[str]]:
    """Return a record of each run in the folders, and notes; raises `FolderError` if there is none."""
    records: dict[Path, Record] = {}
    plain: list[tuple[Source, Config]] = []
    unreadable = 0
    for folder in folders:
        if is_study(folder):
            records |= _records_of_study(folder)
            continue
        for source in sources_in(folder):
            try:
                plain.append((source, source.config()))
            except (OSError, SpecvitError):
                unreadable += 1
    differing = _differing_settings([config for _, config in plain])
    for (source, config), factors in zip(plain, differing, strict=True):
        state = WAITING if (state := source.state) in RESUMABLE else state  # a study shows stopped runs as waiting
        run = source.run
        records.setdefault(run.path, Record(run.run_id, factors, config.train.seed, state, config, outcome_of(run)))
    if not records:
        where = ", ".join(map(str, folders))
        raise FolderError("holds no run", where=where, remedy="name a study in multirun/, or a folder of runs")
    return list(records.values()), [f"note: {unreadable} run(s) left out: no config.yaml to read"] if unreadable else []


def _records_of_study(folder: Path) -> dict[Path, Record]:
    """Return the records of a study by run folder."""
    sources, study = list(sources_in(folder)), StudyFolder(folder)
    about = study.about()
    table = Table(**about.get("table") or {})
    escape = ESCAPE if table.of is None else table
    factors = [{k: v for k, v in factors_of(source.trial).items() if k != SEED} for source in sources if source.trial]
    if about.get("kind") == "grid":
        factors = _independent(factors)
    if about.get("definition"):
        factors = _joined(factors, definition_of(about["definition"], study.name, where="study.json"))
    records = {}
    for source, varied in zip(sources, factors, strict=True):
        config, run = source.config(), source.run
        records[run.path] = Record(run.run_id, varied, config.train.seed, source.state, config, outcome_of(run), escape)
    return records


def unfinished_configs(folders: Iterable[Path]) -> Iterator[tuple[Config, str]]:
    """Yield configuration and state of the runs that have not finished; unreadable ones are skipped.

    `finished_runs` has counted these already.
    """
    for folder in folders:
        try:
            for source in sources_in(folder):
                if (state := source.state) not in DONE and (source.trial or source.run.file("config.yaml").exists()):
                    yield source.config(), state
        except SpecvitError:
            continue


def finished_runs(
    folders: Sequence[Path], label: str, *, noiseless: bool = False
) -> tuple[list[FinishedRun], list[str]]:
    """Return the finished runs in `folders` that predict `label`, each once, and a note on each kind left out.

    Those that were tested without noise are left out unless `noiseless`. A folder is a run, a study, or a folder of
    runs. Raises `FolderError` if none of the runs has finished, or a folder is itself an unfinished run.
    """
    runs: dict[Path, FinishedRun] = {}
    omitted: Counter[str] = Counter()
    for folder in folders:
        single = (folder / "run.json").exists()
        for source in sources_in(folder):
            reason = _unfinished_reason(source.run)
            if reason and single:
                raise FolderError(
                    f"is not a finished run: {reason}", where=str(folder), remedy="train it to its end first"
                )
            run = reason or _read_predictions(source.run, label, noiseless)
            if isinstance(run, str):
                omitted[run] += 1
            else:
                runs[run.folder] = run
    if not runs:
        states = ", ".join(f"{count} left out ({why})" for why, count in omitted.items())
        what = f"no finished run that predicts {label}" + (f": {states}" if states else "")
        remedy = "name runs that have finished, such as outputs/ after `specvit train`"
        raise FolderError(what, where=", ".join(map(str, folders)), remedy=remedy)
    return list(runs.values()), [f"note: {count} run(s) left out: {why}" for why, count in omitted.items()]


def _unfinished_reason(run: RunFolder) -> str:
    """Return why a run has not finished, "" if it has."""
    if (state := run.state()) not in DONE:
        return f"it is {state}" if state else "it has not begun"
    missing = [name for name in RESULTS if not run.file(name).exists()]
    return f"it has no {missing[0]}" if missing else ""


def _read_predictions(run: RunFolder, label: str, noiseless: bool) -> FinishedRun | str:
    """Return a finished run, or why it is left out."""
    import pandas as pd

    try:
        config = build_config(read_yaml(run.file("config.yaml")))
        table = pd.read_csv(run.file("predictions.csv"))
        identity = read_json(run.file("run.json"))["identity"]
        test = identity["data"]["test"]
        snr_N, mag_N = (table[name].to_numpy(np.float64) for name in ("snr", "mag"))
    except (SpecvitError, ValueError, KeyError, TypeError):
        return "its records are damaged, or another specvit wrote them"
    if config.model.task_type != "reg" or f"pred_{label}" not in table:
        return f"it does not predict {label}"
    if effective_level(config.noise) == 0 and not noiseless:
        return "it was tested without noise, where no ceiling is below 1"
    if test.get("builtin", GENERATOR_VERSION) != GENERATOR_VERSION:
        return "its built-in spectra are those of another specvit"
    true_N, predicted_N = (table[f"{kind}_{label}"].to_numpy(np.float64) for kind in ("true", "pred"))
    best = (read_json(run.file("summary.json")) or {}).get("best_epoch")
    return FinishedRun(run.run_id, run.path, config, identity, true_N, predicted_N, snr_N, mag_N, best)


def metric_of(folders: Sequence[Path]) -> str:
    """Return the metric of a single study's own table; test R² of plain runs or several folders."""
    study = len(folders) == 1 and is_study(folders[0])
    return (StudyFolder(folders[0]).about().get("table") or {}).get("metric") or TEST_R2 if study else TEST_R2


def is_search(folders: Sequence[Path]) -> bool:
    """Return whether all folders are studies that sample their settings."""
    return all(is_study(folder) and StudyFolder(folder).about().get("kind") == "search" for folder in folders)


def check_metric(records: Sequence[Record], metric: str) -> None:
    """Raise `ConfigError` for a metric that no run has; while no run has any, every name is accepted."""
    rows = [row for record in records for row in (record.outcome.summary, record.outcome.best_row)]
    known = {name for row in rows for name, value in row.items() if isinstance(value, int | float)}
    if known and metric not in known | {"train_seconds", ESCAPED}:
        metrics = sorted(name for name in known if name.startswith(SPLITS) and not name.endswith(INTERVAL_ENDS))
        remedy = f"{nearest(metric, metrics)}there are {', '.join(metrics)}"
        raise ConfigError("is a metric that no run has", where=f"--metric {metric}", remedy=remedy)


def _independent(factors_of_all: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the factors of a grid without those that the others determine, such as what a cell sets."""
    independent = list(dict.fromkeys(key for factors in factors_of_all for key in factors))
    for key in reversed(independent.copy()):
        others = [other for other in independent if other != key]
        rests = (repr([factors.get(other) for other in others]) for factors in factors_of_all)
        if others and all(
            len({repr(one.get(key)) for one in rows}) == 1 for rows in grouped(factors_of_all, rests).values()
        ):
            independent = others
    return [{key: factors[key] for key in independent if key in factors} for factors in factors_of_all]


def _joined(factors_of_all: Sequence[dict[str, Any]], definition: Definition) -> list[dict[str, Any]]:
    """Return the factors with those that one axis changes together as one, such as patch and stride: "64, 32".

    They remain separate if another axis changes one of them, or if a run has only some of them.
    """
    sampled = [
        *(axis for grid in definition.grids for axis in grid.axes),
        *(definition.search.space if definition.search else ()),
    ]
    axes = list(dict.fromkeys(tuple(one.keys) for one in sampled))
    known = set(itertools.chain.from_iterable(factors_of_all))
    for axis in axes:
        tied = [key for key in axis if key in known]
        elsewhere = set(itertools.chain.from_iterable(other for other in axes if other != axis))
        if len(tied) > 1 and elsewhere.isdisjoint(tied) and all(set(tied) <= set(one) for one in factors_of_all):
            factors_of_all = [_as_one(factors, tied) for factors in factors_of_all]
    return list(factors_of_all)


def _as_one(factors: dict[str, Any], tied: Sequence[str]) -> dict[str, Any]:
    """Return factors with the `tied` ones as a single one, at the position of the first."""
    name, value = ", ".join(tied), ", ".join(str(factors[key]) for key in tied)
    return {
        name if key == tied[0] else key: value if key == tied[0] else own
        for key, own in factors.items()
        if key == tied[0] or key not in tied
    }


def _differing_settings(configs: Sequence[Config]) -> list[dict[str, Any]]:
    """Return of each configuration the settings in which they differ, except the seed."""
    settings = [flatten(identity_of(config, {})["config"]) for config in configs]
    for own, config in zip(settings, configs, strict=True):
        own |= {"data.num_samples": config.data.num_samples}
        own.pop(SEED, None)
    keys = dict.fromkeys(key for own in settings for key in own)
    differing = [key for key in keys if len({repr(own.get(key)) for own in settings}) > 1]
    return [{key: own.get(key) for key in differing} for own in settings]
