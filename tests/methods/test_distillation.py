"""What every distillation method must and must not do, and each one's formula by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from ciod import detectors, methods
from ciod.core import boxes as bx
from ciod.core import losses as L
from ciod.core.types import MEMORY, TASK, Matches, Outputs
from ciod.methods.base import selection
from ciod.methods.base.distillation import Distillation, box_code, categorical_kl, masked_mean
from ciod.methods.erd import ERD
from ciod.methods.finetune import Finetune
from ciod.methods.lwf import LwF
from ciod.methods.rilod import RILOD
from ciod.methods.sid import SID, distance_error
from ciod.methods.yolo_lwf import YOLOLwF
from tests import fixed

OLD, NEW = ("ant", "bee"), ("cow", "dog", "eel")
SIZE = 64
KINDS = [cls for cls in map(methods.find, methods.available()) if issubclass(cls, Distillation)]
NOTHING = {
    LwF: {"cls_weight": 0, "box_weight": 0, "obj_weight": 0},
    RILOD: {"cls_weight": 0, "box_weight": 0, "feature_weight": 0},
    SID: {"weight": 0},
    ERD: {"cls_weight": 0, "box_weight": 0, "obj_weight": 0},
    YOLOLwF: {"c1": 0, "c2": 0},
}
VARIANTS = [
    *(cls() for cls in KINDS),
    LwF(form="kl", over="levels"),
    LwF(over="sum", reduction="image_sum"),
    ERD(nms_scale="stride", box_term="giou"),
    ERD(box_term="smooth_l1"),
    SID(instances="images"),
    YOLOLwF(separate_means=True),
]
variants = pytest.mark.parametrize("method", VARIANTS, ids=lambda m: f"{type(m).__name__}-{len(m.model_fields_set)}")
kinds = pytest.mark.parametrize("cls", KINDS, ids=lambda c: c.__name__)


def answers(seed: int, classes: int, *, bins: int = 0, images: int = 2, grad: bool = False) -> Outputs:
    """Outputs at random with features; with ``bins``: a box distribution in objectness's place."""
    out = fixed.random_outputs(seed, classes, images=images)
    g = torch.Generator().manual_seed(seed + 100)
    maps = [torch.randn(images, 6, SIZE // s, SIZE // s, generator=g) for s in (8, 16, 32)]
    out = replace(out, logits=out.logits - 3, features=maps, towers=[m.flip(1) for m in maps])
    if bins:
        raw = torch.randn(images, out.logits.shape[1], 4, bins, generator=g) * 2
        reach = (raw.softmax(3) * torch.arange(float(bins))).sum(3) * out.strides[:, None]
        boxes = torch.cat([out.points - reach[..., :2], out.points + reach[..., 2:]], 2)
        out = replace(out, objectness=None, distribution=raw, boxes=boxes)
    if grad:
        for t in tensors(out):
            t.requires_grad_()
    return out


def tensors(out: Outputs) -> list[torch.Tensor]:
    single = [out.logits, out.boxes, out.objectness, out.distribution]
    return [t for t in single if t is not None] + out.features + out.towers


def pick(out: Outputs, order: list[int]) -> Outputs:
    """Images of a batch of outputs in another order."""
    changed = {k: t[order] for k in ("logits", "boxes", "objectness", "distribution")
               if (t := getattr(out, k)) is not None}  # fmt: skip
    return replace(out, **changed, features=[f[order] for f in out.features], towers=[f[order] for f in out.towers])


def matched(images: int, positions: int = 84) -> Matches:
    """Positions 3 and 5 are a new object's."""
    positive = torch.zeros(images, positions, dtype=torch.bool)
    positive[:, [3, 5]] = True
    place = torch.tensor([[3, 5]]).expand(images, 2)
    return Matches(place, torch.zeros_like(place), torch.ones(place.shape), torch.ones_like(place).bool(), positive)


def distil(method: Distillation, student: Outputs, teacher: Outputs) -> dict[str, torch.Tensor]:
    method.begin_task(fixed.task(OLD, NEW))
    return method.distill(student, teacher, matched(len(student.logits)))


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(losses.values())).sum()


# Every method ---------------------------------------------------------------------------------------------------------


def test_every_method_is_tested():
    assert set(KINDS) == set(NOTHING)
    assert all(cls.paper and cls.__doc__ for cls in KINDS)


@pytest.mark.parametrize("bins", [0, 9])
@variants
def test_the_loss_is_zero_where_student_and_teacher_agree(method, bins):
    teacher = answers(1, len(OLD), bins=bins)
    student = replace(teacher, logits=torch.cat([teacher.logits, torch.randn(2, 84, 3)], 2))
    student = replace(student, boxes=student.boxes.clone().requires_grad_())
    losses = distil(method, student, teacher)
    assert losses and all(v.item() == 0 for v in losses.values()), losses


@pytest.mark.parametrize("bins", [0, 9])
@variants
def test_terms_are_positive_and_only_old_classes_feel_them(method, bins):
    student = answers(2, 5, bins=bins, grad=True)
    losses = distil(method, student, answers(1, len(OLD), bins=bins))
    assert all(v.shape == () and v.dtype == torch.float32 and v > 0 and v.isfinite() for v in losses.values()), losses
    total(losses).backward()
    assert student.logits.grad is not None
    assert student.logits.grad[..., :2].any() and not student.logits.grad[..., 2:].any()
    assert all(t.grad is None or t.grad.isfinite().all() for t in tensors(student))


@pytest.mark.parametrize("bins", [0, 9])
@variants
def test_images_in_another_order_and_a_larger_teacher_change_nothing(method, bins):
    student, teacher = answers(2, 5, bins=bins, images=3), answers(1, 2, bins=bins, images=3)
    before = distil(method, student, teacher)
    order = [2, 0, 1]
    after = distil(method, pick(student, order), pick(teacher, order))
    full = replace(teacher, logits=torch.cat([teacher.logits, torch.full((3, 84, 3), 9.0)], 2))  # head=full
    larger = distil(method, student, full)
    for k, v in before.items():
        assert after[k].item() == pytest.approx(v.item(), rel=1e-5)
        assert larger[k].item() == v.item()


@pytest.mark.parametrize("bins", [0, 9])
@kinds
def test_the_mean_over_images_does_not_grow_with_the_batch_and_the_sum_does(cls, bins):
    student, teacher = answers(2, 5, bins=bins, images=3), answers(1, 2, bins=bins, images=3)
    alone = [distil(cls(), pick(student, [i]), pick(teacher, [i])) for i in range(3)]
    mean, summed = distil(cls(), student, teacher), distil(cls(reduction="image_sum"), student, teacher)
    for k in mean:
        each = [a[k].item() for a in alone]
        assert mean[k].item() == pytest.approx(sum(each) / 3, rel=1e-5)
        assert summed[k].item() == pytest.approx(sum(each), rel=1e-5)


@pytest.mark.parametrize("bins", [0, 9])
@variants
def test_a_teacher_that_says_the_same_everywhere(method, bins):
    """Nothing stands out of its image: terms of selected positions are 0, never NaN."""
    teacher = answers(1, 2, bins=bins)
    teacher = replace(teacher, logits=torch.zeros_like(teacher.logits), boxes=torch.zeros_like(teacher.boxes))
    if bins:
        teacher = replace(teacher, distribution=torch.zeros(2, 84, 4, bins))
    else:
        teacher = replace(teacher, objectness=torch.zeros(2, 84))
    student = answers(2, 5, bins=bins, grad=True)
    losses = distil(method, student, teacher)
    total(losses).backward()
    assert all(v.isfinite() for v in losses.values())
    assert all(t.grad is None or t.grad.isfinite().all() for t in tensors(student))
    if isinstance(method, ERD):
        assert all(v == 0 for v in losses.values())


def gradients(method, detector, teacher, batch) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    method.attach(detector, detector, teacher)
    method.begin_task(fixed.task(OLD, NEW))
    detector.zero_grad()
    losses = method.loss(batch)
    total(losses).backward()
    return losses, {n: p.grad.clone() for n, p in detector.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def pair():
    """A grown student and its teacher, and a batch they see."""
    torch.manual_seed(0)
    detector = detectors.build(OLD, name="yolox-pico", size=SIZE)
    head: Any = detector.head
    for layer in head.obj:
        torch.nn.init.normal_(layer.weight, std=1.0)  # a teacher that is sure here and there
    teacher = detector.frozen()
    detector.grow(NEW)
    detector.eval()  # batch statistics would differ between two forwards
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), generator=g, dtype=torch.uint8)
    targets = fixed.boxes_at_random(0, [2, 1], classes=3)
    targets.labels = (targets.labels + 2) * targets.valid
    return detector, teacher, fixed.batch(targets, images)


