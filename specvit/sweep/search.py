"""Trials by Optuna: asked for and told through a storage that all workers share.

The study asks under a lock, so that there are exactly as many trials as wanted. A trial whose worker died is taken over
with its parameters and its run goes on; samplers draw from (seed, trial number), so what a trial is asked does not
depend on who asked before it died.
"""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import optuna
from optuna.trial import TrialState

from specvit import seeding
from specvit.config.folder import DONE
from specvit.config.many import Composer
from specvit.errors import ConfigError, SpecvitError
from specvit.files import locked
from specvit.sweep.definition import Definition, definition_of
from specvit.sweep.folder import StudyFolder, Trial
from specvit.sweep.grid import Point
from specvit.sweep.plan import make_trial
from specvit.sweep.reading import Typed, matches
from specvit.sweep.results import outcome_of, value_of
from specvit.sweep.samplers import build_pruner, build_sampler, quiet
from specvit.sweep.space import Search, encoded, suggest
from specvit.sweep.storage import open_storage
from specvit.urls import hide_secrets

LOCK = "ask.lock"
RETRY_OF, REFUSED_BY = "retry_of", "refused"
"""User attributes: of a trial that another try added, and of a point that cannot be a run; neither counts."""
SURPLUS = 20
"""So many points may be refused for each one wanted."""
TOLD = {"pruned": TrialState.PRUNED}


