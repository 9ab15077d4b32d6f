"""The teacher: the frozen detector of the previous task, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ciod.core.types import Outputs
from ciod.detectors.base import Detector
from ciod.detectors.prefix import Prefix
from ciod.detectors.staged import StagedDetector


class SideStream:
    """A CUDA stream on which the teacher runs, in parallel to the student on the current stream."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)
        self.ready = torch.cuda.Event()
        self.images: Tensor | None = None

    def mark(self, images: Tensor) -> None:
        """Marks ``images`` as complete when all work queued so far is done. Called before the student's forward."""
        self.images = images
        self.ready.record()

    def run(self, forward: Callable[[Tensor], Outputs], images: Tensor) -> Outputs:
        """``forward`` of the marked images; later work on the current stream waits for it."""
        if images is not self.images:  # created after the mark: the side stream cannot know when they are complete
            return forward(images)
        self.stream.wait_event(self.ready)
        with torch.cuda.stream(self.stream):
            outputs = forward(images)
        images.record_stream(self.stream)
        current = torch.cuda.current_stream(images.device)
        current.wait_stream(self.stream)
        for tensor in _tensors(outputs):
            tensor.record_stream(current)
        return outputs


@dataclass(eq=False)
class Teacher:
    """A frozen detector. It is not a module, so it is never trained, saved or nested with its student.

    Args:
        detector: in eval mode, without gradients.
        precision: autocast precision of its forward; None: that of the caller.
        chunks: number of parts of a batch that are computed one after the other.
        stream: a separate CUDA stream.
        prefix: maps that the student passes on while a task is trained.
    """

    detector: Detector
    precision: torch.dtype | None = None
    chunks: int = 1
    stream: SideStream | None = None
    prefix: Prefix | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The old classes, in the order of their labels."""
        return self.detector.class_names

    def __call__(self, images: Tensor) -> Outputs:
        """[B, 3, H, W] RGB 0..255 → Outputs, without gradients."""
        assert not self.detector.training
        with torch.no_grad():  # not inference_mode: its tensors cannot take part in the student's backward
            return self._forward(images) if self.stream is None else self.stream.run(self._forward, images)

    def beside(self, student: Callable[[Tensor], Outputs]) -> Callable[[Tensor], Outputs]:
        """Runs the student's forward so that this teacher can compute the same images on its own stream."""
        stream = self.stream
        if stream is None:
            return student

        def forward(images: Tensor) -> Outputs:
            stream.mark(images)
            return student(images)

        return forward

    def _forward(self, images: Tensor) -> Outputs:
        kind = self.precision
        with nullcontext() if kind is None else torch.autocast(images.device.type, dtype=kind):
            if self.chunks > 1:
                return Outputs.joined([self.detector(part) for part in images.chunk(self.chunks)])
            maps, features = ([], None) if self.prefix is None else self.prefix.take(images)
            if not maps:
                return self.detector(images)
            assert isinstance(self.detector, StagedDetector)
            return self.detector.respond(images, *self.detector.extract(images, maps, features))


def _tensors(outputs: Outputs) -> Iterator[Tensor]:
    for f in fields(outputs):
        value = getattr(outputs, f.name)
        yield from (v for v in (value if isinstance(value, list) else [value]) if isinstance(v, Tensor))
