"""How much memory there is to take: of the host, and which part of a GPU's."""

import contextlib
from pathlib import Path

from specvit.utils.errors import DataError

GROUPS = Path("/sys/fs/cgroup")
JOBS_PER_GPU = "SPECVIT_JOBS_PER_GPU"
"""Environment variable of a worker that has a GPU: how many workers share it."""


def free_memory() -> int:
    """Return bytes available to this process, within the limits of its control group (container, Slurm job).

    Pages of files count as available: the kernel gives them up when something else is in need.
    """
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    own = next((line for line in _text(Path("/proc/self/cgroup")).splitlines() if line.startswith("0::")), "0::/")
    folder = GROUPS / own.removeprefix("0::").lstrip("/")
    groups = [folder, *folder.parents]
    return int(min([available, *(room_in(group) for group in groups[: groups.index(GROUPS) + 1])]))


def refuse_beyond_memory(num_bytes: int, where: str) -> None:
    """Raise `DataError` for what takes more memory than there is."""
    if num_bytes > free_memory():
        what = f"would take {num_bytes / 1e9:.3g} GB of memory"
        raise DataError(what, where=where, remedy="make it again, or in smaller files")


def room_in(group: Path) -> float:
    """Return bytes that a control group (version 2) lets its processes still take; infinity without a limit."""
    with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit - used + int(facts.get("active_file", 0)) + int(facts.get("inactive_file", 0))
    return float("inf")


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""
