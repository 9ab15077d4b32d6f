"""Pseudo-labels: the teacher's confident boxes of old classes stand beside the real ones."""

from __future__ import annotations

import pytest
import torch

from ciod import detectors
from ciod.methods.pseudo_label import PseudoLabel
from ciod.types import Outputs, Targets
from tests import fixed

OLD, NEW = ("ant", "bee"), ("cow",)
BOXES = torch.tensor([[0.0, 0, 20, 20], [1, 0, 21, 20], [40, 40, 60, 60], [10, 40, 30, 60]])


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return detectors.build(OLD + NEW, name="yolox-nano", size=64)


def teacher() -> Outputs:
    """An ant twice at one place, a cow the teacher should not speak of, and an unsure bee."""
    p = torch.tensor([[0.9, 0.1, 0.1], [0.8, 0.1, 0.1], [0.1, 0.1, 0.9], [0.1, 0.35, 0.1]])
    return fixed.outputs(fixed.logit(p), BOXES, torch.full((4,), 9.0))


def losses_of(method: PseudoLabel, detector, student: Outputs, real: Targets) -> dict[str, torch.Tensor]:
    method.attach(fixed.Returns(student), detector, fixed.Returns(teacher()))  # type: ignore[arg-type]
    method.begin_task(fixed.task(OLD, NEW))
    return method.loss(fixed.batch(real))


def real_box(*corners: float) -> Targets:
    return Targets.pad([torch.tensor([corners])], [torch.tensor([2])])


@pytest.mark.parametrize(
    ("settings", "boxes", "labels"),
    [
        ({}, [0], [0]),
        ({"nms_iou": 0.99}, [0, 1], [0, 0]),
        ({"only_old": False}, [0, 2], [0, 2]),
        ({"score": 0.3}, [0, 3], [0, 1]),
        ({"score": 0.95}, [], []),
    ],
)
def test_it_is_the_plain_loss_with_these_boxes_added(detector, settings, boxes, labels):
    student = fixed.random_outputs(0, 3, images=1, grad=True)
    real = real_box(30, 5, 50, 25)
    found = losses_of(PseudoLabel(**settings), detector, student, real)
    pseudo = Targets.pad([BOXES[boxes]], [torch.tensor(labels, dtype=torch.long)])
    targets = pseudo + real
    expected = detector.loss(student, targets, detector.match(student, targets))
    assert {k: v.item() for k, v in found.items()} == pytest.approx({k: v.item() for k, v in expected.items()})


def test_the_guard_drops_what_lies_on_a_real_box(detector):
    student = fixed.random_outputs(0, 3, images=1)
    student.logits[..., 0] += 4  # sure of ants: were the pseudo box there, it would take the real one's positions
    real = real_box(0, 0, 20, 19)
    alone = detector.loss(student, real, detector.match(student, real))
    guarded = losses_of(PseudoLabel(nms_iou=0.99), detector, student, real)
    assert {k: v.item() for k, v in guarded.items()} == pytest.approx({k: v.item() for k, v in alone.items()})
    kept = losses_of(PseudoLabel(guard_iou=None), detector, student, real)
    assert kept["cls"].item() != pytest.approx(alone["cls"].item())


def test_padding_of_real_boxes_guards_nothing(detector):
    student = fixed.random_outputs(0, 3, images=1, grad=True)
    real = real_box(30, 5, 50, 25) + fixed.no_boxes(1)
    real.boxes[0, 1] = BOXES[0]  # rubbish in the padding
    a = losses_of(PseudoLabel(), detector, student, real)
    b = losses_of(PseudoLabel(guard_iou=None), detector, student, real)
    assert all(torch.equal(a[k], b[k]) for k in a)