@pytest.mark.parametrize(
    ("mask", "objectness"), [("all", "plain"), ("new", "spare"), ("matched", "spare"), ("auto", "spare")]
)
@kinds
def test_without_weight_it_is_fine_tuning_bit_by_bit(cls, mask, objectness, pair):
    detector, teacher, batch = pair
    plain, expected = gradients(Finetune(mask=mask), detector, None, batch)
    settings = {**NOTHING[cls], "supervise": mask, "objectness": objectness, "unseen": "ignore"}
    losses, found = gradients(cls(**settings), detector, teacher, batch)
    assert all(torch.equal(losses[k], plain[k]) for k in plain)
    assert all(losses[k] == 0 for k in losses.keys() - plain.keys())
    assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)


@pytest.mark.parametrize(("rule", "touched"), [("new", {2}), ("matched", {0, 2}), ("auto", {0, 2}), ("all", {0, 2})])
@kinds
def test_rows_that_real_boxes_touch(cls, rule, touched, pair):
    """``new`` is the papers' rule; on YOLOX, whose class layer learns at matches alone, ``auto`` departs from it."""
    detector, teacher, batch = pair
    _, found = gradients(cls(**NOTHING[cls], supervise=rule), detector, teacher, batch)
    assert {rows.first for rows in detector.class_layers() if found[rows.name].any()} == touched
    if rule in ("matched", "auto"):
        assert cls().supervise == "auto"
        _, all_ = gradients(cls(**NOTHING[cls], supervise="all"), detector, teacher, batch)
        assert all(torch.equal(found[n], all_[n]) for n in all_)


