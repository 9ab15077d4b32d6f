"""Small models with MMDetection's heads: its own configs, made narrow; and its own losses and detections of them."""

# pyright: reportMissingImports=false
from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import torch

from ciod.core.types import Targets
from tests import fixed

SIZE = 128
NAMES = ("ant", "bee", "cow")
WIDTH = 32
CONFIGS = {
    "yolox": "yolox_nano_8xb8-300e_coco",
    "gfl": "gfl_r50_fpn_1x_coco",
    "retinanet": "retinanet_r50_fpn_1x_coco",
    "fcos": "fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco",
    "fcos-plain": "fcos_r50-caffe_fpn_gn-head_1x_coco",
    "atss": "atss_r50_fpn_1x_coco",
    "vfnet": "vfnet_r50_fpn_1x_coco",
    "tood": "tood_r50_fpn_1x_coco",
    "rtmdet": "rtmdet_tiny_8xb32-300e_coco",
    "paa": "paa_r50_fpn_1x_coco",
}
HEADS = list(CONFIGS)


@cache
def _config(name: str) -> str:
    from ciod.detectors.mmdet import config as mmdet_config

    model = mmdet_config.read(CONFIGS[name])
    head = model["bbox_head"]
    if name == "yolox":
        model["backbone"]["widen_factor"] = 0.125
        model["neck"].update(in_channels=[32, 64, 128], out_channels=32)
    elif name == "rtmdet":
        model["backbone"].update(widen_factor=0.125, deepen_factor=0.167)
        model["neck"].update(in_channels=[32, 64, 128], out_channels=32)
    else:
        model["backbone"].update(depth=18, style="pytorch", norm_cfg={"type": "BN", "requires_grad": True})
        model["neck"].update(in_channels=[64, 128, 256, 512], out_channels=WIDTH)
        head["stacked_convs"] = 2
        if name != "retinanet":
            head["norm_cfg"] = {"type": "GN", "num_groups": 8, "requires_grad": True}
    head.update(in_channels=WIDTH, feat_channels=WIDTH)
    return json.dumps(model)


def config(name: str) -> dict[str, Any]:
    return json.loads(_config(name))


def make(name: str, names=NAMES, *, size: int = SIZE, seed: int = 0, **more):
    """The small model, with statistics and biases of a trained one."""
    from ciod import detectors

    torch.manual_seed(seed)
    detector = detectors.build(names, name=f"mmdet:{name}", size=size, config=_config(name), **more)
    g = torch.Generator().manual_seed(seed + 7)
    for m in detector.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.copy_(torch.randn(m.running_mean.shape, generator=g) * 0.1)
            m.running_var.copy_(torch.rand(m.running_var.shape, generator=g) * 0.5 + 0.2)
    return detector


def reference(detector) -> Any:
    """MMDetection's own model with the detector's weights."""
    from mmdet.registry import MODELS

    from ciod.detectors.files import mmdet_files
    from ciod.detectors.mmdet.build import to_build

    built = MODELS.build(to_build(copy.deepcopy(detector.config), detector.num_classes))
    missing = built.load_state_dict(mmdet_files.plain_state(detector), strict=False)
    assert not missing.missing_keys and not missing.unexpected_keys
    return built.train(detector.training)


def pictures(n: int = 2, seed: int = 0, size: int = SIZE) -> torch.Tensor:
    """Coarse and fine noise."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, size // 16, size // 16, generator=g) * 200
    drawn = torch.nn.functional.interpolate(coarse, (size, size)) + torch.rand(n, 3, size, size, generator=g) * 55
    return drawn.round().to(torch.uint8)


def boxes(counts=(3, 2), classes: int = len(NAMES), seed: int = 1) -> Targets:
    return fixed.boxes_at_random(seed, list(counts), classes=classes, size=SIZE)


def samples(targets: Targets, size: int = SIZE) -> list[Any]:
    """The same boxes as MMDetection's data samples."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    out = []
    for b in range(len(targets.boxes)):
        ok = targets.valid[b]
        shape = {"img_shape": (size, size), "pad_shape": (size, size), "batch_input_shape": (size, size)}
        sample = DetDataSample(metainfo={**shape, "scale_factor": (1.0, 1.0), "ori_shape": (size, size)})
        sample.gt_instances = InstanceData(bboxes=targets.boxes[b, ok], labels=targets.labels[b, ok])
        out.append(sample)
    return out
