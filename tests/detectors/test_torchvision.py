"""RetinaNet and FCOS against torchvision's own models with the same weights: outputs, losses, gradients, detections."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from ciod.core.types import Targets
from ciod.data import names
from ciod.detectors.files import foreign
from ciod.detectors.files import weights as files
from tests import fixed
from tests.detectors.common import SIZE, pictures
from tests.detectors.test_contract import lively

NAMES = ("ant", "bee", "cow")


def theirs(kind: str, classes: int, norm=nn.BatchNorm2d) -> nn.Module:
    """torchvision's model on a ResNet-18, with class layers lively enough to detect something."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=norm,
        trainable_layers=5,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    more = {"min_size": SIZE, "max_size": SIZE, "score_thresh": 0.05, "detections_per_img": 50}
    if kind == "retinanet":
        octaves = tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in (32, 64, 128, 256, 512))
        more["anchor_generator"] = AnchorGenerator(octaves, ((0.5, 1.0, 2.0),) * 5)
        model = detection.RetinaNet(backbone, classes, **more)
    else:
        model = detection.FCOS(backbone, classes, **more)
    for m in model.head.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.normal_(m.weight, std=0.03)
    nn.init.constant_(model.head.regression_head.bbox_reg.bias, 0.5)
    return lively(model).eval()


def load(model: nn.Module, tmp_path, classes=NAMES):
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    return files.load(tmp_path / "theirs.pth", classes=classes)


