"""Python's search for garbage, which takes long among many new objects that are none."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Generator[None, None, None]:
    """No search for cycles of garbage meanwhile.

    Python looks again and again through all there is while much is made: a third of the time of importing PyTorch and
    torchvision, half of that of parsing a large JSON.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
