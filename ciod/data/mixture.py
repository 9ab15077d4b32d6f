"""Images of several sources for one task as one Index: its own, exemplars of previous tasks, and a pool."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ciod.data.index import Index


@dataclass
class Mixture:
    """Images of several sources as one Index, and the number of each per batch."""

    index: Index
    source: np.ndarray  # [I] TASK, MEMORY or POOL
    known: np.ndarray  # [I, C] bool: classes that are labelled in the image
    background: np.ndarray  # [I] bool: False = an unlabelled place may show anything
    parts: list[np.ndarray]  # groups of rows; an epoch is a pass over the first
    counts: list[int]  # images of each part in a batch

    def alike(self) -> np.ndarray:
        """[I]: images with equal numbers may share a mosaic, because the same classes are labelled in them."""
        labels = np.column_stack([self.known, self.background, self.source])
        return np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)


def concatenate(indices: list[Index]) -> Index:
    """Concatenates several Indices with the same classes."""
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
