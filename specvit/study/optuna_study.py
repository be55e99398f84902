"""Optuna's half of a search: sampler, pruner and storage as the study's file names them, and its own study record.

The storage is a journal file in the study folder, with a lock that dies with its holder, or a database by URL.
"""

import json
import logging
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock, get_lock_file  # what lock_obj asks for
from optuna.trial import TrialState

from specvit.study.schema import Definition
from specvit.study.search_space import Search, encoded
from specvit.study.store import StudyFolder
from specvit.utils.errors import ConfigError, FolderError
from specvit.utils.files import locked

JOURNAL, LOCK = "journal.log", "ask.lock"


def check_storage(study: StudyFolder, search: Search, url: str | None) -> None:
    """Raise `ConfigError` for a sampler, pruner or storage that cannot be used; writes nothing."""
    quiet()
    build_sampler(search, 0)
    build_pruner(search)
    if url is not None or study.file(JOURNAL).exists():
        open_storage(study, url)


def create(study: StudyFolder, about: dict[str, Any], definition: Definition) -> None:
    """Create the study in Optuna's storage, with its start points; one that has trials already is not changed."""
    quiet()
    search = definition.search
    assert search is not None
    with locked(study.file(LOCK)):
        created = optuna.create_study(
            study_name=study_name(study, about),
            storage=open_storage(study, about.get("storage")),
            directions=["maximize" if way == "maximize" else "minimize" for way in search.metrics.values()],
            load_if_exists=True,
        )
        if created.metric_names != list(search.metrics):  # for optuna-dashboard, which says "Objective 0" without
            created.set_metric_names(list(search.metrics))
        if all(trial.state == TrialState.WAITING for trial in created.get_trials(deepcopy=False)):
            for point in search.start:
                created.enqueue_trial({key: encoded(value) for key, value in point.items()}, skip_if_exists=True)


def check_same_space(study: StudyFolder, definition: Definition) -> None:
    """Raise `ConfigError` if existing trials had other choices: Optuna allows one set of choices per name."""
    quiet()
    about, search = study.about(), definition.search
    assert search is not None
    storage = open_storage(study, about.get("storage"))
    try:
        existing = optuna.load_study(study_name=study_name(study, about), storage=storage)
    except KeyError:  # the earlier command was killed before it created the study
        return
    for trial in existing.get_trials(deepcopy=False):
        for dimension in search.space:
            before = trial.distributions.get(dimension.key)
            choices = getattr(before, "choices", None)
            now_choices = tuple(map(encoded, dimension.choices)) if dimension.choices is not None else None
            if before is not None and choices != now_choices:
                what = "has other choices than the trials that are there"
                remedy = "give the changed study another name with sweep.name=NAME"
                raise ConfigError(what, where=f"search.space.{dimension.key}", remedy=remedy)


FEWEST_TRIALS = 4
"""Fewer completed trials say nothing of what matters."""


def search_figures(study: StudyFolder) -> tuple[dict[str, Callable[[], Any]], str]:
    """Return Optuna's figures of a search by name, and a sentence on what matters; neither without its storage.

    The figures are of the first metric: the best value by trial, importances, and parallel coordinates.
    """
    quiet()
    about = study.about()
    if about.get("storage") is None and not study.file(JOURNAL).exists():
        return {}, ""
    try:
        search = optuna.load_study(
            study_name=study_name(study, about), storage=open_storage(study, about.get("storage"))
        )
    except (ConfigError, FolderError, KeyError, OSError):
        return {}, ""
    metric = next(iter(about["metrics"]))
    of_metric: Callable[[Any], float] | None = (lambda trial: trial.values[0]) if len(about["metrics"]) > 1 else None
    values = {trial.values[0] for trial in search.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}
    if len(values) < FEWEST_TRIALS:
        return {}, ""
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    shared: dict[str, Any] = {"target": of_metric, "target_name": metric}
    options = {"importances": {"evaluator": evaluator}}
    figures = {
        name: partial(_drawn, f"plot_{function}", search, shared | options.get(name, {}))
        for name, function in OPTUNA_FIGURES.items()
    }
    shares = optuna.importance.get_param_importances(search, evaluator=evaluator, target=of_metric)
    listed = ", ".join(f"{key} {share:.2f}" for key, share in shares.items())
    return figures, f"share in reaching the best tenth of {metric} (PED-ANOVA): {listed}" if listed else ""


OPTUNA_FIGURES = {
    "history": "optimization_history",
    "importances": "param_importances",
    "parallel": "parallel_coordinate",
}


def _drawn(function: str, study: optuna.Study, options: dict[str, Any]) -> Any:
    """Return a figure of Optuna's, which draws by pyplot in a style that it sets for the whole process."""
    import matplotlib
    from matplotlib import pyplot

    with matplotlib.rc_context():
        figure = getattr(optuna.visualization.matplotlib, function)(study, **options).figure
        figure.tight_layout()
        pyplot.close(figure)
    return figure


def study_name(study: StudyFolder, about: dict[str, Any]) -> str:
    """Return the study's name in the storage, which several studies may share."""
    return f"{study.name}-{about['key'][:8]}"


