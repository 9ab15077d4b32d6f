"""ilYOLOX by hand: the cases of design note .10, and what each setting must and must not change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from ciod import detectors
from ciod.config import load as config
from ciod.core import losses as L
from ciod.core.errors import CiodError, ConfigError
from ciod.core.types import Matches, Outputs, Targets
from ciod.methods.base import selection
from ciod.methods.base.method import Method
from ciod.methods.finetune import Finetune
from ciod.methods.ilyolox import ILYOLOX
from ciod.methods.pseudo_label import PseudoLabel
from ciod.training import speed
from tests import fixed

OLD, NEW = ("ant", "bee"), ("cow", "dog")
SIZE = 64


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return detectors.build(OLD + NEW, name="yolox-nano", size=SIZE)


def ready(method: Method, student: Outputs, teacher: Outputs | None, detector, old=OLD, new=NEW) -> Method:
    """``method`` between a student and a teacher that always answer the same."""
    knows = None if teacher is None else fixed.Returns(teacher)
    method.attach(fixed.Returns(student), detector, knows)
    method.begin_task(fixed.task(() if teacher is None else old, new))
    return method


def backward(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    return total


# CKD (.5, numbers of .10) ---------------------------------------------------------------------------------------------

STUDENT = torch.tensor([[2.0, -1, -3, -3], [0, 0.5, -2, -4]])
TEACHER = torch.tensor([[1.5, -2, -4, -4], [-1, 2, -3, -5]])
STUDENT_BOXES = torch.tensor([[10.0, 10, 50, 60], [0, 0, 20, 20]])
TEACHER_BOXES = torch.tensor([[12.0, 8, 52, 58], [5, 5, 25, 25]])


def ckd(method: ILYOLOX, student=STUDENT, teacher=TEACHER):
    """The two losses, and the student's logits with their gradient."""
    logits = student.clone().requires_grad_()
    boxes = STUDENT_BOXES.clone().requires_grad_()
    outputs = fixed.outputs(logits, boxes, torch.zeros(2))
    knowledge = fixed.outputs(teacher, TEACHER_BOXES, torch.zeros(2))
    both, one = torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool)
    kept = selection.Kept(both, one, TEACHER_BOXES[None], torch.tensor([[0, 1]]), torch.ones(1, 2))
    matches = Matches(both, both, torch.ones(1, 2), one, one)
    losses = method.distill(outputs, knowledge, kept, matches, one)
    backward(losses)
    return {k: v.item() for k, v in losses.items()}, logits.grad, boxes.grad


def test_errors_and_weights_of_ckd():
    cls_error = L.bce(STUDENT, TEACHER.sigmoid()).sum(1)
    assert cls_error.tolist() == pytest.approx([1.129336, 1.493527], abs=1e-6)
    loc_error = torch.tensor([0.165428, 0.688696])
    weights = ILYOLOX().collaborate(cls_error, loc_error)
    assert weights[0].tolist() == pytest.approx([1.744467, 1.368813], abs=2e-6)
    assert weights[1].tolist() == pytest.approx([0.255533, 0.631187], abs=2e-6)


@pytest.mark.parametrize(("detached", "gradient"), [(False, 0.066549), (True, 0.158138)])
def test_losses_and_gradients_of_ckd(detached, gradient):
    losses, logits, boxes = ckd(ILYOLOX(detach_weights=detached))
    assert losses["distill_cls"] == pytest.approx(2.007223, abs=2e-6)
    assert losses["distill_box"] == pytest.approx(1.526316, abs=2e-6)
    assert logits[1, 0].item() == pytest.approx(gradient, abs=1e-6)
    assert boxes.any(1).all()


def test_unweighted_ckd():
    assert ckd(ILYOLOX(weighted=False))[0]["distill_cls"] == pytest.approx(1.311431, abs=1e-6)
    assert ckd(ILYOLOX(weighted=False, target="hy1"))[0]["distill_cls"] == pytest.approx(1.099205, abs=1e-6)


