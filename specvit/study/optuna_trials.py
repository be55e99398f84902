"""The trials of a search: Optuna suggests their settings, through a storage that all workers share.

New trials are created under a lock, so that there are exactly as many as wanted. A trial whose worker died is taken
over with its parameters, and its run resumes. Samplers draw from (seed, trial number), so the suggestion does not
depend on which worker asks.
"""

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from specvit.config.compose import Composer
from specvit.config.durations import Duration, in_steps
from specvit.config.model_kinds import kind_of
from specvit.run_folder.folder import DONE
from specvit.study.grid import Point
from specvit.study.optuna_study import LOCK, build_pruner, build_sampler, open_storage, quiet, study_name
from specvit.study.plan import make_trial, with_shorter_warmup
from specvit.study.results import outcome_of, value_of
from specvit.study.schema import definition_of
from specvit.study.search_space import FORBIDDEN, Search, suggest
from specvit.study.store import REFUSED, StudyFolder, Trial
from specvit.study.trial_queue import TrialSource
from specvit.study.yaml_schema import Typed, matches
from specvit.utils import seeding
from specvit.utils.errors import ConfigError, SpecvitError, os_fault
from specvit.utils.files import locked
from specvit.utils.text import hide_secrets

RETRY_OF, REFUSED_BY, REPEATS = "retry_of", "refused", "repeats"
"""User attributes in Optuna: the trial that was retried, why a point cannot be a run, the earlier trial with the same
run. Trials with any of them do not count towards the number wanted."""
NOT_COUNTED = {RETRY_OF, REFUSED_BY, REPEATS}
EPOCH_ROUNDING = 1e-6
"""Validations follow a whole number of `eval_every`, rounded up to a step; rows give epochs with six decimals."""
SURPLUS = 20
"""A worker gives up after this many points without a new run, per trial wanted."""


