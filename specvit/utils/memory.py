"""Memory of the host: how much is free, and that glibc's allocator keeps what the process has."""

import contextlib
import ctypes
from pathlib import Path

from specvit.utils.errors import DataError

GROUPS = Path("/sys/fs/cgroup")
JOBS_PER_GPU = "SPECVIT_JOBS_PER_GPU"
"""Environment variable of a worker that has a GPU: how many workers share it."""

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
"""Parameters of `mallopt`, from glibc's malloc.h."""
MIB = 2**20
KEEP = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 256 * MIB}
"""Blocks of any size come from a heap that is never trimmed (-1 is the largest number there) and grows by at least
256 MiB; untouched pages take no memory."""
STOCK = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 * MIB, M_TRIM_THRESHOLD: 64 * MIB, M_TOP_PAD: 128 * 1024}
"""Where glibc's own adaptation ends up in a process with large tensors."""


def free_memory() -> int:
    """Return bytes available to this process, within the limits of its control group (container, Slurm job).

    Cached pages of files count as available: the kernel drops them on demand.
    """
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    own = next((line for line in _text(Path("/proc/self/cgroup")).splitlines() if line.startswith("0::")), "0::/")
    folder = GROUPS / own.removeprefix("0::").lstrip("/")
    groups = [folder, *folder.parents]
    return int(min([available, *(room_in(group) for group in groups[: groups.index(GROUPS) + 1])]))


def refuse_beyond_memory(num_bytes: int, where: str) -> None:
    """Raise `DataError` if `num_bytes` exceed the available memory; `where` names the file."""
    if num_bytes > free_memory():
        what = f"would take {num_bytes / 1e9:.3g} GB of memory"
        raise DataError(what, where=where, remedy="write it again, or in smaller files")


def room_in(group: Path) -> float:
    """Return bytes that processes of a control group (version 2) may still allocate; infinity without a limit."""
    with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit - used + int(facts.get("active_file", 0)) + int(facts.get("inactive_file", 0))
    return float("inf")


def keep_memory(keep: bool = True) -> bool:
    """Keep freed memory in the process until it ends, or restore glibc's defaults; return False without glibc.

    By default glibc maps every block above 32 MiB again and returns it after use, so the pages of each activation of a
    large model are faulted in again in each step: element-wise operations take up to four times as long.
    """
    try:
        libc = ctypes.CDLL(None)
        succeeded = all([libc.mallopt(name, value) == 1 for name, value in (KEEP if keep else STOCK).items()])
        return succeeded and (keep or libc.malloc_trim(0) >= 0)
    except (OSError, AttributeError):
        return False


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""
