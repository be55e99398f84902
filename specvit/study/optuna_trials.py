"""Trials by Optuna: asked for and told through a storage that all workers share.

The study asks under a lock, so that there are exactly as many trials as wanted. A trial whose worker died is taken over
with its parameters and its run goes on; samplers draw from (seed, trial number), so what a trial is asked does not
depend on who asked before it died.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from specvit.config.batch_compose import Composer
from specvit.run_folder.folder import DONE
from specvit.study.grid import Point
from specvit.study.optuna_study import LOCK, build_pruner, build_sampler, open_storage, quiet, study_name
from specvit.study.plan import make_trial
from specvit.study.results import outcome_of, value_of
from specvit.study.schema import definition_of
from specvit.study.search_space import FORBIDDEN, Search, suggest
from specvit.study.store import REFUSED, StudyFolder, Trial
from specvit.study.yaml_schema import Typed, matches
from specvit.utils import seeding
from specvit.utils.errors import ConfigError, SpecvitError, os_fault
from specvit.utils.files import locked
from specvit.utils.urls import hide_secrets

RETRY_OF, REFUSED_BY, REPEATS = "retry_of", "refused", "repeats"
"""User attributes: of a trial that another try added, of a point that cannot be a run, of one that is the run of an
earlier trial. None of them counts."""
SURPLUS = 20
"""A worker ends after so many points without a new run for each trial wanted."""
TOLD = {"pruned": TrialState.PRUNED}


class OptunaTrials:
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
        self.useless_before = self._useless()

    @contextlib.contextmanager
    def claimed(self) -> Iterator[Trial | None]:
        """Hold a trial: one that is to be tried again, one whose worker died, or a new one."""
        with contextlib.ExitStack() as held:
            with locked(self.study.file(LOCK)):
                trial = self._again(held) or self._orphan(held) or self._ask(held)
            yield trial

    def _hold(self, held: contextlib.ExitStack, number: int, find: Callable[[], Trial | None]) -> Trial | None:
        """Return what `find` gives while this process has the trial's claim; without a trial the claim ends with it."""
        with contextlib.ExitStack() as claim:
            trial = find() if claim.enter_context(self.study.claim(number)) else None
            if trial:
                held.push(claim.pop_all())
        return trial

    def skipped_claimed(self) -> bool:
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

    def restore_records(self) -> Iterator[str]:
        """Make up for what folder or storage have lost of trials that have ended; yield a note of each record."""
        for frozen in self.optuna.get_trials(deepcopy=False):
            counts = not {REFUSED_BY, REPEATS, RETRY_OF} & frozen.user_attrs.keys()
            trial = self.study.trial(frozen.number)
            if trial and trial.end and not frozen.state.is_finished():
                with self.study.claim(frozen.number) as mine:
                    if mine:
                        self._take_over(frozen)
            if trial or not counts or not frozen.state.is_finished():
                continue
            file = f"trials/{frozen.number:04d}.json"
            try:
                trial = self._trial_of(optuna.trial.FixedTrial(frozen.params), frozen.number)
            except (SpecvitError, ValueError) as problem:
                yield f"note: {file} is lost and cannot be written again ({problem}); put back a copy of it"
                continue
            name = frozen.user_attrs.get("run", trial.name)
            folder = str(Path(trial.folder).with_name(name))
            trial = replace(trial, name=name, run_id=name[-8:], folder=folder)
            self.study.write_trial(replace(trial, end=self._end_of(frozen, trial)))
            yield f"note: {file} was lost and is written again from Optuna's storage"

    def renew_settings(self) -> None:
        """Give trials that are not done what makes no other run, such as `train.device`, as the study has it now."""
        for frozen in self.optuna.get_trials(deepcopy=False):
            before = self.study.trial(frozen.number)
            if before is None or before.run.state() in DONE:
                continue
            with contextlib.suppress(SpecvitError, ValueError):  # then it stays as it is
                trial = self._trial_of(optuna.trial.FixedTrial(frozen.params), frozen.number)
                if trial.run_id == before.run_id:
                    self.study.write_trial(replace(trial, end=before.end))

    def _end_of(self, frozen: Any, trial: Trial) -> dict[str, Any]:
        state, cause = trial.run.state(), trial.run.status().get("cause", "its record was lost")
        if frozen.state == TrialState.COMPLETE:
            return {"state": state or "completed", "values": dict(zip(self.search.metrics, frozen.values, strict=True))}
        failed = "pruned" if frozen.state == TrialState.PRUNED else state or REFUSED
        return {"state": failed, "cause": cause}

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
        numbers = self.study.asked_again()
        return next(filter(None, (self._hold(held, n, partial(self.study.trial, n)) for n in numbers)), None)

    def _orphan(self, held: contextlib.ExitStack) -> Trial | None:
        running = self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return next(filter(None, (self._hold(held, t.number, partial(self._take_over, t)) for t in running)), None)

    def _take_over(self, frozen: Any) -> Trial | None:
        """Return a trial whose worker died; None where only its end was still to be told."""
        trial = self.study.trial(frozen.number)
        if trial and trial.end:
            self.study.write_trial(replace(trial, end=trial.end | self.tell(trial, trial.end["state"])))
            return None
        self.optuna.sampler = self._sampler(frozen.number)
        return trial or self._new(frozen.number, frozen._trial_id)

    def _sampler(self, number: int) -> Any:
        """Return the sampler of one trial: what it asks does not depend on what this process has asked before.

        After a point that was there already a random one follows: TPE may name its favourite again and again.
        """
        seed = seeding.key(self.search.seed, "sampler", number)
        before = self._frozen(number - 1) if number else None
        if before and REPEATS in before.user_attrs and self.search.sampler != "grid":
            return optuna.samplers.RandomSampler(seed % 2**32)
        return build_sampler(self.search, seed)

    def _ask(self, held: contextlib.ExitStack) -> Trial | None:
        """Return a new trial, or None when there are as many as wanted."""
        while True:
            there = self.optuna.get_trials(deepcopy=False)
            begun = [trial for trial in there if trial.state != TrialState.WAITING]
            counted = sum(not {REFUSED_BY, REPEATS, RETRY_OF} & trial.user_attrs.keys() for trial in begun)
            if counted >= self.search.trials or self._useless() - self.useless_before > SURPLUS * self.search.trials:
                return None
            if self.search.sampler == "grid" and len(begun) >= self.search.points:
                return None
            self.optuna.sampler = self._sampler(len(begun))
            asked = self.optuna.ask()
            if trial := self._hold(held, asked.number, partial(self._new, asked.number, asked._trial_id)):
                return trial

    def _useless(self) -> int:
        """Return how many points gave no new run; those of earlier workers may have had a cause that is mended."""
        return sum(bool({REFUSED_BY, REPEATS} & t.user_attrs.keys()) for t in self.optuna.get_trials(deepcopy=False))

    def _new(self, number: int, trial_id: int) -> Trial | None:
        """Ask for the parameters of a running trial and record it; None if they cannot be a run, or are one already."""
        asked = optuna.trial.Trial(self.optuna, trial_id)
        try:
            trial = self._trial_of(asked, number)
        except (SpecvitError, ValueError) as problem:  # the latter is Optuna's, for a space that has changed
            if os_fault(problem):
                raise
            self.study.note("refused", trial=number, cause=str(problem))
            return self._close_without_run(asked, REFUSED_BY, str(problem))
        if (earlier := self._same_run(trial)) is not None:
            return self._close_without_run(asked, REPEATS, earlier)
        asked.set_user_attr("run", trial.name)
        self.study.write_trial(trial)
        return trial

    def _trial_of(self, asked: Any, number: int) -> Trial:
        """Return the trial of a point; raises `SpecvitError` where it cannot be a run."""
        factors = suggest(asked, self.search.space)
        settings = {**self.definition.overrides, **self.typed, **factors}
        if any(matches(settings, rule) for rule in self.search.forbid):
            raise ConfigError(FORBIDDEN, where=", ".join(factors))
        return make_trial(Point(settings, factors), number, self.study, self.compose, self.known)

    def _close_without_run(self, asked: Any, why: str, value: Any) -> None:
        asked.set_user_attr(why, value)
        self._close(asked.number, TrialState.FAIL)

    def _same_run(self, trial: Trial) -> int | None:
        """Return the number of an earlier trial that is the same run, if there is one."""
        for frozen in self.optuna.get_trials(deepcopy=False):
            if frozen.number != trial.number and frozen.user_attrs.get("run") == trial.name:
                other = self.study.trial(frozen.number)
                if other and os.path.realpath(other.folder) == os.path.realpath(trial.folder):
                    return other.number
        return None


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