class Asker:
    """The trials of a search."""

    def __init__(self, study: StudyFolder, about: dict[str, Any]) -> None:
        """Open the storage; raises `ConfigError` if it does not answer."""
        quiet()
        self.study, self.about = study, about
        self.definition = definition_of(about["definition"], study.name, where="study.json")
        assert self.definition.search is not None
        self.search: Search = replace(self.definition.search, trials=about["trials"])
        self.compose = Composer(study.file("conf"))
        self.known: dict[str, Any] = {}
        self.typed = {key: Typed(value) for key, value in about["typed"].items()}
        self.optuna = optuna.load_study(
            study_name=study_name(study, about),
            storage=open_storage(study, about.get("storage")),
            sampler=build_sampler(self.search, self.search.seed),
            pruner=build_pruner(self.search),
        )

    @contextlib.contextmanager
    def claimed(self) -> Iterator[Trial | None]:
        """Hold a trial: one that is to be tried again, one whose worker died, or a new one."""
        with contextlib.ExitStack() as held:
            with locked(self.study.file(LOCK)):
                trial = self._again(held) or self._orphan(held) or self._ask(held)
            yield trial

    def others_at_it(self) -> bool:
        """Return False: each trial of a search is this study's own."""
        return False

    def pruner(self, trial: Trial) -> "TrialPruner | None":
        """Return what reports each epoch to Optuna and asks whether to go on."""
        metric = next(iter(self.search.metrics))
        frozen = self._frozen(trial.number)
        if len(self.search.metrics) > 1 or frozen.state != TrialState.RUNNING:
            return None
        pruner = TrialPruner(optuna.trial.Trial(self.optuna, frozen._trial_id), metric, self.search)
        for row in outcome_of(trial.run).rows:  # epochs of a run that goes on, or that another study has begun
            pruner.report(row)
        return pruner

    def has_pruned(self, trial: Trial) -> bool:
        """Say whether the trial has been reported here, so that only telling its end is left."""
        return self.search.pruner != "none" and bool(self._frozen(trial.number).intermediate_values)

    def tell(self, trial: Trial, state: str) -> dict[str, Any]:
        """Tell Optuna a trial's values, or that it failed or was pruned; return the values for the trial's record."""
        outcome = outcome_of(trial.run)
        found = {name: value_of(outcome, name) for name in self.search.metrics}
        values = [value for value in found.values() if value is not None]
        complete = state in DONE and len(values) == len(found)
        told = TOLD.get(state, TrialState.COMPLETE if complete else TrialState.FAIL)
        frozen = self._frozen(trial.number)
        if frozen.state.is_finished():
            self._add_another_try(frozen, told, values)
        else:
            self._close(trial.number, told, values if told == TrialState.COMPLETE else None)
        return {"values": found} if complete else {"missing": [name for name, value in found.items() if value is None]}

    def _close(self, number: int, told: TrialState, values: list[float] | None = None) -> None:
        try:
            self.optuna.tell(number, values, state=told)
        except RuntimeError:  # a grid's sampler ends `optimize` at its last point, where there is none
            if self.search.sampler != "grid":
                raise

    def _add_another_try(self, frozen: Any, told: TrialState, values: list[Any]) -> None:
        """Record a failed trial's other try, if it came through; what Optuna has finished cannot be changed there."""
        there = any(t.user_attrs.get(RETRY_OF) == frozen.number for t in self.optuna.get_trials(deepcopy=False))
        if frozen.state == TrialState.FAIL and told == TrialState.COMPLETE and not there:
            attributes = {RETRY_OF: frozen.number}
            self.optuna.add_trial(
                optuna.create_trial(
                    params=frozen.params, distributions=frozen.distributions, values=values, user_attrs=attributes
                )
            )

    def _frozen(self, number: int) -> Any:
        return next(trial for trial in self.optuna.get_trials(deepcopy=False) if trial.number == number)

    def _again(self, held: contextlib.ExitStack) -> Trial | None:
        for number in self.study.asked_again():
            if (trial := self.study.trial(number)) and held.enter_context(self.study.claim(number)):
                return trial
        return None

    def _orphan(self, held: contextlib.ExitStack) -> Trial | None:
        for frozen in self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not held.enter_context(self.study.claim(frozen.number)):
                continue
            trial = self.study.trial(frozen.number)
            if trial and trial.end:  # its worker died before it could tell
                self.study.write_trial(replace(trial, end=trial.end | self.tell(trial, trial.end["state"])))
                continue
            self.optuna.sampler = self._sampler(frozen.number)
            if trial := trial or self._new(frozen.number, frozen._trial_id):
                return trial
        return None

    def _sampler(self, number: int) -> Any:
        """Return the sampler of one trial: what it asks does not depend on what this process has asked before."""
        return build_sampler(self.search, seeding.key(self.search.seed, "sampler", number))

    def _ask(self, held: contextlib.ExitStack) -> Trial | None:
        """Return a new trial, or None when there are as many as wanted."""
        while True:
            there = self.optuna.get_trials(deepcopy=False)
            begun = [trial for trial in there if trial.state != TrialState.WAITING]
            refused = sum(REFUSED_BY in trial.user_attrs for trial in begun)
            counted = sum(not {REFUSED_BY, RETRY_OF} & trial.user_attrs.keys() for trial in begun)
            if counted >= self.search.trials or refused > SURPLUS * self.search.trials:
                return None
            if self.search.sampler == "grid" and len(begun) >= self.search.points:
                return None
            self.optuna.sampler = self._sampler(len(begun))
            asked = self.optuna.ask()
            held.enter_context(self.study.claim(asked.number))
            if trial := self._new(asked.number, asked._trial_id):
                return trial

    def _new(self, number: int, trial_id: int) -> Trial | None:
        """Ask for the parameters of a running trial and record it; None if they cannot be a run."""
        asked = optuna.trial.Trial(self.optuna, trial_id)
        try:
            factors = suggest(asked, self.search.space)
            settings = {**self.definition.overrides, **self.typed, **factors}
            if any(matches(settings, rule) for rule in self.search.forbid):
                raise ConfigError("is forbidden by the study", where=", ".join(factors))
            trial = make_trial(Point(settings, factors), number, self.study, self.compose, self.known)
        except (SpecvitError, ValueError) as problem:  # the latter is Optuna's, for a space that has changed
            asked.set_user_attr(REFUSED_BY, str(problem))
            self._close(number, TrialState.FAIL)
            return None
        self.study.write_trial(trial)
        asked.set_user_attr("run", trial.name)
        return trial


