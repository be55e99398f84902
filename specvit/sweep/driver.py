"""The command that starts a study, or goes on with it: checks the whole of it, fills the slots, and tells what comes.

It holds nothing that the study needs: killed at any moment it loses no run, its workers go on, and the same command
takes up again.
"""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from specvit.config.folder import DONE
from specvit.config.many import Composer
from specvit.errors import ConfigError, FolderError, Interrupted
from specvit.files import locked, read_json
from specvit.launch.slots import Slot, plan_slots, start
from specvit.sweep import forecast
from specvit.sweep.definition import Definition
from specvit.sweep.folder import StudyFolder, Trial
from specvit.sweep.order import Order
from specvit.sweep.plan import plan_grid, relative, take_snapshot, try_space
from specvit.sweep.source import failed_states
from specvit.sweep.table import render, table_rows
from specvit.sweep.watch import Watch

POLL_SECONDS = 0.2
GIVE_UP = 10
"""A slot is left empty after so many workers in a row that died there before they ended a run."""


def drive(order: Order) -> int:
    """Start a study or go on with it until nothing is open; return the exit code."""
    study = StudyFolder(Path(order.options.folder).absolute() / (order.options.name or order.definition.name))
    prepared = prepare(study, order)
    if order.options.dry_run:
        return forecast.tell(study, order.definition, prepared.trials, order.launcher.kind)
    study.path.mkdir(parents=True, exist_ok=True)
    if order.options.detach:
        write(study, order, prepared)
        return _detach(study, order)
    with locked(study.file("driver.lock"), seconds=1.0) as mine:
        if not mine:
            remedy = f"watch it with `specvit sweep status {study.name} --watch`"
            raise FolderError("another command drives this study", where=relative(study.path), remedy=remedy)
        write(study, order, prepared)
        _say_what_is_there(study, order.definition)
        code = 0
        if forecast.is_work_left(study):
            _start_courier(study)
            code = _inprocess(study) if order.launcher.kind == "inprocess" else _Local(study, order).run()
            print(forecast.counts_line(study))
        return _conclude(study, code)


@dataclass(frozen=True)
class Prepared:
    """A study that has been checked; nothing is written yet."""

    trials: list[Trial]
    wants_cuda: bool


def prepare(study: StudyFolder, order: Order) -> Prepared:
    """Compose and check all trials of a study; raises `ConfigError` before anything is written."""
    definition, options = order.definition, order.options
    _refuse_change(study, order)
    if definition.search is None:
        trials = plan_grid(definition, order.typed, study, Composer())
    else:
        trials = [try_space(definition, order.typed, study, Composer())]
    wants_cuda = any(trial.config["train"]["device"].startswith("cuda") for trial in trials)
    if order.launcher.kind == "local":
        plan_slots(order.launcher, wants_cuda=wants_cuda, limit=options.max_parallel)
    return Prepared(trials, wants_cuda)


def write(study: StudyFolder, order: Order, prepared: Prepared) -> None:
    """Write or renew the study's record. Trials that are there keep their ends; `sweep.retry` asks for failed ones."""
    definition, options = order.definition, order.options
    search = definition.search
    new = not study.file("study.json").exists()
    hours = options.hours or definition.budget.hours
    failures = options.failures or definition.budget.failures
    study.create(
        kind="search" if search else "grid",
        digest=_digest(order),
        definition=definition.source,
        typed=order.typed,
        question=definition.question,
        table=asdict(definition.table),
        metrics=search.metrics if search else None,
        trials=search.count(options.trials) if search else len(prepared.trials),
        deadline=time.time() + 3600 * hours if hours else None,
        failures=failures,
        storage=options.storage,
        launcher=asdict(order.launcher),
        cwd=str(Path.cwd()),
        command=["specvit", "train", *order.words],
    )
    study.file("cancelled").unlink(missing_ok=True)
    if new or options.extend:
        take_snapshot(study)
    if search:
        from specvit.sweep.search import create

        create(study, study.about(), definition)
    else:
        for trial in prepared.trials:
            before = study.trial(trial.number)
            if before is None or before.run_id != trial.run_id:
                study.write_trial(trial)
        study.remove_trials_from(len(prepared.trials))
    if options.retry:
        for trial in study.trials():
            if study.state(trial) in failed_states():
                study.ask_again(trial.number)


def _refuse_change(study: StudyFolder, order: Order) -> None:
    """Raise `ConfigError` where a study of this name was started with another definition or other settings."""
    before = read_json(study.file("study.json"), {})
    if not before or before.get("digest") == _digest(order) or order.options.extend:
        return
    old, new = before.get("typed", {}), order.typed
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)] or ["its file"]
    what = f"was started with other settings ({', '.join(changed)} differ)"
    remedy = "give this one another name with sweep.name=NAME, or take it as it is now with sweep.extend=true"
    raise ConfigError(what, where=relative(study.path), remedy=remedy)


def _digest(order: Order) -> str:
    return order.definition.digest() + json.dumps(order.typed, sort_keys=True)


