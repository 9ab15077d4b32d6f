"""Distillation on images without labels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ciod import detectors
from ciod.core.types import POOL, TASK
from ciod.methods.distill_pool import DistillPool
from ciod.methods.finetune import Finetune
from tests import fixed

OLD, NEW = ("ant", "bee"), ("cow",)


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return detectors.build(OLD + NEW, name="yolox-pico", size=64)


def mixed_batch():
    """A task image with a cow, a pool image."""
    targets = replace(
        fixed.boxes_at_random(0, [1, 0], classes=1),
        known=torch.tensor([[True] * 3, [False] * 3]),
        background=torch.tensor([True, False]),
    )
    targets.labels += 2
    return replace(fixed.batch(targets), source=torch.tensor([TASK, POOL]))


def run(method, detector, student, teacher):
    method.attach(fixed.Returns(student), detector, fixed.Returns(teacher))
    method.begin_task(fixed.task(OLD, NEW))
    return method.loss(mixed_batch())


def outputs(seed: int, classes: int, grad: bool = False):
    out = fixed.random_outputs(seed, classes)
    leaves = {k: getattr(out, k).detach().requires_grad_(grad) for k in ("logits", "boxes", "objectness")}
    return replace(out, **leaves)


def gradient(losses, student):
    return torch.autograd.grad(sum(losses.values()), (student.logits, student.boxes, student.objectness))


def test_a_student_like_its_teacher_loses_nothing(detector):
    teacher = outputs(0, 2)
    student = replace(outputs(1, 3), boxes=teacher.boxes, objectness=teacher.objectness)
    student.logits[..., :2] = teacher.logits
    losses = run(DistillPool(), detector, student, teacher)
    assert all(abs(losses[k].item()) < 1e-5 for k in ("distill_cls", "distill_box", "distill_obj"))


def test_by_hand(detector):
    """One position matters: the teacher's score there is 1, elsewhere 0."""
    teacher, student = outputs(0, 2), outputs(1, 3)
    teacher.logits.fill_(-40.0)
    teacher.logits[0, 5] = torch.tensor([40.0, -40.0])
    teacher.objectness.fill_(40.0)
    student.logits[0, 5] = torch.tensor([0.0, 0.0, 9.0])
    student.boxes[0, 5], teacher.boxes[0, 5] = torch.tensor([0.0, 0, 10, 10]), torch.tensor([5.0, 0, 15, 10])
    student.objectness[0, 5] = 0.0
    losses = run(DistillPool(weight=2, box_weight=3), detector, student, teacher)
    log2 = torch.log(torch.tensor(2.0)).item()
    assert losses["distill_cls"].item() == pytest.approx(2 * 2 * log2, rel=1e-4)
    assert losses["distill_box"].item() == pytest.approx(2 * 3 * (1 - 1 / 3), rel=1e-4)  # IoU 50/150, hull full
    assert losses["distill_obj"].item() == pytest.approx(2 * log2, rel=1e-4)


def test_zero_weight_is_masked_fine_tuning(detector):
    teacher, student = outputs(0, 2), outputs(1, 3, grad=True)
    mine = gradient(run(DistillPool(weight=0), detector, student, teacher), student)
    plain = gradient(run(Finetune(mask="auto"), detector, student, teacher), student)
    assert all(torch.equal(a, b) for a, b in zip(mine, plain, strict=True))


def test_pool_images_learn_only_from_the_teacher(detector):
    teacher, student = outputs(0, 2), outputs(1, 3, grad=True)
    off = gradient(run(DistillPool(weight=0), detector, student, teacher), student)
    on = gradient(run(DistillPool(), detector, student, teacher), student)
    only = gradient(run(DistillPool(on="unlabelled"), detector, student, teacher), student)
    for a, b in zip(off, on, strict=True):
        assert (a[1] == 0).all() and (a[0] != 0).any() and (b[1] != 0).any()
    assert (on[0][1, :, 2] == 0).all()  # no loss for the new class there
    for a, b in zip(off, only, strict=True):
        assert torch.equal(a[0], b[0]) and (b[1] != 0).any()
