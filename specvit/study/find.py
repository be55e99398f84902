"""Which run, study or folder a user means by a path, a name or a hash: the same answer in all commands."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from specvit.run_folder.folder import RunFolder
from specvit.study.store import FORMAT, StudyFolder, Trial
from specvit.utils.errors import ConfigError, FolderError
from specvit.utils.files import read_json

RUNS, STUDIES = Path("outputs"), Path("multirun")
Found = tuple[RunFolder, Trial | None]


def find_run(name: str) -> Found:
    """Return a run by its folder, its name, its hash or a part of either, and its trial if a study has it.

    Raises `FolderError` if there is none, or more than one.
    """
    if not name:
        raise FolderError("names no run", where="''", remedy=f"name a folder in {RUNS} or a run's hash")
    path = Path(name)
    if any((path / file).exists() for file in ("run.json", "config.yaml")):
        return _run_in(path if path.name not in ("", "..") else path.resolve()), None
    fits = fitting(name, known_runs())
    if not fits:
        raise FolderError("is not a known run", where=name, remedy=f"name a folder in {RUNS} or a run's hash")
    if len(fits) > 1:
        raise FolderError(f"fits {len(fits)} runs", where=name, remedy=_some([run.path.name for run, _ in fits]))
    return fits[0]


def find_study(name: str) -> StudyFolder:
    """Return a study by its folder or its name; raises `FolderError`."""
    named = Path(name)
    study = StudyFolder((named if (named / "study.json").exists() else STUDIES / name).absolute())
    study.about()  # raises where there is none, or one of another format
    return study


def find_folder_of_runs(name: str) -> Path:
    """Return a run folder, a study or a folder of runs by its path, name or hash; raises `FolderError`."""
    for folder in (Path(name), STUDIES / name):
        if folder.is_dir():
            return folder
    try:
        return find_run(name)[0].path
    except FolderError as problem:
        if problem.what != "is not a known run":
            raise
        remedy = "name a run folder or its hash, a study, or a folder of runs"
        raise FolderError("is not a folder", where=name, remedy=remedy) from problem


def find_runs(folder: Path) -> list[RunFolder]:
    """Return the runs of a run folder, a study or a folder of runs that have begun."""
    if (folder / "study.json").exists():
        return [trial.run for trial in StudyFolder(folder).trials() if (trial.run.file("run.json")).exists()]
    return [_run_in(folder)] if (folder / "run.json").exists() else runs_in(folder)


def choose_trials(study: StudyFolder, names: Sequence[str]) -> list[Trial]:
    """Return a study's trials by name or hash, without names all of them; raises `ConfigError` for any other."""
    trials = study.trials()
    chosen: set[int] = set()
    for name in names:
        fits = fitting(name, [(trial.run, trial) for trial in trials])
        if not fits:
            remedy = f"`specvit sweep status {study.name}` lists running ones, `multirun/{study.name}/runs` all"
            raise ConfigError("is not a run of this study", where=name or "''", remedy=remedy)
        if len(fits) > 1:
            remedy = _some([run.path.name for run, _ in fits])
            raise ConfigError(f"fits {len(fits)} runs", where=name, remedy=remedy)
        chosen |= {trial.number for _, trial in fits if trial}
    return [trial for trial in trials if not names or trial.number in chosen]


def fitting(name: str, runs: Iterable[Found]) -> list[Found]:
    """Return the runs of a name or hash; else those whose hash begins so; else those whose name contains it."""
    runs = list(runs)
    for means in (
        lambda run: name in (run.path.name, run.run_id),
        lambda run: run.run_id.startswith(name),
        lambda run: name in run.path.name,
    ):
        if name and (fits := [found for found in runs if means(found[0])]):
            return fits
    return []


def known_runs() -> list[Found]:
    """Return each run in `RUNS` and in the studies of `STUDIES` once, with its trial if a study has it."""
    found: dict[str, Found] = {str(run.path.resolve()): (run, None) for run in runs_in(RUNS)}
    for trial in (trial for study in studies_in(STUDIES) for trial in study.trials()):
        path = os.path.realpath(trial.folder)
        found[path] = found[path][0] if path in found else trial.run, trial
    return list(found.values())


def studies_in(folder: Path) -> list[StudyFolder]:
    """Return the studies inside a folder, by name, but those of another format."""
    studies = [StudyFolder(file.parent.absolute()) for file in sorted(folder.glob("*/study.json"))]
    return [study for study in studies if (read_json(study.file("study.json")) or {}).get("format") == FORMAT]


def runs_in(folder: Path) -> list[RunFolder]:
    """Return the run folders inside a folder, by name; [] if the folder does not exist."""
    return [_run_in(file.parent) for file in sorted(folder.glob("*/run.json"))]


def _run_in(path: Path) -> RunFolder:
    """Return a run folder, with its id from its record or, where that is damaged, from its name."""
    known = read_json(path / "run.json", {}).get("run_id")
    return RunFolder(path, known if isinstance(known, str) else path.resolve().name[-8:])


def _some(names: Sequence[str]) -> str:
    return f"there are {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
