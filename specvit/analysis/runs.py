"""Finished runs: found in folders, read, and put together by test set and by configuration. Imports no torch.

Shape suffixes: N test rows.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specvit.config.build import build_config, flatten
from specvit.config.schema import Config, NoiseConfig, effective_level
from specvit.data.synthetic import GENERATOR_VERSION
from specvit.metrics.metrics import REGRESSION
from specvit.metrics.statistics import RegressionRows
from specvit.run_folder.folder import DONE, RunFolder
from specvit.study.store import StudyFolder
from specvit.utils.errors import FolderError, SpecvitError
from specvit.utils.files import read_json
from specvit.utils.yaml_files import read_yaml

Array = np.ndarray
RESULTS = ("config.yaml", "summary.json", "predictions.csv")


@dataclass(frozen=True)
class FinishedRun:
    """One finished run with its predictions of a label, in the label's unit."""

    run_id: str
    folder: Path
    config: Config
    identity: dict[str, Any]
    """What the run is named after, see `run_folder.identity`."""
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
        """Return R² over chosen rows, about their own mean; None where it is undefined."""
        if inside_N.sum() < 2:
            return None
        r2 = REGRESSION["r2"].function(RegressionRows(self.true_N[inside_N], self.predicted_N[inside_N]))
        return r2 if np.isfinite(r2) else None


@dataclass(frozen=True)
class Setting:
    """Runs that differ by their seed alone."""

    name: str
    runs: tuple[FinishedRun, ...]


@dataclass(frozen=True)
class TestSet:
    """Runs on the same test rows with the same noise, which one set of ceilings is for."""

    __test__ = False  # no test of pytest's

    said: str
    """What it is, for people."""
    short: str
    """What it is, for a folder's name."""
    settings: tuple[Setting, ...]

    @property
    def runs(self) -> list[FinishedRun]:
        """All runs; rows, noise and S/N are the same in each."""
        return [run for setting in self.settings for run in setting.runs]


def finished_runs(
    folders: Sequence[Path], label: str, *, noiseless: bool = False
) -> tuple[list[FinishedRun], list[str]]:
    """Return the finished runs in `folders` that predict `label`, each once, and a note on each kind left out.

    Those that were tested without noise are left out unless `noiseless`. A folder is a run, a study, or holds run
    folders. Raises `FolderError` where there is no finished run at all, or a folder that was named is a run that has
    not finished.
    """
    found: dict[Path, FinishedRun] = {}
    left: Counter[str] = Counter()
    for folder in folders:
        single = (folder / "run.json").exists()
        for run in runs_in(folder):
            missing = _why_not(run)
            if missing and single:
                raise FolderError(
                    f"is no finished run: {missing}", where=str(folder), remedy="train it to its end first"
                )
            read = missing or _read(run, label, noiseless)
            if isinstance(read, str):
                left[read] += 1
            else:
                found[run.path] = read
    if not found:
        states = ", ".join(f"{count} left out ({why})" for why, count in left.items())
        what = f"no finished run that predicts {label}" + (f": {states}" if states else "")
        remedy = "name runs that have finished, such as outputs/ after `specvit train`"
        raise FolderError(what, where=", ".join(map(str, folders)), remedy=remedy)
    return list(found.values()), [f"note: {count} run(s) left out: {why}" for why, count in left.items()]


def runs_in(folder: Path) -> Iterator[RunFolder]:
    """Yield the runs of a folder; raises `FolderError`."""
    if not folder.is_dir():
        raise FolderError(
            "is not a folder", where=str(folder), remedy="name a run folder, a study, or a folder of runs"
        )
    if (folder / "study.json").exists():
        study = StudyFolder(folder)
        study.about()  # raises for a study of another format
        for trial in study.trials():
            yield RunFolder(trial.run.path.resolve(), trial.run_id)
        return
    inside = [folder] if (folder / "run.json").exists() else sorted(folder.iterdir())
    for path in inside:
        about = read_json(path / "run.json")
        if isinstance(about, dict) and "run_id" in about:
            yield RunFolder(path.resolve(), about["run_id"])
        elif path is folder:
            raise FolderError("has a damaged run.json", where=str(folder), remedy="train it again")


