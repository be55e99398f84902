"""Run folders to one table, a row a run: factors, seed, state, configuration, scores; predictions on demand.

All views of `specvit analysis` start here. Reads folders of runs and of studies; imports no torch.

Columns of a table of runs: `run_id`, `folder`, `named` (whether it was named itself), `factors` (a dict) and `setting`,
the same as a text, `seed`, `state` and `group` in its study, `run_state` in its folder, `finished` (it ended normally
and learnt), `unlearnt` (it ended by itself and did not), `config`, `outcome`, `escape` (how its study defines the
step off the plateau) and `escape_step`, `trains_by_steps` (a network with an epoch), `gap` (training less validation
R² of the tested epoch), `minutes` of training and validation. What a run lacks is None.

Shape suffixes: N test rows.
"""

import itertools
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from specvit.config.build import build_config, flatten
from specvit.config.schema import Config, NetworkConfig, effective_level
from specvit.data.synthetic import GENERATOR_VERSION
from specvit.metrics.metrics import REGRESSION
from specvit.metrics.statistics import RegressionRows
from specvit.run_folder.folder import DONE, RESUMABLE, TABLES, RunFolder
from specvit.run_folder.identity import REPEATED, identity_of, num_rows
from specvit.study.results import NOT_LEARNT, Outcome, escape_step, outcome_of, ranked_value, value_of
from specvit.study.schema import ESCAPED, Definition, Table, definition_of
from specvit.study.store import WAITING, StudyFolder
from specvit.study.table import factors_of
from specvit.study.trial_queue import group_of
from specvit.utils.errors import ConfigError, FolderError, SpecvitError
from specvit.utils.files import read_json, read_yaml
from specvit.utils.quantities import STAR_ID
from specvit.utils.text import counted, nearest

Array = np.ndarray
Runs = Any
"""A table of runs, a `pandas.DataFrame`; pandas' own annotations take each selection of its rows for a Series."""
Run = Any
"""A row of a table of runs, as `itertuples` yields it: its attributes are the columns."""
ESCAPE = Table(metric=ESCAPED, of="val_r2", above=0.1)
"""Default of a study's threshold for leaving the plateau: the first validation R² above 0.1."""
TEST_R2 = "test_r2"
SPLITS, INTERVAL_ENDS = ("test_", "val_", "train_"), ("_low", "_high", "_rows")
"""Prefixes of metric names; suffixes of interval ends and counts, which are not suggested as metrics."""
RESULTS = ("config.yaml", "summary.json", "predictions.csv")


def run_row(
    run_id: str,
    factors: dict[str, Any],
    seed: int,
    state: str,
    config: Config,
    outcome: Outcome,
    escape: Table = ESCAPE,
    **where: Any,
) -> dict[str, Any]:
    """Return the row of one run; `where` has further columns."""
    by_steps = isinstance(config.model, NetworkConfig) and bool(outcome.rows)
    finished = group_of(state) == "finished"
    train, val = (outcome.best_row.get(f"{split}_r2") for split in ("train", "val"))
    return {
        **{"run_id": run_id, "factors": factors, "setting": repr(factors), "seed": seed},
        **{"state": state, "group": group_of(state), "finished": finished, "unlearnt": state in NOT_LEARNT},
        **{"config": config, "outcome": outcome, "trains_by_steps": by_steps, "escape": escape},
        "escape_step": escape_step(outcome, escape) if by_steps else None,
        "gap": train - val if finished and isinstance(train, float) and isinstance(val, float) else None,
        "minutes": outcome.train_seconds / 60 or None,
        **where,
    }


def run_table(rows: Sequence[dict[str, Any]]) -> Runs:
    """Return the table of runs; all but flags are Python's own objects, so that None and integers remain."""
    flags = {name: np.array([row[name] for row in rows]) for name in ("finished", "unlearnt", "trains_by_steps")}
    return pd.DataFrame(rows, dtype=object).assign(**flags)