@pytest.mark.parametrize("weighted", [True, False])
def test_weights_sum_to_two_and_lie_between(weighted):
    g = torch.Generator().manual_seed(0)
    cls_error, loc_error = torch.rand(3, 40, generator=g) * 5, torch.rand(3, 40, generator=g) * 2
    cls_error[0, :3], loc_error[0, :3] = torch.tensor([0.0, 0, 3]), torch.tensor([0.0, 2, 0])
    a, b = ILYOLOX(weighted=weighted).collaborate(cls_error, loc_error)
    assert a.isfinite().all() and b.isfinite().all() and a.min() >= 0 and b.min() >= 0 and (a + b).max() <= 2 + 1e-6
    sure = cls_error + loc_error > 0
    assert torch.allclose((a + b)[sure], torch.tensor(2.0))
    if not weighted:
        assert (a == 1).all() and (b == 1).all()


def test_targets_of_the_published_variants():
    soft = torch.tensor([[[0.7, 0.2, 0.1], [0.1, 0.1, 0.4]]])
    hard = {t: ILYOLOX(target=t).harden(soft)[0].tolist() for t in ("hy1", "hy2", "onehot")}
    assert hard["hy1"] == [pytest.approx([1, 0.2, 0.1]), pytest.approx([0.1, 0.1, 1])]
    assert hard["hy2"] == [pytest.approx([1, 0.5, 0.4]), pytest.approx([0.7, 0.7, 1])]
    assert hard["onehot"] == [[1, 0, 0], [0, 0, 1]]
    assert soft[0, 0].tolist() == pytest.approx([0.7, 0.2, 0.1])  # T21: not written into


def test_hy3_overwrites_the_class_weight():
    losses, *_ = ckd(ILYOLOX(target="hy3"))
    error = L.bce(STUDENT, TEACHER.sigmoid()).sum(1)
    weight = (1 - TEACHER.sigmoid().amax(1)).square()
    assert losses["distill_cls"] == pytest.approx((weight * error).mean().item(), rel=1e-6)
    assert losses["distill_box"] == pytest.approx(1.526316, abs=2e-6)


def test_kl_reaches_zero_where_bce_does_not():
    for weighted in (True, False):
        kl, gradient, _ = ckd(ILYOLOX(error="kl", weighted=weighted), student=TEACHER)
        assert kl["distill_cls"] == pytest.approx(0, abs=1e-5)
        assert gradient.abs().max() < 1e-4
    bce, *_ = ckd(ILYOLOX(weighted=False), student=TEACHER)
    assert bce["distill_cls"] == pytest.approx(L.entropy(TEACHER.sigmoid()).sum(1).mean().item(), rel=1e-5)


