"""Faster R-CNN against torchvision's own model with the same weights; samples, growth, partial labels, files, ONNX."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import MultiScaleRoIAlign

from ciod import detectors
from ciod.config import load as config
from ciod.core.errors import CiodError, ConfigError
from ciod.data import names
from ciod.detectors.files import foreign, foreign_rcnn
from ciod.detectors.files import weights as files
from ciod.detectors.rcnn import losses, sampling
from ciod.detectors.rcnn.pooling import level_of, pool
from ciod.exporters.onnx_file import export
from tests import fixed
from tests.detectors.common import NAMES, bn_eval, make, pictures
from tests.detectors.test_contract import lively

SIDE = 96
THEIRS = {
    "fasterrcnn-mobilenet-v3-320": "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn-mobilenet-v3": "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn-r50": "fasterrcnn_resnet50_fpn",
    "fasterrcnn-r50-v2": "fasterrcnn_resnet50_fpn_v2",
}


def theirs(classes: int, name: str = "fasterrcnn-mobilenet-v3-320", **more) -> nn.Module:
    made = getattr(detection, THEIRS[name])
    return made(weights=None, weights_backbone=None, num_classes=classes + 1, **more)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """torchvision's smallest model with lively weights, and ours from its checkpoint."""
    torch.manual_seed(0)
    limits = {f"rpn_{when}_nms_top_n_train": 150 for when in ("pre", "post")}
    model = lively(theirs(3, min_size=SIDE, max_size=SIDE, **limits))
    for layer in (model.rpn.head.cls_logits, model.rpn.head.bbox_pred, model.roi_heads.box_predictor.cls_score):
        nn.init.normal_(layer.weight, std=0.05)
    path = tmp_path_factory.mktemp("rcnn") / "theirs.pth"
    torch.save(model.state_dict(), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detectors, "available", lambda: list(THEIRS))  # trying all others on it takes time
        detector = files.load(path, classes=NAMES)
    assert detector.settings["name"] == "fasterrcnn-mobilenet-v3-320" and detector.class_names == NAMES
    detector.input = replace(detector.input, size=SIDE)
    return model, detector


def some_pictures(n: int = 2) -> Tensor:
    return torch.randint(0, 256, (n, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)


class First:
    """Takes the first positives and negatives, instead of random ones."""

    def __init__(self, most: int, share: float):
        self.most, self.share = most, share

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        positive, negative = [], []
        for of_image in labels:
            yes, no = torch.where(of_image >= 1)[0][: int(self.most * self.share)], torch.where(of_image == 0)[0]
            no = no[: self.most - len(yes)]
            positive.append(torch.zeros_like(of_image, dtype=torch.uint8).index_fill(0, yes, 1))
            negative.append(torch.zeros_like(of_image, dtype=torch.uint8).index_fill(0, no, 1))
        return positive, negative


def test_losses_and_gradients_are_torchvisions_for_the_same_samples(pair, monkeypatch):
    model, detector = pair
    model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler = First(256, 0.5), First(512, 0.25)
    monkeypatch.setattr(sampling, "draws", lambda key, n, salt: torch.linspace(1, 0.1, n).expand(len(key), n))
    images = some_pictures()
    targets = fixed.boxes_at_random(3, [4, 2], classes=3, size=SIDE)
    listed = [
        {"boxes": targets.boxes[b, targets.valid[b]], "labels": targets.labels[b, targets.valid[b]] + 1}
        for b in range(2)
    ]
    bn_eval(model.train())
    expected = model([x / 255 for x in images.float()], listed)
    bn_eval(detector.train())
    outputs = detector(images)
    found = detector.loss(outputs, targets, detector.match(outputs, targets))
    pairs = {"cls": "classifier", "box": "box_reg", "obj": "objectness", "rpn_box": "rpn_box_reg"}
    for key, loss in found.items():
        assert loss.item() == pytest.approx(expected[f"loss_{pairs[key]}"].item(), rel=1e-6, abs=1e-6), key
    assert len(found) == len(expected) and min(v.item() for v in found.values()) > 1e-4
    sum(found.values()).backward()
    sum(expected.values()).backward()
    grads = foreign_rcnn.rename({k: p.grad for k, p in model.named_parameters()} | {"num_batches": torch.zeros(1)})
    checked = 0
    for name, p in detector.named_parameters():
        wanted = grads[name]
        assert (p.grad - wanted).abs().max() <= 1e-4 * wanted.abs().max() + 1e-8, name
        checked += 1
    assert checked > 100
    detector.zero_grad()


def test_detections_are_torchvisions(pair):
    model, detector = pair
    images = some_pictures()
    with torch.no_grad():
        wanted = model.eval()([x / 255 for x in images.float()])
        found = detector.eval().decode(detector(images), score_threshold=0.05, multi_label=True)
    for d, w in zip(found, wanted, strict=True):
        assert len(d) == len(w["scores"]) > 5
        assert d.scores == pytest.approx(w["scores"].numpy(), abs=1e-5)
        assert d.labels.tolist() == (w["labels"] - 1).tolist()
        assert d.boxes == pytest.approx(w["boxes"].numpy(), abs=1e-2)


def test_regions_are_pooled_as_by_torchvision():
    g = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 4, s, s, generator=g) for s in (128, 64, 32, 16)]
    corner = torch.rand(2, 30, 2, generator=g) * 300
    boxes = torch.cat([corner, corner + 16 + torch.rand(2, 30, 2, generator=g) * (496 - corner)], 2)
    theirs_ = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    wanted = theirs_({str(i): m for i, m in enumerate(maps)}, list(boxes), [(512, 512)] * 2)
    levels = level_of(boxes, (4, 8, 16, 32))
    assert theirs_.map_levels is not None
    assert len(levels.unique()) == 3 and levels.flatten().tolist() == theirs_.map_levels(list(boxes)).tolist()
    torch.testing.assert_close(pool(maps, (4, 8, 16, 32), boxes), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", THEIRS)
def test_every_tensor_of_torchvisions_checkpoints_has_its_place(name):
    with torch.device("meta"):
        state = foreign.rename(theirs(3, name).state_dict())
        own = detectors.build(NAMES, name=name).state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in own.items()}


