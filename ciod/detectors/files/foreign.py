"""Checkpoints of other projects: their tensor names in ours, and which detector they are.

Official YOLOX, MMDetection's YOLOX and GFL, torchvision's RetinaNet and FCOS; its Faster R-CNN is
in ``foreign_rcnn``.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ciod.detectors.files import foreign_rcnn

_SHARED = [("dconv", "depth"), ("pconv", "point"), ("depthwise_conv", "depth"), ("pointwise_conv", "point")]

# Official key names (Megvii YOLOX) → ours, applied in order.
_OFFICIAL = [
    (r"^backbone\.backbone\.stem\.", "backbone.stem."),
    (r"^backbone\.backbone\.dark(\d)\.", lambda m: f"backbone.stage{int(m[1]) - 1}."),
    (r"^backbone\.lateral_conv0\.", "neck.reduce.0."),
    (r"^backbone\.reduce_conv1\.", "neck.reduce.1."),
    (r"^backbone\.C3_p4\.", "neck.top_down.0."),
    (r"^backbone\.C3_p3\.", "neck.top_down.1."),
    (r"^backbone\.bu_conv2\.", "neck.downsample.0."),
    (r"^backbone\.bu_conv1\.", "neck.downsample.1."),
    (r"^backbone\.C3_n3\.", "neck.bottom_up.0."),
    (r"^backbone\.C3_n4\.", "neck.bottom_up.1."),
    (r"\.m\.", ".blocks."),
    (r"^(backbone\.stage(?:[123]\.1|4\.2)|neck\.(?:top_down|bottom_up)\.\d)\.conv1\.", r"\1.main."),
    (r"^(backbone\.stage(?:[123]\.1|4\.2)|neck\.(?:top_down|bottom_up)\.\d)\.conv2\.", r"\1.short."),
    (r"^(backbone\.stage(?:[123]\.1|4\.2)|neck\.(?:top_down|bottom_up)\.\d)\.conv3\.", r"\1.final."),
    (r"^head\.stems\.", "neck.out."),
    (r"^head\.(cls|reg)_convs\.", r"head.\1_tower."),
    (r"^head\.cls_preds\.(\d)\.", r"head.cls.\1.blocks.0."),
    (r"^head\.(reg|obj)_preds\.", r"head.\1."),
]

# MMDetection's names (YOLOX on CSPDarknet or ResNet; GFL on ResNet with FPN) → ours.
_MMDET = [
    (r"^backbone\.conv1\.", "backbone.stem.0."),
    (r"^backbone\.bn1\.", "backbone.stem.1."),
    (r"^backbone\.layer(\d)\.", r"backbone.stage\1."),
    (r"\.(main|short|final)_conv\.", r".\1."),
    (r"^neck\.reduce_layers\.", "neck.reduce."),
    (r"^neck\.top_down_blocks\.", "neck.top_down."),
    (r"^neck\.downsamples\.", "neck.downsample."),
    (r"^neck\.bottom_up_blocks\.", "neck.bottom_up."),
    (r"^neck\.out_convs\.", "neck.out."),
    (r"^bbox_head\.multi_level_(cls|reg)_convs\.", r"head.\1_tower."),
    (r"^bbox_head\.multi_level_conv_cls\.(\d)\.", r"head.cls.\1.blocks.0."),
    (r"^bbox_head\.multi_level_conv_(reg|obj)\.", r"head.\1."),
    (r"^neck\.lateral_convs\.(\d)\.conv\.", r"neck.inner_blocks.\1.0."),
    (r"^neck\.fpn_convs\.([012])\.conv\.", r"neck.layer_blocks.\1.0."),
    (r"^neck\.fpn_convs\.([34])\.conv\.", lambda m: f"neck.extra_blocks.p{int(m[1]) + 3}."),
    (r"^bbox_head\.(cls|reg)_convs\.", r"head.\1_tower."),
    (r"^bbox_head\.gfl_cls\.", "head.cls.blocks.0."),
    (r"^bbox_head\.gfl_reg\.", "head.reg."),
    (r"^bbox_head\.scales\.(\d)\.scale$", r"head.scales.\1"),
]

# Ours → MMDetection's: for all, YOLOX, GFL; the names of a CSPDarknet's stages are the same.
_TO_MMDET = [
    (r"^backbone\.stem\.0\.", "backbone.conv1."),
    (r"^backbone\.stem\.1\.", "backbone.bn1."),
    (r"\.(main|short|final)\.", r".\1_conv."),
    (r"\.depth\.", ".depthwise_conv."),
    (r"\.point\.", ".pointwise_conv."),
    (r"^neck\.reduce\.", "neck.reduce_layers."),
    (r"^neck\.(top_down|bottom_up)\.", r"neck.\1_blocks."),
    (r"^neck\.downsample\.", "neck.downsamples."),
    (r"^neck\.out\.", "neck.out_convs."),
    (r"^neck\.inner_blocks\.(\d)\.0\.", r"neck.lateral_convs.\1.conv."),
    (r"^neck\.layer_blocks\.(\d)\.0\.", r"neck.fpn_convs.\1.conv."),
    (r"^neck\.extra_blocks\.p([67])\.", lambda m: f"neck.fpn_convs.{int(m[1]) - 3}.conv."),
]
_TO_MMDET_YOLOX = [
    (r"^head\.(cls|reg)_tower\.", r"bbox_head.multi_level_\1_convs."),
    (r"^head\.(cls|reg|obj)\.", r"bbox_head.multi_level_conv_\1."),
]
_TO_MMDET_GFL = [
    (r"^head\.(cls|reg)_tower\.", r"bbox_head.\1_convs."),
    (r"^head\.(cls|reg)\.", r"bbox_head.gfl_\1."),
    (r"^head\.scales\.(\d)$", r"bbox_head.scales.\1.scale"),
]

# torchvision's names (RetinaNet, FCOS) → ours. Its oldest checkpoints lack the index inside a block.
_TORCHVISION = [
    (r"^backbone\.body\.conv1\.", "backbone.stem.0."),
    (r"^backbone\.body\.bn1\.", "backbone.stem.1."),
    (r"^backbone\.body\.layer(\d)\.", r"backbone.stage\1."),
    (r"^backbone\.fpn\.", "neck."),
    (r"^(neck\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2"),
    (r"\.cls_logits\.", ".cls_logits.blocks.0."),
]
_OLD_RETINANET = [(r"^(head\.\w+\.conv)\.(\d)\.(weight|bias)$", lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}")]

_CLASS_BIAS = r"head\.(cls(\.0)?|classification_head\.cls_logits)\.blocks\.0\.bias"


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Key names of another project → ours; unknown names pass unchanged."""
    if foreign_rcnn.CLASSES in state:
        return foreign_rcnn.rename(state)
    if any(k.startswith("backbone.body.") for k in state):
        return _rename_torchvision(state)
    rules = _MMDET if any(k.startswith("bbox_head.") for k in state) else _OFFICIAL
    out = {}
    for key, value in state.items():
        for pattern, to in rules:
            key = re.sub(pattern, to, key)
        for old, new in _SHARED:
            key = key.replace(f".{old}.", f".{new}.")
        out[key] = value
    return out