def test_box_term_is_zero_at_the_teachers_box():
    both, one = torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool)
    outputs = fixed.outputs(STUDENT, TEACHER_BOXES, torch.zeros(2))
    kept = selection.Kept(both, one, TEACHER_BOXES[None], both, torch.ones(1, 2))
    losses = ILYOLOX().distill(outputs, fixed.outputs(TEACHER, TEACHER_BOXES, torch.zeros(2)), kept,
                               Matches(both, both, torch.ones(1, 2), one, one), one)  # fmt: skip
    assert losses["distill_box"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("unseen", ["zero", "ignore"])
def test_a_grown_student_and_a_smaller_teacher(unseen):
    """Classes that the teacher lacks: target 0, or no target."""
    losses, gradient, _ = ckd(ILYOLOX(weighted=False, unseen=unseen), teacher=TEACHER[:, :2])
    soft = TEACHER[:, :2].sigmoid()
    error = L.bce(STUDENT[:, :2], soft).sum(1)
    if unseen == "zero":
        error = error + L.bce(STUDENT[:, 2:], torch.zeros(2, 2)).sum(1)
    assert losses["distill_cls"] == pytest.approx(error.mean().item(), rel=1e-6)
    assert gradient[:, :2].all() and bool(gradient[:, 2:].any()) == (unseen == "zero")


def test_weights_of_the_settings_multiply():
    losses, *_ = ckd(ILYOLOX(cls_weight=3, box_weight=0.5))
    assert losses["distill_cls"] == pytest.approx(3 * 2.007223, abs=1e-5)
    assert losses["distill_box"] == pytest.approx(0.5 * 1.526316, abs=1e-5)


# CRS (.4.1, numbers of .10) -------------------------------------------------------------------------------------------

PROBABILITIES = [
    [0.80, 0.10, 0.05],
    [0.25, 0.10, 0.05],
    [0.20, 0.10, 0.05],
    [0.40, 0.10, 0.05],
    [0.10, 0.35, 0.02],
    [0.02, 0.01, 0.90],
    [0.28, 0.05, 0.02],
    [0.22, 0.05, 0.01],
]
OBJECTNESS = [0.9, 0.5, 0.3, 0.1, 0.5, 0.9, 0.6, 0.9]
BOXES = [
    [0, 0, 40, 40],
    [2, 0, 42, 40],
    [2, 2, 42, 42],
    [100, 100, 140, 140],
    [0, 0, 40, 40],
    [200, 200, 240, 240],
    [300, 300, 340, 340],
    [102, 100, 142, 140],
]


def choose(**settings) -> list[int]:
    knowledge = fixed.outputs(fixed.logit(PROBABILITIES), BOXES, fixed.logit(OBJECTNESS))
    method = ILYOLOX(**settings)
    method.begin_task(fixed.task(("ant", "bee"), ("cow",)))
    kept = method.choose(knowledge)
    where = torch.nonzero(kept.mask(8)[0]).squeeze(1).tolist()
    assert kept.position[0, kept.valid[0]].tolist() == where  # ascending
    assert kept.boxes[0, kept.valid[0]].tolist() == [BOXES[i] for i in where]
    return where


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0, 4, 7]),
        ({"nms_iou": 0.95}, [0, 1, 4, 7]),
        ({"nms_iou": 1, "other_score": 0}, [0, 1, 2, 3, 4, 7]),  # centers and others, before the gate
        ({"nms_iou": 1, "other_score": 0, "other_iou": 1}, [0, 3, 4]),  # the centers
        ({"nms_iou": 1}, [0, 1, 4, 7]),  # 3 fails the gate, although it recruited 7
        ({"select": "threshold", "only_old": False}, [0, 5]),  # 5 is of a new class (T8)
        ({"select": "threshold"}, [0]),
    ],
)
def test_selection_by_hand(settings, expected):
    assert choose(**settings) == expected


def test_scores_and_labels_of_what_is_kept():
    knowledge = fixed.outputs(fixed.logit(PROBABILITIES), BOXES, fixed.logit(OBJECTNESS))
    method = ILYOLOX(nms_iou=0.95)
    method.begin_task(fixed.task(("ant", "bee"), ("cow",)))
    kept = method.choose(knowledge)
    assert kept.labels[0].tolist() == [0, 0, 1, 0]
    assert kept.scores[0].tolist() == pytest.approx([0.72, 0.125, 0.175, 0.198], rel=1e-4)


def test_mean_and_deviation_rules_by_hand():
    p = torch.full((40, 3), 0.01)
    p[:, 0] = 0.05
    p[3] = torch.tensor([0.9, 0.1, 0.1])
    p[4] = torch.tensor([0.1, 0.6, 0.1])  # alone in its class
    boxes = [[60.0 * i, 0, 60 * i + 40, 40] for i in range(40)]
    knowledge = fixed.outputs(fixed.logit(p), boxes, torch.full((40,), 9.0))
    s = p.amax(1)
    assert s.mean() + 2 * s.std() < 0.6  # both pass over all positions
    for select, floor, expected in [
        ("all_mean_std", 0.3, [3, 4]),
        ("class_mean_std", 0.3, [3, 4]),  # published: NaN for a class with one position, which kept nothing
        ("class_mean_std", 0.7, [3]),
    ]:
        method = ILYOLOX(select=select, score=floor)
        method.begin_task(fixed.task(("ant", "bee"), ("cow",)))
        assert torch.nonzero(method.choose(knowledge).mask(40)[0]).squeeze(1).tolist() == expected, select


