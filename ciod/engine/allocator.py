"""The C library's memory while a CPU trains."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def keeping_freed(device: torch.device) -> Iterator[None]:
    """While a task is trained on a CPU: memory that a step frees is kept for the next one.

    The GNU C library hands blocks back and gets new ones page by page and zeroed, some 3 % of a step. What is above
    32 MiB still is: kept as well, large blocks of many sizes would take a quarter more memory. Where the user has set
    one of its ``MALLOC_`` variables, that stands.
    """
    glibc = platform.libc_ver()[0] == "glibc"
    if device.type != "cpu" or not glibc or any(k.startswith("MALLOC_") for k in os.environ):
        yield
        return
    library = ctypes.CDLL(None)
    trim, map_from = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of <malloc.h>
    library.mallopt(map_from, 32 << 20)  # the most it takes
    library.mallopt(trim, (1 << 31) - 1)
    try:
        yield
    finally:
        library.mallopt(trim, 64 << 20)  # what it comes to by itself
        library.malloc_trim(0)