@kinds
def test_where_the_class_loss_is_everywhere_the_papers_rule_holds(cls, pair):
    torch.manual_seed(0)
    detector = detectors.build(OLD, name="gfl-pico", size=SIZE)
    teacher = detector.frozen()
    detector.grow(NEW)
    detector.eval()
    losses, found = gradients(cls(**NOTHING[cls]), detector, teacher, pair[2])
    assert {rows.first for rows in detector.class_layers() if found[rows.name].any()} == {len(OLD)}
    assert "unseen" not in losses
    _, freed = gradients(cls(**NOTHING[cls], supervise="matched"), detector, teacher, pair[2])
    assert {rows.first for rows in detector.class_layers() if freed[rows.name].any()} == {0, len(OLD)}


def test_new_classes_are_absent_where_the_teacher_is_sure_of_an_old_object(pair):
    detector, _, batch = pair
    student, teacher = answers(2, 5, grad=True), answers(1, 2)
    assert teacher.objectness is not None
    method = LwF(objectness_score=0.1, **NOTHING[LwF])
    method.attach(fixed.Returns(student), detector, fixed.Returns(teacher))
    method.begin_task(fixed.task(OLD, NEW))
    sure = (teacher.logits.sigmoid().amax(2) * teacher.objectness.sigmoid()) >= 0.1
    there = sure & ~detector.match(student, batch.targets).positive
    assert there.any() and not there.all()
    term = method.loss(batch)["unseen"]
    expected = -(1 - student.logits[..., 2:].sigmoid())[there].log().sum(1).mean()
    assert term.item() == pytest.approx(expected.item(), rel=1e-5)
    (found,) = torch.autograd.grad(term, student.logits)
    assert (found[there][:, 2:] > 0).all() and not found[~there].any() and not found[..., :2].any()
    method.unseen = "ignore"
    assert "unseen" not in method.loss(batch)


def test_new_rows_start_unsure(pair):
    detector, _, _ = pair
    started = [r for r in detector.class_layers() if r.first >= len(OLD) and r.name.endswith("bias")]
    assert started and all(torch.allclose(r.tensor.sigmoid(), torch.tensor(0.01), atol=1e-4) for r in started)