def test_selection_is_the_same_for_an_image_alone():
    knowledge = fixed.random_outputs(4, 4, images=3)
    for select in ("crs", "threshold", "all_mean_std", "class_mean_std"):
        method = ILYOLOX(select=select)
        method.begin_task(fixed.task(OLD, NEW))
        whole = method.choose(knowledge).mask(84)
        assert whole.any() or select.endswith("std")
        for i in range(3):
            assert torch.equal(method.choose(fixed.slice_images(knowledge, i)).mask(84)[0], whole[i]), select


def test_crs_equals_a_loop_over_positions():
    """.4.1 written out, on random outputs, before NMS."""
    from ciod.core import boxes as bx

    for seed in range(5):
        out = fixed.random_outputs(seed, 4, images=1)
        method = ILYOLOX(nms_iou=1)
        method.begin_task(fixed.task(OLD, NEW))
        s, k = out.logits[0].sigmoid().max(1)
        f = s * out.objectness[0].sigmoid()
        overlap = bx.pairwise_iou(out.boxes[0], out.boxes[0])
        centers = [p for p in range(84) if k[p] < 2 and s[p] >= 0.3]
        expected = [
            q
            for q in range(84)
            if f[q] >= 0.1 and (q in centers or any(k[q] == k[p] and overlap[p, q] >= 0.65 for p in centers))
        ]
        assert torch.nonzero(method.choose(out).mask(84)[0]).squeeze(1).tolist() == expected


def test_without_objectness_the_class_decides():
    """The same selection as with an objectness of 1 everywhere."""
    from dataclasses import replace

    out = fixed.random_outputs(5, 4)
    for select in ("crs", "threshold", "all_mean_std", "class_mean_std"):
        method = ILYOLOX(select=select)
        method.begin_task(fixed.task(OLD, NEW))
        sure = method.choose(replace(out, objectness=torch.full_like(out.boxes[..., 0], 40.0)))
        bare = method.choose(replace(out, objectness=None))
        assert (sure.valid.any() or select.endswith("std")) and torch.equal(sure.mask(84), bare.mask(84)), select
        assert torch.equal(sure.boxes, bare.boxes) and torch.equal(sure.scores, bare.scores), select


@pytest.mark.parametrize("name", ["gfl-pico", "retinanet-nano", "fcos-nano"])
def test_on_detectors_without_objectness(name):
    """Old boxes that the teacher detects are distilled and are not background in the class loss; losses are finite."""
    torch.manual_seed(0)
    student = detectors.build(OLD, name=name, size=SIZE)
    for block in next(iter(student.class_modules().values())).blocks:
        torch.nn.init.constant_(block.bias, 0.0)  # a teacher that sees something
    teacher = student.frozen()
    student.grow(NEW)
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    method = ILYOLOX(center_score=0.0, other_score=0.0)
    method.attach(student, student, teacher)
    method.begin_task(fixed.task(OLD, NEW))
    losses = method.loss(fixed.batch(fixed.boxes_at_random(0, [2, 0], classes=4), images))
    assert {"cls", "box", "distill_cls", "distill_box"} <= losses.keys() and "obj" not in losses
    assert all(v.isfinite() for v in losses.values()) and losses["distill_cls"] > 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


# The whole loss -------------------------------------------------------------------------------------------------------


def silent(classes: int = 4) -> Outputs:
    """A teacher that sees nothing."""
    out = fixed.random_outputs(0, classes)
    out.logits, out.objectness = torch.full_like(out.logits, -9), torch.full_like(out.objectness, -9)
    return out