def test_a_checkpoint_is_recognised_by_its_shapes(monkeypatch):
    monkeypatch.setattr(detectors, "available", lambda: ["fasterrcnn-pico", "retinanet-r50", *list(THEIRS)[2:]])
    for name in ("fasterrcnn-r50", "fasterrcnn-r50-v2"):
        with torch.device("meta"):
            state = foreign.rename(theirs(3, name).state_dict())
        assert files.recognise(state) == name


def test_the_oldest_names_of_torchvision():
    state = {
        foreign_rcnn.CLASSES: torch.zeros(3, 4),
        "rpn.head.conv.weight": torch.zeros(1),
        "backbone.fpn.layer_blocks.2.bias": torch.zeros(1),
        "backbone.body.16.0.weight": torch.zeros(1),
    }
    assert {"rpn.conv.0.0.weight", "neck.layer_blocks.2.0.bias", "backbone.stage5.2.0.weight"} <= {
        *foreign.rename(state)
    }


def test_a_checkpoint_of_coco_has_its_80_classes_and_frozen_statistics():
    g = torch.Generator().manual_seed(0)
    state = {
        foreign_rcnn.CLASSES: torch.randn(91, 8, generator=g),
        "roi_heads.box_predictor.cls_score.bias": torch.randn(91, generator=g),
        "roi_heads.box_predictor.bbox_pred.bias": torch.arange(364.0),
        "backbone.body.conv1.weight": torch.zeros(1),
        "backbone.body.bn1.running_var": torch.ones(1),
    }
    coco = foreign.torchvision_coco()
    renamed, classes = foreign_rcnn.coco_classes(foreign.rename(state), None, coco)
    assert classes == list(names.COCO) == list(coco)
    rows = torch.tensor(list(coco.values()))
    assert torch.equal(renamed["head.cls.blocks.0.weight"], state[foreign_rcnn.CLASSES][rows])
    assert torch.equal(renamed["head.box.blocks.0.bias"][:, 0], 4.0 * rows)
    assert torch.equal(renamed["head.cls.background.weight"], state[foreign_rcnn.CLASSES][:1])
    assert renamed["backbone.stem.1.running_var"].item() == pytest.approx(1 - 1e-5, abs=1e-7)


def test_a_fresh_detector_takes_what_fits_and_rows_by_name(tmp_path):
    from ciod.detectors.files.transfer import take_class_rows

    donor = lively(make("fasterrcnn-pico", seed=1))
    files.save_model(tmp_path / "m.safetensors", donor)
    other = make("fasterrcnn-pico", names=("cow", "dog"), seed=2)
    taken = files.load_fitting(other, tmp_path / "m.safetensors")
    assert set(taken.left) == {"head.cls", "head.box"} and taken.taken["rpn"] == 6
    assert take_class_rows(other, donor) == {"cow": "cow"}
    assert torch.equal(other.head.cls.background.weight, donor.head.cls.background.weight)
    assert torch.equal(other.head.cls.blocks[0].weight[0], donor.head.cls.blocks[0].weight[2])
    assert torch.equal(other.head.box.blocks[0].weight[0], donor.head.box.blocks[0].weight[2])


