"""Runs of one setting on training sets of several sizes: a line in a figure of score against size."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specvit.analysis.runs import Setting, TestSet, key_of, runs_in
from specvit.config.build import build_config, flatten
from specvit.config.schema import Config, ViTConfig
from specvit.run_folder.folder import DONE
from specvit.run_folder.identity import identity_of
from specvit.study.store import StudyFolder
from specvit.utils.errors import SpecvitError
from specvit.utils.yaml_files import read_yaml

TIED = (
    "train.epochs",
    "train.early_stopping.patience",
    "opt.warmup_epochs",
    "opt.step_epochs",
    "opt.plateau_patience",
)
"""Keys that may go with the size, so that all sizes have as many steps, as long as each size has one value."""


@dataclass
class Series:
    """A setting by size; `missing` are runs that have not finished, by size and state."""

    name: str
    key: str
    points: dict[int, Setting]
    missing: dict[int, Counter[str]] = field(default_factory=dict)

    @property
    def sizes(self) -> list[int]:
        """The sizes that have a score, in order."""
        return sorted(self.points)


def series_of(test_set: TestSet) -> list[Series]:
    """Return the settings of a test set put together by all but size, seed and what goes with the size."""
    groups: dict[str, list[Setting]] = {}
    for setting in test_set.settings:
        groups.setdefault(_key(setting.runs[0].identity["config"], tied=False), []).append(setting)
    found: dict[str, list[Setting]] = {}
    for key, group in groups.items():
        sizes = [setting.runs[0].rows for setting in group]
        if len(set(sizes)) == len(sizes):
            found[key] = group
        else:  # one size has two of them: what goes with the size makes a difference here
            for setting in group:
                found.setdefault(_key(setting.runs[0].identity["config"], tied=True), []).append(setting)
    return _named(found)


def add_missing(series: list[Series], folders: Iterable[Path]) -> None:
    """Note at each series the runs of the folders that have not finished; some series may have no others."""
    by_key = {one.key: one for one in series}
    for config, state in _unfinished(folders):
        named = identity_of(config, {})["config"]
        key = _key(named, tied=False)
        one = by_key.get(key) or by_key.get(_key(named, tied=True))
        if one is None:
            name = _short(config)
            taken = any(other.name == name for other in series)
            one = by_key[key] = Series(f"{name} (unfinished)" if taken else name, key, {})
            series.append(one)
        one.missing.setdefault(config.data.num_samples, Counter())[state] += 1


def _unfinished(folders: Iterable[Path]) -> Iterable[tuple[Config, str]]:
    for folder in folders:
        try:
            if (folder / "study.json").exists():
                study = StudyFolder(folder)
                for trial in study.trials():
                    if (state := study.state(trial)) not in DONE:
                        yield build_config(trial.config), state
                continue
            for run in runs_in(folder):
                if (state := run.state()) not in DONE and run.file("config.yaml").exists():
                    yield build_config(read_yaml(run.file("config.yaml"))), state
        except SpecvitError:
            continue  # what cannot be read has been told of, among the runs left out


def _key(named: dict[str, Any], *, tied: bool) -> str:
    """Return what a series has in common."""
    config = flatten(named)
    config.pop("train.seed", None)
    return key_of({name: value for name, value in config.items() if tied or name not in TIED})


def _named(groups: dict[str, list[Setting]]) -> list[Series]:
    """Return the groups with names that tell them apart."""
    firsts = {key: group[0].runs[0] for key, group in groups.items()}
    names = {key: _short(run.config) for key, run in firsts.items()}
    plain = {key: flatten(run.identity["config"]) for key, run in firsts.items()}
    series = []
    for key, group in groups.items():
        name, others = names[key], [plain[other] for other in groups if other != key and names[other] == names[key]]
        if others:
            own = plain[key]
            differs = [k for k in own if k != "train.seed" and any(other.get(k) != own[k] for other in others)]
            name += f" ({', '.join(f'{k}={own[k]}' for k in differs) or firsts[key].run_id})"
        series.append(Series(name, key, {setting.runs[0].rows: setting for setting in group}))
    return series


def _short(config: Config) -> str:
    model = config.model
    if not isinstance(model, ViTConfig):
        return model.kind
    return f"vit {model.proj_fn.lower()} p{model.patch_size} h{model.hidden_size} L{model.num_hidden_layers}"