def rows_of(runs: Runs) -> list[Run]:
    """Return the rows of a table of runs."""
    return list(runs.itertuples(index=False))


def mean_or_none(values: Sequence[float]) -> float | None:
    """Return the mean; None of no value."""
    return statistics.fmean(values) if len(values) else None


def scored(runs: Runs, metric: str) -> Runs:
    """Return the runs with a metric as the column `value`, and as `ranked` in comparisons of settings.

    See `study.results.ranked_value`; `escape_step` ranks every run that ended.
    """
    if metric == ESCAPED:
        return runs.assign(value=runs.escape_step, ranked=runs.escape_step.where(runs.finished | runs.unlearnt, None))
    values = [value_of(outcome, metric) for outcome in runs.outcome]
    ranked = [ranked_value(value, state, metric) for value, state in zip(values, runs.state, strict=True)]
    return runs.assign(value=np.array(values, object), ranked=np.array(ranked, object))


def r2_inside(run: Run, inside_N: Array) -> float | None:
    """Return R² of a run over the chosen test rows, about their own mean; None where it is undefined."""
    if inside_N.sum() < 2:
        return None
    r2 = REGRESSION["r2"].function(RegressionRows(run.true_N[inside_N], run.predicted_N[inside_N]))
    return r2 if np.isfinite(r2) else None


def is_study(folder: Path) -> bool:
    """Return whether a folder is a study."""
    return (folder / "study.json").exists()


def read_runs(folders: Sequence[Path]) -> tuple[Runs, list[str]]:
    """Return the table of all runs in run folders, studies and folders of runs, each once, and notes.

    Raises `FolderError` if there is none.
    """
    rows: dict[Path, dict[str, Any]] = {}
    plain: list[dict[str, Any]] = []
    unreadable = 0
    for folder in folders:
        if is_study(folder):
            rows |= {row["folder"]: row for row in _rows_of_study(StudyFolder(folder))}
            continue
        for run in _runs_in(folder):
            state = run.state()
            shown = WAITING if state in RESUMABLE else state  # a study shows stopped runs as waiting
            where = {"folder": run.path, "run_state": state, "named": run.path == folder.resolve()}
            try:
                config = build_config(read_yaml(run.file("config.yaml")))
            except (OSError, SpecvitError):
                unreadable += 1
                continue
            plain.append(run_row(run.run_id, {}, config.train.seed, shown, config, outcome_of(run), **where))
    for row, factors in zip(plain, _differing_settings([row["config"] for row in plain]), strict=True):
        rows.setdefault(row["folder"], row | {"factors": factors, "setting": repr(factors)})
    if not rows:
        places = ", ".join(map(str, folders))
        raise FolderError("holds no run", where=places, remedy="name a study in multirun/, or a folder of runs")
    notes = [f"note: {counted(unreadable, 'run')} left out: no config.yaml to read"] if unreadable else []
    return run_table(_told_apart([*rows.values()])), notes


def _runs_in(folder: Path) -> Iterator[RunFolder]:
    """Yield the runs of a run folder, or of a folder of runs; raises `FolderError`."""
    if not folder.is_dir():
        raise FolderError(
            "is not a folder", where=str(folder), remedy="name a run folder, a study, or a folder of runs"
        )
    for path in [folder] if (folder / "run.json").exists() else sorted(folder.iterdir()):
        about = read_json(path / "run.json")
        if isinstance(about, dict) and "run_id" in about:
            yield RunFolder(path.resolve(), about["run_id"])
        elif path is folder:
            raise FolderError("has a damaged run.json", where=str(folder), remedy="train it again")