def _why_not(run: RunFolder) -> str:
    """Return why a folder is no finished run, "" if it is one."""
    if (state := run.state()) not in DONE:
        return f"it is {state}" if state else "it has not begun"
    missing = [name for name in RESULTS if not run.file(name).exists()]
    return f"it has no {missing[0]}" if missing else ""


def _read(run: RunFolder, label: str, noiseless: bool) -> FinishedRun | str:
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


def by_test_set(runs: Sequence[FinishedRun]) -> list[TestSet]:
    """Return the runs put together by test rows and noise, in the order in which they were found."""
    sets: dict[str, list[FinishedRun]] = {}
    for run in runs:
        sets.setdefault(key_of([run.identity["data"]["test"], _law(run.config.noise)]), []).append(run)
    found: list[TestSet] = []
    for of_set in sets.values():
        said, short = _named(of_set[0])
        taken = sum(re.fullmatch(rf"{re.escape(short)}(-\d+)?", other.short) is not None for other in found)
        found.append(TestSet(said, f"{short}-{taken + 1}" if taken else short, tuple(_settings(of_set))))
    return found


def _settings(runs: Sequence[FinishedRun]) -> list[Setting]:
    """Return the runs put together by all but their seed; names that would be shared get what differs."""
    groups: dict[str, list[FinishedRun]] = {}
    plain: dict[str, dict[str, Any]] = {}
    for run in runs:
        config = flatten(run.identity["config"])
        config.pop("train.seed", None)
        key = key_of([config, run.identity["data"], run.identity.get("extra")])
        groups.setdefault(key, []).append(run)
        plain[key] = config
    names = {key: _plain_name(of_group[0]) for key, of_group in groups.items()}
    shared = Counter(names.values())
    for key, name in names.items():
        if shared[name] > 1:
            others = [plain[other] for other in names if other != key]
            differs = [k for k, value in plain[key].items() if any(other.get(k) != value for other in others)]
            names[key] = f"{name} ({', '.join(f'{k}={plain[key][k]}' for k in differs) or groups[key][0].run_id})"
    return [Setting(names[key], tuple(of_group)) for key, of_group in groups.items()]


def _plain_name(run: FinishedRun) -> str:
    """Return a run's folder name without hash and seed."""
    return run.folder.name.removesuffix(f"-{run.run_id}").removesuffix(f"-s{run.seed}")


def _named(run: FinishedRun) -> tuple[str, str]:
    """Return a test set's description and a short form."""
    test, noise = run.identity["data"]["test"], run.config.noise
    if "builtin" in test:
        moved = f", redshifts up to {test['max_redshift']:g}" if test.get("max_redshift") else ""
        said = f"built-in (version {test['builtin']}) test rows 0 to {test['rows'] - 1} of seed {test['seed']}{moved}"
        short = f"builtin-seed{test['seed']}-{test['rows']}" + (f"-z{test['max_redshift']:g}" if moved else "")
    else:
        paths = [Path(name) for name in run.config.data.test_path or ()]
        said = f"{len(run.true_N)} rows of {', '.join(map(str, paths))}"
        short = "-".join(dict.fromkeys(path.parent.name for path in paths if "*" not in path.parent.name)) or "files"
    homoscedastic = noise.noise_type == "homoscedastic"
    kind = ", one sigma a spectrum" if homoscedastic else ""
    return f"{said}, noise {noise.noise_level:g}{kind}", f"{short}-noise{noise.noise_level:g}{'-homo' * homoscedastic}"


def _law(noise: NoiseConfig) -> list[Any]:
    return [noise.noise_type, noise.noise_level]


def key_of(value: Any) -> str:
    """Return a text that is the same for equal values."""
    return json.dumps(value, sort_keys=True)