def test_with_nothing_kept_it_is_plain_yolox(detector):
    student = fixed.random_outputs(1, 4, grad=True)
    real = fixed.boxes_at_random(1, [3, 2], classes=4)
    found = ready(ILYOLOX(), student, silent(), detector).loss(fixed.batch(real))
    plain = detector.loss(student, real, detector.match(student, real))
    for key in plain:
        assert found[key].item() == pytest.approx(plain[key].item(), rel=1e-6), key
    assert found["distill_cls"] == found["distill_box"] == 0


def test_the_names_of_the_losses_do_not_depend_on_the_batch(detector):
    """Every rank returns the same names, whatever its images hold."""
    student = fixed.random_outputs(1, 4, grad=True)
    for teacher in (silent(), fixed.random_outputs(2, 4)):
        for real in (fixed.no_boxes(2), fixed.boxes_at_random(1, [3, 0], classes=4)):
            losses = ready(ILYOLOX(), student, teacher, detector).loss(fixed.batch(real))
            assert list(losses) == ["cls", "box", "obj", "distill_cls", "distill_box"]
            assert all(v.isfinite() and v.shape == () and v.requires_grad for v in losses.values())


def test_a_batch_without_any_box(detector):
    """T4, T5: pseudo and real boxes are both none."""
    student = detectors.build(OLD + NEW, name="yolox-nano", size=SIZE)
    method = ILYOLOX()
    method.attach(student, student, fixed.Returns(silent()))
    method.begin_task(fixed.task(OLD, NEW))
    losses = method.loss(fixed.batch(fixed.no_boxes(2)))
    assert losses["cls"] == losses["box"] == losses["distill_cls"] == losses["distill_box"] == 0
    assert 0 < losses["obj"].item() < 5
    backward(losses)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


def test_pseudo_boxes_come_first_and_have_old_labels(detector):
    student, teacher = fixed.random_outputs(1, 4), fixed.random_outputs(2, 4)
    method = ready(ILYOLOX(), student, teacher, detector)
    kept = method.choose(teacher)
    assert kept.valid.any() and (kept.labels[kept.valid] < len(OLD)).all()
    real = fixed.boxes_at_random(1, [3, 2], classes=2)
    real.labels += 2
    targets = kept.targets + real
    matches = detector.match(student, targets)
    m = kept.position.shape[1]
    label = targets.labels.gather(1, matches.target)
    assert ((label < len(OLD)) == (matches.target < m))[matches.valid].all()


@pytest.mark.parametrize("detach", [True, False])
def test_no_gradient_reaches_the_teacher_or_its_outputs(detector, detach):
    student, teacher = fixed.random_outputs(1, 4, grad=True), fixed.random_outputs(2, 4, grad=True)
    real = fixed.boxes_at_random(1, [3, 2], classes=4)
    method = ready(ILYOLOX(detach_weights=detach), student, teacher, detector)
    knowledge = method.teach(fixed.batch(real))
    kept = method.choose(knowledge)
    assert not kept.boxes.requires_grad and not kept.scores.requires_grad


def test_a_teacher_in_train_mode_is_refused(detector):
    """T1: its batch statistics would drift and depend on the batch."""
    method = ILYOLOX()
    teacher = detector.frozen().train()
    method.attach(detector, detector, teacher)
    method.begin_task(fixed.task(OLD, NEW))
    with pytest.raises(AssertionError):
        method.loss(fixed.batch(fixed.no_boxes(1)))


