"""Finished runs grouped by test set, by setting (all but the seed), and by series (all but the seed and the size)."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specvit.analysis.records import Run, Runs, rows_of
from specvit.config.schema import Config, ViTConfig
from specvit.run_folder.folder import DONE
from specvit.run_folder.identity import identity_of, without_repeated

TIED = (
    "train.epochs",
    "train.early_stopping.patience",
    "opt.warmup_epochs",
    "opt.step_epochs",
    "opt.plateau_patience",
)
"""Keys that may change with the size, so that all sizes train for as many steps; each size has one value."""


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed alone."""

    name: str
    runs: tuple[Run, ...]

    @property
    def trained(self) -> list[Run]:
        """The runs that were trained: those of each fold in place of a pooled one."""
        return [part for run in self.runs for part in run.parts or (run,)]

    @property
    def seeds_and_ids(self) -> dict[str, str]:
        """The runs' seeds and ids, as columns of tables."""
        seeds, ids = ([str(run.seed) for run in self.runs], [run.run_id for run in self.trained])
        return {"seeds": " ".join(seeds), "run_ids": " ".join(ids)}


@dataclass(frozen=True)
class TestSet:
    """Runs on the same test rows with the same noise: one set of bounds applies to all of them."""

    __test__ = False  # pytest must not collect it

    description: str
    short: str
    """Its name as a folder."""
    settings: tuple[Setting, ...]

    @property
    def runs(self) -> list[Run]:
        """All runs; rows, noise and S/N are the same in each."""
        return [run for setting in self.settings for run in setting.runs]

    @property
    def num_trained(self) -> int:
        """The number of runs that were trained, each fold counted."""
        return sum(len(setting.trained) for setting in self.settings)

    @property
    def is_pooled(self) -> bool:
        """Whether the test rows are the stars of all folds of a cross-validation."""
        return self.runs[0].parts is not None

    def facts(self, label: str) -> dict[str, Any]:
        """Return the columns that say what a score of `label` was measured on."""
        noise = self.runs[0].config.noise
        return {
            "label": label,
            "noise_level": noise.noise_level,
            "noise_type": noise.noise_type,
            "test_set": self.description,
        }


@dataclass
class Series:
    """A setting by training size; `missing` counts runs that have not finished, by size and state."""

    name: str
    key: str
    points: dict[int, Setting]
    missing: dict[int, Counter[str]] = field(default_factory=dict)

    @property
    def sizes(self) -> list[int]:
        """The sizes that have a score, in order."""
        return sorted(self.points)


def by_test_set(runs: Runs) -> list[TestSet]:
    """Return runs with their predictions by test rows and noise, in the order of first appearance."""
    test_sets: list[TestSet] = []
    noises = [[config.noise.noise_type, config.noise.noise_level] for config in runs.config]
    keys = [key_of([identity["data"]["test"], noise]) for identity, noise in zip(runs.identity, noises, strict=True)]
    for _, of_set in runs.groupby(keys, sort=False):
        description, short = _described(rows_of(of_set)[0])
        same = sum(re.fullmatch(rf"{re.escape(short)}(-\d+)?", other.short) is not None for other in test_sets)
        test_sets.append(TestSet(description, f"{short}-{same + 1}" if same else short, tuple(_settings(of_set))))
    return test_sets


def series_of(test_set: TestSet) -> list[Series]:
    """Return the settings of a test set grouped by all but size, seed and the keys tied to the size."""
    keys = [
        [_series_key(one.runs[0].identity["config"], tied=tied) for tied in (False, True)] for one in test_set.settings
    ]
    sizes = [one.runs[0].rows for one in test_set.settings]
    loose = Counter(zip((key for key, _ in keys), sizes, strict=True))
    several = {key for (key, _), count in loose.items() if count > 1}  # whose tied keys are settings of their own
    series: dict[str, dict[int, Setting]] = {}
    for (key, tied), size, setting in zip(keys, sizes, test_set.settings, strict=True):
        series.setdefault(tied if key in several else key, {})[size] = setting
    firsts = {key: next(iter(points.values())).runs[0] for key, points in series.items()}
    names = _distinct({key: _model_name(run.config) for key, run in firsts.items()}, firsts, among_all=False)
    return [Series(names[key], key, points) for key, points in series.items()]


