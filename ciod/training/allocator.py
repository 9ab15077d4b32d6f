"""How the C library manages memory while a CPU trains."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

TRIM, MAPPED = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of <malloc.h>


@contextmanager
def keeping_freed(device: torch.device, *, wanted: bool = True) -> Iterator[None]:
    """Memory that a step frees stays with the process for the next one (``train.keep_freed``).

    The GNU C library returns large blocks to the system as soon as they are free, and the next step gets them again,
    page by page and zeroed. Keeping them costs memory, because there are gaps between them. On other systems nothing is
    done: PyTorch keeps a GPU's memory, and other C libraries work differently.
    """
    if not wanted or device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    library.mallopt(MAPPED, 0)
    library.mallopt(TRIM, (1 << 31) - 1)
    try:
        yield
    finally:
        library.mallopt(MAPPED, 65536)  # the defaults
        library.mallopt(TRIM, 64 << 20)
        library.malloc_trim(0)