def test_backbone_weights_that_do_not_fit(tmp_path):
    torch.save({"features.0.0.weight": torch.zeros(1)}, tmp_path / "w.pth")
    for name, given, match in (
        ("fasterrcnn-mobilenet-v3-320", "imagenet", "no download for fasterrcnn-mobilenet-v3-320; give a file"),
        ("fasterrcnn-mobilenet-v3-320", str(tmp_path / "no.pth"), "there is no file"),
        ("fasterrcnn-mobilenet-v3-320", str(tmp_path / "w.pth"), "is not torchvision's MobileNetV3-Large"),
        ("fasterrcnn-pico", str(tmp_path / "w.pth"), "fasterrcnn-pico takes none"),
    ):
        with pytest.raises(CiodError, match=match):
            detectors.build(NAMES, name=name, backbone_weights=given)


# Samples --------------------------------------------------------------------------------------------------------------


def test_samples_keep_their_numbers():
    g = torch.Generator().manual_seed(0)
    positive = torch.rand(3, 400, generator=g) < torch.tensor([[0.5], [0.01], [0.0]])
    negative = ~positive & (torch.rand(3, 400, generator=g) < 0.9)
    random = sampling.draws(torch.tensor([1, 2, 3]), 400, 1)
    assert 0.45 < random.mean() < 0.55 and len(random.unique()) > 1190 and random.min() >= 0 and random.max() < 1
    yes, no = sampling.balanced(positive, negative, random, 100, 0.25)
    assert (yes & ~positive).sum() == (no & ~negative).sum() == 0
    few = int(positive[1].sum())
    assert yes.sum(1).tolist() == [25, few, 0] and no.sum(1).tolist() == [75, 100 - few, 100]


def test_a_sample_depends_on_the_pixels_alone():
    images = pictures(3)
    key = sampling.keys(images)
    assert len(key.unique()) == 3 and torch.equal(sampling.keys(images[[2, 0]]), key[[2, 0]])
    assert torch.equal(sampling.draws(key[[1]], 50, 1), sampling.draws(key, 50, 1)[[1]])
    assert not torch.equal(sampling.draws(key, 50, 1), sampling.draws(key, 50, 2))
    images[0, 0, 0, 0] += 1
    assert sampling.keys(images)[0] != key[0]


# Classes --------------------------------------------------------------------------------------------------------------


def test_cross_entropy_counts_unlabelled_classes_as_background():
    g = torch.Generator().manual_seed(0)
    background, logits = torch.randn(1, 4, generator=g), torch.randn(1, 4, 3, generator=g, requires_grad=True)
    label, positive = torch.tensor([[0, 1, 2, 2]]), torch.tensor([[True, False, False, True]])
    every = torch.cat([background[..., None], logits], 2)
    plain = losses.unbiased_cross_entropy(background, logits, label, positive, None)
    aim = torch.where(positive, label + 1, 0)
    torch.testing.assert_close(plain, nn.functional.cross_entropy(every[0], aim[0], reduction="none")[None])
    labelled = torch.tensor([True, False, True]).expand(1, 4, 3)
    p = every.softmax(2)
    merged = losses.unbiased_cross_entropy(background, logits, label, positive, labelled)
    wanted = -torch.stack([p[0, 0, 1], p[0, 1, 0] + p[0, 1, 2], p[0, 2, 0] + p[0, 2, 2], p[0, 3, 3]]).log()
    torch.testing.assert_close(merged[0], wanted)
    torch.testing.assert_close(
        losses.unbiased_cross_entropy(background, logits, label, positive, labelled | True), plain
    )
    merged[0, 1].backward()
    assert (
        logits.grad[0, 1, 1] < 0 < logits.grad[0, 1, 0]
    )  # the logit of a class that is not labelled may rise, as background's does


def test_channels_and_known_make_classes_part_of_background():
    detector = make("fasterrcnn-pico")
    outputs = detector(pictures())
    targets = fixed.boxes_at_random(1, [3, 1], classes=1, size=64)
    matches = detector.match(outputs, targets)
    new = torch.tensor([True, False, False])
    by_channels = detector.loss(outputs, targets, matches, channels=new)
    by_known = detector.loss(outputs, replace(targets, known=new.expand(2, -1)), matches)
    assert by_channels["cls"].item() == pytest.approx(by_known["cls"].item(), rel=1e-6)
    assert by_channels["cls"] < detector.loss(outputs, targets, matches)["cls"]