def taught_beside(neighbour: int, **settings) -> torch.Tensor:
    """What the teacher says of one picture with another one beside it."""
    torch.manual_seed(0)
    student = detectors.build(OLD, name="yolox-pico", size=SIZE)
    teacher, state = student.frozen(), {k: v.clone() for k, v in student.state_dict().items()}
    student.grow(NEW)
    method = ILYOLOX(**settings)
    method.attach(student, student, teacher)
    method.begin_task(fixed.task(OLD, NEW))
    g = torch.Generator().manual_seed(1)
    first = torch.randint(0, 200, (1, 3, SIZE, SIZE), generator=g, dtype=torch.uint8)
    images = torch.cat([first, torch.full_like(first, neighbour)])
    outputs = method.teach(fixed.batch(fixed.no_boxes(2), images))
    again = method.teach(fixed.batch(fixed.no_boxes(2), images))
    assert not any(m.training for m in teacher.modules()) and not outputs.logits.requires_grad
    assert torch.equal(outputs.logits, again.logits)
    weights = {k: v for k, v in teacher.state_dict().items() if "num_batches" not in k}
    assert all(torch.equal(v, state[k]) for k, v in weights.items()), "nothing of the teacher drifts"
    return outputs.logits[0]


def test_batch_statistics_of_the_teacher_are_a_control_of_their_own():
    """T1: by default the teacher is in eval mode and a neighbour in the batch changes nothing it says of a picture."""
    assert ILYOLOX().teacher_norm == "stored"
    assert torch.allclose(taught_beside(0), taught_beside(255), atol=1e-5)
    with pytest.warns(UserWarning, match="repeats a mistake of the published code"):
        dark, light = (taught_beside(n, teacher_norm="batch") for n in (0, 255))
    assert (dark - light).abs().max() > 1e-3
    assert (dark - taught_beside(0)).abs().max() > 1e-3


def test_batch_statistics_need_an_exact_teacher(detector):
    words = ["data=shapes", "split=6+4", "method=ilyolox", "method.teacher_norm=batch"]
    with pytest.raises(ConfigError, match=r"need train\.teacher=exact, not folded"):
        config.load(None, words)
    assert config.load(None, [*words, "teacher=exact"]).train.teacher == "exact"
    method = ILYOLOX(teacher_norm="batch")
    method.attach(detector, detector, speed.fold(detector.frozen()))
    with pytest.raises(CiodError, match=r"folded into the convolutions; write train\.teacher=exact"):
        method.begin_task(fixed.task(OLD, NEW))


@pytest.mark.parametrize("method", [ILYOLOX(), PseudoLabel()], ids=["ilyolox", "pseudo_label"])
def test_a_teacher_never_changes(method):
    torch.manual_seed(0)
    student = detectors.build(OLD, name="yolox-nano", size=SIZE)
    teacher = student.frozen()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    student.grow(NEW)
    method.attach(student, student, teacher)
    method.begin_task(fixed.task(OLD, NEW))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    for i in range(3):
        student.train()
        losses = method.loss(fixed.batch(fixed.boxes_at_random(i, [2, 1], classes=4), images))
        optimizer.zero_grad()
        backward(losses)
        optimizer.step()
        assert not any(m.training for m in teacher.modules())
    for k, v in teacher.state_dict().items():
        assert torch.equal(v, before[k]), k
    assert not any("teacher" in k for k in student.state_dict())
    assert all(p.grad is None for p in teacher.parameters())


def test_at_the_first_step_the_student_is_the_teacher():
    """.10: eval-mode normalisation in both; the student's logits at the kept positions equal the teacher's."""
    torch.manual_seed(0)
    student = detectors.build(OLD, name="yolox-nano", size=SIZE).eval()
    teacher = student.frozen()
    student.grow(NEW)
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    with torch.no_grad():
        a, b = student(images), teacher(images)
    assert torch.equal(a.logits[..., :2], b.logits) and torch.equal(a.boxes, b.boxes)


def test_without_weights_but_old_in_the_ordinary_loss_it_is_pseudo_labelling(detector):
    student, teacher = fixed.random_outputs(1, 4, grad=True), fixed.random_outputs(2, 4)
    batch = fixed.batch(fixed.boxes_at_random(1, [3, 2], classes=4))
    ours = ILYOLOX(select="threshold", score=0.3, cls_weight=0, box_weight=0, old_in_ordinary_loss=True)
    theirs = PseudoLabel(score=0.3, guard_iou=None)
    a = ready(ours, student, teacher, detector).loss(batch)
    b = ready(theirs, student, teacher, detector).loss(batch)
    assert a["distill_cls"] == a["distill_box"] == 0
    assert all(torch.equal(a[k], b[k]) for k in b)