def test_objectness_of_what_the_teacher_is_sure_of(pair):
    detector, _, batch = pair
    student, teacher = answers(2, 5), answers(1, 2)
    method = LwF(objectness_score=0.1)
    method.attach(fixed.Returns(student), detector, fixed.Returns(teacher))
    method.begin_task(fixed.task(OLD, NEW))
    assert teacher.objectness is not None and student.objectness is not None
    sure = (teacher.logits.sigmoid().amax(2) * teacher.objectness.sigmoid()) >= 0.1
    matches = detector.match(student, batch.targets)
    assert sure.any() and not (sure & matches.positive).all()
    target = (sure | matches.positive).float()
    bce = torch.nn.functional.binary_cross_entropy_with_logits(student.objectness, target, reduction="sum")
    assert method.loss(batch)["obj"].item() == pytest.approx(bce.item() / matches.valid.sum().item(), rel=1e-5)


@kinds
def test_the_first_task_is_fine_tuning(cls, pair):
    detector, _, batch = pair
    method = cls()
    method.attach(detector, detector, None)
    method.begin_task(fixed.task((), OLD + NEW))
    assert set(method.loss(batch)) == {"cls", "box", "obj"}


# Real detectors -------------------------------------------------------------------------------------------------------

DENSE = detectors.offering(frozenset({"dense"}))
FIRST = list({name.split("-")[0]: name for name in reversed(DENSE)}.values())  # one of each family


class Watched:
    """A forward that counts its calls."""

    training = False

    def __init__(self, detector):
        self.detector, self.calls = detector, 0

    def __call__(self, images):
        self.calls += 1
        return self.detector(images)


@pytest.fixture(scope="module", params=FIRST)
def trained(request):
    """A student that has moved away from a teacher whose answers differ from place to place."""
    torch.manual_seed(0)
    detector = detectors.build(OLD, name=request.param, size=SIZE)  # new rows: few positions score high
    for rows in detector.class_layers():
        if rows.name.endswith("weight"):
            torch.nn.init.normal_(rows.tensor, std=5 * rows.tensor[0].numel() ** -0.5)
    teacher = detector.frozen()
    detector.grow(NEW)
    with torch.no_grad():
        for p in detector.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    detector.eval()
    return detector, teacher


@pytest.mark.parametrize("amp", [False, True])
@kinds
def test_a_step_is_one_forward_of_each_and_float32(cls, amp, trained, pair):
    detector, teacher = trained
    student, knows = Watched(detector), Watched(teacher)
    method = cls()
    method.attach(student, detector, knows)
    method.begin_task(fixed.task(OLD, NEW))
    detector.zero_grad()
    images = pair[2].images.clone()
    images[:, :, 24:], images[:, :, :, 24:] = 114, 114  # noise in one corner: a few positions stand out
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        losses = method.loss(replace(pair[2], images=images))
    assert (student.calls, knows.calls) == (1, 1)
    distilled = {k: v for k, v in losses.items() if k in method.distillation_terms}
    assert distilled.keys() == {k for k in losses if k.startswith("distill_")}, "as ciod's own methods name them"
    # Nothing stands out for ERD where an untrained network answers the same everywhere: YOLOX in bf16, FCOS and
    # RetinaNet with their few positions.
    drowned = isinstance(method, ERD) and (amp or type(detector).__name__ in ("FCOS", "RetinaNet"))
    assert len(distilled) >= 2 and (drowned or all(v > 0 for v in distilled.values())), distilled
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())
    total(distilled).backward()
    # The highest maps of a 64-pixel image are 1 × 1; bf16 weight gradients of a convolution on those are not to be
    # relied on (PyTorch on CPUs, at random).
    tiny = ("neck.extra_blocks", "neck.p") if amp else ()
    grads = [p.grad for n, p in detector.named_parameters() if p.grad is not None and not n.startswith(tiny)]
    assert all(g.isfinite().all() for g in grads) and (drowned or any(g.any() for g in grads))
    assert all(p.grad is None for p in teacher.parameters())


