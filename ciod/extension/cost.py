"""What a model costs: parameters, and multiply-adds of one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from ciod.detectors.base import Detector


@dataclass(frozen=True)
class Cost:
    parameters: int
    multiply_adds: int  # of convolutions and linear layers, one image at the model's input size

    def over(self, other: Cost) -> str:
        """How much more than ``other``, in words."""
        more = self.parameters - other.parameters
        share = self.multiply_adds / max(1, other.multiply_adds) - 1
        return f"{more:+,} parameters ({100 * more / other.parameters:+.1f} %), {100 * share:+.2f} % multiply-adds"


@torch.no_grad()
def cost(detector: Detector) -> Cost:
    """Counts in one forward of an empty image."""
    count = 0

    def add(module: nn.Module, taken: tuple[torch.Tensor, ...], given: torch.Tensor) -> None:
        nonlocal count
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        per_output = module.weight[0].numel()
        count += given[0].numel() * per_output

    layers = [m for m in detector.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    handles = [m.register_forward_hook(add) for m in layers]
    training = detector.training
    try:
        size = detector.input.size
        detector.eval()(torch.zeros(1, 3, size, size, device=detector.device))
    finally:
        detector.train(training)
        for h in handles:
            h.remove()
    return Cost(sum(p.numel() for p in detector.parameters()), count)
