"""Memory for batches: how this process treats what it has freed, and where arrays begin."""

from __future__ import annotations

import ctypes
import math
from functools import cache

import numpy as np

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
LARGEST_KEPT, KEPT = 32 * 2**20, 256 * 2**20
ALIGNMENT = 64  # bytes, EIGEN_MAX_ALIGN_BYTES with AVX-512


@cache
def keep_freed_memory() -> None:
    """Lets the memory of one batch serve the next.

    glibc gives blocks of this size back to the system when they are freed, and takes them again,
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


def aligned(shape: tuple[int, ...], dtype: str = "uint8") -> np.ndarray:
    """An array of that shape, not yet filled, that TensorFlow takes over where it is; what begins
    elsewhere it copies, which is a tenth of the time at 224 px.

    Source: `NumpyTensorBuffer` in tensorflow/python/lib/core/py_func.cc
    """
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(n_bytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + n_bytes].view(dtype).reshape(shape)
