"""YOLOX: its sizes, positions, losses and backbones; and decoding, on its outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ciod import detectors
from ciod.core.errors import CiodError
from ciod.detectors.files import weights as files
from tests import fixed
from tests.detectors.common import NAMES, SIZE, make, pictures


def test_official_sizes():
    """Parameters with 80 classes, in millions, as the YOLOX paper has them."""
    sizes = {"yolox-nano": 0.91, "yolox-tiny": 5.06, "yolox-s": 9.0, "yolox-m": 25.3, "yolox-l": 54.2, "yolox-x": 99.1}
    for name, millions in sizes.items():
        with torch.device("meta"):
            n = sum(p.numel() for p in make(name, [str(i) for i in range(80)]).parameters())
        assert n / 1e6 == pytest.approx(millions, rel=0.01), name


def test_the_papers_resnets():
    """ilyolox.md .2: 71.0 M with ResNet-50, 15.9 M with ResNet-18; 8400 positions at 640."""
    for name, millions in {"yolox-r18": 15.9, "yolox-r50": 71.0}.items():
        with torch.device("meta"):
            detector = detectors.build([str(i) for i in range(80)], name=name)
            n = sum(p.numel() for p in detector.parameters())
            assert detector(torch.zeros(1, 3, 640, 640)).logits.shape == (1, 8400, 80)
        assert n / 1e6 == pytest.approx(millions, rel=0.01), name


def test_positions_run_level_by_level_row_by_row():
    out = make()(pictures(1))
    assert out.points[:3].tolist() == [[4, 4], [12, 4], [20, 4]]
    assert out.points[8].tolist() == [4, 12]
    assert out.points[64].tolist() == [8, 8] and out.points[-1].tolist() == [48, 48]
    assert out.strides.unique_consecutive().tolist() == [8, 16, 32]


def test_an_untrained_giant_size_stays_finite():
    from ciod.detectors.yolox import assemble

    maps = [
        [torch.full((1, c, SIZE // s, SIZE // s), v) for s in (8, 16, 32)] for c, v in ((2, 0.0), (4, 1e4), (1, 0.0))
    ]
    assert assemble(*maps).boxes.isfinite().all()


def test_every_position_of_a_match_is_positive_and_every_positive_a_match():
    outputs = fixed.random_outputs(3, 4)
    targets = fixed.boxes_at_random(3, [5, 2], classes=4)
    matches = make().match(outputs, targets)
    for b in range(2):
        ok = matches.valid[b]
        positions = matches.position[b, ok]
        assert positions.tolist() == sorted(set(positions.tolist()))
        assert positions.tolist() == torch.nonzero(matches.positive[b]).squeeze(1).tolist()
        assert (matches.target[b, ok] < (5, 2)[b]).all()
        assert ((matches.iou[b, ok] >= 0) & (matches.iou[b, ok] <= 1)).all()


def test_counted_takes_matches_out_of_class_and_box_loss_only():
    detector = make()
    outputs = fixed.random_outputs(5, 3)
    targets = fixed.boxes_at_random(5, [4, 3], classes=3)
    matches = detector.match(outputs, targets)
    whole = detector.loss(outputs, targets, matches)
    none = detector.loss(outputs, targets, matches, counted=torch.zeros_like(matches.valid))
    assert none["cls"] == none["box"] == 0 and none["obj"] == whole["obj"]
    first, rest = matches.target == 0, matches.target > 0
    n = (matches.valid & first).sum(), (matches.valid & rest).sum()
    parts = [detector.loss(outputs, targets, matches, counted=c) for c in (first, rest)]
    for key in ("cls", "box"):
        together = (parts[0][key] * n[0] + parts[1][key] * n[1]) / (n[0] + n[1])
        assert together.item() == pytest.approx(whole[key].item(), rel=1e-5)


@pytest.mark.parametrize("threshold", [0.05, 0.3])
@pytest.mark.parametrize("most", [3, 100])
def test_decode_keeps_to_its_limits(threshold, most):
    found = make().decode(fixed.random_outputs(2, 3), score_threshold=threshold, max_detections=most)
    assert len(found) == 2
    for d in found:
        assert 0 < len(d) <= most
        assert (d.scores > threshold).all() and (np.diff(d.scores) <= 0).all()
        assert d.labels.min() >= 0 and d.labels.max() < 3 and d.class_names == NAMES


def test_decode_takes_overlapping_boxes_of_a_class_once():
    logits = torch.tensor([[4.0, -9, -9], [3, -9, -9], [-9, 2, -9], [1, -9, -9]])
    boxes = torch.tensor([[0.0, 0, 20, 20], [1, 0, 21, 20], [0, 0, 20, 20], [40, 40, 60, 60]])
    found = make().decode(fixed.outputs(logits, boxes, torch.full((4,), 9.0)), score_threshold=0.01, nms_iou=0.65)[0]
    assert found.labels.tolist() == [0, 1, 0]
    assert found.boxes.tolist() == boxes[[0, 2, 3]].tolist()
    assert found.scores == pytest.approx(torch.tensor([4.0, 2, 1]).sigmoid().numpy(), rel=1e-3)


def test_decode_of_several_labels_per_position():
    """Without it the likelier class hides the other, whose box is in no list."""
    out = fixed.outputs(torch.tensor([[3.0, 2, -9]]), torch.tensor([[0.0, 0, 20, 20]]), torch.tensor([9.0]))
    given = {"score_threshold": 0.01, "nms_iou": 0.65}
    one, several = make().decode(out, **given)[0], make().decode(out, **given, multi_label=True)[0]
    assert one.labels.tolist() == [0] and several.labels.tolist() == [0, 1]
    assert several.boxes.tolist() == [[0, 0, 20, 20]] * 2
    assert several.scores == pytest.approx(torch.tensor([3.0, 2]).sigmoid().numpy(), rel=1e-3)
    only = make().decode(out, **given, multi_label=True, classes=torch.tensor([False, True, True]))[0]
    assert only.labels.tolist() == [1]


def test_decode_of_some_classes_only():
    found = make().decode(fixed.random_outputs(2, 3), score_threshold=0.05, classes=torch.tensor([False, True, False]))
    assert {int(y) for d in found for y in d.labels} == {1}


def test_predict_gives_boxes_in_the_picture_and_leaves_the_mode_alone():
    detector = make().train()
    picture = np.random.default_rng(0).integers(0, 255, (40, 90, 3), dtype=np.uint8)
    found = detector.predict(picture, score_threshold=1e-6, max_detections=7)
    assert detector.training and 0 < len(found) <= 7
    assert found.boxes[:, 0::2].min() >= 0 and found.boxes[:, 0::2].max() <= 90
    assert found.boxes[:, 1::2].min() >= 0 and found.boxes[:, 1::2].max() <= 40
    assert set(found.to_list()[0]) == {"class", "score", "box"}


def test_a_pretrained_resnet_freezes_stem_and_first_stage(tmp_path):
    import torchvision

    torch.manual_seed(0)
    donor = torchvision.models.resnet18()
    torch.save(donor.state_dict(), tmp_path / "r18.pth")
    detector = detectors.build(NAMES, name="yolox-r18", size=SIZE, backbone_weights=str(tmp_path / "r18.pth")).train()
    assert torch.equal(detector.backbone.stage4[1].conv2.weight, donor.layer4[1].conv2.weight)
    frozen = {n for n, p in detector.named_parameters() if not p.requires_grad}
    assert frozen and all(n.startswith(("backbone.stem.", "backbone.stage1.")) for n in frozen)
    assert not any(m.training for m in detector.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    assert any(m.training for m in detector.neck.modules() if isinstance(m, nn.BatchNorm2d))

    path = tmp_path / "model.safetensors"  # the file alone is enough: the ImageNet weights are not needed again
    (tmp_path / "r18.pth").unlink()
    files.save_model(path, detector)
    assert torch.equal(files.load(path).backbone.stage4[1].conv2.weight, donor.layer4[1].conv2.weight)


def test_backbone_weights_that_do_not_fit(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(CiodError, match="is not a torchvision ResNet-18; it lacks"):
        detectors.build(NAMES, name="yolox-r18", backbone_weights=str(tmp_path / "x.pth"))
    with pytest.raises(CiodError, match=r"detector\.backbone_weights: there is no file"):
        detectors.build(NAMES, name="yolox-r18", backbone_weights=str(tmp_path / "absent.pth"))


def test_without_a_network_a_resnet_starts_from_random_weights_and_warns(monkeypatch):
    import torchvision

    def no_network(*_):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models, "get_model_weights", no_network)
    with pytest.warns(UserWarning, match="could not be downloaded .*starts from random weights"):
        detector = detectors.build(NAMES, name="yolox-r18", size=SIZE, backbone_weights="imagenet")
    assert all(p.requires_grad for p in detector.parameters())
