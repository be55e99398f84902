"""Fills the slots of this machine with workers of a study, and passes signals on to them."""

import contextlib
import os
import signal
import subprocess
import time

from specvit.cluster.slots import LauncherConfig, Slot, plan_slots
from specvit.study.plan import relative
from specvit.study.request import StudyRequest
from specvit.study.status import StudyMonitor
from specvit.study.store import BROKEN_GPU, StudyFolder, living_pid
from specvit.training.signals import signal_handlers
from specvit.utils.errors import Interrupted
from specvit.utils.processes import python_command, start
from specvit.utils.text import counted

POLL_SECONDS, NEWS_SECONDS = 0.2, 1.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GIVE_UP = 10
"""A slot is left empty after this many workers in a row that died there before they ended a run."""
LONGEST_PAUSE_SECONDS = 15.0
"""Longest wait before a slot is tried again after a fault that may pass, such as a full disk; all together exceed two
minutes."""


class LocalSlots:
    """Workers in slots of this machine: a free slot is filled while trials are open."""

    def __init__(self, study: StudyFolder, order: StudyRequest, devices: set[str]) -> None:
        """Plan the slots for runs on `devices`; raises `ConfigError` for GPUs that are not there."""
        self.study = study
        assert isinstance(order.launcher, LauncherConfig)
        self.slots = plan_slots(order.launcher, devices, limit=order.options.max_parallel)
        self.workers: dict[int, subprocess.Popen[bytes]] = {}
        self.ended: set[int] = set()
        self.deaths: dict[int, int] = {}
        self.started: dict[int, float] = {}
        self.pause: dict[int, float] = {}
        """Until when a slot stays empty after a full disk, or another fault that may pass."""
        self.received: signal.Signals | None = None
        self.passed_on = False
        self.unreachable: set[int] = set()
        """Slots of older workers that could not be signalled."""

    def run(self) -> int:
        """Keep the slots filled until no trial is open; return the exit code. Raises `Interrupted` after a signal."""
        count = counted(len(self.slots), "slot")
        with signal_handlers(SIGNALS, self._handle_signal):
            print(f"{count}: {'; '.join(dict.fromkeys(map(str, self.slots)))}", flush=True)
            monitor, next_news = StudyMonitor(self.study), 0.0
            while True:
                if time.monotonic() >= next_news:
                    monitor.print_news()
                    next_news = time.monotonic() + NEWS_SECONDS
                self._fill()
                if self.received and not self.passed_on:
                    self._pass_on()
                if not self.workers and not self._older_workers() and (self.received or not self.pause):
                    break
                time.sleep(POLL_SECONDS)
            monitor.print_news()
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
            if time.monotonic() < self.pause.get(slot.number, 0.0):
                continue
            self.pause.pop(slot.number, None)
            if slot.number in self.study.busy_slots():
                continue  # a worker that an earlier command started
            words = python_command("specvit.sweep", "work", str(self.study.path), "--slot", str(slot.number))
            self.started[slot.number] = time.time()
            log = self.study.file("workers") / f"{slot.number}.log"
            self.workers[slot.number] = start(words, log, slot.environment())
            if self.received:  # since the check above
                self.workers[slot.number].send_signal(signal.SIGTERM)

    def _note_end(self, slot: Slot, code: int) -> None:
        """Take note of a worker's end: one that ended by itself found no open trial; one that died is started again."""
        if code == 0 and self._has("worker ends", slot):
            self.ended.add(slot.number)
            return
        if code == BROKEN_GPU and not self._has("begins", slot):
            fault = self.study.events("GPU fails", slot.number)[-1]["cause"]
            print(f"slot {slot.number} is left empty: {fault}", flush=True)
            self.ended.add(slot.number)
            return
        deaths = self.deaths[slot.number] = 0 if self._has("ends", slot) else self.deaths.get(slot.number, 0) + 1
        log = relative(self.study.file("workers") / f"{slot.number}.log")
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        if passing := code == os.EX_TEMPFAIL:
            latest = (self.study.events("worker ends", slot.number) or [{}])[-1]
            how = latest.get("cause", "a disk or file server fails")
        if deaths >= GIVE_UP:
            what = f"{GIVE_UP} workers in a row died there before they ended a run, the latest {'of: ' * passing}{how}"
            print(f"slot {slot.number} is left empty: {what}; see {log}", flush=True)
            self.ended.add(slot.number)
        elif passing and not self.received:
            seconds = min(2.0**deaths, LONGEST_PAUSE_SECONDS)
            self.pause[slot.number] = time.monotonic() + seconds
            print(f"slot {slot.number}: {how}; its runs wait, and another worker starts in {seconds:.0f} s", flush=True)
        elif not self.received and not self.study.is_cancelled:
            print(f"the worker in slot {slot.number} ended {how}; its run resumes  {log}", flush=True)

    def _has(self, event: str, slot: Slot) -> bool:
        """Return True if the slot's last worker has logged such an event."""
        return any(entry["time"] >= self.started[slot.number] for entry in self.study.events(event, slot.number))

    def _older_workers(self) -> list[int]:
        return [n for n in self.study.busy_slots() if n not in self.workers and n not in self.unreachable]

    def _pass_on(self) -> None:
        """Pass the signal on to workers of earlier commands; others continue without this command."""
        self.passed_on = True
        print("workers save and end; Ctrl-C again leaves at once, and they end by themselves", flush=True)
        for slot in self._older_workers():
            if not stop_worker(self.study, slot):
                self.unreachable.add(slot)
                remedy = f"`specvit sweep cancel {self.study.name}` stops it"
                print(f"slot {slot}: the worker of an earlier command continues; {remedy}", flush=True)

    def _handle_signal(self, number: int, frame: object) -> None:
        """Pass a signal on to the workers: they save, and this command ends when they have."""
        if self.received:  # a second Ctrl-C
            raise Interrupted(self.received.name, int(self.received))
        self.received = signal.Signals(number)
        for worker in self.workers.values():
            with contextlib.suppress(OSError):
                worker.send_signal(signal.SIGTERM)


def stop_worker(study: StudyFolder, slot: int) -> bool:
    """Send SIGTERM to the worker in a slot; return True if that worked, or if the worker has ended already."""
    if slot not in study.busy_slots():
        return True
    pid = living_pid(study.events("worker starts", slot))
    if pid is None:
        return False
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGTERM)
        return True
    return False
