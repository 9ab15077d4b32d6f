"""A branch adds classes and changes nothing that was there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ciod import detectors
from ciod.core.errors import CiodError
from ciod.core.types import Targets
from ciod.detectors.files import weights
from ciod.detectors.layers.branch import OFF
from tests import fixed
from tests.detectors.common import silent

SIZE, POSITIONS = 64, 84


def make(names=("ant", "bee", "cow")):
    torch.manual_seed(0)
    detector = detectors.build(names, name="yolox-pico", size=SIZE).eval()
    for m in detector.modules():  # features that are not all alike
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
    return detector


def pictures():
    return torch.randint(0, 256, (2, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


@torch.no_grad()
def test_old_outputs_stay_bit_identical_through_branches_and_rows():
    detector, x = make(), pictures()
    before = detector(x)
    for grow in (
        lambda: detector.add_branch(["dog", "eel"], taught=["bee"]),
        lambda: detector.grow(["fox"]),
        lambda: detector.add_branch(["gnu"]),
    ):
        known, positions = detector.num_classes, before.logits.shape[1]
        grow()
        after = detector(x)
        assert torch.equal(after.logits[:, :positions, :known], before.logits)
        assert torch.equal(after.boxes[:, :positions], before.boxes)
        assert torch.equal(after.objectness[:, :positions], before.objectness)
        before = after
    assert before.logits.shape == (2, 3 * POSITIONS, 7)
    assert detector.parts == [[0, 1, 2, 5], [1, 3, 4], [6]]


@torch.no_grad()
def test_a_position_scores_the_classes_of_its_part_only():
    detector = make()
    detector.add_branch(["dog", "eel"], taught=["bee"])
    logits = detector(pictures()).logits
    assert (logits[:, :POSITIONS, 3:] == OFF).all() and (logits[:, POSITIONS:, [0, 2]] == OFF).all()
    assert (logits[:, POSITIONS:, [1, 3, 4]] > OFF / 2).all()


@torch.no_grad()
def test_file_and_teacher_have_the_same_branches(tmp_path):
    detector = make()
    detector.add_branch(["dog"], taught=["cow"], inner=(0, 7, 9))
    detector.grow(["eel"])
    detector.add_branch(["fox", "gnu"])
    weights.save_model(tmp_path / "m.safetensors", detector)
    x = pictures()
    expected = detector(x)
    for other in (weights.load(tmp_path / "m.safetensors"), detector.frozen()):
        assert other.class_names == detector.class_names and other.growth == detector.growth
        found = other(x)
        assert all(torch.equal(getattr(found, k), getattr(expected, k)) for k in ("logits", "boxes", "objectness"))


@torch.no_grad()
def test_select_keeps_what_stays(tmp_path):
    detector, x = make(), pictures()
    detector.add_branch(["dog", "eel"], taught=["bee"])
    detector.add_branch(["fox"])
    detector.grow(["gnu"])
    full = silent(detector)(x)
    detector.select(["ant", "bee", "eel", "gnu"])  # the branch of fox goes, that of dog loses it
    assert detector.class_names == ("ant", "bee", "eel", "gnu") and detector.parts == [[0, 1, 3], [1, 2]]
    found = detector(x)
    assert torch.allclose(found.logits, full.logits[:, : 2 * POSITIONS, [0, 1, 4, 6]], atol=1e-5)
    weights.save_model(tmp_path / "m.safetensors", detector)
    assert torch.equal(weights.load(tmp_path / "m.safetensors")(x).logits, found.logits)


def test_targets_are_matched_by_the_part_that_has_their_class():
    detector = make()
    detector.add_branch(["dog"], taught=["bee"])
    outputs = detector(pictures())
    targets = fixed.boxes_at_random(2, [4, 4], classes=4, size=SIZE)
    targets.labels[:] = torch.arange(4)
    matches = detector.match(outputs, targets)
    label = targets.labels.gather(1, matches.target)[matches.valid]
    branch = matches.position[matches.valid] >= POSITIONS
    assert branch[label == 3].all() and not branch[(label == 0) | (label == 2)].any()
    assert branch[label == 1].any() and not branch[label == 1].all()  # a taught class is matched in both
    assert branch.any() and not branch.all()
    losses = detector.loss(outputs, targets, matches)
    assert all(v.isfinite() for v in losses.values())


def test_the_loss_of_a_branch_computes_only_the_branch():
    detector = make()
    detector.add_branch(["dog"])
    newest = detector.newest(detector(pictures()))
    targets = Targets.pad([torch.tensor([[8.0, 8, 40, 40]])] * 2, [torch.tensor([3])] * 2)
    losses = detector.loss(newest, targets, detector.match(newest, targets))
    torch.stack(list(losses.values())).sum().backward()
    assert all(
        p.grad is None or not p.grad.any()
        for n, p in detector.named_parameters()
        if n.startswith(("head.cls.", "head.reg.", "head.obj."))
    )
    assert all(p.grad is not None for n, p in detector.named_parameters() if n.startswith("branches."))


def test_class_layers_know_which_class_a_row_is():
    detector = make()
    detector.add_branch(["dog", "eel"], taught=["bee"])
    detector.grow(["fox"])
    rows = [r for r in detector.class_layers() if r.tensor.dim() == 1]
    assert [(r.first, len(r.tensor)) for r in rows] == [(0, 3), (5, 1)] * 3 + [(1, 1), (3, 2)] * 4
    assert rows[-1].name == "branches.0.refiner.cls.blocks.1.bias"
    state = detector.state_dict()
    assert all(state[r.name].shape == r.tensor.shape for r in detector.class_layers())


def test_wrong_branches_are_refused():
    detector = make()
    with pytest.raises(CiodError, match="already knows 'bee'"):
        detector.add_branch(["bee"])
    with pytest.raises(CiodError, match="the taught ones among the known"):
        detector.add_branch([], taught=["yak"])
    with pytest.raises(CiodError, match="A branch needs classes"):
        detector.add_branch([])


def crowded(detector, x):
    """Outputs in which every position of a branch is surer than any of the detector itself."""
    outputs = detector(x)
    known = outputs.parts[0] if outputs.parts else outputs.logits.shape[1]
    outputs.objectness[:, known:] = 9.0
    outputs.logits[:, known:][outputs.logits[:, known:] > OFF / 2] = 9.0
    return outputs


@torch.no_grad()
@pytest.mark.parametrize("room", [1, 3, 100])
@pytest.mark.parametrize("nms_iou", [0.1, 0.65, 1.0])
def test_new_classes_never_push_out_old_boxes(room, nms_iou):
    """The list of old detections is that of before, box by box and in its order, however full it is."""
    detector, x = make(), pictures()
    given = {"score_threshold": 0.0, "max_detections": room, "nms_iou": nms_iou}
    for names in (["dog", "eel"], ["fox"]):
        known = detector.num_classes
        before = detector.decode(crowded(detector, x), **given)
        detector.add_branch(names)
        after = detector.decode(crowded(detector, x), **given)
        for old, new in zip(before, after, strict=True):
            kept = new.keep(new.labels < known)
            assert np.array_equal(kept.boxes, old.boxes)
            np.testing.assert_allclose(kept.scores, old.scores, rtol=1e-6)  # a sigmoid is vectorised by shape
            assert np.array_equal(kept.labels, old.labels) and len(old)
            assert 0 < len(new) - len(old) <= room and (np.diff(new.scores) <= 0).all()
    assert len(after[0]) >= 2 * min(room, 2), "both have their own room"
