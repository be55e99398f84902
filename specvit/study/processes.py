"""Which process is a worker, for sure: a signal must never reach another that has got the same number."""

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

from specvit.run_folder.folder import hostname
from specvit.study.store import StudyFolder


def this_process() -> dict[str, Any]:
    """Return what names this process among all that this host has had since it was started."""
    return {"pid": os.getpid(), "born": _born(os.getpid())}


def stop_worker(study: StudyFolder, slot: int) -> bool:
    """Send SIGTERM to the worker in a slot; say whether that could be done, or it has ended."""
    if slot not in study.slots_at_work():
        return True
    latest = (study.events("worker starts", slot) or [{}])[-1]
    pid, born = latest.get("pid"), latest.get("born")
    if latest.get("host") != hostname() or not isinstance(pid, int) or born is None or _born(pid) != born:
        return False
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGTERM)
        return True
    return False


def _born(pid: int) -> str | None:
    """Return when a process began, in ticks of its host; None where that is not told, as outside of Linux."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]  # field 22 of proc(5)
    return None
