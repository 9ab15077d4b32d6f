"""ABR: which boxes are kept, how they are pasted, its terms against the paper's formulas, what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn

from ciod import detectors
from ciod.core.types import MEMORY, TASK, Targets
from ciod.methods import find
from ciod.methods.abr import attention, attention_error
from tests import fixed
from tests.data.writers import sample_index
from tests.detectors.common import pictures
from tests.detectors.test_contract import lively

OLD, NEW, SIZE = ("ant", "bee"), ("cow", "dog", "eel"), 64


def learner(method, **kept):
    """The method in its second task, with two kept boxes of each old class: one colour for each class."""
    torch.manual_seed(0)
    detector = lively(detectors.build(OLD, name="fasterrcnn-pico", size=SIZE))
    nn.init.normal_(detector.head.cls.blocks[0].weight, std=0.3)
    teacher = detector.frozen()
    detector.grow(NEW)
    labels = torch.tensor([0, 1, 0, 1])
    pixels = (labels * 100 + 50).to(torch.uint8).view(4, 1, 1, 1).expand(-1, 3, 8, 8).clone()
    method.load_state({"pixels": pixels, "shapes": torch.full((4, 2), 0.25), "labels": labels, **kept})
    method.attach(detector.eval(), detector, teacher)
    method.begin_task(fixed.task(OLD, NEW))
    return detector


def a_batch(n: int = 2, source=None):
    batch = fixed.batch(fixed.boxes_at_random(1, [3, 1, *[0] * (n - 2)], classes=1, size=SIZE), pictures(n))
    batch.targets.labels += 2 * batch.targets.valid
    batch.source = None if source is None else torch.tensor(source)
    return batch


def test_attention_and_its_loss_are_the_papers():
    mine, theirs = (torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    valid = torch.tensor([[True, True, False], [True, False, False]])
    a, b = mine.double().numpy(), theirs.double().numpy()
    terms = []
    for i, r in np.argwhere(valid.numpy()):
        looks = [25 * softmax((m[i, r] ** 2).mean(0)) for m in (a, b)]
        root = np.sqrt(looks[1])
        terms.append(((a[i, r] * root - b[i, r] * root) ** 2).mean() + 5 * np.abs(looks[0] - looks[1]).mean())
    assert attention_error(mine, theirs, valid, 5.0).item() == pytest.approx(np.mean(terms), abs=1e-5)
    assert attention(mine).mean((2, 3)).numpy() == pytest.approx(np.ones((2, 3)), abs=1e-5)


def test_two_boxes_are_blended_into_a_picture_and_labelled():
    method = find("abr")(mixup=1.0, mosaic=0.0)
    learner(method)
    batch = a_batch()
    found = method.pasted(batch)
    boxes, labels, valid = (v[:, -6:-4] for v in (found.targets.boxes, found.targets.labels, found.targets.valid))
    assert valid.all() and not found.targets.valid[:, -4:].any() and (labels < 2).all()
    side = boxes[..., 2:] - boxes[..., :2]
    assert torch.allclose(side, torch.tensor(16.0)) and boxes.min() >= 0 and boxes.max() <= SIZE
    n = batch.targets.valid.shape[1]
    assert torch.equal(found.targets.valid[:, :n], batch.targets.valid), "the real boxes stay"
    x1, y1, x2, y2 = boxes[0, 1].round().int().tolist()
    middle = (slice(y1 + 1, y2 - 1), slice(x1 + 1, x2 - 1))
    colour = float(labels[0, 1]) * 100 + 50
    was, now = batch.images[0, 0][middle].float(), found.images[0, 0][middle]
    changed = (now - was).abs() > 1e-3
    towards = (colour - was).sign()
    assert ((now - was).sign() == towards)[changed].float().mean() > 0.9, "towards the kept box"
    changed = (found.images - batch.images.float()).abs().amax(1) > 1e-3
    for b in range(2):
        inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        for x1, y1, x2, y2 in boxes[b].tolist():
            inside[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] = True
        assert not changed[b][~inside].any(), "outside the boxes nothing changes"


def test_a_mosaic_is_four_kept_boxes():
    method = find("abr")(mixup=0.0, mosaic=1.0)
    learner(method)
    batch = a_batch()
    found = method.pasted(batch)
    targets = found.targets
    assert targets.valid[:, -4:].all() and not targets.valid[:, :-4].any(), "no real box is left"
    for b in range(2):
        for box, label in zip(targets.boxes[b, -4:], targets.labels[b, -4:], strict=True):
            x1, y1, x2, y2 = box.round().int().tolist()
            part = found.images[b, :, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1]
            assert torch.allclose(part, part.new_tensor(float(label) * 100 + 50))
    area = (targets.boxes[:, -4:, 2:] - targets.boxes[:, -4:, :2]).prod(2).sum(1)
    assert torch.allclose(area, torch.tensor(float(SIZE**2)))
    x, y = targets.boxes[:, -1, :2].unbind(1)
    assert (torch.cat([x, y]) >= 0.4 * SIZE).all() and (torch.cat([x, y]) <= 0.6 * SIZE).all()


def test_half_of_the_pictures_stay_as_they_are():
    method = find("abr")()
    learner(method)
    batch = a_batch(40)
    found = method.pasted(batch)
    same = (found.images == batch.images).flatten(1).all(1)
    assert 8 <= int(same.sum()) <= 32 and not found.targets.valid[same][:, -6:].any()


def test_what_is_pasted_does_not_depend_on_the_batch():
    method = find("abr")(mixup=0.5, mosaic=0.5)
    learner(method)
    batch = a_batch(8)
    whole = method.pasted(batch)
    for own in (slice(0, 4), slice(4, 8)):
        t = batch.targets
        part = replace(batch, images=batch.images[own], targets=Targets(t.boxes[own], t.labels[own], t.valid[own]))
        found = method.pasted(part)
        assert torch.equal(found.images, whole.images[own])
        assert torch.equal(found.targets.boxes, whole.targets.boxes[own])
        assert torch.equal(found.targets.valid, whole.targets.valid[own])


@pytest.mark.parametrize("source", [None, (TASK, MEMORY)], ids=["task", "with memory"])
def test_without_kept_boxes_and_attention_it_is_mma(source):
    method, plain = find("abr")(weight=0.5, attention_weight=0), find("mma")(weight=0.5)
    learner(method, labels=torch.zeros(0, dtype=torch.long))
    learner(plain)
    losses, wanted = method.loss(a_batch(source=source)), plain.loss(a_batch(source=source))
    assert {k: v.item() for k, v in losses.items() if k != "distill_attention"} == pytest.approx(
        {k: v.item() for k, v in wanted.items()}, rel=1e-5
    )
    assert losses["distill_attention"].item() == 0


def test_a_step_trains_every_parameter_and_a_pasted_old_class():
    method = find("abr")(mixup=0.0, mosaic=1.0)
    detector = learner(method)
    detector.train()
    losses = method.loss(a_batch())
    assert method.distillation_terms <= set(losses)
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    old = detector.head.cls.blocks[0].weight
    assert (torch.autograd.grad(method.loss(a_batch())["cls"], old)[0].abs().sum(1) > 0).all()


def test_boxes_nearest_to_the_mean_are_kept_and_survive_a_crash(tmp_path):
    index = sample_index(tmp_path, images=6, names=(*OLD, *NEW))
    method = find("abr")(crops=10, side=16)
    kept = torch.full((4, 3, 16, 16), 7, dtype=torch.uint8)
    detector = learner(method, pixels=kept)
    task = replace(fixed.task(OLD, NEW), train=index.relabel(detector.class_names))
    method.end_task(task)
    state = method.state()
    counts = torch.bincount(state["labels"], minlength=5)
    assert (counts[:2] == 2).all() and (counts[2:] <= 2).all() and counts[2:].any()
    assert state["pixels"].shape[0] == len(state["labels"]) == len(state["shapes"])
    assert state["pixels"].dtype == torch.uint8 and (state["shapes"] > 0).all() and (state["shapes"] <= 1).all()
    places, labels, features = method.seen(task.train)
    for c in (2, 3, 4):
        own = torch.nonzero(labels == c)[:, 0]
        if len(own) > 2:
            apart = (features[own] - features[own].mean(0)).norm(dim=1)
            pixels, _ = method.cut(task.train, places[own[apart.argsort()[:2]]])
            assert torch.equal(state["pixels"][state["labels"] == c], pixels)
    other = find("abr")(crops=10, side=16)
    other.load_state(state)
    assert torch.equal(other.state()["pixels"], state["pixels"])


def test_shares_above_one_are_refused():
    assert find("abr")(mixup=0.6, mosaic=0.5).check() == [
        "method.mixup=0.6 and method.mosaic=0.5 are shares: their sum is above 1."
    ]
