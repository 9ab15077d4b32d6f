"""Kinds of a class: found in its boxes, by its score times their own; nothing that was there changes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ciod import detectors
from ciod.core.errors import CiodError, ConfigError
from ciod.core.types import Detections
from ciod.detectors.files import weights
from ciod.detectors.layers.branch import OFF, ChildBranch
from ciod.exporters import onnx_file
from ciod.methods.base.split_class import SplitClass
from tests import fixed
from tests.detectors.common import silent
from tests.detectors.test_branch import POSITIONS, SIZE, make, pictures


def with_kinds() -> Any:
    """bee becomes dog and eel, of the detector itself; fox, of a branch, becomes gnu."""
    detector: Any = make()
    detector.add_children("bee", ["dog", "eel"])
    detector.add_branch(["fox"])
    detector.add_children("fox", ["gnu"])
    for layer in detector.class_modules().values():
        layer.blocks[0].bias.data[1] = 2.0  # bees are everywhere
    for branch in detector.branches:  # different scores at different positions
        for level in branch.levels:
            if not isinstance(branch, ChildBranch):
                level.reg.weight.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(6))
            for block in level.cls.blocks:
                block.weight.data.normal_(0, 0.5, generator=torch.Generator().manual_seed(5))
    return silent(detector.eval())


@torch.no_grad()
def test_kinds_have_the_boxes_of_their_parent_and_a_share_of_its_score():
    x, detector = pictures(), with_kinds()
    before = make()(x)
    after = detector(x)
    parts = after.boxes.split(POSITIONS, 1)
    assert torch.equal(after.logits[:, :POSITIONS, [0, 2]], before.logits[..., [0, 2]])
    assert torch.equal(parts[0], before.boxes) and torch.equal(parts[1], before.boxes)
    assert torch.equal(parts[3], parts[2]) and not torch.equal(parts[2], parts[0])
    scores = after.scores().split(POSITIONS, 1)
    for part, kinds, of, parent in ((1, [3, 4], 0, 1), (3, [6], 2, 5)):
        own = after.logits[:, part * POSITIONS : (part + 1) * POSITIONS, kinds].sigmoid()
        wanted = own * scores[of][..., [parent]]
        torch.testing.assert_close(scores[part][..., kinds], wanted, rtol=1e-4, atol=1e-7)
        others = [c for c in range(7) if c not in kinds]
        assert (after.logits[:, part * POSITIONS : (part + 1) * POSITIONS, others] == OFF).all()
    assert detector.parents == {"dog": "bee", "eel": "bee", "gnu": "fox"}


@torch.no_grad()
def test_the_second_stage_of_kinds_corrects_scores_and_no_boxes():
    x, detector = pictures(), with_kinds()
    for layer in detector.head.obj:
        layer.bias.data.fill_(2.0)  # so that the best scores are those of found objects
    before = detector(x)
    detector.branches[0].refiner.cls.blocks[0].bias.data[:] = torch.tensor([-1.0, 0.5])
    after = detector(x)
    assert torch.equal(after.boxes, before.boxes)
    share = (after.scores() / before.scores())[:, POSITIONS : 2 * POSITIONS, 3:5]
    best = before.scores()[:, POSITIONS : 2 * POSITIONS].amax(2).argmax(1)
    wanted = torch.tensor([-1.0, 0.5]).sigmoid().sqrt()
    for b in range(2):
        torch.testing.assert_close(share[b, best[b]], wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(after.logits[:, :POSITIONS], before.logits[:, :POSITIONS])


@torch.no_grad()
def test_a_file_and_a_copy_have_the_same_kinds(tmp_path):
    detector, x = with_kinds(), pictures()
    weights.save_model(tmp_path / "m.safetensors", detector)
    again = weights.open_detector(tmp_path / "m.safetensors").eval()
    for other in (again, detector.frozen()):
        assert torch.equal(other(x).logits, detector(x).logits) and other.parents == detector.parents


@torch.no_grad()
def test_classes_can_be_removed_but_not_a_parent_alone():
    detector, x = with_kinds(), pictures()
    before = detector(x)
    with pytest.raises(
        CiodError, match="bee cannot be removed without dog, eel, which read its boxes and scores; leave"
    ):
        detector.select(["ant", "cow", "dog", "eel"])
    detector.select(["bee", "eel", "fox", "gnu"])
    assert detector.parents == {"eel": "bee", "gnu": "fox"}
    assert [b.parent for b in detector.branches if isinstance(b, ChildBranch)] == [0, 2]
    assert torch.equal(detector(x).logits, before.logits[..., [1, 4, 5, 6]])
    detector.rename({"bee": "wasp"})
    assert detector.parents == {"eel": "wasp", "gnu": "fox"}
    detector.select(["fox", "gnu"])  # the parent goes with its last kind
    assert detector.parents == {"gnu": "fox"} and detector(x).logits.shape == (2, 3 * POSITIONS, 2)


def test_wrong_kinds_are_refused():
    detector: Any = make()
    for parent, kinds in (("dog", ["eel"]), ("bee", [])):
        with pytest.raises(CiodError, match="Children need names and a known class as their parent"):
            detector.add_children(parent, kinds)
    with pytest.raises(CiodError, match="already knows 'cow'"):
        detector.add_children("bee", ["cow"])
    other: Any = detectors.build(("ant",), name="gfl-pico", size=64)
    with pytest.raises(CiodError, match="A class of a gfl-pico cannot become several; only one of a YOLOX can"):
        other.add_children("ant", ["bee"])


@torch.no_grad()
def test_the_arbiter_takes_an_object_of_a_kind_for_one_of_its_parent_too():
    detector = with_kinds()
    detector.add_branch(["hen"])
    detector.add_arbiter()
    assert detector.arbiter is not None
    assert detector.judged == [[3, 4], [5], [6], [7]]  # nothing is known yet
    outputs = detector.eval()(pictures())
    x = detector.arbiter.pool(outputs.maps, torch.tensor([[0.0, 0, SIZE, SIZE]]), torch.tensor([0]))
    noise = torch.randn(40, x.shape[1], generator=torch.Generator().manual_seed(0))
    detector.arbiter.add(x + 0.1 * noise, torch.tensor([3, 4, 5, 6, 7]).repeat(8))  # objects of all classes look alike
    assert [sorted(j) for j in detector.judged] == [[3, 4], [5, 6], [5, 6], [7]]  # bee itself has no statistics
    scores = detector.scores(outputs).split(POSITIONS, 1)
    apart = [[3, 4], [5], [6], [7]]  # the class and its kinds as rivals
    best = torch.stack([x.amax(2) for x in outputs.scores().split(POSITIONS, 1)[1:]], 1)
    boxes = torch.stack(outputs.boxes.split(POSITIONS, 1)[1:], 1)
    rivals = detector.arbiter.factors(best, boxes, outputs.maps, apart)
    factor = scores[2][..., 5] / outputs.scores().split(POSITIONS, 1)[2][..., 5]
    assert torch.equal(scores[0], outputs.scores()[:, :POSITIONS])
    assert (factor >= rivals[:, 1] - 1e-6).all() and (factor > rivals[:, 1] + 1e-6).any()


@pytest.mark.parametrize("nms", [False, True])
def test_onnx_has_the_same_kinds(tmp_path, nms):
    detector = with_kinds()
    detector.branches[0].refiner.cls.blocks[0].bias.data[:] = torch.tensor([-1.0, 0.5])
    made = onnx_file.export(detector, tmp_path / "m.onnx", nms=nms)
    assert made.score_difference < 1e-4 and bool(made.detections) == nms


def test_training_teaches_names_only():
    torch.manual_seed(0)
    detector = detectors.build(("ant", "bee"), name="yolox-pico", size=64)
    method = SplitClass(parent="bee")
    method.grow(detector, ["cow", "dog"])
    method.attach(detector, detector, None)
    method.begin_task(fixed.task(("ant", "bee"), ("cow", "dog")))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    batch = fixed.batch(fixed.boxes_at_random(1, [2, 1], classes=4), images)
    batch.targets.labels[:] = torch.tensor([[2, 1], [3, 0]])  # the second box of the first image has the parent's name
    losses = method.loss(batch)
    outputs = detector.newest(detector(images))
    matches = detector.match(outputs, batch.targets)
    total, count = 0.0, 0
    for b in range(2):
        for position, target, valid in zip(matches.position[b], matches.target[b], matches.valid[b], strict=True):
            if bool(valid):
                wanted = torch.tensor([float(batch.targets.labels[b, target] == c) for c in (2, 3)])
                logits = outputs.logits[b, position, 2:].detach()
                total += float(torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum"))
                count += 1
    assert losses.keys() == {"cls", "refine"} and count > 2
    assert float(losses["cls"].detach()) == pytest.approx(total / count, rel=1e-5)
    assert float(losses["refine"].detach()) == pytest.approx(0.1 * 2 * math.log(2), rel=1e-5), "nothing is said yet"
    torch.stack(list(losses.values())).sum().backward()
    assert detector.branches[0].refiner.change is None
    bias = detector.branches[0].refiner.cls.blocks[0].bias.grad
    assert bias is not None and (bias > -0.05).all(), "the object with the parent's name is of no kind"
    moved = {n.split(".")[0] for n, p in detector.named_parameters() if p.grad is not None}
    assert moved == {"branches"}


def test_the_first_task_is_plain_and_a_later_one_needs_the_parent():
    detector, method = detectors.build((), name="yolox-pico", size=64), SplitClass(parent="bee")
    method.grow(detector, ["ant"])
    assert detector.growth == [{"rows": 1}]
    with pytest.raises(CiodError, match=r"method\.parent: the detector does not know 'bee' when its kinds cow arrive"):
        method.grow(detector, ["cow"])


def test_the_finest_name_of_a_box():
    names = ("ant", "bee", "dog", "eel")
    box, near, far = [0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]
    #         bee is a dog,          an eel beside it, bee of no kind, its unsure dog, an ant where a bee is
    found = Detections(
        [box, near, near, far, far, box],
        [0.9, 0.6, 0.5, 0.8, 0.3, 0.2],
        [1, 2, 3, 1, 2, 0],
        names,
    )
    kept = found.finest({"dog": "bee", "eel": "bee"})
    assert [(d.name, round(d.score, 1)) for d in kept] == [("dog", 0.6), ("bee", 0.8), ("ant", 0.2)]
    assert found.finest({}).scores.tolist() == found.scores.tolist()


def test_finest_names_in_predictions():
    detector = with_kinds()
    picture = pictures()[0].permute(1, 2, 0).numpy()
    settings = {"score_threshold": 0.0001, "max_detections": 300}
    found = detector.predict(picture, **settings)
    assert (
        detector.predict(picture, finest=True, **settings).scores.tolist()
        == found.finest(detector.parents).scores.tolist()
    )
    assert len(found.finest(detector.parents)) < len(found)
    with pytest.raises(ConfigError, match=r"finest: no class of the model became several \(ciod extend split=\)"):
        make().predict(picture, finest=True)
