"""Starting from another model: what fits is taken, class rows by name."""

from __future__ import annotations

import pytest
import torch

from ciod.core.errors import CiodError
from ciod.detectors import build
from ciod.detectors.files import transfer, weights
from tests.detectors.common import make, pictures
from tests.detectors.test_contract import LIGHT, lively

DONOR = ("ant", "bee", "cat")


def rows_of(detector, name):
    """Every tensor row of a class, in the order of the layers."""
    at = detector.class_names.index(name)
    return [r.tensor[at - r.first] for r in detector.class_layers() if r.first <= at < r.first + len(r.tensor)]


@pytest.mark.parametrize("name", LIGHT)
def test_everything_but_the_class_layer_is_taken(name, tmp_path):
    donor = lively(make(name, names=DONOR, seed=1))
    weights.save_model(tmp_path / "model.safetensors", donor)
    other = make(name, names=("x", "bee"), seed=2)
    fresh = {r.name: r.tensor.detach().clone() for r in other.class_layers()}
    taken = weights.load_fitting(other, tmp_path / "model.safetensors")
    theirs = donor.state_dict()
    for key, value in other.state_dict().items():
        assert torch.equal(value, fresh[key] if key in fresh else theirs[key]), key
    assert sum(taken.left.values()) == len(fresh)
    assert taken.total + len(fresh) == sum("num_batches" not in k for k in other.state_dict())
    if "first_stage" in other.traits:  # classes choose the queries, so no output is free of them
        return
    # Outputs that no class touches are the donor's: the boxes, or the regions where each class has boxes of its own.
    free = "proposals" if "rois" in other.traits else "boxes"
    with torch.no_grad():
        theirs, ours = donor.eval()(pictures()), other.eval()(pictures())
    assert torch.equal(getattr(theirs, free), getattr(ours, free))


@pytest.mark.parametrize("name", LIGHT)
def test_class_rows_are_taken_by_name(name):
    donor = lively(make(name, names=DONOR, seed=1))
    donor.grow(["dog"])  # rows in a block of their own
    lively(donor)
    other = make(name, names=("x", "dog"), seed=2)
    other.grow(["ant"])
    before = [r.clone() for r in rows_of(other, "x")]
    assert transfer.take_class_rows(other, donor) == {"dog": "dog", "ant": "ant"}
    for known in ("dog", "ant"):
        pairs = list(zip(rows_of(other, known), rows_of(donor, known), strict=True))
        assert pairs and all(torch.equal(a, b) for a, b in pairs)
    assert all(torch.equal(a, b) for a, b in zip(rows_of(other, "x"), before, strict=True))


def test_a_name_that_is_only_written_otherwise_takes_its_rows():
    donor = lively(make("yolox-pico", names=("potted plant", "tv", "bus", "Bus", "dog", "dogs"), seed=1))
    other = make("yolox-pico", names=("pottedplant", "TV", "BUS", "dog", "Dog", "sofa"), seed=2)
    taken = transfer.take_class_rows(other, donor)
    # two donors for BUS; dog is its own, and dogs are then the only ones that Dog can be
    assert taken == {"pottedplant": "potted plant", "TV": "tv", "dog": "dog", "Dog": "dogs"}
    for own, theirs in taken.items():
        assert all(torch.equal(a, b) for a, b in zip(rows_of(other, own), rows_of(donor, theirs), strict=True))
    assert transfer.same_classes(("Cat", "cats"), ("cat",)) == {}  # either of the two could be meant
    assert transfer.same_classes(("0", "1"), ("\0" + "0", "\0" + "1")) == {}


def test_a_start_from_the_same_classes_is_the_same_detector():
    donor = lively(make("yolox-pico", names=DONOR, seed=1)).eval()
    other = make("yolox-pico", names=tuple(reversed(DONOR)), seed=2).eval()
    transfer.start_from(other, donor, "donor")
    assert transfer.take_class_rows(other, donor) == {"cat": "cat", "bee": "bee", "ant": "ant"}
    with torch.no_grad():
        assert torch.equal(donor(pictures()).logits.flip(2), other(pictures()).logits)


