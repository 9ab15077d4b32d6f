"""The second stage that corrects the boxes of a branch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ciod.core import boxes as bx
from ciod.core.types import Outputs, Targets
from ciod.detectors.files import weights
from ciod.detectors.layers import refiner as rf
from ciod.detectors.layers.refiner import Refiner, moved
from ciod.detectors.layers.sampling import samples
from ciod.exporters.onnx_file import export
from tests.detectors.common import confident, make, pictures


def awake(detector):
    """The refiners of its branches correct something; at the start they do not."""
    torch.manual_seed(5)
    for branch in detector.branches:
        for p in branch.refiner.parameters():
            nn.init.normal_(p, std=0.3)
    return detector.eval()


def test_samples_are_those_of_grid_sample():
    m = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[[9.0, 14, 30, 32], [12, 8, 44, 36]], [[12, 12, 20, 30], [30, 20, 36, 26]]])
    found = samples(m, boxes, stride=8, count=4, scale=1.25)
    place = (torch.arange(4) + 0.5) / 4 - 0.5
    for n, box in enumerate(boxes.flatten(0, 1)):
        centre, side = (box[:2] + box[2:]) / 2, ((box[2:] - box[:2]) * 1.25).clamp(min=8)
        x, y = ((centre[i] + place * side[i]) / 8 / cells * 2 - 1 for i, cells in ((0, 7), (1, 6)))
        at = torch.stack([x[None].expand(4, 4), y[:, None].expand(4, 4)], -1)
        expected = F.grid_sample(m[n // 2, None], at[None], padding_mode="border", align_corners=False)
        torch.testing.assert_close(found[n], expected[0])


def test_samples_by_hand():
    m = torch.arange(12.0).view(1, 1, 3, 4)
    inside = samples(m, torch.tensor([[[8.0, 8, 24, 24]]]), stride=8, count=2)
    assert inside.flatten().tolist() == [5, 6, 9, 10], "points at pixels 12 and 20, the centres of cells 1 and 2"
    small = samples(m, torch.tensor([[[12.0, 12, 12, 12]]]), stride=8, count=2)
    assert small.flatten().tolist() == [3.75, 4.25, 5.75, 6.25], "as of a box of one cell around the point"
    odd = torch.tensor([[[-1e9, 0.0, 8, 8], [float("nan"), 0, float("inf"), 8]]])
    assert samples(m, odd, stride=8, count=2).isfinite().all()
    outside = samples(m, torch.tensor([[[-90.0, 0, -60, 8]]]), stride=8, count=2)
    assert not outside.any(), "0 more than a cell outside"


def test_moved_by_hand():
    found = moved(torch.tensor([10.0, 20, 30, 60]), torch.tensor([0.5, -0.25, math.log(2), 0.0]))
    assert found.tolist() == pytest.approx([10, 10, 50, 50])
    far = moved(torch.tensor([0.0, 0, 2, 2]), torch.tensor([0.0, 0, 50, -50]))
    assert far.tolist() == pytest.approx([1 - math.e, 1 - 1 / math.e, 1 + math.e, 1 + 1 / math.e])


def test_before_training_a_branch_has_the_boxes_of_its_layers():
    plain, corrected = make(seed=3), make(seed=3)
    for detector, refine in ((plain, False), (corrected, True)):
        torch.manual_seed(4)
        detector.add_branch(["dog"], refine=refine)
    corrected.load_state_dict(plain.state_dict(), strict=False)
    x = pictures()
    with torch.no_grad():
        a, b = plain.eval()(x), corrected.eval()(x)
    torch.testing.assert_close(a.boxes, b.boxes)
    assert torch.equal(a.logits, b.logits)


def test_only_the_best_positions_of_a_branch_are_corrected():
    detector = make()
    x = pictures()
    with torch.no_grad():
        base = detector.eval()(x)
    detector.add_branch(["dog"]).refiner.candidates = 5
    with torch.no_grad():
        before = confident(detector).eval()(x)
        after = awake(detector)(x)
    own = base.boxes.shape[1]
    assert torch.equal(after.boxes[:, :own], base.boxes), "old boxes stay bit-identical"
    assert torch.equal(after.scores(), before.scores())
    changed = (after.boxes != before.boxes).any(2)[:, own:]
    best = before.scores()[:, own:].amax(2).topk(5).indices
    assert not changed.scatter(1, best, torch.zeros(2, 5, dtype=torch.bool)).any()
    assert changed.gather(1, best[:, :3]).any(1).all() and not changed.gather(1, best[:, 4:]).any()


def test_corrections_fade_out_towards_the_last_score():
    refiner = Refiner(4, 8)
    nn.init.ones_(refiner.change.bias)
    boxes = torch.tensor([[[0.0, 0, 10, 10]] * 3])
    half = 0.5 * (0.5 * rf.FADE + rf.FLOOR)
    logits = torch.tensor([[0.5, 0.5 + half, 0.9]]).logit()[..., None]
    given = Outputs(logits, boxes, torch.zeros(3, 2), torch.ones(3))
    found = refiner.answer(given, torch.zeros(1, 4, 4, 4)).boxes
    whole = moved(boxes[0, 0], torch.full((4,), rf.STEP))
    for box, share in zip(found[0], (0, 0.5, 1), strict=True):
        torch.testing.assert_close(box, boxes[0, 0] + share * (whole - boxes[0, 0]))


def test_the_loss_by_hand():
    refiner = Refiner(4, 8)
    boxes = torch.tensor([[[0.0, 0, 10, 10], [5, 5, 9, 9]]])
    targets = torch.tensor([[[0.0, 0, 20, 10], [0, 0, 1, 1]]])
    position = torch.tensor([[3, 70]])
    counted = torch.tensor([[True, False]])
    near = torch.zeros(1, rf.WIDTH, 4, 4)
    other = moved(boxes[0, 0], refiner.moves[3])
    apart = 10 / 20 + ((other - targets[0, 0]).abs() / torch.tensor([20.0, 10, 20, 10])).sum()
    overlap = 0.5 + bx.iou(other, targets[0, 0])
    expected = rf.WEIGHT * (apart + 2 - overlap) / 2
    row = torch.zeros_like(position)
    found = refiner.loss(near, boxes, targets, position, counted, row)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    none = refiner.loss(near, boxes, targets, position, torch.zeros_like(counted), row)
    assert none.item() == 0


def test_the_loss_of_classes_by_hand():
    refiner = Refiner(4, 8, blocks=[1, 2])
    with torch.no_grad():
        for block, bias in zip(refiner.cls.blocks, ([0.3], [-1.2, 0.7]), strict=True):
            block.weight.zero_()
            block.bias.copy_(torch.tensor(bias))
    box = torch.tensor([[[0.0, 0, 10, 10]]])
    position, row, counted = torch.tensor([[3]]), torch.tensor([[2]]), torch.tensor([[True]])
    near = torch.zeros(1, rf.WIDTH, 4, 4)
    plain = Refiner(4, 8).loss(near, box, box, position, counted, row)
    wrong = [math.log1p(math.exp(x)) for x in (0.3, -1.2, -0.7)]
    found = refiner.loss(near, box, box, position, counted, row) - plain
    assert found.item() == pytest.approx(rf.WEIGHT * sum(wrong), rel=1e-5)
    taught = torch.tensor([[[0.0, 1, 1]]])
    found = refiner.loss(near, box, box, position, counted, row, taught) - plain
    assert found.item() == pytest.approx(rf.WEIGHT * sum(wrong[1:]), rel=1e-5), "masked classes teach nothing"


def test_scores_of_classes_are_multiplied_by_the_root_of_what_the_second_stage_says():
    refiner = Refiner(4, 8, blocks=[2])
    with torch.no_grad():
        refiner.cls.blocks[0].weight.zero_()
        refiner.cls.blocks[0].bias.copy_(torch.tensor([0.2, 0.8]).logit())
    first = torch.tensor([[[0.9, 0.3], [0.1, 0.2], [0.05, 0.04]]])
    given = Outputs(first.logit(), torch.rand(1, 3, 4), torch.zeros(3, 2), torch.ones(3))
    found = refiner.answer(given, torch.zeros(1, 4, 4, 4)).logits.sigmoid()
    torch.testing.assert_close(found[0, :2], first[0, :2] * torch.tensor([0.2, 0.8]).sqrt())
    torch.testing.assert_close(found[0, 2], first[0, 2], msg="the last of the best fades out")


def test_a_sure_logit_stays_finite():
    sure = torch.tensor([80.0, 15.0, -200.0])
    assert torch.equal(rf.lowered(sure, torch.zeros(3)), sure)
    found = rf.lowered(sure, torch.full((3,), -1e-20))
    assert found.isfinite().all() and (found[:2] > 14).all() and found[2] == -200


def test_it_learns_where_edges_are():
    torch.manual_seed(0)
    refiner = Refiner(2, 4)
    optimizer = torch.optim.AdamW(refiner.parameters(), 0.01)
    corner = torch.randint(3, 9, (16, 1, 2)) * 4
    truth = torch.cat([corner, corner + torch.randint(4, 8, (16, 1, 2)) * 4], 2).float()
    cell = torch.arange(20) * 4 + 2
    inside = [(cell > truth[..., i]) & (cell < truth[..., i + 2]) for i in (0, 1)]  # [16, 20] columns, rows
    image = (inside[1][:, :, None] & inside[0][:, None, :]).float()
    early = torch.stack([image, 1 - image], 1)
    shifts = torch.randn(16, 1, 4) * torch.tensor([0.12, 0.12, 0.15, 0.15])
    wrong, position = moved(truth, shifts), torch.arange(16)[:, None]
    for _ in range(60):
        loss = refiner.loss(refiner.read(early), wrong, truth, position, torch.ones(16, 1, dtype=torch.bool), position)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found, _ = refiner.eval()(refiner.read(early), wrong)
    assert bx.iou(found, truth).mean() > bx.iou(wrong, truth).mean() + 0.1


@pytest.mark.parametrize("name", ["yolox-nano", "gfl-pico"])
def test_only_the_refiner_learns_from_its_loss(name):
    detector = make(name)
    detector.add_branch(["dog", "eel"])
    detector.train()
    awake(detector).train()
    outputs = detector.newest(detector(pictures()))
    targets = Targets.pad([torch.tensor([[5.0, 5, 40, 40]])] * 2, [torch.tensor([3])] * 2)
    losses = detector.loss(outputs, targets, detector.match(outputs, targets))
    losses["refine"].backward()
    touched = {n for n, p in detector.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched and all(".refiner." in n or n.startswith(("backbone.", "neck.")) for n in touched)
    assert any(".refiner.cls." in n for n in touched)
    detector.eval()
    assert detector(pictures()).near is None, "in eval mode boxes are corrected, and nothing is learnt"


def test_files_keep_it_and_files_without_it_still_read(tmp_path):
    detector = make()
    detector.add_branch(["dog"], refine=False)
    detector.add_branch(["eel"])
    detector.add_branch(["fox", "gnu"], taught=["bee"])
    detector.add_branch(["hen", "ibis"], rescore=False)
    x = pictures()
    torch.manual_seed(5)
    for branch in list(detector.branches)[1:]:
        for p in branch.refiner.parameters():
            nn.init.normal_(p, std=0.3)
    with torch.no_grad():
        expected = detector.eval()(x)
    weights.save_model(tmp_path / "model.safetensors", detector)
    read = weights.load(tmp_path / "model.safetensors").eval()
    assert read.branches[0].refiner is None and read.branches[1].refiner is not None
    assert [step.get("refine") for step in read.growth] == [None, None, *[rf.HIDDEN] * 3]
    assert [step.get("rescore", False) for step in read.growth] == [False, False, False, True, False]
    assert [branch.refiner.cls.sizes for branch in list(read.branches)[1:]] == [[], [1, 2], []]
    with torch.no_grad():
        found = read(x)
    assert torch.equal(found.boxes, expected.boxes) and torch.equal(found.logits, expected.logits)


def test_classes_that_are_dropped_leave_the_others_as_they_were():
    detector = make()
    detector.add_branch(["dog", "eel", "fox"], taught=["bee"])
    refiner = awake(detector).branches[0].refiner
    near, boxes = torch.randn(1, rf.WIDTH, 9, 9), torch.tensor([[[3.0, 9, 40, 50]]])
    before = refiner(near, boxes)[1]
    detector.select([n for n in detector.class_names if n not in ("bee", "eel")])
    assert refiner.cls.sizes == [2]
    torch.testing.assert_close(refiner(near, boxes)[1], before[..., [1, 3]])


def test_a_file_that_only_says_that_there_is_a_second_stage(tmp_path):
    detector = make()
    detector.add_branch(["dog"], refine=rf.FIRST_HIDDEN)
    awake(detector)
    detector.growth[-1]["refine"] = True  # as the first files had it
    weights.save_model(tmp_path / "model.safetensors", detector)
    read = weights.load(tmp_path / "model.safetensors").eval()
    assert read.branches[0].refiner.hidden.out_features == 32
    with torch.no_grad():
        assert torch.equal(read(pictures()).boxes, detector(pictures()).boxes)


@pytest.mark.parametrize("name", ["yolox-nano", "gfl-pico"])
def test_onnx_corrects_boxes_too(tmp_path, name):
    pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")
    detector = make(name)
    detector.add_branch(["dog", "eel"], inner=(4, 6, 8))
    detector.add_branch(["fox"], inner=(0, 5, 7), taught=["bee"])
    detector.add_branch(["gnu"], inner=(0, 4, 9), refine=5)
    awake(detector)
    for nms in (False, True):
        found = export(detector.frozen(), tmp_path / f"{nms}.onnx", nms=nms)
        assert found.score_difference is not None and found.score_difference < 1e-4