def add_missing(series: list[Series], runs: Runs) -> None:
    """Count in each series the runs that have not finished; a series without any other run is appended."""
    by_key = {one.key: one for one in series}
    all_rows = max((size for one in series for size in one.points), default=0)
    for run in rows_of(runs[~runs.state.isin(DONE)]):
        identity = identity_of(run.config, {})["config"]
        key = _series_key(identity, tied=False)
        one = by_key.get(key) or by_key.get(_series_key(identity, tied=True))
        if one is None:
            name = _model_name(run.config)
            taken = any(other.name == name for other in series)
            one = by_key[key] = Series(f"{name} (unfinished)" if taken else name, key, {})
            series.append(one)
        wanted = run.config.data.num_samples
        size = max(one.points, default=all_rows) if wanted < 0 else wanted
        one.missing.setdefault(size, Counter())[run.state] += 1


def _settings(runs: Runs) -> list[Setting]:
    """Return the runs grouped by all but their seed; settings of the same name get their differences appended."""
    keys = [key_of([without_repeated(one["config"]), one["data"], one.get("extra")]) for one in runs.identity]
    groups = {key: tuple(rows_of(group)) for key, group in runs.groupby(keys, sort=False)}
    firsts = {key: group[0] for key, group in groups.items()}
    names = {key: _name_of(run) for key, run in firsts.items()}
    return [Setting(name, groups[key]) for key, name in _distinct(names, firsts, among_all=True).items()]


def _name_of(run: Run) -> str:
    """Return the name of a run's folder without its id and seed; of a pooled run also without its fold."""
    name, data = run.folder.name.removesuffix(f"-{run.run_id}").removesuffix(f"-s{run.seed}"), run.config.data
    return name.removesuffix(f"-f{data.fold}of{data.folds}") if run.parts else name


def _distinct(names: Mapping[str, str], runs: Mapping[str, Run], *, among_all: bool) -> dict[str, str]:
    """Return names by key; to those that several have, the settings are appended in which their runs differ.

    From the others of that name, or `among_all`.
    """
    configs = {key: without_repeated(run.identity["config"]) for key, run in runs.items()}
    shared = Counter(names.values())
    distinct = dict(names)
    for key, name in names.items():
        if shared[name] > 1:
            others = [configs[other] for other in names if other != key and (among_all or names[other] == name)]
            own = [f"{k}={v}" for k, v in configs[key].items() if any(other.get(k) != v for other in others)]
            distinct[key] = f"{name} ({', '.join(own) or runs[key].run_id})"
    return distinct


def _series_key(identity: dict[str, Any], *, tied: bool) -> str:
    return key_of({name: value for name, value in without_repeated(identity).items() if tied or name not in TIED})


def key_of(value: Any) -> str:
    """Return a text that is the same for equal values."""
    return json.dumps(value, sort_keys=True)


def _model_name(config: Config) -> str:
    model = config.model
    if not isinstance(model, ViTConfig):
        return model.kind
    return f"vit {model.proj_fn.lower()} p{model.patch_size} h{model.hidden_size} L{model.num_hidden_layers}"


def _described(run: Run) -> tuple[str, str]:
    """Return a test set's description and its name as a folder."""
    test, noise = run.identity["data"]["test"], run.config.noise
    if "builtin" in test:
        moved = f", redshifts up to {test['max_redshift']:g}" if test.get("max_redshift") else ""
        prior = test.get("label_prior", "uniform")
        drawn = f", {prior} distribution of labels" if prior != "uniform" else ""
        rows = f"test rows 0 to {test['rows'] - 1} of seed {test['seed']}"
        text = f"built-in (version {test['builtin']}) {rows}{moved}{drawn}"
        short = f"builtin-seed{test['seed']}-{test['rows']}" + (f"-z{test['max_redshift']:g}" if moved else "")
        short += f"-{prior}" if drawn else ""
    else:
        data = run.config.data
        paths = [Path(name) for name in (data.file_path if data.folds else data.test_path) or ()]
        fold = f", fold {data.fold} of {data.folds}" if data.folds else ""
        count = f"{len(run.true_N)} rows"
        if run.parts:
            fold = f", all {data.folds} folds"
            count = f"{len(run.true_N)} stars"
            count += f" ({run.spectra} spectra)" if run.spectra > len(run.true_N) else ""
        text = f"{count} of {', '.join(map(str, paths))}{fold}"
        short = "-".join(dict.fromkeys(path.parent.name for path in paths if "*" not in path.parent.name)) or "files"
        short += f"-folds{data.folds}" if run.parts else f"-fold{data.fold}" if data.folds else ""
    homoscedastic = noise.noise_type == "homoscedastic"
    kind = ", one sigma a spectrum" if homoscedastic else ""
    return f"{text}, noise {noise.noise_level:g}{kind}", f"{short}-noise{noise.noise_level:g}{'-homo' * homoscedastic}"
