"""Frozen first layers that a teacher shares with its student: their maps are computed once per batch.

Hooks on the student keep its maps; the teacher continues from them if it gets the same image tensor. Methods need no
code for this: a teacher that is called first, or with other images, computes everything itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ciod.detectors.base import Detector
from ciod.detectors.staged import parts


class Prefix:
    """The maps that a student passes to its teacher within one step.

    Args:
        depth: number of ``parts`` of the trunk that are shared, at least 1.
    """

    def __init__(self, depth: int):
        self.depth = depth
        self._images: Tensor | None = None  # images of the running forward pass
        self._maps: list[Tensor] = []
        self._kept: tuple[Tensor, int, list[Tensor], list[Tensor] | None] | None = None
        self._ready: torch.cuda.Event | None = None

    @contextmanager
    def kept_from(self, student: Detector) -> Iterator[None]:
        """Within this context, a forward of ``student`` in train mode keeps the maps of the shared parts."""
        shared = [part[-1] for part in parts(student)[: self.depth]]
        handles = [student.register_forward_pre_hook(self._begin)]
        handles += [m.register_forward_hook(self._collect) for m in shared]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def take(self, images: Tensor) -> tuple[list[Tensor], list[Tensor] | None]:
        """The maps of the backbone (stage 1 first) and of the neck, if they were kept for this same tensor and it has
        not changed since; otherwise [] and None. They can be taken once."""
        kept, self._kept = self._kept, None
        if kept is None or kept[0] is not images or kept[1] != images._version:
            return [], None
        if self._ready is not None:  # the teacher may run on a separate stream
            stream = torch.cuda.current_stream()
            stream.wait_event(self._ready)
            for t in [*kept[2], *(kept[3] or [])]:
                t.record_stream(stream)
        return kept[2], kept[3]

    def _begin(self, student: Any, inputs: tuple[Tensor, ...]) -> None:
        self._images, self._maps = (inputs[0] if student.training else None), []

    def _collect(self, module: Any, inputs: Any, outputs: Any) -> None:
        """Called when the last shared part is computed: a teacher on its own stream need not wait for the rest."""
        if self._images is None:
            return
        features = None
        if isinstance(outputs, Tensor):
            self._maps.append(outputs)
        else:
            features = list(outputs)  # the neck's
        if len(self._maps) + (features is not None) < self.depth:
            return
        self._kept = (self._images, self._images._version, self._maps, features)
        if self._images.is_cuda:
            self._ready = torch.cuda.Event()
            self._ready.record()
        self._images = None