def _rows_of_study(study: StudyFolder) -> Iterator[dict[str, Any]]:
    """Yield the rows of a study's runs."""
    about, trials = study.about(), study.trials()
    table = Table(**about.get("table") or {})
    escape = ESCAPE if table.of is None else table
    factors = [{k: v for k, v in factors_of(trial).items() if k not in REPEATED} for trial in trials]
    if about.get("kind") == "grid":
        factors = _independent(factors)
    if about.get("definition"):
        factors = _joined(factors, definition_of(about["definition"], study.name, where="study.json"))
    for trial, varied in zip(trials, factors, strict=True):
        config, run = build_config(trial.config), RunFolder(trial.run.path.resolve(), trial.run_id)
        where = {"folder": run.path, "run_state": run.state(), "named": False}
        state = study.state(trial)
        yield run_row(run.run_id, varied, config.train.seed, state, config, outcome_of(run), escape, **where)


def with_predictions(runs: Runs, label: str, *, noiseless: bool = False) -> tuple[Runs, list[str]]:
    """Return the finished runs that predict `label` with what they predicted, and a note on each kind left out.

    New columns: `identity` (what determines the run id), `rows` (of training), `true_N` and `predicted_N` in the
    label's unit, `snr_N`, `mag_N`, `star_N` (None without ids), `spectra`, `best_epoch`, `parts` (None; the runs that
    `pooled_folds` makes one of). Runs that were tested without noise or on
    built-in spectra of another generator version, have no ceiling; they are left out unless `noiseless`.
    Raises `FolderError` if no run is left, or a run that was named itself has not finished.
    """
    tested: list[dict[str, Any]] = []
    omitted: Counter[str] = Counter()
    for run in rows_of(runs):
        missing = [f"no {name}" for name in RESULTS if not (run.folder / name).exists()]
        if run.run_state not in DONE:
            missing = [run.run_state or "not begun"]
        if missing and run.named:
            what = f"is not a finished run: {missing[0]}"
            raise FolderError(what, where=str(run.folder), remedy="train it to its end first")
        columns = missing[0] if missing else _predictions(run.folder, label, noiseless)
        if isinstance(columns, str):
            omitted[columns] += 1
        else:
            tested.append(run._asdict() | columns)
    if not tested:
        states = ", ".join(f"{count} left out ({why})" for why, count in omitted.items())
        remedy = "name runs that have finished, such as outputs/ after `specvit train`"
        places = ", ".join(dict.fromkeys(str(folder.parent) for folder in runs.folder))
        raise FolderError(f"no finished run that predicts {label}: {states}", where=places, remedy=remedy)
    return run_table(tested), [f"note: {counted(count, 'run')} left out: {why}" for why, count in omitted.items()]


def _predictions(folder: Path, label: str, noiseless: bool) -> dict[str, Any] | str:
    """Return the columns of a finished run's test, or why it is left out."""
    try:
        config = build_config(read_yaml(folder / "config.yaml"))
        table = read_table(folder / TABLES["test"])
        identity = read_json(folder / "run.json")["identity"]
        train, test = identity["data"]["train"], identity["data"]["test"]
        columns = {f"{name}_N": table[name].to_numpy(np.float64) for name in ("snr", "mag")}
        rows = num_rows(train)
    except (SpecvitError, ValueError, KeyError, TypeError):
        return "records that are damaged, or that another specvit wrote"
    if config.model.task_type != "reg" or f"pred_{label}" not in table:
        return f"no prediction of {label}"
    if effective_level(config.noise) == 0 and not noiseless:
        return "tested without noise, where no ceiling is below 1"
    if not noiseless and test.get("builtin", GENERATOR_VERSION) != GENERATOR_VERSION:
        return "built-in spectra of another specvit"
    columns["true_N"], columns["predicted_N"] = (table[f"{kind}_{label}"].to_numpy(float) for kind in ("true", "pred"))
    columns["star_N"] = table[STAR_ID].to_numpy() if STAR_ID in table else None
    known_N = ~np.isnan(columns["true_N"])
    if not known_N.any():
        return f"its test rows lack {label}"
    columns = {name: None if values is None else values[known_N] for name, values in columns.items()}
    best = (read_json(folder / "summary.json") or {}).get("best_epoch")
    about = {"config": config, "identity": identity, "rows": rows, "best_epoch": best}
    return {**columns, **about, "spectra": len(table), "parts": None}


