"""How a teacher is asked: in its own precision, in parts of a batch, beside the student on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ciod.core.types import Outputs

if TYPE_CHECKING:
    from ciod.detectors.base import Detector


class Beside:
    """A CUDA stream on which a teacher computes while the student does on the usual one."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)
        self.ready = torch.cuda.Event()
        self.images: Tensor | None = None

    def mark(self, images: Tensor) -> None:
        """``images`` are there once everything asked for so far is done: before the student's forward is asked for."""
        self.images = images
        self.ready.record()

    def run(self, forward: Callable[[Tensor], Outputs], images: Tensor) -> Outputs:
        """``forward`` of the marked images; what follows on the usual stream waits for it."""
        if images is not self.images:  # made after the mark: the other stream does not know when they are there
            return forward(images)
        self.stream.wait_event(self.ready)
        with torch.cuda.stream(self.stream):
            outputs = forward(images)
        images.record_stream(self.stream)
        here = torch.cuda.current_stream(images.device)
        here.wait_stream(self.stream)
        for tensor in _tensors(outputs):
            tensor.record_stream(here)
        return outputs


def _tensors(outputs: Outputs) -> Iterator[Tensor]:
    for f in fields(outputs):
        value = getattr(outputs, f.name)
        yield from (v for v in (value if isinstance(value, list) else [value]) if isinstance(v, Tensor))


def ask(teacher: Detector, images: Tensor) -> Outputs:
    """The teacher's outputs of a batch."""

    def forward(images: Tensor) -> Outputs:
        kind = teacher.precision
        with nullcontext() if kind is None else torch.autocast(images.device.type, dtype=kind):
            if teacher.chunks == 1:
                return teacher(images)
            return Outputs.joined([teacher(part) for part in images.chunk(teacher.chunks)])

    return forward(images) if teacher.beside is None else teacher.beside.run(forward, images)
