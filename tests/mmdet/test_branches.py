"""Branches on MMDetection's detectors: old outputs to the bit, detections, training, files."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import ciod
from ciod import detectors
from ciod.config.settings import Train
from ciod.core.errors import CiodError
from ciod.core.types import Detections
from ciod.data.shapes.scenes import write_shapes
from ciod.detectors.files import weights
from ciod.exporters import mmdet_file, onnx_file
from ciod.extension.auto import method_for
from ciod.extension.run import extend
from ciod.extension.settings import load as load_extension
from ciod.methods.freeze_branch import FreezeBranch
from ciod.training import optim
from tests import fixed
from tests.data.writers import sample_index
from tests.detectors.common import confident
from tests.mmdet import common


def branched(head: str) -> Any:
    """Two branches with scores as of trained ones; the first knows an old class too."""
    build: Any = common.make
    detector = build(head).eval()
    for names, taught in ((["dog", "eel"], ["bee"]), (["fox"], [])):
        detector.add_branch(names, taught=taught).eval()
        detector.observe(common.pictures(4, seed=5))
    return confident(detector)


@torch.no_grad()
@pytest.mark.parametrize("head", common.HEADS)
def test_old_outputs_stay_bit_identical_through_two_branches(head):
    plain, x = common.make(head).eval(), common.pictures()
    before = plain(x)
    detector = branched(head)
    after = detector(x)
    n = before.logits.shape[1]
    assert after.parts[0] == n and len(after.parts) == 3 and detector.parts == [[0, 1, 2], [1, 3, 4], [5]]
    assert torch.equal(after.logits[:, :n, :3], before.logits) and torch.equal(after.boxes[:, :n], before.boxes)
    if before.objectness is not None:
        assert torch.equal(after.objectness[:, :n], before.objectness)
    assert torch.allclose(after.scores()[:, :n, :3], before.scores(), rtol=1e-6, atol=0)
    assert after.coarse is None, "it has no row for the positions of branches"


@torch.no_grad()
@pytest.mark.parametrize("head", common.HEADS)
def test_old_detections_stay_and_new_ones_join_them(head):
    x = common.pictures()
    old = common.make(head).eval()
    before = old.decode(old(x), score_threshold=0.005, max_detections=30)
    detector = branched(head)
    after = detector.decode(detector(x), score_threshold=0.005, max_detections=30)
    for a, b in zip(before, after, strict=True):
        kept = [(s, c, box.tolist()) for s, c, box in zip(b.scores, b.labels, b.boxes, strict=True)]
        for score, label, box in zip(a.scores, a.labels, a.boxes, strict=True):
            if label != 1:  # the branch was taught bees, whose boxes meet in NMS
                assert any(c == label and s == pytest.approx(score, rel=1e-5) and q == box.tolist() for s, c, q in kept)
        assert set(b.labels.tolist()) & {3, 4} and 5 in b.labels
        assert (np.diff(b.scores) <= 0).all() and len(b) <= 90


def test_classes_of_both_meet_in_nms():
    from ciod.detectors.mmdet.branches import _joined

    def found(*rows):
        boxes, scores, labels = zip(*rows, strict=True)
        return Detections(np.array(boxes), np.array(scores), np.array(labels), ("ant", "bee", "cow"))

    box, near = (0, 0, 10, 10), (0, 0, 10, 11)
    a = found((box, 0.8, 1), (box, 0.7, 0))
    b = found((near, 0.9, 1), (near, 0.6, 0), (near, 0.5, 2))
    joined = _joined(a, b, [1], 0.5)
    assert [round(s, 1) for s in joined.scores.tolist()] == [0.9, 0.7, 0.6, 0.5]
    assert joined.labels.tolist() == [1, 0, 0, 2], "the surer bee hides the other; ants are in one part, and stay"


@pytest.mark.parametrize("head", common.HEADS)
def test_steps_train_the_newest_branch_alone(head, tmp_path):
    detector, method = common.make(head), FreezeBranch()
    index = sample_index(tmp_path, images=4, names=("ant", "cow", "dog"))
    method.grow(detector, ["dog"], ["cow"])
    task = replace(fixed.task(common.NAMES, ("dog",)), train=index.relabel(detector.class_names))
    method.attach(detector, detector, None)
    with torch.no_grad():
        old = detector.eval()(common.pictures())
    method.begin_task(task)
    scale = detector.branches[0].levels[0].standards[0].scale
    assert not torch.equal(scale, torch.ones_like(scale)), "it reads standardised maps"
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    optimizer = optim.optimizer(detector, Train(), 0.01)
    for m in detector.train().modules():
        if isinstance(m, torch.nn.BatchNorm2d) and m not in list(detector.branches.modules()):
            m.eval()
    for seed in range(2):
        losses = method.loss(fixed.batch(common.boxes(classes=4, seed=seed), common.pictures(seed=seed)))
        assert losses.keys() == {"cls", "box", "obj", "refine"}
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    changed = {k for k, v in detector.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(k.startswith("branches.0.") for k in changed)
    with torch.no_grad():
        now = detector.eval()(common.pictures())
    n = old.parts[0]
    assert torch.equal(now.logits[:, :n], old.logits[:, :n]) and torch.equal(now.boxes[:, :n], old.boxes[:, :n])


@torch.no_grad()
@pytest.mark.parametrize("head", ["yolox", "retinanet", "vfnet"])
def test_files_selection_and_names(head, tmp_path):
    detector, x = branched(head), common.pictures()
    full = detector(x)
    weights.save_model(tmp_path / "m.safetensors", detector)
    for other in (weights.load(tmp_path / "m.safetensors").eval(), detector.frozen()):
        assert other.class_names == detector.class_names and other.growth == detector.growth
        found = other(x)
        assert torch.equal(found.logits, full.logits) and torch.equal(found.boxes, full.boxes)
    detector.select(["ant", "bee", "eel"])
    assert detector.parts == [[0, 1], [1, 2]] and detector.head.num_classes == 2
    found = detector(x)
    n = full.parts[0]
    torch.testing.assert_close(found.logits[:, :n, :2], full.logits[:, :n, :2])


def test_what_auto_chooses_and_that_it_cannot_go_back(tmp_path):
    detector = common.make("gfl")
    assert method_for(detector) == (
        "pseudo_label",
        "so that export mmdet= can write the model back; method=freeze_branch keeps old detections bit-identical",
    )
    detector.add_branch(["dog"])
    assert method_for(detector)[0] == "freeze_branch"
    with pytest.raises(CiodError, match=r"A detector with branches .* cannot be exported to MMDetection"):
        mmdet_file.export(detector, tmp_path)
    with pytest.raises(CiodError, match="has branches already, so classes can be added only on a further branch"):
        detector.grow(["eel"])


def test_a_backbone_without_the_maps(monkeypatch):
    detector = common.make("retinanet")
    detector.model.backbone.out_indices = (0, 1, 2)
    monkeypatch.setattr(detector.model, "neck", torch.nn.Identity())
    with pytest.raises(CiodError, match=r"has none of 32\. Use another method, such as method=pseudo_label"):
        detector.add_branch(["dog"])


@pytest.mark.parametrize("head", ["yolox", "retinanet"])
def test_the_command_extends_twice_and_exports(head, tmp_path):
    """``ciod extend … method=freeze_branch``, then again by ``auto``, and the file as ONNX."""
    data = write_shapes(tmp_path / "shapes", train=12, val=4)
    config = tmp_path / f"small_{head}.py"
    model = {k: v for k, v in common.config(head).items() if k != "input"}
    config.write_text(f"model = {model!r}")
    torch.manual_seed(0)
    base = detectors.build(("circle", "square"), name=f"mmdet:{config}", size=96)
    weights.save_model(tmp_path / "base.safetensors", base)
    words = {"data": str(data), "epochs": 1, "batch": 4, "size": 96}
    first = {"model": str(tmp_path / "base.safetensors"), "method": "freeze_branch", "out": str(tmp_path / "one")}
    one = extend(load_extension(words | first))
    two = extend(load_extension(words | {"model": str(one / "model.safetensors"), "out": str(tmp_path / "two")}))
    for folder in (one, two):
        unchanged = json.loads((folder / "results.json").read_text())["extension"]["unchanged"]
        assert unchanged["identical"] == unchanged["images"] > 0
    found = ciod.load(two / "model.safetensors")
    assert found.parts[0] == [0, 1] and len(found.branches) == 2, "auto takes a branch where there is one"
    if importlib.util.find_spec("onnxruntime"):
        made = onnx_file.export(found.frozen(), tmp_path / "m.onnx", nms=head == "yolox")
        assert made.score_difference is not None and made.score_difference < 1e-4
