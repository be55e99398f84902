"""A worker: claim, run, tell, until nothing is open. Any number of them share a study; each may die at any moment.

Its imports are paid once: from the second trial on a run costs what it computes, and a second at most.
"""

import contextlib
import sys
import time
import traceback
from dataclasses import replace
from typing import Any

from specvit.config.build import build_config
from specvit.config.folder import ALIVE, DONE, RunFolder
from specvit.errors import FolderError, SpecvitError
from specvit.files import locked
from specvit.run import Result, run
from specvit.sweep.folder import CANCELLED, REFUSED, SETTLED, StudyFolder, Trial, now
from specvit.sweep.source import Queue, Source, is_over
from specvit.tracking.record import STUDY_TAG

BUSY_SECONDS = 2.0
"""Between two looks at trials that somebody else makes."""
DEATHS = 3
"""So many processes may die over one run, without a word and without a step, before it is left alone."""


def work(study: StudyFolder, slot: int) -> int:
    """Make trials until nothing is left to do; return the exit code, 128 + n after signal n."""
    with locked(study.file("slots") / f"{slot}.lock", seconds=0.0) as mine:
        if not mine:
            return 0  # a worker of an earlier driver still has this slot
        about = study.about()
        study.note("worker starts", slot=slot)
        source = open_source(study, about)
        code = _work(study, slot, source)
        study.note("worker ends", slot=slot, code=code)
        return code


def open_source(study: StudyFolder, about: dict[str, Any]) -> Source:
    """Return where this study's trials come from."""
    if about["kind"] == "grid":
        return Queue(study)
    from specvit.sweep.search import Asker

    return Asker(study, about)


def _work(study: StudyFolder, slot: int, source: Source) -> int:
    while not is_over(study, study.about()):
        with source.claimed() as trial:
            if trial is not None:
                number = _make(study, slot, source, trial)
                if number:
                    return 128 + number
                continue
        if not source.others_at_it():
            break
        time.sleep(BUSY_SECONDS)
    return 0


def _make(study: StudyFolder, slot: int, source: Source, trial: Trial) -> int:
    """Make one trial and tell its end; return the signal that stopped it, or 0."""
    study.take_again(trial.number)
    study.write_trial(replace(trial, end=None))
    study.note("begins", slot=slot, trial=trial.number, run=trial.name)
    started = time.monotonic()
    state, facts, result = _run(study, source, trial)
    signal = (result.signal if result else None) or 0
    if signal and study.take_cancel(trial.number):  # meant for this run, not for the worker
        _cancel(trial.run)
        state, facts, signal = "cancelled", {"cause": CANCELLED}, 0
    if (
        result and result.folder.absolute() != trial.run.path.absolute()
    ):  # the data changed since the study was planned: another run
        trial = replace(
            trial, run_id=result.folder.name[-8:], folder=str(result.folder.absolute()), name=result.folder.name
        )
    end = None
    if state in SETTLED or facts.pop("given_up", False):
        end = {"state": state, "time": now(), "seconds": round(time.monotonic() - started, 3), "slot": slot, **facts}
        end |= source.tell(trial, state)
    study.write_trial(replace(trial, end=end))
    study.note("ends", slot=slot, trial=trial.number, state=state, seconds=round(time.monotonic() - started, 3))
    return signal


def _run(study: StudyFolder, source: Source, trial: Trial) -> tuple[str, dict[str, Any], Result | None]:
    """Return a trial's state, what is to be recorded with it, and the run's result if there was one."""
    if trial.run.state() == "pruned" and study.about()["kind"] != "grid":
        return "pruned", {}, None  # its worker died before it could tell
    try:
        if died(trial.run) >= DEATHS:
            cause = f"its process died {DEATHS} times without a word: killed from outside, or the memory was short"
            return "lost", {"cause": cause, "given_up": True}, None
        config = build_config(trial.config)
        tags = {**config.tracking.tags, STUDY_TAG: study.about()["key"]}
        config = replace(config, tracking=replace(config.tracking, tags=tags))
        result = run(config, source.pruner(trial), tells=False)
    except FolderError as problem:
        print(f"specvit: {problem}", file=sys.stderr, flush=True)
        time.sleep(BUSY_SECONDS)  # somebody else took the run in this moment
        return trial.run.state() or REFUSED, {} if trial.run.state() in ALIVE else _told(problem), None
    except SpecvitError as problem:
        print(f"specvit: {problem}", file=sys.stderr, flush=True)
        return REFUSED, _told(problem), None
    except Exception as problem:  # a bug, ours or a library's: it costs this trial
        traceback.print_exception(problem)
        return REFUSED, {"cause": f"{type(problem).__name__}: {problem}", "traceback": traceback.format_exc()}, None
    status = RunFolder(result.folder, trial.run_id).status()
    facts = {name: status[name] for name in ("cause", "remedy") if status.get(name)} if result.state not in DONE else {}
    return result.state, facts, result


def _told(problem: SpecvitError) -> dict[str, str]:
    return {"cause": str(problem), "remedy": problem.remedy}


def died(run: RunFolder) -> int:
    """Return how many processes in a row died over a run without a word, and without getting further than the first."""
    count, step = 0, None
    for attempt in reversed(run.attempts()):
        if attempt.get("event") == "end":
            break
        if attempt.get("event") == "ready":
            if step is not None and attempt.get("step") != step:
                break
            step = attempt.get("step")
        count += attempt.get("event") == "start"
    return count


def _cancel(run: RunFolder) -> None:
    with contextlib.suppress(FolderError), run.claimed():
        run.set_status("cancelled", cause=CANCELLED)
