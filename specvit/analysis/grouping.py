"""Finished runs grouped by test set, by setting (all but the seed), and by series (all but the seed and the size)."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specvit.analysis.records import FinishedRun, grouped, unfinished_configs
from specvit.config.build import flatten
from specvit.config.schema import Config, ViTConfig
from specvit.run_folder.identity import identity_of
from specvit.study.schema import SEED

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
    runs: tuple[FinishedRun, ...]

    @property
    def seeds_and_ids(self) -> dict[str, str]:
        """The runs' seeds and ids, as columns of tables."""
        seeds, ids = ([str(run.seed) for run in self.runs], [run.run_id for run in self.runs])
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
    def runs(self) -> list[FinishedRun]:
        """All runs; rows, noise and S/N are the same in each."""
        return [run for setting in self.settings for run in setting.runs]

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


def by_test_set(runs: Sequence[FinishedRun]) -> list[TestSet]:
    """Return the runs by test rows and noise, in the order of first appearance."""
    test_sets: list[TestSet] = []
    for of_set in grouped(runs, map(_test_key, runs)).values():
        description, short = _described(of_set[0])
        same = sum(re.fullmatch(rf"{re.escape(short)}(-\d+)?", other.short) is not None for other in test_sets)
        test_sets.append(TestSet(description, f"{short}-{same + 1}" if same else short, tuple(_settings(of_set))))
    return test_sets


def series_of(test_set: TestSet) -> list[Series]:
    """Return the settings of a test set grouped by all but size, seed and the keys tied to the size."""
    series: dict[str, list[Setting]] = {}
    keys = [_series_key(_identity(one), tied=False) for one in test_set.settings]
    for key, settings in grouped(test_set.settings, keys).items():
        sizes = [setting.runs[0].rows for setting in settings]
        if len(set(sizes)) == len(sizes):
            series[key] = settings
        else:  # two settings of one size: here the tied keys are settings of their own
            for setting in settings:
                series.setdefault(_series_key(_identity(setting), tied=True), []).append(setting)
    return _named_series(series)


def add_missing(series: list[Series], folders: Iterable[Path]) -> None:
    """Count in each series the runs that have not finished; a series without any other run is appended."""
    by_key = {one.key: one for one in series}
    for config, state in unfinished_configs(folders):
        identity = identity_of(config, {})["config"]
        key = _series_key(identity, tied=False)
        one = by_key.get(key) or by_key.get(_series_key(identity, tied=True))
        if one is None:
            name = _model_name(config)
            taken = any(other.name == name for other in series)
            one = by_key[key] = Series(f"{name} (unfinished)" if taken else name, key, {})
            series.append(one)
        one.missing.setdefault(config.data.num_samples, Counter())[state] += 1


def _settings(runs: Sequence[FinishedRun]) -> list[Setting]:
    """Return the runs grouped by all but their seed; settings of the same name get their differences appended."""
    groups = grouped(runs, map(_setting_key, runs))
    configs = {key: _without_seed(group[0].identity["config"]) for key, group in groups.items()}
    names = {key: _folder_name(group[0]) for key, group in groups.items()}
    shared = Counter(names.values())
    for key, name in names.items():
        if shared[name] > 1:
            others = [configs[other] for other in names if other != key]
            names[key] = f"{name} ({_differences(configs[key], others) or groups[key][0].run_id})"
    return [Setting(names[key], tuple(group)) for key, group in groups.items()]


def _named_series(groups: dict[str, list[Setting]]) -> list[Series]:
    """Return the groups as series; those of the same model get their differences in the name."""
    firsts = {key: group[0].runs[0] for key, group in groups.items()}
    names = {key: _model_name(run.config) for key, run in firsts.items()}
    configs = {key: _without_seed(run.identity["config"]) for key, run in firsts.items()}
    series = []
    for key, group in groups.items():
        name = names[key]
        if others := [configs[other] for other in groups if other != key and names[other] == name]:
            name = f"{name} ({_differences(configs[key], others) or firsts[key].run_id})"
        series.append(Series(name, key, {setting.runs[0].rows: setting for setting in group}))
    return series


def _identity(setting: Setting) -> dict[str, Any]:
    return setting.runs[0].identity["config"]


def _without_seed(identity: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flatten(identity).items() if name != SEED}


def _series_key(identity: dict[str, Any], *, tied: bool) -> str:
    return _key({name: value for name, value in _without_seed(identity).items() if tied or name not in TIED})


def _setting_key(run: FinishedRun) -> str:
    return _key([_without_seed(run.identity["config"]), run.identity["data"], run.identity.get("extra")])


def _test_key(run: FinishedRun) -> str:
    return _key([run.identity["data"]["test"], run.config.noise.noise_type, run.config.noise.noise_level])


def _key(value: Any) -> str:
    """Return a text that is the same for equal values."""
    return json.dumps(value, sort_keys=True)


def _differences(config: dict[str, Any], others: Sequence[dict[str, Any]]) -> str:
    """Return the settings of a flat configuration that any of the others does not share."""
    return ", ".join(f"{k}={v}" for k, v in config.items() if any(other.get(k) != v for other in others))


def _folder_name(run: FinishedRun) -> str:
    """Return a run's folder name without hash and seed."""
    return run.folder.name.removesuffix(f"-{run.run_id}").removesuffix(f"-s{run.seed}")


def _model_name(config: Config) -> str:
    model = config.model
    if not isinstance(model, ViTConfig):
        return model.kind
    return f"vit {model.proj_fn.lower()} p{model.patch_size} h{model.hidden_size} L{model.num_hidden_layers}"


def _described(run: FinishedRun) -> tuple[str, str]:
    """Return a test set's description and its name as a folder."""
    test, noise = run.identity["data"]["test"], run.config.noise
    if "builtin" in test:
        moved = f", redshifts up to {test['max_redshift']:g}" if test.get("max_redshift") else ""
        text = f"built-in (version {test['builtin']}) test rows 0 to {test['rows'] - 1} of seed {test['seed']}{moved}"
        short = f"builtin-seed{test['seed']}-{test['rows']}" + (f"-z{test['max_redshift']:g}" if moved else "")
    else:
        paths = [Path(name) for name in run.config.data.test_path or ()]
        text = f"{len(run.true_N)} rows of {', '.join(map(str, paths))}"
        short = "-".join(dict.fromkeys(path.parent.name for path in paths if "*" not in path.parent.name)) or "files"
    homoscedastic = noise.noise_type == "homoscedastic"
    kind = ", one sigma a spectrum" if homoscedastic else ""
    return f"{text}, noise {noise.noise_level:g}{kind}", f"{short}-noise{noise.noise_level:g}{'-homo' * homoscedastic}"
