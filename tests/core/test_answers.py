"""Outputs of several sets of queries: which positions are detections, and what reads only those."""

from __future__ import annotations

import torch

from ciod.core.types import Outputs
from ciod.methods.base import selection


def sets() -> Outputs:
    """Two answers, then two queries of an earlier layer with much higher scores."""
    boxes = torch.tensor([[[0.0, 0, 8, 8], [16, 16, 24, 24], [32, 32, 40, 40], [48, 48, 56, 56]]])
    logits = torch.tensor([[[1.0, -9], [-9, 2], [9, 9], [9, 9]]])
    return Outputs(logits, boxes, torch.zeros(0, 2), torch.zeros(0), answers=2, frame=(64, 64))


def test_answers_are_the_first_positions():
    answer = sets().answer()
    assert torch.equal(answer.logits, sets().logits[:, :2]) and torch.equal(answer.boxes, sets().boxes[:, :2])
    assert answer.answer() is answer
    dense = Outputs(sets().logits, sets().boxes, torch.zeros(4, 2), torch.ones(4))
    assert dense.answer() is dense


def test_parts_of_a_batch_are_joined_with_their_answers():
    whole = Outputs.joined([sets(), sets(), sets()])
    assert whole.logits.shape == (3, 4, 2) and whole.answers == 2 and whole.frame == (64, 64)


def test_a_teacher_teaches_only_by_its_answers():
    kept = selection.by_threshold(sets(), score=0.5, nms_iou=0.65, classes=None)
    assert kept.position[kept.valid].tolist() == [0, 1] and kept.labels[kept.valid].tolist() == [0, 1]
    assert kept.scores[0].tolist() == torch.tensor([1.0, 2.0]).sigmoid().tolist()
