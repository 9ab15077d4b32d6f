"""torchvision's checkpoints of Faster R-CNN: their tensor names and rows in ours."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

from ciod.detectors.rcnn.networks import SPLIT

CLASSES = "roi_heads.box_predictor.cls_score.weight"  # a tensor that only these checkpoints have
COCO_ROWS = 90  # of torchvision's COCO models without background; ten ids have no class
_PARTS = ("stem", "stage1", "stage2", "stage3", "stage4", "stage5")


def _block(match: re.Match[str]) -> str:
    """Block ``i`` of MobileNetV3 → its stage."""
    i = int(match[1])
    part, (first, _) = next((p, ab) for p, ab in zip(_PARTS, SPLIT, strict=True) if ab[0] <= i < ab[1])
    return f"backbone.{part}.{i - first}."


_RULES = [
    (r"^backbone\.body\.conv1\.", "backbone.stem.0."),
    (r"^backbone\.body\.bn1\.", "backbone.stem.1."),
    (r"^backbone\.body\.layer(\d)\.", r"backbone.stage\1."),
    (r"^backbone\.body\.(\d+)\.", _block),
    (r"^backbone\.fpn\.", "neck."),
    (r"^(neck\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2"),  # the oldest checkpoints
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.conv.0.0.\1"),
    (r"^rpn\.head\.", "rpn."),
    (r"^roi_heads\.box_head\.", "head.trunk."),
]


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Key names of torchvision → ours; background's row of the class layer gets a layer of its own, and its box rows,
    which nothing reads, are dropped."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        for pattern, to in _RULES:
            key = re.sub(pattern, to, key)
        layer, _, leaf = key.rpartition(".")
        if layer == "roi_heads.box_predictor.cls_score":
            out |= {f"head.cls.background.{leaf}": value[:1], f"head.cls.blocks.0.{leaf}": value[1:]}
        elif layer == "roi_heads.box_predictor.bbox_pred":
            out[f"head.box.blocks.0.{leaf}"] = value.unflatten(0, (-1, 4))[1:]
        else:
            out[key] = value
    frozen = not any("num_batches" in k for k in state)
    if frozen and len(state[CLASSES]) == COCO_ROWS + 1 and "backbone.stem.0.weight" in out:
        # The published ResNet was trained with an epsilon of 0 in batch normalisation; ours has 1e-5.
        out |= {k: v - 1e-5 for k, v in out.items() if k.startswith("backbone.") and k.endswith("running_var")}
    return out


def coco_classes(
    state: dict[str, Tensor], classes: Sequence[str] | None, coco: dict[str, int]
) -> tuple[dict[str, Tensor], Sequence[str] | None]:
    """Keeps those of COCO's rows that have a name; returns also the names. Other checkpoints are unchanged.

    Args:
        state: renamed.
        coco: class → row of torchvision's COCO models, background is row 0.
    """
    if classes is not None or len(state["head.cls.blocks.0.bias"]) != COCO_ROWS:
        return state, classes
    rows = [row - 1 for row in coco.values()]
    layer = re.compile(r"head\.(cls|box)\.blocks\.0\.")
    return {k: v[rows] if layer.match(k) else v for k, v in state.items()}, list(coco)
