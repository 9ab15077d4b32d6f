"""The second stage of a branch of an ONNX file: in the graph as in PyTorch, and what it changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ciod.detectors.onnx import file, merge
from ciod.detectors.onnx.detector import CORRECTED, load
from tests.detectors.common import confident, some_boxes
from tests.detectors.onnx.graphs import SIZE, small
from tests.detectors.onnx.test_detector import ASKED, images, trained


def lively(detector):
    """Its second stage corrects as a trained one does, where scores differ from place to place."""
    refiner = confident(detector).branches[-1].refiner
    for m in refiner.modules():
        if isinstance(m, torch.nn.Linear):
            m.weight.data += 0.1 * torch.randn_like(m.weight)
            m.bias.data += torch.randn_like(m.bias)
    return detector


def without(detector, x):
    """Outputs of the newest branch as the first stage gives them."""
    branch = detector.branches[-1]
    refiner, branch.refiner = branch.refiner, None
    found = detector.newest(detector(x))
    branch.refiner = refiner
    return found


@torch.no_grad()
@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("names", [("eel",), ("eel", "fox", "gnu")])
def test_the_graph_corrects_the_same_positions_in_the_same_way(tmp_path, opset, names):
    path = small(opset=opset).save(tmp_path / "m.onnx")
    detector = lively(trained(load(path, ASKED), names))
    x = images(detector, 3)
    wanted, before = detector.newest(detector(x)), without(detector, x)
    moved = (wanted.boxes - before.boxes).abs().amax(2) > 1e-3
    lower = before.scores()[..., 3:] - wanted.scores()[..., 3:]
    assert moved.sum(1).min() > 0 and moved.sum(1).max() < CORRECTED
    assert (lower >= -1e-6).all() and bool((lower > 1e-3).any()) == (len(names) > 1)
    data = merge.merged(detector)
    session = file.start(path, data)
    for i in range(3):
        boxes, scores = session.run(["ciod1/boxes", "ciod1/scores"], {"x": (x[i : i + 1] / 255).numpy()})
        np.testing.assert_allclose(boxes[0], wanted.boxes[i], atol=1e-3, rtol=1e-4)
        np.testing.assert_allclose(scores[0], wanted.scores()[i][:, 3:], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("objectness", [-6.0, -9.0, -12.0])
@pytest.mark.parametrize("weight_std", [0.3, 1.0])
def test_rounding_does_not_decide_where_nothing_is_found(tmp_path, objectness, weight_std):
    """Scores of background are so small that two programs round them differently."""
    path = small().save(tmp_path / "m.onnx")
    for seed in range(4):
        detector = lively(trained(load(path, ASKED), ("eel", "fox")))
        torch.manual_seed(seed)
        change = detector.branches[-1].refiner.change
        change.weight.mul_(0.3)
        change.bias.mul_(0.3)
        for level in detector.branches[-1].levels:
            level.obj.weight.normal_(std=weight_std)
            level.obj.bias.fill_(objectness)
        merge.verify(detector, merge.merged(detector), images(detector, 4).numpy())


@torch.no_grad()
def test_a_graph_of_a_fixed_batch_packs_a_whole_batch_at_once(tmp_path):
    detector, runs = load(small(batch=4).save(tmp_path / "m.onnx"), ASKED), []
    maps = detector.source.runner.maps
    detector.source.runner.maps = lambda ready: runs.append(len(ready)) or maps(ready)
    x = images(detector, 6)
    rows = detector.packed(x)
    assert runs == [4, 2] and torch.equal(rows[4:], detector.packed(x[4:]))


@torch.no_grad()
def test_images_of_a_batch_are_corrected_each_by_themselves(tmp_path):
    path = small(batch="n").save(tmp_path / "m.onnx")
    detector = lively(trained(load(path, ASKED), ("eel", "fox")))
    session, x = file.start(path, merge.merged(detector)), (images(detector, 3) / 255).numpy()
    names = ["ciod1/boxes", "ciod1/scores"]
    together = session.run(names, {"x": x})
    for i in range(3):
        for a, b in zip(together, session.run(names, {"x": x[i : i + 1]}), strict=True):
            np.testing.assert_allclose(a[i], b[0], atol=1e-4)


@torch.no_grad()
def test_a_graph_for_any_size_corrects_at_every_size(tmp_path):
    path = small(side="s", batch="n").save(tmp_path / "m.onnx")
    detector = lively(trained(load(path, ASKED), ("eel", "fox")))
    session = file.start(path, merge.merged(detector))
    for side in (32, SIZE, 2 * SIZE):  # the smallest has 21 positions, fewer than can be corrected
        x = np.random.default_rng(0).random((2, 3, side, side), np.float32)
        boxes, scores = session.run(["ciod1/boxes", "ciod1/scores"], {"x": x})
        assert boxes.shape[1] == scores.shape[1] == sum((side // s) ** 2 for s in (8, 16, 32))
        assert np.isfinite(boxes).all() and (scores <= 1).all()


def test_a_graph_that_is_too_old_has_none(tmp_path):
    path = small(opset=10).save(tmp_path / "m.onnx")
    detector = trained(load(path, ASKED), ("eel", "fox"))
    assert detector.branches[-1].refiner is None
    found = merge.save(tmp_path / "new.onnx", detector, images(detector).numpy())
    assert found.moved == 0 and found.difference < 1e-4


def test_it_learns_with_the_branch(tmp_path):
    path = small().save(tmp_path / "m.onnx")
    detector = lively(trained(load(path, ASKED), ("eel", "fox"))).train()
    x, targets = images(detector), some_boxes(5)
    for given in (x, detector.packed(x)):
        detector.zero_grad()
        outputs = detector.newest(detector(given))
        losses = detector.loss(outputs, targets, detector.match(outputs, targets))
        losses["refine"].backward()
        learnt = {k for k, p in detector.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert learnt and all(".refiner." in k for k in learnt)
        assert {k.rpartition(".refiner.")[2].partition(".")[0] for k in learnt} == {"read", "hidden", "change", "cls"}