def to_mmdet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of our YOLOX or GFL under MMDetection's names, each class layer in one piece."""
    gfl = "head.reg.weight" in state
    resnet = "backbone.stem.0.weight" in state
    rules = [*_TO_MMDET, *(_TO_MMDET_GFL if gfl else _TO_MMDET_YOLOX)]
    if resnet:
        rules.append((r"^backbone\.stage(\d)\.", r"backbone.layer\1."))
    out = {}
    for key, value in merge_blocks(state).items():
        for pattern, to in rules:
            key = re.sub(pattern, to, key)
        out[key] = value
    return out


_BLOCK = re.compile(r"(.*)\.blocks\.(\d+)\.(weight|bias)")


def merge_blocks(state: dict[str, Tensor], kernels: dict[str, int] | None = None) -> dict[str, Tensor]:
    """Class layers, which grew block by block, as one weight and one bias; rows of several anchors are ordered by
    anchor, as in MMDetection.

    Args:
        kernels: kernel size of layers with anchors (default: 3).
    """
    out: dict[str, Tensor] = {}
    parts: dict[str, list[Tensor]] = {}
    for key, value in state.items():
        found = _BLOCK.fullmatch(key)
        if found is None:
            out[key] = value
            continue
        whole = f"{found[1]}.{found[3]}"
        out.setdefault(whole, value)  # its place in the order
        parts.setdefault(whole, []).append(value)
    for key, blocks in parts.items():
        value = torch.cat(blocks)
        layer = key.rpartition(".")[0]
        if state[f"{layer}.blocks.0.bias"].dim() == 2:  # AnchorConv: [C, A] and [C, A, channels × k²]
            k = (kernels or {}).get(layer, 3)
            value = value.transpose(0, 1).flatten(0, 1).contiguous()
            value = value if value.dim() == 1 else value.view(len(value), -1, k, k)
        out[key] = value
    return out


def _rename_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """RetinaNet's class layer has one row per anchor and class in torchvision, and one row per class with all anchors
    in ciod."""
    retinanet = not any("ctrness" in k for k in state)
    rules = [*_TORCHVISION, *(_OLD_RETINANET if retinanet else [])]
    anchors = len(state["head.regression_head.bbox_reg.bias"]) // 4 if retinanet else 1
    out = {}
    for key, value in state.items():
        for pattern, to in rules:
            key = re.sub(pattern, to, key)
        if retinanet and ".cls_logits." in key:
            value = value.unflatten(0, (anchors, -1)).transpose(0, 1)
            value = value.flatten(2).contiguous() if value.dim() > 2 else value.contiguous()
        out[key] = value
    if retinanet and count_classes(out) == COCO_ROWS:
        # The weights torchvision publishes were trained with an epsilon of 0 in batch normalisation; ours has 1e-5.
        out |= {k: v - 1e-5 for k, v in out.items() if k.startswith("backbone.") and k.endswith("running_var")}
    return out


COCO_ROWS = 91  # torchvision's COCO models have rows for the background and for ids without a class


def class_rows(state: dict[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    """The state dict with only these rows of its class layers."""
    layer = re.compile(_CLASS_BIAS.replace("bias", "(weight|bias)"))
    return {k: v[rows] if layer.fullmatch(k) else v for k, v in state.items()}


def torchvision_coco() -> dict[str, int]:
    """Class → row of torchvision's COCO models."""
    from torchvision.models.detection import FCOS_ResNet50_FPN_Weights

    names = FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return {n: i for i, n in enumerate(names) if n not in ("__background__", "N/A")}


def count_classes(state: dict[str, Tensor]) -> int:
    """Number of classes of a renamed state dict; 0 if it has no class layer."""
    return next((len(v) for k, v in state.items() if re.fullmatch(_CLASS_BIAS, k)), 0)
