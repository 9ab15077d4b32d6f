"""The teacher's stream without a GPU: stand-ins that write down who waits for whom."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from ciod.detectors.teacher import SideStream
from tests import fixed


@pytest.fixture
def events(monkeypatch) -> list[tuple]:
    """What was asked of CUDA, in order: (what, on which stream, of what)."""
    log: list[tuple] = []
    on = ["usual"]

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_event(self, event):
            log.append(("waits for the mark", self.name))

        def wait_stream(self, other):
            log.append(("waits for", self.name, other.name))

    class Event:
        def record(self):
            log.append(("marked", on[-1]))

    @contextmanager
    def within(stream):
        on.append(stream.name)
        yield
        on.pop()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("usual"))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda t, s: log.append(("kept for", s.name, id(t))))
    log.append(on)
    return log


def test_each_waits_for_what_it_needs_and_keeps_what_it_reads(events):
    on = events.pop()
    outputs = replace(fixed.random_outputs(0, 3, images=1), features=[torch.zeros(1, 2, 4, 4)])
    images, beside = torch.zeros(1, 3, 64, 64), SideStream(torch.device("cpu"))

    def forward(given):
        events.append(("computes", on[-1], id(given)))
        return outputs

    beside.mark(images)
    assert beside.run(forward, images) is outputs
    assert events[:5] == [
        ("marked", "usual"),
        ("waits for the mark", "side"),
        ("computes", "side", id(images)),
        ("kept for", "side", id(images)),
        ("waits for", "usual", "side"),
    ]
    tensors = [outputs.logits, outputs.boxes, outputs.objectness, outputs.points, outputs.features[0]]
    assert {("kept for", "usual", id(t)) for t in tensors} <= set(events[5:])
    assert {t[:2] for t in events[5:]} == {("kept for", "usual")}


def test_images_made_after_the_mark_are_computed_on_the_current_stream(events):
    on = events.pop()
    beside = SideStream(torch.device("cpu"))
    beside.mark(torch.zeros(1, 3, 64, 64))
    events.clear()
    beside.run(lambda given: events.append(("computes", on[-1])), torch.zeros(1, 3, 64, 64))
    assert events == [("computes", "usual")]
