"""glibc's memory allocator, told to keep what the process has been given.

By default every block above 32 MiB is mapped anew and given back after use, so each activation of a large model is
page-faulted in again in each step: element-wise operations take up to four times as long.
"""

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of `mallopt`, from glibc's malloc.h."""
NEVER = 2**31 - 1
GROW_BYTES = 256 * 2**20
"""How much more than needed the heap asks for at a time; pages that nothing touches take no memory."""


def keep_memory() -> bool:
    """Serve blocks of any size from a heap that never shrinks; say whether there was a glibc to tell."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, GROW_BYTES))
    return all([mallopt(name, value) == 1 for name, value in settings])