def test_labels_of_exemplars_supervise_old_channels_too(pair):
    """Images of the task leave old channels alone; an exemplar's boxes are of old classes."""
    detector, teacher, batch = pair
    targets = fixed.boxes_at_random(3, [2, 2], classes=2)
    batch = replace(batch, targets=targets)
    for source, touched in ((torch.tensor([TASK, TASK]), False), (torch.tensor([TASK, MEMORY]), True)):
        given = replace(batch, source=source)
        _, found = gradients(ERD(**NOTHING[ERD], supervise="new"), detector, teacher, given)
        assert any(found[r.name].any() for r in detector.class_layers() if r.first < len(OLD)) == touched


def test_the_sum_over_images_counts_every_process(monkeypatch):
    values = torch.tensor([1.0, 2.0])
    assert L.over_images(values, "image_mean") == 1.5 and L.over_images(values, "image_sum") == 3
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert L.over_images(values, "image_sum") == 6  # DDP divides by 2 what both processes add up
    assert L.over_images(values, "image_mean") == 1.5


# ERD ------------------------------------------------------------------------------------------------------------------


def test_outliers_of_gaussian_responses_are_selected():
    values = torch.randn(8, 20000, generator=torch.Generator().manual_seed(0))
    share = selection.above_spread(values, 2.0).float().mean(1)
    assert share.mean().item() == pytest.approx(0.0228, abs=0.001) and share.max() < 0.027
    assert torch.equal(selection.above_spread(values * 3 - 5, 2.0), selection.above_spread(values, 2.0))
    by_hand = torch.tensor([[0.0, 0, 0, 0, 0, 0, 0, 0, 0, 1]])  # mean .1, unbiased std .3162: the limit is .7325
    assert selection.above_spread(by_hand, 2.0).sum() == 1 and not selection.above_spread(by_hand, 3.0).any()


def lone(bins: int = 17) -> tuple[Outputs, Outputs]:
    """Ten positions, of which only position 4 stands out for class and box."""
    logits = torch.full((1, 10, 2), -3.0)
    logits[0, 4, 1] = 2.0
    raw = torch.zeros(1, 10, 4, bins)
    raw[0, 4, :, 3] = 30.0
    points = torch.arange(10.0)[:, None].expand(10, 2) * 8
    boxes = torch.cat([points - 8, points + 8], 1)[None]
    teacher = Outputs(logits, boxes, points, torch.full((10,), 8.0), distribution=raw)
    raw = raw.clone()
    raw[0, 4, 0] = raw[0, 4, 0].roll(1)  # the left side is one bin off
    grown = torch.cat([logits + 0.5, torch.full((1, 10, 3), 4.0)], 2)
    return replace(teacher, logits=grown.requires_grad_(), distribution=raw.requires_grad_()), teacher


def test_terms_of_erd_by_hand():
    student, teacher = lone()
    losses = distil(ERD(cls_weight=1, box_weight=1), student, teacher)
    assert losses["distill_cls"].item() == pytest.approx(0.25, rel=1e-6)  # (0.5)² at the one chosen position
    # At τ = 10 the teacher's side is e³ at one bin and 1 at 16: KL = p·3 − q·3 with p the peak and q another bin.
    peak, other = math.exp(3) / (math.exp(3) + 16), 1 / (math.exp(3) + 16)
    kl, weight = 3 * (peak - other), 1 / (1 + math.exp(-2.5))
    expected = 0.25 * weight * 100 / 17 * kl / 4
    assert losses["distill_box"].item() == pytest.approx(expected, rel=1e-5)
    total(losses).backward()
    for leaf in (student.logits, student.distribution):
        assert leaf is not None and leaf.grad is not None
        elsewhere = leaf.grad.clone()
        elsewhere[:, 4] = 0
        assert leaf.grad[:, 4].any() and not elsewhere.any()


@pytest.mark.parametrize(("term", "error"), [("giou", 0.5), ("smooth_l1", (math.log(2) ** 2 / 2 + 0.5**2 / 2) / 4)])
def test_box_terms_without_a_distribution(term, error):
    """The student's box is the left half of the teacher's: IoU ½; centre half a stride off, log width by log 2."""
    student, teacher = lone()
    boxes = student.boxes.clone()
    boxes[..., 2] -= 8
    student = replace(student, boxes=boxes, distribution=None)
    found = distil(ERD(box_weight=1, box_term=term), student, replace(teacher, distribution=None))["distill_box"]
    assert found.item() == pytest.approx(0.25 * error / (1 + math.exp(-2.5)), rel=1e-5)