def _say_what_is_there(study: StudyFolder, definition: Definition) -> None:
    print(f"study {study.name}: {relative(study.path)}", flush=True)
    if definition.question:
        print(f"question: {definition.question}", flush=True)
    print(forecast.counts_line(study), flush=True)
    for line in forecast.lines(study):
        print(line, flush=True)


def _inprocess(study: StudyFolder) -> int:
    from specvit.sweep.worker import work

    return work(study, 0)


def _start_courier(study: StudyFolder) -> None:
    """Have one process tell MLflow about all runs of the study; it outlives this command, and knows when to end."""
    tracking = next((trial.config["tracking"] for trial in study.trials()), None)
    if tracking is None or tracking["live"]:
        with contextlib.suppress(OSError), open(study.file("tracking.log"), "ab") as log:
            words = [sys.executable, "-m", "specvit.track", "study", str(study.path)]
            subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def _conclude(study: StudyFolder, code: int) -> int:
    """Print the table and what to do next; return the exit code: 1 if a run failed."""
    trials = study.trials()
    states = [study.state(trial) for trial in trials]
    failed = [trial for trial, state in zip(trials, states, strict=True) if state in failed_states()]
    if any(state in DONE for state in states):
        with contextlib.suppress(ConfigError):
            print(render(*table_rows(study), "text"))
    for trial in failed[:3]:
        cause = (trial.end or {}).get("cause") or trial.run.status().get("cause", "cause unknown")
        print(f"failed: {trial.name}: {cause}")
    if failed:
        print(f"`specvit sweep why {study.name}` says more; sweep.retry=true tries failed runs again")
    if code:
        return code
    return 1 if failed else 0


def _detach(study: StudyFolder, order: Order) -> int:
    """Give the command again in the background."""
    log = study.file("driver.log")
    words = [sys.executable, "-m", "specvit.train", *(word for word in order.words if "sweep.detach" not in word)]
    with open(log, "ab") as stream:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
        )
    print(f"study {study.name} started in the background: process {process.pid}, log {relative(log)}")
    print(f"watch it with `specvit sweep status {study.name} --watch`")
    return 0


class _Local:
    """Workers in slots of this machine: a slot that is free is filled while there is something to do."""

    def __init__(self, study: StudyFolder, order: Order) -> None:
        wants_cuda = any(trial.config["train"]["device"].startswith("cuda") for trial in study.trials())
        self.study = study
        self.slots = plan_slots(order.launcher, wants_cuda=wants_cuda, limit=order.options.max_parallel)
        self.workers: dict[int, subprocess.Popen[bytes]] = {}
        self.ended: set[int] = set()
        self.deaths: dict[int, int] = {}
        self.started: dict[int, float] = {}
        self.received: signal.Signals | None = None

    def run(self) -> int:
        """Keep the slots at work until nothing is open; return the exit code, 128 + n after signal n."""
        print(f"{len(self.slots)} slots: {'; '.join(dict.fromkeys(map(str, self.slots)))} each", flush=True)
        watch = Watch(self.study)
        with self._signals():
            while True:
                watch.say_news()
                self._fill()
                if not self.workers and not self._older_workers():
                    break
                time.sleep(POLL_SECONDS)
            watch.say_news()
        if self.received:
            raise Interrupted(self.received.name, int(self.received))
        return 0

    def _fill(self) -> None:
        for slot in self.slots:
            worker = self.workers.get(slot.number)
            if worker is not None and worker.poll() is not None:
                self._note_end(slot, worker.returncode)
                del self.workers[slot.number]
            if slot.number in self.workers or slot.number in self.ended or self.received:
                continue
            if slot.number in self.study.slots_at_work():
                continue  # a worker that an earlier command started
            words = [sys.executable, "-m", "specvit.sweep", "work", str(self.study.path), "--slot", str(slot.number)]
            self.started[slot.number] = time.time()
            self.workers[slot.number] = start(words, slot, self.study.file("workers") / f"{slot.number}.log")

    def _note_end(self, slot: Slot, code: int) -> None:
        """A worker that ends by itself has found nothing open; one that died is started again."""
        if code == 0:
            self.ended.add(slot.number)
            return
        ended = any(event["time"] >= self.started[slot.number] for event in self.study.events("ends", slot.number))
        self.deaths[slot.number] = 0 if ended else self.deaths.get(slot.number, 0) + 1
        if not self.received and not self.study.is_cancelled:
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
            log = relative(self.study.file("workers") / f"{slot.number}.log")
            print(f"the worker in slot {slot.number} ended {how}; its run goes on  {log}", flush=True)
        if self.deaths[slot.number] >= GIVE_UP:
            print(
                f"slot {slot.number} is left empty: {GIVE_UP} workers in a row died there before they ended one",
                flush=True,
            )
            self.ended.add(slot.number)

    def _older_workers(self) -> list[int]:
        return [number for number in self.study.slots_at_work() if number not in self.workers]

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Pass a signal on to the workers: they save, and this command ends when they have."""

        def handle(number: int, frame: object) -> None:
            self.received = signal.Signals(number)
            for worker in self.workers.values():
                with contextlib.suppress(OSError):
                    worker.send_signal(signal.SIGTERM)

        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {n: signal.signal(n, handle) for n in wanted if signal.getsignal(n) is not signal.SIG_IGN}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
