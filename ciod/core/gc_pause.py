"""Pauses Python's garbage collection, which is slow while many new objects are created."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Generator[None, None, None]:
    """Turns garbage collection off inside the block.

    While many objects are created, Python repeatedly scans all of them. This takes a third of the time of importing
    PyTorch and torchvision, and half of the time of parsing a large JSON.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
