"""glibc's memory allocator, told to keep what the process has been given.

By default every block above 32 MiB is mapped anew and given back after use, so each activation of a large model is
page-faulted in again in each step: element-wise operations take up to four times as long.
"""

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
"""Parameters of `mallopt`, from glibc's malloc.h."""
MIB = 2**20
KEEP = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 256 * MIB}
"""Blocks of any size come from a heap that is never trimmed (-1 is the largest number there) and grows by 256 MiB at
least; pages that nothing touches take no memory."""
STOCK = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 * MIB, M_TRIM_THRESHOLD: 64 * MIB, M_TOP_PAD: 128 * 1024}
"""What glibc's own adaptation comes to in a process with large tensors."""


def keep_memory(keep: bool = True) -> bool:
    """Keep all memory until the process ends, or go back to glibc's own way; say whether there is a glibc to tell."""
    try:
        libc = ctypes.CDLL(None)
        done = all([libc.mallopt(name, value) == 1 for name, value in (KEEP if keep else STOCK).items()])
        return done and (keep or libc.malloc_trim(0) >= 0)
    except (OSError, AttributeError):
        return False
