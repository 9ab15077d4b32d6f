"""A batch larger than memory: the network computes it in parts, and the losses are those of the complete batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ciod.core.types import Outputs
from ciod.detectors.base import Detector


class Accumulated(nn.Module):
    """A student that keeps the activations of one part of its batch at a time.

    Only the outputs of all parts are kept; in the backward pass a part is computed once more and its gradients are
    added to those of the others (Chen et al. 2016, arXiv 1604.06174). So the method sees the whole batch, and every
    loss, normaliser and gradient is that of the whole batch. The last part need not be computed twice.

    Batch normalisation in train mode takes the statistics of each part, as it would with small batches.
    """

    def __init__(self, detector: Detector, parts: int):
        super().__init__()
        self.detector, self.parts = detector, parts

    def forward(self, images: Tensor) -> Outputs:
        if not torch.is_grad_enabled():
            return self.detector(images)
        *first, last = images.chunk(self.parts)
        outputs: list[Outputs] = []
        for part in first:
            made: Any = checkpoint(self.detector, part, use_reentrant=False, context_fn=self._contexts)
            outputs.append(made)
        return Outputs.joined([*outputs, self.detector(last)])

    def _contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """Contexts of the first and the second computation of a part."""
        return nullcontext(), _statistics_kept(self.detector)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """The second computation of a part must not change running statistics again."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.training]
    momenta = [m.momentum for m in norms]
    counters = [m.num_batches_tracked for m in norms if m.num_batches_tracked is not None]
    before = [c.clone() for c in counters]
    try:
        for m in norms:
            m.momentum = 0.0
        yield
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
        for counter, value in zip(counters, before, strict=True):
            counter.copy_(value)
