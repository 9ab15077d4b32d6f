"""Kept maps: a branch has the same outputs, losses and gradients from rows of half precision as from images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ciod import detectors
from ciod.config.settings import Train
from ciod.detectors.staged_branches import StagedBranches
from ciod.training import speed
from tests.detectors.common import bn_eval, confident, pictures, some_boxes

NAMES = ("ant", "bee", "cow")
LIGHT = ["yolox-pico", "gfl-pico", "retinanet-nano", "fcos-nano"]


def branched(name: str) -> StagedBranches:
    """Two branches; the second knows an old class too. In train mode, except for normalisation."""
    torch.manual_seed(0)
    detector = detectors.build(NAMES, name=name, size=64).eval()
    assert isinstance(detector, StagedBranches)
    for m in detector.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
    detector.add_branch(["dog", "eel"])
    detector.add_branch(["fox"], taught=["bee"])
    detector.requires_grad_(False)
    detector.branches[-1].requires_grad_(True)
    bn_eval(confident(detector).train())
    return detector


@pytest.mark.parametrize("name", LIGHT)
def test_rows_stand_for_images(name):
    detector, x = branched(name), pictures()
    rows = detector.packed(x)
    assert rows.dtype == torch.float16 and rows.shape == (2, detector.packed_width)
    read, images = detector(rows), detector.newest(detector(x))
    assert read.levels == images.levels and read.logits.shape[2] == 6
    for field in ("logits", "boxes", "objectness"):
        torch.testing.assert_close(getattr(read, field), getattr(images, field), atol=0.05, rtol=0.01)
    torch.testing.assert_close(read.points, images.points)
    assert read.near is not None and images.near is not None
    torch.testing.assert_close(read.near, images.near, atol=0.01, rtol=0.01)


@pytest.mark.parametrize("name", LIGHT)
def test_the_same_gradients_reach_the_branch_alone(name):
    detector, x, targets = branched(name), pictures(), some_boxes(6)
    found = []
    for given in (x, detector.packed(x)):
        detector.zero_grad()
        outputs = detector.newest(detector(given))
        losses = detector.loss(outputs, targets, detector.match(outputs, targets))
        torch.stack([losses[k] for k in ("cls", "box", "obj")]).sum().backward()
        found.append({k: p.grad.clone() for k, p in detector.named_parameters() if p.grad is not None})
    images, rows = found
    assert images.keys() == rows.keys() and all(k.startswith("branches.1.") for k in rows)
    assert any(g.abs().max() > 0 for g in rows.values())
    for k, g in images.items():
        assert (rows[k] - g).norm() <= 0.05 * g.norm() + 1e-3, k


@pytest.mark.parametrize("teacher", ["exact", "folded"])
def test_the_copy_that_packs_is_in_eval_mode_and_changes_nothing(teacher):
    detector = branched("yolox-pico").train()
    speed.lay_out(detector, Train())  # as before every training
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    modes = [m.training for m in detector.modules()]
    packer, x = speed.packer(detector, Train(teacher=teacher)), pictures()
    rows = packer.packed(x)
    assert [m.training for m in detector.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in detector.state_dict().items())
    exact = bn_eval(detector).packed(x)
    assert torch.equal(rows, exact) if teacher == "exact" else not torch.equal(rows, exact)
    torch.testing.assert_close(rows, exact, atol=0.01, rtol=0.01)


def test_shapes_are_those_of_the_size_and_looking_changes_no_statistics():
    detector = branched("yolox-pico").train()
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    shapes = detector.map_shapes()
    assert [s[:2] for s in shapes] == 4 * [(8, 8)] + 4 * [(4, 4)] + 4 * [(2, 2)]
    assert detector.training and all(torch.equal(v, before[k]) for k, v in detector.state_dict().items())


def test_images_are_packed_on_the_device_of_the_detector(monkeypatch):
    """A loader gives images on the CPU."""

    class Seen(Exception):
        pass

    def extract(detector, images):
        raise Seen(images.device.type)

    monkeypatch.setattr(StagedBranches, "extract", extract)
    detector = branched("yolox-pico")
    for device in ("cpu", "meta"):
        with pytest.raises(Seen, match=device):
            detector.to(device).packed(pictures())