def test_without_weights_only_objectness_knows_the_old_boxes(detector):
    student, teacher = fixed.random_outputs(1, 4, grad=True), fixed.random_outputs(2, 4)
    batch = fixed.batch(fixed.no_boxes(2))
    losses = ready(ILYOLOX(cls_weight=0, box_weight=0), student, teacher, detector).loss(batch)
    assert [losses[k].item() for k in ("cls", "box", "distill_cls", "distill_box")] == [0, 0, 0, 0]
    plain = detector.loss(student, batch.targets, detector.match(student, batch.targets))
    assert losses["obj"] != plain["obj"]


def test_a_pseudo_box_on_a_real_one_is_dropped_with_the_guard(detector):
    student, teacher = fixed.random_outputs(1, 4), fixed.random_outputs(2, 4)
    method = ready(ILYOLOX(), student, teacher, detector)
    kept = method.choose(teacher)
    first = int(torch.nonzero(kept.valid[0])[0])
    real = Targets.pad([kept.boxes[0, first : first + 1], torch.zeros(0, 4)],
                       [torch.tensor([3]), torch.zeros(0, dtype=torch.long)])  # fmt: skip
    guarded = selection.without_real(kept, real, 0.7)
    assert not guarded.valid[0, first] and torch.equal(guarded.valid[1], kept.valid[1])
    assert guarded.valid.any()
    for limit, left in ((None, kept), (0.7, guarded)):
        found = ready(ILYOLOX(guard_iou=limit), student, teacher, detector).loss(fixed.batch(real))
        expected = method.losses(student, teacher, left, real)
        assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_the_first_task_is_fine_tuning_to_the_bit(detector):
    student = fixed.random_outputs(1, 4, grad=True)
    batch = fixed.batch(fixed.boxes_at_random(1, [3, 2], classes=4))
    expected = ready(Finetune(), student, None, detector).loss(batch)
    for method in (ILYOLOX(), PseudoLabel()):
        found = ready(method, student, None, detector).loss(batch)
        assert list(found) == list(expected) and all(torch.equal(found[k], expected[k]) for k in expected)


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"cls_weight": 0, "box_weight": 0}, "both 0, so nothing preserves the old classes"),
        ({"target": "hy3", "weighted": False}, "hy3 only changes the weights"),
        ({"error": "kl", "target": "onehot"}, r"error=kl needs a soft target; method\.target is onehot"),
        ({"error": "kl", "target": "hy1"}, r"error=kl needs a soft target; method\.target is hy1"),
    ],
)
def test_contradictory_settings(settings, match, tmp_path):
    from ciod.config import load as config
    from ciod.core.errors import ConfigError

    assert len(ILYOLOX(**settings).check()) == 1
    words = {"data": "shapes", "method": "ilyolox", **{f"method.{k}": v for k, v in settings.items()}}
    with pytest.raises(ConfigError, match=match):
        config.load(None, words)


def test_default_settings_are_the_papers():
    m = ILYOLOX()
    assert (m.select, m.center_score, m.other_score, m.other_iou) == ("crs", 0.3, 0.1, 0.65)
    assert m.weighted and m.detach_weights and m.target == "soft" and m.error == "bce"
    assert m.check() == []
    assert m.needs <= detectors.traits("yolox-nano")


def test_the_page_has_every_setting_with_its_default():
    page = (Path(__file__).resolve().parents[2] / "docs" / "methods" / "ilyolox.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `(\w+)` \| ([\w.]+) \|", page.split("## Settings")[1].split("\n## ")[0], re.M))
    assert documented == {name: str(f.default).lower() for name, f in ILYOLOX.model_fields.items()}