class OptunaTrials(TrialSource):
    """The trials of a search."""

    def __init__(self, study: StudyFolder, about: dict[str, Any]) -> None:
        """Open the storage; raises `ConfigError` if it does not answer."""
        quiet()
        self.study, self.about = study, about
        self.definition = definition_of(about["definition"], study.name, where="study.json")
        assert self.definition.search is not None
        self.search: Search = replace(self.definition.search, trials=about["trials"])
        self.compose = Composer(study.file("conf"))
        self.known_data: dict[str, Any] = {}
        self.typed = {key: Typed(value) for key, value in about["typed"].items()}
        self.optuna = optuna.load_study(
            study_name=study_name(study, about),
            storage=open_storage(study, about.get("storage")),
            sampler=build_sampler(self.search, self.search.seed),
            pruner=build_pruner(self.search),
        )
        self.useless_at_start = self._count_useless()
        """Points without a run that earlier workers drew: their cause may have been repaired since."""

    @contextlib.contextmanager
    def claimed(self) -> Iterator[Trial | None]:
        """Claim a trial: one to be retried, else one whose worker died, else a new one."""
        with contextlib.ExitStack() as claims:
            with locked(self.study.file(LOCK)):
                trial = self._claim_retry(claims) or self._claim_orphan(claims) or self._claim_new(claims)
            yield trial

    def pruner(self, trial: Trial) -> "TrialPruner | None":
        """Return what reports each validation to Optuna and asks whether to continue."""
        metric = next(iter(self.search.metrics))
        frozen = self._frozen(trial.number)
        if len(self.search.metrics) > 1 or frozen.state != TrialState.RUNNING:
            return None
        network = kind_of(trial.config["model"]).is_network
        every = trial.config["train"].get("eval_every", 1) if network else 1
        pruner = TrialPruner(optuna.trial.Trial(self.optuna, frozen._trial_id), metric, self.search, every)
        for row in outcome_of(trial.run).rows:  # those of a resumed run, or of one that another study started
            pruner.report(row)
        return pruner

    def has_pruned(self, trial: Trial) -> bool:
        """Return True if this study pruned the trial, so that only its end is still to be recorded."""
        return self.search.pruner != "none" and bool(self._frozen(trial.number).intermediate_values)

    def tell(self, trial: Trial, state: str) -> dict[str, Any]:
        """Report a trial's values, failure or pruning to Optuna; return the values for the trial's record."""
        outcome = outcome_of(trial.run)
        values = {name: value_of(outcome, name) for name in self.search.metrics}
        missing = [name for name, value in values.items() if value is None]
        complete = state in DONE and not missing
        failed = TrialState.PRUNED if state == "pruned" else TrialState.FAIL
        frozen = self._frozen(trial.number)
        if not frozen.state.is_finished():
            self._finish(
                trial.number, TrialState.COMPLETE if complete else failed, list(values.values()) if complete else []
            )
        elif complete and frozen.state == TrialState.FAIL:
            self._add_retried(frozen, list(values.values()))
        return {"values": values} if complete else {"missing": missing}

    def restore_records(self) -> Iterator[str]:
        """Bring study folder and storage into agreement about finished trials; yield a note for each lost record."""
        for frozen in self.optuna.get_trials(deepcopy=False):
            trial = self.study.trial(frozen.number)
            if trial and trial.end and not frozen.state.is_finished():
                with self.study.claim(frozen.number) as mine:
                    if mine:
                        self._take_over(frozen)
            if trial or not _counts(frozen) or not frozen.state.is_finished():
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
        """Update settings outside the run id, such as `train.device`, in trials that are not done."""
        for frozen in self.optuna.get_trials(deepcopy=False):
            recorded = self.study.trial(frozen.number)
            if recorded is None or recorded.run.state() in DONE:
                continue
            with contextlib.suppress(SpecvitError, ValueError):  # then the record stays as it is
                trial = self._trial_of(optuna.trial.FixedTrial(frozen.params), frozen.number)
                if trial.run_id == recorded.run_id:
                    self.study.write_trial(replace(trial, end=recorded.end))

    def _end_of(self, frozen: Any, trial: Trial) -> dict[str, Any]:
        state, cause = trial.run.state(), trial.run.status().get("cause", "its record was lost")
        if frozen.state == TrialState.COMPLETE:
            return {"state": state or "completed", "values": dict(zip(self.search.metrics, frozen.values, strict=True))}
        failed = "pruned" if frozen.state == TrialState.PRUNED else state or REFUSED
        return {"state": failed, "cause": cause}

    def _finish(self, number: int, state: TrialState, values: list[Any]) -> None:
        try:
            self.optuna.tell(number, values or None, state=state)
        except RuntimeError:  # the grid sampler stops `optimize` at its last point, and there is no `optimize` here
            if self.search.sampler != "grid":
                raise

    def _add_retried(self, frozen: Any, values: list[Any]) -> None:
        """Add a trial with the values of a successful retry: Optuna does not change a trial that has failed."""
        if any(trial.user_attrs.get(RETRY_OF) == frozen.number for trial in self.optuna.get_trials(deepcopy=False)):
            return
        self.optuna.add_trial(
            optuna.create_trial(
                params=frozen.params,
                distributions=frozen.distributions,
                values=values,
                user_attrs={RETRY_OF: frozen.number},
            )
        )

    def _frozen(self, number: int) -> Any:
        return next(trial for trial in self.optuna.get_trials(deepcopy=False) if trial.number == number)

    def _claim(self, claims: contextlib.ExitStack, number: int, load: Callable[[], Trial | None]) -> Trial | None:
        """Claim a trial and return what `load` gives; where that is None, release the claim."""
        with contextlib.ExitStack() as claim:
            trial = load() if claim.enter_context(self.study.claim(number)) else None
            if trial:
                claims.push(claim.pop_all())
        return trial

    def _claim_retry(self, claims: contextlib.ExitStack) -> Trial | None:
        numbers = self.study.requested_retries()
        return next(filter(None, (self._claim(claims, n, partial(self.study.trial, n)) for n in numbers)), None)

    def _claim_orphan(self, claims: contextlib.ExitStack) -> Trial | None:
        running = self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return next(filter(None, (self._claim(claims, t.number, partial(self._take_over, t)) for t in running)), None)

    def _claim_new(self, claims: contextlib.ExitStack) -> Trial | None:
        """Claim a new trial; None when there are as many as wanted."""
        while True:
            trials = self.optuna.get_trials(deepcopy=False)
            begun = [trial for trial in trials if trial.state != TrialState.WAITING]
            surplus = self._count_useless() - self.useless_at_start
            if sum(map(_counts, begun)) >= self.search.trials or surplus > SURPLUS * self.search.trials:
                return None
            if self.search.sampler == "grid" and len(begun) >= self.search.points:
                return None
            self.optuna.sampler = self._sampler(len(begun))
            asked = self.optuna.ask()
            if trial := self._claim(claims, asked.number, partial(self._suggest, asked.number, asked._trial_id)):
                return trial

    def _take_over(self, frozen: Any) -> Trial | None:
        """Return a trial whose worker died; None where only its end was still to be reported to Optuna."""
        trial = self.study.trial(frozen.number)
        if trial and trial.end:
            self.study.write_trial(replace(trial, end=trial.end | self.tell(trial, trial.end["state"])))
            return None
        self.optuna.sampler = self._sampler(frozen.number)
        return trial or self._suggest(frozen.number, frozen._trial_id)

    def _sampler(self, number: int) -> Any:
        """Return the sampler of one trial, independent of what this process has asked before.

        A repeated point is followed by a random one, since TPE may suggest its favourite again and again.
        """
        seed = seeding.key(self.search.seed, "sampler", number)
        previous = self._frozen(number - 1) if number else None
        if previous and REPEATS in previous.user_attrs and self.search.sampler != "grid":
            return optuna.samplers.RandomSampler(seed % 2**32)
        return build_sampler(self.search, seed)

    def _count_useless(self) -> int:
        """Return the number of points that gave no new run."""
        return sum(bool({REFUSED_BY, REPEATS} & t.user_attrs.keys()) for t in self.optuna.get_trials(deepcopy=False))

    def _suggest(self, number: int, trial_id: int) -> Trial | None:
        """Ask for the parameters of a running trial and record it; None if they cannot be a run, or already are one."""
        asked = optuna.trial.Trial(self.optuna, trial_id)
        try:
            trial = self._trial_of(asked, number)
        except (SpecvitError, ValueError) as problem:  # Optuna raises the latter for a space that has changed
            if os_fault(problem):
                raise
            self.study.log_event("refused", trial=number, cause=str(problem))
            return self._finish_without_run(asked, REFUSED_BY, str(problem))
        if (earlier := self._same_run(trial)) is not None:
            return self._finish_without_run(asked, REPEATS, earlier)
        asked.set_user_attr("run", trial.name)
        self.study.write_trial(trial)
        return trial

    def _trial_of(self, asked: Any, number: int) -> Trial:
        """Return the trial of a point; raises `SpecvitError` where it cannot be a run."""
        factors = suggest(asked, self.search.space)
        settings = {**self.definition.overrides, **self.typed, **factors}
        if any(matches(settings, rule) for rule in self.search.forbid):
            raise ConfigError(FORBIDDEN, where=", ".join(factors))
        point = with_shorter_warmup(Point(settings, factors), self.typed, self.compose)
        return make_trial(point, number, self.study, self.compose, self.known_data)

    def _finish_without_run(self, asked: Any, attribute: str, value: Any) -> None:
        asked.set_user_attr(attribute, value)
        self._finish(asked.number, TrialState.FAIL, [])

    def _same_run(self, trial: Trial) -> int | None:
        """Return the number of an earlier trial that is the same run, if there is one."""
        for frozen in self.optuna.get_trials(deepcopy=False):
            if frozen.number != trial.number and frozen.user_attrs.get("run") == trial.name:
                other = self.study.trial(frozen.number)
                if other and os.path.realpath(other.folder) == os.path.realpath(trial.folder):
                    return other.number
        return None


