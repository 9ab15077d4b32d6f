"""Partial labels: which channels and positions a detector's loss leaves alone, to exactly zero gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ciod import detectors
from ciod.core import losses as L
from ciod.core.types import MEMORY, TASK, Matches, Targets
from ciod.methods.finetune import Finetune
from tests import fixed

BOXES = torch.tensor([[0.0, 0, 20, 20], [40, 40, 60, 60], [10, 40, 30, 60]])


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return detectors.build(("ant", "bee", "cow"), name="yolox-pico", size=64)


def three(scores=((0.1, 0.1, 0.1),) * 3):
    """Three positions, the scores as given (objectness is nearly 1)."""
    return fixed.outputs(fixed.logit(torch.tensor(scores)), BOXES, torch.full((3,), 9.0))


def first_matched(targets: Targets) -> Matches:
    """Position 0 is matched with target 0."""
    n = len(targets.boxes)
    positive = torch.tensor([[True, False, False]]).expand(n, -1)
    zero = torch.zeros(n, 1, dtype=torch.long)
    return Matches(zero, zero, torch.ones(n, 1), torch.ones(n, 1, dtype=torch.bool), positive)


def one_box(**more) -> Targets:
    return replace(Targets.pad([BOXES[:1]], [torch.tensor([0])]), **more)


def test_complete_labels_mask_nothing():
    supervision = L.supervise(three(), one_box(), first_matched(one_box()))
    assert supervision.counted.all() and supervision.matched.all()
    assert supervision.channels is None and supervision.positions is None and supervision.objectness is None


def test_a_class_that_is_not_labelled_spares_detections_of_the_student():
    # Position 1 looks like a bee, position 2 like a cow, position 0 (matched) like a bee too.
    looks = three([[0.1, 0.9, 0.1], [0.1, 0.31, 0.1], [0.1, 0.1, 0.9]])
    targets = one_box(known=torch.tensor([[True, False, True]]))
    supervision = L.supervise(looks, targets, first_matched(targets))
    assert supervision.channels is not None and supervision.at_matches is None
    # A labelled box is of its own class and of no other class, labelled or not.
    assert supervision.channels.tolist() == [[[True, True, True], [True, False, True], [True, False, True]]]
    assert supervision.positions is None
    assert supervision.objectness is not None and supervision.objectness.tolist() == [[True, False, True]]


def test_a_doubtful_box_is_neither_positive_nor_negative():
    targets = one_box(doubtful=torch.tensor([[True]]))
    supervision = L.supervise(three(), targets, first_matched(targets))
    assert not supervision.counted.any() and not supervision.matched.any()
    assert supervision.positions is not None and supervision.positions.tolist() == [[False, True, True]]


def test_without_background_only_matches_count():
    targets = one_box(background=torch.tensor([False]))
    supervision = L.supervise(three(), targets, first_matched(targets))
    assert supervision.counted.all()
    assert supervision.objectness is not None and supervision.objectness.tolist() == [[True, False, False]]


def gradients(detector, targets: Targets, **arguments):
    """Gradients of the summed loss on logits, boxes and objectness of random outputs."""
    out = fixed.random_outputs(3, 3, images=len(targets.boxes))
    leaves = [t.detach().requires_grad_() for t in (out.logits, out.boxes, out.objectness)]
    out = replace(out, logits=leaves[0], boxes=leaves[1], objectness=leaves[2])
    losses = detector.loss(out, targets, detector.match(out, targets), **arguments)
    assert all(v.isfinite() for v in losses.values())
    return out, torch.autograd.grad(sum(losses.values()), leaves)


FAMILIES = ["yolox-pico", "gfl-pico", "retinanet-nano", "fcos-nano"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    torch.manual_seed(0)
    return detectors.build(("ant", "bee", "cow"), name=request.param, size=64).eval()


def class_gradient(detector, targets: Targets, mask=None):
    """The gradient of the class loss on the logits of a picture of noise, and the matched positions.

    Args:
        mask: what ``channels`` to give, from the matches.
    """
    noise = torch.randint(0, 256, (len(targets.boxes), 3, 64, 64), generator=torch.Generator().manual_seed(0))
    out = detector(noise)
    matches = detector.match(out, targets)
    losses = detector.loss(out, targets, matches, channels=None if mask is None else mask(matches))
    return torch.autograd.grad(losses["cls"], out.logits)[0], matches.positive


def two_pictures() -> Targets:
    """An object of class 2 in each."""
    return Targets.pad([torch.tensor([[8.0, 8, 48, 48]])] * 2, [torch.tensor([2])] * 2)


def test_masked_channels_have_exactly_no_gradient(family):
    left = torch.tensor([[True, True, True], [False, True, True]])
    plain, positive = class_gradient(family, two_pictures())
    found, _ = class_gradient(family, two_pictures(), lambda matches: left)
    assert positive.any(1).all() and (plain[1, positive[1], 0] != 0).all()
    assert not found[1, :, 0].any()
    left = left[:, None].expand_as(found)
    assert torch.equal(found[left], plain[left])


def test_channels_masked_only_in_the_background(family):
    """At matches they have the very gradient of an unmasked loss, elsewhere exactly none."""
    new = torch.tensor([False, False, True])
    plain, positive = class_gradient(family, two_pictures())
    found, _ = class_gradient(family, two_pictures(), lambda matches: new | matches.positive[..., None])
    assert torch.equal(found[positive], plain[positive]) and (found[positive] != 0).all()
    assert not found[~positive][:, :2].any() and torch.equal(found[~positive][:, 2], plain[~positive][:, 2])
    assert "objectness" in family.traits or (plain[~positive][:, :2] != 0).any()  # there was something to mask


def test_a_class_that_is_not_drawn_is_absent_where_another_is_drawn(family):
    new = torch.tensor([False, False, True])
    drawn = replace(two_pictures(), known=new.expand(2, 3))
    found, _ = class_gradient(family, drawn)
    expected, _ = class_gradient(family, two_pictures(), lambda matches: new | matches.positive[..., None])
    assert torch.equal(found, expected)
    doubtful = replace(drawn, doubtful=torch.tensor([[True], [False]]))
    found, positive = class_gradient(family, doubtful)
    assert not found[0, :, :2].any() and found[1, positive[1], :2].all()


def test_an_image_without_labels_has_exactly_no_gradient(detector):
    targets = Targets.pad([torch.zeros(0, 4), BOXES[:2]], [torch.zeros(0, dtype=torch.long), torch.tensor([0, 1])])
    targets = replace(targets, known=torch.tensor([[False] * 3, [True] * 3]), background=torch.tensor([False, True]))
    _, found = gradients(detector, targets)
    assert all((g[0] == 0).all() and (g[1] != 0).any() for g in found)


def test_a_doubtful_box_gives_exactly_no_gradient_where_it_matches(detector):
    targets = Targets.pad([BOXES[:2]], [torch.tensor([0, 1])])
    doubtful = replace(targets, doubtful=torch.tensor([[True, False]]))
    out, (logits, boxes, objectness) = gradients(detector, doubtful)
    matches = detector.match(out, doubtful)
    there = matches.position[matches.valid & (matches.target == 0)]
    sure = matches.position[matches.valid & (matches.target == 1)]
    assert len(there) and len(sure)
    assert (objectness[0, there] == 0).all() and (logits[0, there] == 0).all() and (boxes[0, there] == 0).all()
    assert (objectness[0, sure] != 0).all()


def test_sums_of_targets():
    pseudo = replace(one_box(doubtful=torch.tensor([[True]])), known=torch.tensor([[True, False, False]]))
    real = one_box(known=torch.tensor([[False, False, True]]), background=torch.tensor([False]))
    both = pseudo + real
    assert both.doubtful is not None and both.doubtful.tolist() == [[True, False]]
    assert both.known is not None and both.known.tolist() == [[True, False, True]]
    assert both.background is not None and both.background.tolist() == [False]
    plain = one_box() + one_box()
    assert plain.doubtful is None and plain.known is None and plain.background is None


def finetuned(detector, settings, targets, source=None):
    method = Finetune(**settings)
    out = fixed.random_outputs(1, 3, images=len(targets.boxes))
    out.logits.requires_grad_()
    out.objectness.requires_grad_()
    method.attach(fixed.Returns(out), detector, None)
    method.begin_task(fixed.task(("ant", "bee"), ("cow",)))
    losses = method.loss(replace(fixed.batch(targets), source=source))
    return losses, torch.autograd.grad(sum(losses.values()), (out.logits, out.objectness)), out


def test_channels_of_each_rule(family):
    batch = fixed.batch(two_pictures())
    out = family(torch.zeros(2, 3, 64, 64))
    method = Finetune()
    method.attach(family, family, None)
    method.begin_task(fixed.task(("ant", "bee"), ("cow",)))
    matches = family.match(out, batch.targets)

    def channels(rule, source=None):
        return method.channels(rule, replace(batch, source=source), out, matches)

    new = torch.tensor([False, False, True])
    assert channels("all") is None
    assert torch.equal(channels("new"), new.expand(2, 3))
    assert channels("new", torch.tensor([TASK, MEMORY])).tolist() == [[False, False, True], [True, True, True]]
    assert torch.equal(channels("matched"), new | matches.positive[..., None])
    assert channels("matched", torch.tensor([TASK, MEMORY]))[1].all()
    rule = "matched" if type(family).__name__ == "YOLOX" else "new"
    assert torch.equal(channels("auto"), channels(rule))


def test_masked_finetuning_leaves_old_channels_alone(detector):
    targets = Targets.pad([BOXES[:2]], [torch.tensor([2, 2])])
    _, (plain, _), _ = finetuned(detector, {}, targets)
    _, (masked, spared), out = finetuned(detector, {"mask": "new"}, targets)
    _, (also, punished), _ = finetuned(detector, {"mask": "new", "spare": False}, targets)
    assert (plain[..., :2] != 0).any() and (masked[..., :2] == 0).all() and torch.equal(masked, also)
    assert torch.equal(masked[..., 2], plain[..., 2])
    looks_old = out.scores()[0, :, :2].amax(1) >= 0.3
    unmatched = ~detector.match(out, targets).positive[0]
    assert (looks_old & unmatched).any()
    assert (spared[0, looks_old & unmatched] == 0).all() and (punished[0, looks_old & unmatched] > 0).all()
    assert torch.equal(spared[0, ~looks_old], punished[0, ~looks_old])
    for mask in ("matched", "auto"):
        _, (freed, equally), _ = finetuned(detector, {"mask": mask}, targets)
        assert torch.equal(freed, plain) and torch.equal(equally, spared)


def test_masked_finetuning_still_learns_the_old_boxes_of_exemplars(detector):
    targets = Targets.pad([BOXES[:1], BOXES[:1]], [torch.tensor([2]), torch.tensor([0])])
    known = torch.tensor([[True, True, True], [True, True, False]])
    _, (logits, _), _ = finetuned(
        detector, {"mask": "new"}, replace(targets, known=known), torch.tensor([TASK, MEMORY])
    )
    assert (logits[0, :, :2] == 0).all() and (logits[0, :, 2] != 0).any()
    assert (logits[1] != 0).any(0).all()  # an old object is not of the new class either