def test_objectness_is_held_where_classes_are():
    student, teacher = lone()
    student, teacher = (replace(o, distribution=None, objectness=torch.zeros(1, 10)) for o in (student, teacher))
    assert student.objectness is not None
    student.objectness[0, 4], student.objectness[0, 5] = 3.0, 7.0
    assert distil(ERD(), student, teacher)["distill_obj"].item() == pytest.approx(9.0)


def test_nms_among_candidates_is_class_wise_and_keeps_the_surer():
    torch.manual_seed(0)
    teacher = answers(1, 2, bins=9)
    method = ERD(nms_iou=0.3)
    method.begin_task(fixed.task(OLD, NEW))
    kept, candidate = method.choose_boxes(teacher), method.candidates(teacher)
    assert (kept.mask(84) <= candidate).all() and 0 < kept.valid.sum() < candidate.sum()
    for b in range(2):
        boxes, labels = kept.boxes[b][kept.valid[b]], kept.labels[b][kept.valid[b]]
        clash = (bx.pairwise_iou(boxes, boxes) > 0.3) & (labels[:, None] == labels) & ~torch.eye(len(boxes)).bool()
        assert not clash.any()


# LwF ------------------------------------------------------------------------------------------------------------------


def test_terms_of_lwf_by_hand():
    teacher = answers(1, 2)
    student = replace(teacher, logits=torch.cat([teacher.logits + 0.5, teacher.logits], 2))
    assert teacher.objectness is not None
    student = replace(student, objectness=teacher.objectness + 2, boxes=teacher.boxes + 4)
    losses = distil(LwF(), student, teacher)
    assert losses["distill_cls"].item() == pytest.approx(0.25, rel=1e-5)
    assert losses["distill_obj"].item() == pytest.approx(4.0, rel=1e-5)
    # 64, 16 and 4 cells; the centre is 4/8, 4/16, 4/32 strides off in x and y
    assert losses["distill_box"].item() == pytest.approx((64 / 4 + 16 / 16 + 4 / 64) / 84 / 2, rel=1e-4)
    levels = distil(LwF(over="levels"), student, teacher)
    assert levels["distill_box"].item() == pytest.approx((1 / 4 + 1 / 16 + 1 / 64) / 3 / 2, rel=1e-4)
    summed = distil(LwF(over="sum"), student, teacher)
    assert summed["distill_cls"].item() == pytest.approx(0.25 * 84 * 2, rel=1e-5)


def test_kl_of_lwf_by_hand():
    teacher, student = fixed.outputs([[2.0]], [[0, 0, 8, 8.0]], [0.0]), fixed.outputs([[0.0]], [[0, 0, 8, 8.0]], [0.0])
    method = LwF(form="kl")
    method.begin_task(fixed.task(("ant",), NEW))
    p = 1 / (1 + math.exp(-1))  # T = 2
    expected = 4 * (p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5))
    assert method.distill(student, teacher, matched(1, 6))["distill_cls"].item() == pytest.approx(expected, rel=1e-5)