def read_table(path: Path) -> Any:
    """Return a run's table of predictions; raises `OSError` or `ValueError`."""
    text: Any = {"dtype": {STAR_ID: str}, "keep_default_na": False, "na_values": [""]}  # NA and 007 are names
    return pd.read_csv(path, **text)


def metric_of(folders: Sequence[Path]) -> str:
    """Return the metric that a single study searches by, or that of its table; test R² of plain runs or several."""
    about = StudyFolder(folders[0]).about() if len(folders) == 1 and is_study(folders[0]) else {}
    return next(iter(about.get("metrics") or {}), (about.get("table") or {}).get("metric") or TEST_R2)


def is_search(folders: Sequence[Path]) -> bool:
    """Return whether all folders are studies that sample their settings."""
    return all(is_study(folder) and StudyFolder(folder).about().get("kind") == "search" for folder in folders)


def directions_of(folders: Sequence[Path]) -> dict[str, str]:
    """Return "minimize" or "maximize" of each metric by which all folders are searches in the same direction."""
    each = [StudyFolder(folder).about().get("metrics") or {} if is_study(folder) else {} for folder in folders]
    return dict(set.intersection(*(set(metrics.items()) for metrics in each)))


def check_metric(runs: Runs, metric: str) -> None:
    """Raise `ConfigError` for a metric that no run has; while no run has any, every name is accepted."""
    rows = [row for outcome in runs.outcome for row in (outcome.summary, outcome.best_row)]
    known = {name for row in rows for name, value in row.items() if isinstance(value, int | float)}
    if known and metric not in known | {"train_seconds", ESCAPED}:
        metrics = sorted(name for name in known if name.startswith(SPLITS) and not name.endswith(INTERVAL_ENDS))
        remedy = f"{nearest(metric, metrics)}there are {', '.join(metrics)}"
        raise ConfigError("is a metric that no run has", where=f"--metric {metric}", remedy=remedy)


def _told_apart(rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Return the rows with further factors: the settings in which runs of equal factors, seed and fold differ.

    Two studies may vary the same keys and fix others at different values.
    """
    alike: dict[tuple[Any, ...], list[Config]] = {}
    for row in rows:
        alike.setdefault((row["setting"], row["seed"], row["config"].data.fold), []).append(row["config"])
    fixed = {key for configs in alike.values() for own in _differing_settings(configs) for key in own}
    for row in rows if fixed else ():
        settings = flatten(identity_of(row["config"], {})["config"])
        row["factors"] = {key: settings.get(key) for key in sorted(fixed)} | row["factors"]
        row["setting"] = repr(row["factors"])
    return rows


def _independent(factors_of_all: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the factors of a grid without those that the others determine, such as what a cell sets."""
    values: Any = pd.DataFrame(factors_of_all, dtype=object).map(repr).replace("nan", "None")
    for key in reversed(values.columns):
        others = [other for other in values.columns if other != key]
        if others and (values.groupby(others)[key].nunique() == 1).all():
            values = values[others]
    return [{key: factors[key] for key in values.columns if key in factors} for factors in factors_of_all]


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
    one = {tied[0]: (", ".join(tied), ", ".join(str(factors[key]) for key in tied))}
    return dict(one.get(key, (key, value)) for key, value in factors.items() if key not in tied[1:])


def _differing_settings(configs: Sequence[Config]) -> list[dict[str, Any]]:
    """Return of each configuration the settings in which they differ, except the seed."""
    settings = [
        flatten(identity_of(config, {})["config"]) | {"data.num_samples": config.data.num_samples} for config in configs
    ]
    values: Any = pd.DataFrame(settings, dtype=object).map(repr).replace("nan", "None")
    differing = [key for key in values.columns if key not in REPEATED and values[key].nunique() > 1]
    return [{key: own.get(key) for key in differing} for own in settings]
