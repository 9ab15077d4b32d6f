"""Images of several sources for one task: its own, exemplars of earlier ones and a pool, as one Index."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ciod.data.index import Index


@dataclass
class Mixture:
    """Images of several sources as one Index, and how many of each a batch has."""

    index: Index
    source: np.ndarray  # [I] TASK, MEMORY or POOL
    known: np.ndarray  # [I, C] bool: classes whose boxes are drawn in the image
    background: np.ndarray  # [I] bool: False = what is not drawn may be anything
    parts: list[np.ndarray]  # rows that are drawn from together; an epoch is a pass over the first
    counts: list[int]  # images of each part in a batch

    def alike(self) -> np.ndarray:
        """[I]: images with equal numbers may share a mosaic: their labels say the same."""
        told = np.column_stack([self.known, self.background, self.source])
        return np.unique(told, axis=0, return_inverse=True)[1].reshape(-1)


def concatenate(indices: list[Index]) -> Index:
    """Several Indices of the same classes, one after the other."""
    shift = np.cumsum([0, *(len(i) for i in indices)])
    columns = {
        name: np.concatenate([getattr(i, name) for i in indices])
        for name in ("sizes", "boxes", "labels", "crowd", "difficult", "area")
    }
    stored = [np.zeros(len(i), bool) if i.stored is None else i.stored for i in indices]
    return replace(
        indices[0],
        own_ids=[],
        annotated=None,
        stored=np.concatenate(stored),
        files=[f for i in indices for f in i.files],
        image=np.concatenate([i.image + s for i, s in zip(indices, shift, strict=False)]),
        image_ids=np.arange(shift[-1]),
        **columns,
    )