def test_the_box_code_is_what_yolox_regresses():
    from ciod.detectors.yolox import STRIDES, assemble

    g = torch.Generator().manual_seed(0)
    maps = [[torch.randn(2, n, 64 // s, 64 // s, generator=g) for s in STRIDES] for n in (2, 4, 1)]
    raw = torch.cat([m.flatten(2) for m in maps[1]], 2).transpose(1, 2)
    code = box_code(assemble(*maps)) + torch.tensor([0.5, 0.5, 0, 0])  # ours is from the cell's centre
    assert torch.allclose(code, raw, atol=1e-4)


# RILOD, SID, YOLO LwF -------------------------------------------------------------------------------------------------


def test_terms_of_rilod_by_hand():
    teacher = replace(answers(1, 2), objectness=None)
    student = replace(teacher, features=[m + 3 for m in teacher.features])
    boxes = teacher.boxes.clone()
    boxes[:, 3] += 100  # a new object's position: no term
    boxes[:, 0] += 4  # half a stride: ½ · 0.5² of two of four channels
    losses = distil(RILOD(), replace(student, boxes=boxes), teacher)
    assert losses["distill_feature"].item() == pytest.approx(2.5, rel=1e-5)
    assert losses["distill_box"].item() == pytest.approx(0.125 / 2 / 82, rel=1e-4)
    assert losses["distill_cls"].item() == 0
    flat = replace(teacher, logits=torch.full_like(teacher.logits, 30.0))
    unsure = replace(flat, logits=torch.zeros_like(teacher.logits))
    assert distil(RILOD(), unsure, flat)["distill_cls"].item() == pytest.approx(0.25, rel=1e-5)


def test_distances_between_instances_by_hand():
    teacher = torch.tensor([[[0.0, 0], [3, 4], [0, 4]]])  # distances 5, 4, 3
    student = torch.tensor([[[0.0, 0], [0, 1], [0, 1]]], requires_grad=True)  # 1, 1, 0
    error = distance_error(student, teacher)
    assert error.item() == pytest.approx((16 + 9 + 9) / 3, rel=1e-4)
    error.sum().backward()
    assert student.grad is not None and student.grad.isfinite().all()
    assert distance_error(student + 7, student).item() == pytest.approx(0, abs=1e-6)  # only distances count
    assert distance_error(student[:, :1], teacher[:, :1]).item() == 0


def test_sid_relates_the_teachers_best_positions_and_prefers_the_tower():
    teacher = answers(1, 2)
    method = SID(top=3)
    base = distil(method, answers(2, 5), teacher)
    score = teacher.scores().amax(2)
    best = score.topk(3, 1).indices
    mine, theirs = (torch.cat([m.flatten(2) for m in answers(s, 2).towers], 2).transpose(1, 2) for s in (2, 1))
    pair = [torch.cdist(bx.gather_rows(x, best), bx.gather_rows(x, best)) for x in (mine, theirs)]
    expected = (pair[0] - pair[1]).square().sum((1, 2)).mean() / 2 / 3
    assert base["distill_relation"].item() == pytest.approx(expected.item(), rel=1e-4)
    other = replace(answers(2, 5), features=teacher.features)
    assert distil(method, other, teacher)["distill_feature"].item() == base["distill_feature"].item()
    without = [replace(o, towers=[]) for o in (other, teacher)]
    assert distil(method, *without)["distill_feature"].item() == 0
    assert {k for k in base if "box" in k} == set()


def test_terms_of_yolo_lwf_by_hand():
    student, teacher = lone()
    boxes = student.boxes.clone()
    boxes[..., 2] -= 8  # IoU ½, centres 4 apart, hull 16 × 16
    agreement = (1 + 0.5 - 16 / 512) / 2
    student = replace(student, boxes=boxes)
    losses = distil(YOLOLwF(c1=1, c2=1), student, teacher)
    z = teacher.logits
    p, q = z.sigmoid(), (z + 0.5).sigmoid()
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert losses["distill_cls"].item() == pytest.approx(agreement * kl.mean().item(), rel=1e-3)
    peak, other = 1 / (1 + 16 * math.exp(-15)), 1 / (math.exp(15) + 16)
    side = 15 * (peak - other) / 4  # of the four sides one is off
    assert losses["distill_box"].item() == pytest.approx(side / 10 / (1 + math.exp(-2)), rel=1e-3)


def test_separate_means_lose_the_weight_of_a_position():
    student, teacher = answers(2, 5), answers(1, 2)
    apart = distil(YOLOLwF(separate_means=True), student, teacher)["distill_cls"]
    weight = (1 + bx.diou(student.boxes, teacher.boxes)) / 2
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    error = bce(student.logits[..., :2], teacher.logits.sigmoid(), reduction="none")
    error = error - bce(teacher.logits, teacher.logits.sigmoid(), reduction="none")
    assert apart.item() == pytest.approx(4000 * (weight.mean(1) * error.mean((1, 2))).mean().item(), rel=1e-3)
    assert apart.item() != pytest.approx(distil(YOLOLwF(), student, teacher)["distill_cls"].item(), rel=1e-3)


def test_a_mean_over_nothing():
    mask = torch.tensor([[True, True, False], [False, False, False]])
    values = torch.tensor([[1.0, 3.0, math.inf], [math.nan, 1, 1]])
    assert masked_mean(values, mask).tolist() == [2.0, 0.0]
    same = torch.randn(5, 7)
    assert not categorical_kl(same, same, 3.0).any()