def test_trunk_only_does_not_change_the_head():
    donor, other = lively(make("yolox-pico", seed=1)), make("yolox-pico", seed=2)
    head = {k: v.clone() for k, v in other.state_dict().items() if k.startswith("head.")}
    taken = transfer.start_from(other, donor, "donor", trunk_only=True)
    assert set(taken.taken) == {"backbone", "neck"} and all(part.startswith("head") for part in taken.left)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in head.items())


def test_another_family_gives_its_trunk_and_no_class():
    donor, other = lively(make("yolox-nano", names=DONOR, seed=1)), make("gfl-nano", names=("ant",), seed=2)
    taken = transfer.start_from(other, donor, "donor")
    assert set(taken.taken) == {"backbone", "neck"}
    assert transfer.take_class_rows(other, donor) == {}


def test_a_class_on_a_branch_has_no_row_to_take():
    donor = lively(make("yolox-nano", names=DONOR, seed=1))
    donor.add_branch(["dog"])
    other = make("yolox-nano", names=("dog", "ant"), seed=2)
    assert not any(k.startswith("branches") for k in transfer.start_from(other, donor, "donor").taken)
    assert transfer.take_class_rows(other, donor) == {"ant": "ant"}


def test_rows_of_another_width_are_left():
    donor, other = make("yolox-nano", names=DONOR), make("yolox-tiny", names=("ant",))
    before = [r.clone() for r in rows_of(other, "ant")]
    assert transfer.take_class_rows(other, donor) == {}
    assert all(torch.equal(a, b) for a, b in zip(rows_of(other, "ant"), before, strict=True))
    with pytest.raises(CiodError, match=r"is a yolox-nano, but detector\.name is yolox-tiny: their backbones differ"):
        transfer.start_from(other, donor, "donor")


def test_the_official_checkpoint_knows_its_classes(request):
    path = request.getfixturevalue("weights") / "yolox_nano_coco.pth"
    donor = weights.donor(path)
    other = build(("zebra", "king", "cat"), name="yolox-nano", size=64).eval()
    taken = weights.load_fitting(other, path)
    assert transfer.take_class_rows(other, donor) == {"zebra": "zebra", "cat": "cat"}
    assert set(taken.taken) == {
        "backbone", "neck", "head.cls_tower", "head.reg_tower", "head.reg", "head.obj"
    }  # fmt: skip
    assert taken.left == {"head.cls": 6}
    with torch.no_grad():
        a, b = donor(pictures()), other(pictures())
    at = [donor.class_names.index("zebra"), donor.class_names.index("cat")]
    torch.testing.assert_close(a.logits[..., at], b.logits[..., [0, 2]])
    assert torch.equal(a.objectness, b.objectness) and torch.equal(a.boxes, b.boxes)
    assert "backbone" in taken.sentence("x") and "new: head.cls 6" in taken.sentence("x")


def torchvision_state(count):
    """A checkpoint as torchvision's RetinaNet writes it, with ``count`` rows per anchor."""
    from torchvision.models.detection import retinanet_resnet50_fpn

    torch.manual_seed(3)
    state = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=count).state_dict()
    return {k: v for k, v in state.items() if "num_batches" not in k}  # trained frozen, as the published ones are


def test_a_checkpoint_of_torchvision_starts_another_class_count(tmp_path):
    """Trunk, towers and box layer; COCO's rows by name; and what was frozen there stays frozen."""
    torch.save(torchvision_state(91), tmp_path / "coco.pth")
    donor = weights.donor(tmp_path / "coco.pth")
    assert donor.settings["frozen"] and "zebra" in donor.class_names
    other = build(("king", "zebra"), name="retinanet-r50", size=64, frozen=True)
    taken = weights.load_fitting(other, donor)
    assert set(taken.left) == {"head.classification_head"} and taken.left["head.classification_head"] == 2
    assert transfer.take_class_rows(other, donor) == {"zebra": "zebra"}
    torch.save(torchvision_state(5), tmp_path / "own.pth")  # without class names
    assert transfer.take_class_rows(build(("0", "1"), name="retinanet-r50", size=64, frozen=True),
                                    weights.donor(tmp_path / "own.pth")) == {}  # fmt: skip
