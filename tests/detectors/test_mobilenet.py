"""MobileNetV1: its padding by hand, and the ImageNet weights recognise photographs as they should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ciod import detectors
from ciod.core.errors import CiodError
from ciod.data import formats
from ciod.data.images import read_image
from ciod.detectors.mobilenet import MobileNetV1, SameConv

FILE = "mobilenet_v1_075_imagenet_keras.pth"
# COCO class → ImageNet rows that mean the same
SAME = {
    "zebra": {340}, "banana": {954}, "pizza": {963}, "broccoli": {937}, "orange": {950}, "teddy bear": {850},
    "elephant": {101, 385, 386}, "laptop": {620, 681}, "toilet": {861}, "keyboard": {508, 878}, "mouse": {673},
    "umbrella": {879}, "bear": {294, 295, 296, 297}, "vase": {883}, "hot dog": {934}, "bus": {654, 779, 874},
}  # fmt: skip


@pytest.mark.parametrize(("side", "stride", "room"), [(8, 2, 1), (7, 2, 2), (8, 1, 2), (32, 2, 1)])
def test_same_padding_goes_right_and_bottom_first(side, stride, room):
    layer = SameConv(1, 1, 3, stride)
    assert layer._padding(side) == room
    torch.nn.init.ones_(layer.conv.weight)
    layer.eval()
    one = torch.zeros(1, 1, side, side)
    one[..., 0, 0] = 1  # seen by the first window only if that starts at or before it
    seen = layer(one)[0, 0] > 0
    assert seen.shape == (-(-side // stride),) * 2
    assert seen.nonzero().tolist() == ([[0, 0]] if stride == 2 else [[0, 0], [0, 1], [1, 0], [1, 1]])
    corner = torch.zeros(1, 1, side, side)
    corner[..., 2, 2] = 1  # with padding at right and bottom alone, stride 2's first window reaches pixel 2
    assert bool(layer(corner)[0, 0, 0, 0] > 0) == (stride == 2 and room == 1)


def test_maps_and_what_is_frozen(weights):
    detector = detectors.build(("cat",), name="yolox-mobilenet", size=64, backbone_weights=str(weights / FILE)).train()
    assert detector.backbone.channels == (192, 384, 768)
    assert [tuple(m.shape[1:]) for m in detector.backbone(torch.zeros(1, 3, 64, 64))] == [
        (192, 8, 8),
        (384, 4, 4),
        (768, 2, 2),
    ]
    still = {n.split(".")[1] for n, p in detector.named_parameters() if not p.requires_grad}
    assert still == {"stem", "stage1"}
    assert not any(m.training for m in detector.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
    fresh = detectors.build(("cat",), name="yolox-mobilenet", size=64)
    assert all(p.requires_grad for p in fresh.parameters()) and not fresh.backbone.pretrained


def test_wrong_files_are_refused(weights, tmp_path):
    def build(path) -> None:
        detectors.build(("cat",), name="yolox-mobilenet", backbone_weights=str(path))

    with pytest.raises(CiodError, match="there is no file"):
        build(tmp_path / "absent.pth")
    with pytest.raises(CiodError, match="is not a MobileNetV1 of this width"):
        build(weights / "yolox_nano_coco.pth")
    with pytest.raises(CiodError, match="no download for yolox-mobilenet"):
        build("imagenet")


def test_imagenet_weights_recognise_cut_out_objects(weights, datasets):
    """With the classifier that is in the file. Wrong channels or padding cost a tenth of the answers."""
    backbone = MobileNetV1(0.75, str(weights / FILE)).eval()
    classifier = torch.load(weights / FILE, weights_only=True)
    index = formats.read(datasets / "coco671", "train")
    cut, names = [], []
    for a in range(len(index.labels)):
        name, box = index.class_names[index.labels[a]], index.boxes[a].astype(int)
        side = int(max(box[2:] - box[:2]))
        if name not in SAME or np.prod(box[2:] - box[:2]) < 100**2:
            continue
        x, y = ((box[:2] + box[2:]) // 2).tolist()
        picture = read_image(index.files[index.image[a]])
        part = picture[max(0, y - side // 2) : y + side // 2, max(0, x - side // 2) : x + side // 2]
        tensor = torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1)[None].float()
        cut.append(F.interpolate(tensor, (224, 224), mode="bilinear", antialias=True))
        names.append(name)
    batch = torch.cat(cut) / 127.5 - 1

    def right(images: torch.Tensor) -> float:
        with torch.no_grad():
            pooled = backbone(images)[-1].mean((2, 3))
        best = (pooled @ classifier["fc.weight"].T + classifier["fc.bias"]).argmax(1).tolist()
        return float(np.mean([b in SAME[n] for b, n in zip(best, names)]))

    assert len(names) > 50
    assert right(batch) > 0.6 > right(batch.flip(1))  # measured: 0.71 and less with the channels swapped