class TrialPruner:
    """Reports a run's epochs to Optuna and asks whether to go on; a storage that does not answer ends no run."""

    def __init__(self, trial: Any, metric: str, search: Search) -> None:
        """`metric` is one of an epoch's."""
        self.trial, self.metric, self.search = trial, metric, search

    def prunes(self, row: dict[str, Any]) -> str:
        """Report an epoch and return why the run is to end, or ""."""
        if not self.report(row) or row["step"] < self.search.warmup_steps:
            return ""
        try:
            if not self.trial.should_prune():
                return ""
        except Exception as problem:
            return self._note(row, problem)
        value, by = row[self.metric], self.search.pruner
        return f"{self.metric} {value:.4g} in epoch {row['epoch']} is not among the better ones ({by})"

    def report(self, row: dict[str, Any]) -> bool:
        """Report an epoch; say whether it has the metric and the storage took it."""
        if row.get(self.metric) is None:
            return False
        try:
            with warnings.catch_warnings():  # an epoch that is reported again has the same value
                warnings.simplefilter("ignore")
                self.trial.report(row[self.metric], row["epoch"])
        except Exception as problem:
            self._note(row, problem)
            return False
        return True

    @staticmethod
    def _note(row: dict[str, Any], problem: Exception) -> str:
        reason = hide_secrets(f"{type(problem).__name__}: {problem}")
        print(f"note: the study's storage did not take epoch {row['epoch']} ({reason})")
        return ""


def create(study: StudyFolder, about: dict[str, Any], definition: Definition) -> None:
    """Make the storage's study, with its start points; once made it is left as it is. Raises `ConfigError`."""
    quiet()
    search = definition.search
    assert search is not None
    build_sampler(search, 0)
    build_pruner(search)
    with locked(study.file(LOCK)):
        try:
            made = optuna.create_study(
                study_name=study_name(study, about),
                storage=open_storage(study, about.get("storage")),
                directions=["maximize" if way == "maximize" else "minimize" for way in search.metrics.values()],
                load_if_exists=True,
            )
        except ImportError as problem:
            what = f"needs a driver for such a database ({problem})"
            remedy = "for PostgreSQL `pip install 'specvit[postgres]'`"
            raise ConfigError(what, where="sweep.storage", remedy=remedy) from problem
        except Exception as problem:
            what = f"does not answer ({type(problem).__name__}: {' '.join(str(problem).split())[:200]})"
            raise ConfigError(what, where="sweep.storage", remedy="see to it, or drop the key") from problem
        if not made.get_trials(deepcopy=False):
            for point in search.start:
                made.enqueue_trial({key: encoded(value) for key, value in point.items()}, skip_if_exists=True)


def check_same_space(study: StudyFolder, definition: Definition) -> None:
    """Raise `ConfigError` where trials were asked from other choices: Optuna takes no others under the same name."""
    quiet()
    about, search = study.about(), definition.search
    assert search is not None
    made = optuna.load_study(study_name=study_name(study, about), storage=open_storage(study, about.get("storage")))
    for trial in made.get_trials(deepcopy=False):
        for dimension in search.space:
            before = trial.distributions.get(dimension.key)
            choices = getattr(before, "choices", None)
            now_choices = tuple(map(encoded, dimension.choices)) if dimension.choices is not None else None
            if before is not None and choices != now_choices:
                what = "has other choices than the trials that are there"
                remedy = "give the changed study another name with sweep.name=NAME"
                raise ConfigError(what, where=f"search.space.{dimension.key}", remedy=remedy)


def study_name(study: StudyFolder, about: dict[str, Any]) -> str:
    """Return the study's name in the storage, which others may share."""
    return f"{study.name}-{about['key'][:8]}"
