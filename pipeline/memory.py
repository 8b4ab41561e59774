"""How this process treats memory that it has freed."""

from __future__ import annotations

import ctypes
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
LARGEST_KEPT, KEPT = 32 * 2**20, 256 * 2**20


@cache
def keep_freed_memory() -> None:
    """Lets the memory of one batch serve the next.

    glibc gives blocks of this size back to the system when they are freed, and takes them anew,
    page by page, for the next batch: 7 of 15 µs an image at 32 px; Dask makes its workers even more
    eager, and threads have pools that cannot keep as much. Elsewhere nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
    mallopt(M_TRIM_THRESHOLD, KEPT)
    mallopt(M_ARENA_MAX, 1)