def test_anchors_on_what_may_be_an_unlabelled_object_are_not_background():
    detector = make("fasterrcnn-pico")
    outputs = detector(pictures())
    logits = outputs.logits.detach().clone()
    logits[0, 0, 1] = 20.0  # the student is sure of a class that is not labelled
    outputs = replace(outputs, logits=logits)
    known = torch.tensor([[True, False, True], [True] * 3])
    targets = replace(fixed.no_boxes(2), known=known)
    positive, negative, _ = losses.match_anchors(outputs, targets)
    near = fixed.overlaps(outputs.rpn_anchors, outputs.boxes[0, 0].detach()) >= losses.BELOW
    assert not positive.any() and negative[0].tolist() == (~near).tolist() and near.any() and negative[1].all()


def test_old_scores_fall_by_less_than_one_percent():
    detector = lively(make("fasterrcnn-pico")).eval()
    with torch.no_grad():
        before = detector(pictures()).scores()
        detector.grow(["dog", "eel", "fox"])
        after = detector(pictures()).scores()[..., :3]
    ratio = after / before
    assert ratio.min() > 0.99 and ratio.max() < 1


def test_a_class_has_its_own_box():
    detector = lively(make("fasterrcnn-pico")).eval()
    nn.init.normal_(detector.head.box.blocks[0].weight, std=0.5)
    with torch.no_grad():
        outputs = detector(pictures(1))
        outputs = replace(outputs, logits=torch.tensor([3.0, 2.9, 0.0]).expand_as(outputs.logits))
        both = detector.decode(outputs, multi_label=True, nms_iou=1.0, score_threshold=0.3, max_detections=300)[0]
        (second,) = detector.decode(outputs, nms_iou=1.0, classes=torch.tensor([False, True, False]))
    of_second = outputs.box_of(0, torch.arange(100), torch.ones(100, dtype=torch.long)).numpy()
    assert {0, 1} == set(both.labels.tolist()) and len(second) == 100
    assert sorted(second.boxes.tolist()) == sorted(of_second.tolist())


def test_padding_is_never_found():
    detector = make("fasterrcnn-pico").eval()
    with torch.no_grad():
        most = detector(pictures()).rpn_logits.sigmoid().quantile(0.9)
        detector.shape = replace(detector.shape, limits=replace(detector.shape.limits, score=float(most)))
        outputs = detector(pictures())
    assert 0 < outputs.real.sum() < outputs.real.numel()
    assert (outputs.scores()[~outputs.real] == 0).all() and not detector.match(
        outputs, fixed.no_boxes(2)
    ).positive.any()


def test_teachers_in_parts_are_joined():
    detector = make("fasterrcnn-pico").eval()
    with torch.no_grad():
        whole = detector(pictures(3))
        joined = type(whole).joined([detector(pictures(3)[:2]), detector(pictures(3)[2:])])
    torch.testing.assert_close(joined.background, whole.background, rtol=0, atol=1e-4)
    assert torch.equal(joined.keys, whole.keys) and torch.equal(joined.rpn_anchors, whole.rpn_anchors)
    assert joined.rpn_logits.shape == whole.rpn_logits.shape


# Beyond Python --------------------------------------------------------------------------------------------------------


def test_an_exported_file_agrees(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")
    detector = lively(make("fasterrcnn-pico")).eval()
    for layer in (detector.rpn.cls_logits, detector.rpn.bbox_pred, detector.head.cls.blocks[0]):
        nn.init.normal_(layer.weight, std=0.1)
    detector.grow(["dog"])
    done = export(detector, tmp_path / "m.onnx", nms=True, tolerance=1e-4)
    assert done.verified and done.score_difference < 1e-4
    with pytest.raises(CiodError, match="holds the places of its anchors for one size"):
        export(detector, tmp_path / "m.onnx", dynamic_size=True)


def test_a_method_that_compares_positions_is_refused():
    with pytest.raises(ConfigError, match="Its regions differ between student and teacher"):
        config.load(None, ["data=shapes", "split=6+4", "detector=fasterrcnn-pico", "method=erd"])
    with pytest.raises(ConfigError, match="mma needs a detector with rois, which yolox-nano does not have"):
        config.load(None, ["data=shapes", "split=6+4", "detector=yolox-nano", "method=mma"])
