"""Which parameters a grown detector shares with the previous one: all of them except the rows of new classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ciod.detectors.base import Detector


@dataclass
class Shared:
    """A tensor that the old and the new detector share."""

    name: str
    tensor: nn.Parameter
    rows: Tensor | None  # [rows, 1, …] bool, True = row of an old class; None: the whole tensor is shared
    of_classes: bool  # it holds class rows

    def kept(self, values: Tensor) -> Tensor:
        """``values`` with zeros at the rows of new classes."""
        return values if self.rows is None else values * self.rows


def shared(detector: Detector, old: int) -> Iterator[Shared]:
    """Every parameter except the rows of classes ``old`` and later."""
    rows = {r.name: r for r in detector.class_layers()}
    for name, tensor in detector.named_parameters():
        if name not in rows:
            yield Shared(name, tensor, None, False)
            continue
        is_old = rows[name].first + torch.arange(len(tensor), device=tensor.device) < old
        if rows[name].first >= old:
            continue
        whole = rows[name].first + len(tensor) <= old
        yield Shared(name, tensor, None if whole else is_old.view(-1, *[1] * (tensor.dim() - 1)), True)