def raw(model: nn.Module, images: torch.Tensor):
    """Head outputs and anchors, without torchvision's resizing."""
    mean, std = torch.tensor(model.transform.image_mean), torch.tensor(model.transform.image_std)
    x = (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    features = list(model.backbone(x).values())
    anchors = model.anchor_generator(ImageList(x, [(SIZE, SIZE)] * len(x)), features)
    return model.head(features), anchors, [f.shape[2] * f.shape[3] for f in features]


def _sides(boxes: torch.Tensor) -> torch.Tensor:
    """The longer side of each box: [..., 4] → [..., 1]."""
    return (boxes[..., 2:] - boxes[..., :2]).amax(-1, keepdim=True)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_outputs_losses_and_gradients_are_torchvisions(kind, tmp_path):
    model = theirs(kind, len(NAMES))
    detector = load(model, tmp_path)
    assert detector.settings["name"] == f"{kind}-r18" and detector.class_names == NAMES
    images = pictures(3)
    out, (head, anchors, per_level) = detector(images), raw(model, images)
    torch.testing.assert_close(out.logits, head["cls_logits"], rtol=1e-4, atol=1e-4)
    assert out.anchors is not None and torch.equal(out.anchors, anchors[0])
    coder = model.head.box_coder if kind == "fcos" else model.box_coder
    if kind == "fcos":
        boxes = coder.decode(head["bbox_regression"], torch.stack(anchors))
        torch.testing.assert_close(out.objectness, head["bbox_ctrness"][..., 0], rtol=1e-4, atol=1e-4)
    else:
        boxes = torch.stack([coder.decode_single(r, a) for r, a in zip(head["bbox_regression"], anchors)])
    # a corner is a sum of shares of the anchor's sides and the box's; some processors round these differently
    side = torch.maximum(_sides(out.anchors), _sides(boxes))
    assert ((out.boxes - boxes).abs() / side).max() < 1e-4

    targets = fixed.boxes_at_random(3, [4, 0, 6], classes=3, size=SIZE)
    listed = [
        {"boxes": targets.boxes[b, targets.valid[b]], "labels": targets.labels[b, targets.valid[b]]} for b in range(3)
    ]
    ours = detector.loss(out, targets, detector.match(out, targets))
    expected = model.compute_loss(listed, head, anchors, *([per_level] if kind == "fcos" else []))
    pairs = {"cls": "classification", "box": "bbox_regression", "centerness": "bbox_ctrness"}
    for key, loss in ours.items():
        assert loss.item() == pytest.approx(expected[pairs[key]].item(), rel=1e-4), key
    assert len(ours) == len(expected)
    sum(ours.values()).backward()
    sum(expected.values()).backward()
    theirs_ = foreign.rename({k: p.grad for k, p in model.named_parameters()})
    checked = 0
    for name, p in detector.named_parameters():
        if name in theirs_ and theirs_[name] is not None:
            wanted = theirs_[name]
            assert (p.grad - wanted).abs().max() <= 1e-3 * wanted.abs().max() + 1e-9, name
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_detections_are_torchvisions(kind, tmp_path):
    """With one class, as torchvision lets a position have several labels and ours has the best one; and with boxes cut
    at the edge first, which torchvision does before its NMS and ours after it."""
    model = theirs(kind, 1)
    detector = load(model, tmp_path, classes=("thing",))
    images = pictures(2)
    with torch.no_grad():
        wanted = model([x / 255 for x in images.float()])
        out = detector(images)
        found = detector.decode(replace(out, boxes=out.boxes.clamp(0, SIZE)), score_threshold=0.05, max_detections=50)
    for d, w in zip(found, wanted, strict=True):
        assert len(d) == len(w["scores"]) > 5
        assert d.scores == pytest.approx(w["scores"].numpy(), abs=1e-4)
        assert d.boxes == pytest.approx(w["boxes"].numpy(), abs=1e-2)


def test_coco_rows_without_a_class_are_left_out(tmp_path):
    assert list(foreign.torchvision_coco()) == list(names.COCO)
    rows = list(foreign.torchvision_coco().values())
    model = theirs("fcos", 91, norm=None)
    detector = load(model, tmp_path, classes=None)
    assert detector.class_names == tuple(names.COCO)
    with torch.no_grad():
        head, _, _ = raw(model, pictures(1))
        torch.testing.assert_close(detector(pictures(1)).logits, head["cls_logits"][..., rows], rtol=1e-4, atol=1e-4)


def test_a_background_row_is_left_out(tmp_path):
    model = theirs("retinanet", 4)
    detector = load(model, tmp_path)
    with torch.no_grad():
        head, _, _ = raw(model, pictures(1))
        torch.testing.assert_close(detector(pictures(1)).logits, head["cls_logits"][..., 1:], rtol=1e-4, atol=1e-4)


def test_the_oldest_checkpoints_key_names():
    old = {
        "backbone.body.conv1.weight": torch.zeros(1),
        "backbone.fpn.inner_blocks.2.bias": torch.zeros(1),
        "head.classification_head.conv.6.weight": torch.zeros(1),
        "head.classification_head.cls_logits.bias": torch.arange(6.0),  # two anchors of three classes
        "head.regression_head.bbox_reg.bias": torch.zeros(8),
    }
    new = foreign.rename(old)
    assert {"backbone.stem.0.weight", "neck.inner_blocks.2.0.bias", "head.classification_head.conv.3.0.weight"} <= {
        *new
    }
    assert new["head.classification_head.cls_logits.blocks.0.bias"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_anchors_of_no_use_are_neither_foreground_nor_background():
    from ciod.detectors.torchvision_models import RetinaNet

    detector = RetinaNet(NAMES, size=SIZE)
    out = detector(pictures(1))
    assert out.anchors is not None
    exact = out.anchors[9 * 27 + 3]  # a square anchor in the middle
    targets = Targets.pad([exact[None]], [torch.tensor([1])])
    matches = detector.match(out, targets)
    overlap = fixed.overlaps(out.anchors, exact)
    assert matches.positive[0].tolist() == (overlap >= 0.5).tolist()
    assert matches.ignored is not None
    assert matches.ignored[0].tolist() == ((overlap >= 0.4) & (overlap < 0.5)).tolist() and matches.ignored.any()
    out.logits = out.logits.detach().requires_grad_()
    detector.loss(out, targets, matches)["cls"].backward()
    assert (out.logits.grad[0, matches.ignored[0]] == 0).all() and (out.logits.grad[0, ~matches.ignored[0]] != 0).any()


def test_a_small_box_gets_its_best_anchors():
    from ciod.detectors.torchvision_models import RetinaNet

    detector = RetinaNet(NAMES, size=SIZE)
    out = detector(pictures(1))
    small = torch.tensor([[30.0, 30, 35, 35]])
    matches = detector.match(out, Targets.pad([small], [torch.tensor([0])]))
    overlap = fixed.overlaps(out.anchors, small[0])
    assert overlap.max() < 0.4 and matches.positive[0].tolist() == (overlap == overlap.max()).tolist()
