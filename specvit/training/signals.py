"""Signals become a flag that the loop reads at a step boundary; outside the loop they stop the run at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

from specvit.utils.errors import Interrupted

POLL_SECONDS = 1.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@contextlib.contextmanager
def signal_handlers(
    numbers: Iterable[signal.Signals], handle: Callable[[int, FrameType | None], Any]
) -> Iterator[None]:
    """Handle signals by `handle` within the block and restore the former handlers after it.

    Ignored signals stay ignored: SIGHUP under nohup, SIGINT in a background job of a script.
    """
    ours = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before: dict[signal.Signals, Any] = {number: signal.signal(number, handle) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class SignalStop:
    """Handles `SIGNALS` while installed; use `with SignalStop().installed() as stop`."""

    def __init__(self, asked: Callable[[], bool] | None = None) -> None:
        """Install nothing yet. While installed, `asked()` is called every second; True acts like a SIGTERM."""
        self.asked = asked
        self.received: signal.Signals | None = None
        self._deferring = self._wholly = False

    def requested(self) -> bool:
        """Return True from the first signal on."""
        return self.received is not None

    def raise_if_requested(self) -> None:
        """Raise `Interrupted` if a signal came while signals were deferred."""
        if self.received is not None:
            raise Interrupted(self.received.name, int(self.received))

    @contextlib.contextmanager
    def installed(self) -> Iterator["SignalStop"]:
        """Handle the signals within the block and restore the former handlers after it."""
        polling = _polling(self.asked) if self.asked else contextlib.nullcontext()
        with signal_handlers(SIGNALS, self._handle), polling:
            yield self

    @contextlib.contextmanager
    def deferred(self, *, wholly: bool = False) -> Iterator[None]:
        """Only set the flag within the block; a second Ctrl-C there still stops at once, unless `wholly`."""
        before = self._deferring, self._wholly
        self._deferring, self._wholly = True, wholly
        try:
            yield
        finally:
            self._deferring, self._wholly = before

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """Let signals stop the block at once, inside a `deferred` one; raises `Interrupted` if one came before it."""
        before = self._deferring, self._wholly
        self._deferring = self._wholly = False
        try:
            self.raise_if_requested()
            yield
        finally:
            self._deferring, self._wholly = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        insists = self.received is not None and number == signal.SIGINT and not self._wholly
        self.received = signal.Signals(number)
        if insists or not self._deferring:
            raise Interrupted(self.received.name, number)


@contextlib.contextmanager
def _polling(asked: Callable[[], bool]) -> Iterator[None]:
    """Send this process a SIGTERM from a thread once `asked()` is true; never after the block."""
    over = threading.Event()

    def poll() -> None:
        while not over.wait(POLL_SECONDS):
            with contextlib.suppress(OSError):  # a file server that fails for a moment
                if asked():
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

    thread = threading.Thread(target=poll, daemon=True, name="stop asked for")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