def build_sampler(search: Search, seed: int) -> optuna.samplers.BaseSampler:
    """Return the sampler for one trial; raises `ConfigError` for an unknown option."""
    options = dict(search.sampler_options)
    seed %= 2**32
    samplers: dict[str, Any] = {
        "tpe": optuna.samplers.TPESampler,
        "cmaes": optuna.samplers.CmaEsSampler,
        "gp": optuna.samplers.GPSampler,
        "random": optuna.samplers.RandomSampler,
        "grid": optuna.samplers.GridSampler,
        "qmc": optuna.samplers.QMCSampler,
        "nsga2": optuna.samplers.NSGAIISampler,
    }
    if search.sampler == "tpe":
        options = {"constant_liar": True, **options}  # running trials count as bad, so that workers spread out
    if search.sampler == "qmc":
        options, seed = (
            {"scramble": True, **options},
            search.seed,
        )  # all workers draw from one sequence, whose position is in the storage
    if search.sampler == "grid":
        if bad := [dimension.key for dimension in search.space if dimension.choices is None or dimension.when]:
            raise ConfigError("needs choices without conditions", where=f"search.space.{bad[0]}")
        space = {d.key: [encoded(value) for value in d.choices or ()] for d in search.space}
        options, seed = {"search_space": space, **options}, search.seed
    return _built(samplers[search.sampler], "search.sampler", {**options, "seed": seed})


def build_pruner(search: Search) -> optuna.pruners.BasePruner:
    """Return the pruner; raises `ConfigError` for an unknown option."""
    options = dict(search.pruner_options)
    pruners: dict[str, Any] = {
        "none": optuna.pruners.NopPruner,
        "median": optuna.pruners.MedianPruner,
        "percentile": optuna.pruners.PercentilePruner,
        "halving": optuna.pruners.SuccessiveHalvingPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
        "patient": optuna.pruners.PatientPruner,
        "wilcoxon": optuna.pruners.WilcoxonPruner,
    }
    if search.pruner == "patient":
        options = {"wrapped_pruner": None, "patience": 5, **options}
    return _built(pruners[search.pruner], "search.pruner", options)


def _built(kind: Any, where: str, options: dict[str, Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna warns about its experimental classes
            return kind(**options)
    except (TypeError, ValueError) as problem:
        raise ConfigError(str(problem), where=where, remedy="see Optuna's documentation for its options") from problem


def quiet() -> None:
    """Silence Optuna's log messages and its warnings about experimental features."""
    optuna.logging.set_verbosity(logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


class KernelLock(BaseJournalFileLock):
    """Guards a journal by `flock`. Optuna's own locks outlive a killed process by 30 seconds."""

    def __init__(self, path: Path) -> None:
        """`path` is a file beside the journal."""
        self.path = path
        self._held: list[Any] = []

    def acquire(self) -> bool:
        """Block until the lock is held."""
        held = locked(self.path)
        held.__enter__()
        self._held.append(held)
        return True

    def release(self) -> None:
        """Release the lock."""
        self._held.pop().__exit__(None, None, None)


class Journal(JournalFileBackend):
    """A journal that repairs a last line cut off by a full disk or a power failure."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records, one a line, after repairing the end."""
        self.repair()
        super().append_logs(logs)

    def repair(self) -> None:
        """Remove a last line that was cut off: nobody has read it, and its writer has failed."""
        with get_lock_file(self._lock), open(self._file_path, "rb+") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, end - 1))
            if end == 0 or stream.read() == b"\n":
                return
            stream.seek(0)
            last = stream.read().rpartition(b"\n")[2]
            try:
                json.loads(last)
                stream.write(b"\n")
            except ValueError:
                stream.truncate(end - len(last))


def open_storage(study: StudyFolder, url: str | None) -> Any:
    """Return Optuna's storage: the study's journal, or a database by URL. Raises `ConfigError` or `FolderError`."""
    if url is None:
        return _open_journal(study.file(JOURNAL), study.file("journal.lock"))
    wait = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    try:
        return RDBStorage(url, engine_kwargs=wait)
    except ImportError as problem:
        what = f"needs a driver for such a database ({problem})"
        remedy = "for PostgreSQL `pip install 'specvit[postgres]'`"
        raise ConfigError(what, where="sweep.storage", remedy=remedy) from problem
    except Exception as problem:
        what = f"does not answer ({type(problem).__name__}: {' '.join(str(problem).split())[:200]})"
        raise ConfigError(what, where="sweep.storage", remedy="see to it, or drop the key") from problem


def _open_journal(path: Path, lock: Path) -> Any:
    journal = Journal(str(path), lock_obj=KernelLock(lock))
    journal.repair()
    try:
        return JournalStorage(journal)
    except (ValueError, KeyError) as problem:
        bad = next((n for n, line in enumerate(path.read_bytes().splitlines(), 1) if not _is_json(line)), "some")
        what = f"line {bad} is damaged"
        remedy = "put back a copy of the file, or take that line out and give the same command"
        raise FolderError(what, where=str(path), remedy=remedy) from problem


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
