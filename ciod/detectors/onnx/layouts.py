"""What the outputs of a foreign detector mean, recognised by their shapes and values, never by names.

A layout is a small class: ``of`` recognises outputs on a few pictures, ``decode`` turns those of one picture into boxes
and scores. If none fits, this is not an error: a branch does not need the old outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ciod.detectors.onnx.grids import Grid, GridDistances, LevelPairs
from ciod.detectors.onnx.layout import Arrays, Facts, Layout
from ciod.detectors.onnx.lists import Pair, Rows, Triple

LAYOUTS: tuple[type[Layout], ...] = (LevelPairs, Triple, Pair, Rows, GridDistances, Grid)


def per_picture(outputs: Sequence[np.ndarray], batch: int) -> list[Arrays]:
    """The outputs of one run, split into those of each of its ``batch`` pictures."""
    if batch > 1:
        return [[a[i] if a.ndim and len(a) == batch else a for a in outputs] for i in range(batch)]
    return [[a[0] if a.ndim > 1 and len(a) == 1 else a for a in outputs]]


def recognise(pictures: Sequence[Arrays], facts: Facts, wanted: str = "auto") -> Layout | None:
    """The layout of the outputs; None: it is unknown.

    Args:
        pictures: outputs for each of a few pictures.
        wanted: the name of a layout, ``auto`` or ``none``.
    """
    if any(not isinstance(a, np.ndarray) for outputs in pictures for a in outputs):
        return None  # sequences and maps
    for layout in LAYOUTS if wanted != "none" else ():
        if wanted in ("auto", layout.name) and (found := layout.of(pictures, facts)) is not None:
            return found
    return None


def names() -> Iterator[str]:
    """Allowed values of ``old_outputs=``."""
    yield from ("auto", "none", *(layout.name for layout in LAYOUTS))