def _counts(frozen: Any) -> bool:
    """Return True if a trial of Optuna's counts towards the number wanted."""
    return not NOT_COUNTED & frozen.user_attrs.keys()


class TrialPruner:
    """Reports validations to Optuna and asks whether to continue; a storage that fails does not end the run."""

    def __init__(self, trial: Any, metric: str, search: Search, eval_every: Duration = 1) -> None:
        """`metric` is one of a validation's; they come `eval_every`."""
        self.trial, self.metric, self.search, self.eval_every = trial, metric, search, eval_every

    def prunes(self, row: dict[str, Any]) -> str:
        """Report a validation and return why the run is to end, or ""."""
        if not self.report(row) or row["step"] < self.search.warmup_steps:
            return ""
        try:
            if not self.trial.should_prune():
                return ""
        except Exception as problem:
            self._print_note(row, problem)
            return ""
        value, by = row[self.metric], self.search.pruner
        return f"{self.metric} {value:.4g} in epoch {row['epoch']} is not among the better ones ({by})"

    def report(self, row: dict[str, Any]) -> bool:
        """Report a validation by its number; return True if it has the metric and the storage accepted it.

        The number is the epoch's by default; it makes trials with other steps an epoch comparable. A last one after
        only part of `eval_every` repeats the number before it, and the storage leaves it out.
        """
        if row.get(self.metric) is None:
            return False
        try:
            with warnings.catch_warnings():  # Optuna warns about one reported twice, which has the same value
                warnings.simplefilter("ignore")
                passed = row["step" if isinstance(self.eval_every, str) else "epoch"]
                number = math.floor((passed + EPOCH_ROUNDING) / in_steps(self.eval_every, 1))
                self.trial.report(row[self.metric], number)
        except Exception as problem:
            self._print_note(row, problem)
            return False
        return True

    @staticmethod
    def _print_note(row: dict[str, Any], problem: Exception) -> None:
        reason = hide_secrets(f"{type(problem).__name__}: {problem}")
        print(f"note: the study's storage did not take epoch {row['epoch']} ({reason})")
