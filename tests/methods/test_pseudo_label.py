"""Pseudo-labels: the teacher's confident boxes of old classes stand beside the real ones."""

from __future__ import annotations

import pytest
import torch

from ciod import detectors
from ciod.core.types import Outputs, Targets
from ciod.detectors.base import Input
from ciod.methods.pseudo_label import PseudoLabel, upper_cluster
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
    method.attach(fixed.Returns(student), detector, fixed.Returns(teacher()))
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


def test_the_guard_drops_boxes_on_a_real_box(detector):
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


# Thresholds ----------------------------------------------------------------------------------------------------------


class Asked(fixed.Returns):
    """The same, with what a detector says of its input."""

    input = Input(size=64, fill=0.0)
    class_names = OLD
    device = torch.device("cpu")


def chosen(**settings):
    """Labels and scores of the boxes kept of the teacher above."""
    method = PseudoLabel(**settings)
    asked = Asked(teacher())
    method.attach(asked, asked, asked)
    method.begin_task(fixed.task(OLD, NEW))
    kept = method.choose(3, teacher())
    return method, kept, [round(v, 2) for v in kept.scores[kept.valid].tolist()]


def test_the_best_few_of_an_image():
    assert chosen(score=0, nms_iou=1.0, top_k=2)[2] == [0.9, 0.8]
    assert chosen(score=0.85, nms_iou=1.0, top_k=2)[2] == [0.9]
    assert chosen(score=0, nms_iou=1.0, top_k=50)[2] == [0.9, 0.8, 0.35]


def test_two_clusters_by_hand():
    scores = torch.tensor([0.1, 0.9, 0.15, 0.8, 0.2, 0.85])
    assert upper_cluster(scores) == pytest.approx(0.8)
    # Sums of squares of the cuts of .1 .2 .6 1.: after 1: .32, after 2: .085, after 3: .14.
    assert upper_cluster(torch.tensor([0.1, 0.2, 0.6, 1.0])) == pytest.approx(0.6)
    assert upper_cluster(torch.tensor([0.1, 0.9, 0.9])) is None


def test_each_class_has_its_own_threshold():
    method, _, _ = chosen(threshold="adaptive", score=0.5)
    assert method._limits is not None and method._limits.tolist() == [0.5, 0.5]  # no image: the fixed one
    limits = dict(zip(OLD, (0.85, 0.3)))
    method = chosen(class_scores=limits, score=0.5, nms_iou=1.0)[0]
    kept = method.choose(3, teacher())
    assert [round(v, 2) for v in kept.scores[kept.valid].tolist()] == [0.9, 0.35]
    doubting = PseudoLabel(class_scores=limits, score=0.5, doubt=0.2, nms_iou=1.0)
    doubting.attach(method.student, method.detector, method.teacher)
    doubting.begin_task(fixed.task(OLD, NEW))
    kept = doubting.choose(3, teacher())
    targets = doubting.pseudo(kept, fixed.batch(real_box(30, 5, 50, 25)), 3)
    assert targets.doubtful is not None
    assert targets.doubtful[kept.valid].tolist() == [False, True, False]  # ants of 0.9 and 0.8, a bee of 0.35


def test_thresholds_from_the_teacher_s_scores(tmp_path):
    """The teacher's answer is the same for every image: per image an ant of 0.9 and a bee of 0.35."""
    from dataclasses import replace

    import numpy as np

    from ciod.data.images import save_image

    index = fixed.index_of([(i, "cow") for i in range(4)], OLD + NEW, 4, folder=tmp_path)
    files = [f.with_suffix(".png") for f in index.files]
    for f in files:
        save_image(f, np.zeros((64, 64, 3), np.uint8))
    task = replace(fixed.task(OLD, NEW), train=replace(index, files=files))
    answers = Asked(teacher())
    method = PseudoLabel(threshold="adaptive", score=0.6, buffer=0.1)
    method.attach(answers, answers, answers)
    method.begin_task(task)
    assert answers.calls == 1 and method._limits is not None
    assert method._limits.tolist() == pytest.approx([0.6, 0.6])  # one batch answers as one image: too few to cluster
    method = PseudoLabel(threshold="adaptive", score=0.6, buffer=0.1, nms_iou=1.0)
    four = teacher()
    answers.outputs = replace(
        four,
        logits=four.logits.expand(4, -1, -1),
        boxes=four.boxes.expand(4, -1, -1),
        objectness=four.objectness.expand(4, -1),
    )
    method.attach(answers, answers, answers)
    method.begin_task(task)
    # Ants: four of 0.9, four of 0.8: the cut lies between them. Bees: all alike, so the cut is anywhere among them.
    assert method._limits.tolist() == pytest.approx([0.8, 0.25], abs=1e-3)


def test_a_doubtful_box_is_not_background(detector):
    student = fixed.random_outputs(0, 3, images=1)
    student.objectness.requires_grad_()
    real = real_box(30, 5, 50, 25)
    grads = []
    for settings in ({}, {"doubt": 0.3}):
        losses = losses_of(PseudoLabel(**settings), detector, student, real)
        grads.append(torch.autograd.grad(losses["obj"], student.objectness)[0])
    spared = (grads[0] != 0) & (grads[1] == 0)
    assert spared.any()  # positions matched with the bee of 0.35: background without the band, open with it
    assert (grads[0][spared] > 0).all()


def test_pool_images_learn_pseudo_boxes_and_nothing_else(detector):
    from dataclasses import replace

    student = fixed.random_outputs(0, 3, images=1)
    for t in (student.logits, student.objectness):
        t.requires_grad_()
    nothing = replace(fixed.no_boxes(), known=torch.zeros(1, 3, dtype=torch.bool), background=torch.tensor([False]))
    losses = losses_of(PseudoLabel(), detector, student, nothing)
    logits, objectness = torch.autograd.grad(sum(losses.values()), (student.logits, student.objectness))
    assert (objectness < 0).any() and not (objectness > 0).any()  # up where the ant is, down nowhere
    taught = (logits[..., :2] != 0).any(-1)
    assert taught.any()
    # a pseudo box shows an old class and so no new one, which the new row learns there; elsewhere it learns nothing
    assert (logits[..., 2][taught] > 0).all() and (logits[..., 2][~taught] == 0).all()
