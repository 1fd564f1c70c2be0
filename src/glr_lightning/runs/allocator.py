"""The memory of the C library: what a step frees is kept for the next one."""

import ctypes
import os

MMAP_THRESHOLD = 2**25
"""Blocks up to this size come from the heap; it is the most that glibc takes, 32 MiB."""
TRIM_THRESHOLD = 2**30
"""How much memory may be free at the top of the heap before it is returned to the system, 1 GiB."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed_memory() -> bool:
    """Have glibc keep the memory that is freed, up to 1 GiB, and not return it to the system after every step.

    A step allocates and frees tensors of some MiB. By default glibc gets each of them from the system, zeroed page by
    page, and hands it back. With this the process holds as much as its largest step took, until it ends.

    The commands call it once, when their job begins. It does nothing without glibc, nor where the environment sets
    glibc's own tunables (MALLOC_..._, GLIBC_TUNABLES).

    Returns:
        Whether it had an effect.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        library = ctypes.CDLL(None)
        _ = library.gnu_get_libc_version  # other libraries have no mallopt, or one that means something else
        mallopt = library.mallopt
    except (OSError, TypeError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD))
