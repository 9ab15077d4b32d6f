"""Folders of transformers with random weights, as its own save_pretrained writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ciod.detectors.query import configs, d_fine, deformable, lw_detr, rt_detr
from tests.detectors.common import SIZE, pictures

LITE = {
    **d_fine.PICO,
    "backbone_config": {**d_fine.PICO["backbone_config"], "out_indices": [3]},
    "encoder_type": "lite",
    "encoder_in_channels": [96],
    "decoder_in_channels": [64, 64],
    "num_feature_levels": 2,
    "feat_strides": [16, 32],
    "num_queries": 10,
    "share_bbox_head": True,
    "use_gateway": False,
}
FAMILIES = {
    "rt_detr": rt_detr.PICO,
    "rt_detr_v2": rt_detr.PICO,
    "d_fine": d_fine.PICO,
    "deimv2": d_fine.PICO,
    "deformable_detr": deformable.PICO,
    "lw_detr": lw_detr.PICO,
    "rf_detr": lw_detr.RF_PICO,
}
ONE_HEAD = {**deformable.PICO, "with_box_refine": False, "num_feature_levels": 4}
NETWORKS = {**FAMILIES, "deimv2 lite": LITE, "deformable_detr one head": ONE_HEAD}
"""Configurations by ``model_type``; one of the smallest DEIMv2, which share a box head; one without box refinement."""
LABELS = ("cat", "N/A", "dog", "bird")


def write(
    folder: Path, family: str, labels=LABELS, *, size: int = SIZE, processor: dict[str, Any] | None = None
) -> Any:
    """A model of ``NETWORKS`` whose scores and boxes differ from query to query, written and read by transformers."""
    import transformers

    torch.manual_seed(3)
    plain = {**NETWORKS[family], "model_type": family.split()[0]}
    config = configs.configuration(plain, labels, "a test")
    if hasattr(config, "num_denoising"):
        config.num_denoising = 10
    model = getattr(transformers, f"{configs.FAMILIES[config.model_type]}ForObjectDetection")(config)
    if family == "deformable_detr":  # transformers has one head for all layers until they are trained apart
        deformable.DeformableDETR.separate(model)
    for name, p in model.named_parameters():
        if "class_embed" in name or "score_head" in name or "bbox" in name:
            nn.init.normal_(p, std=0.3 if family.startswith("rt") else 0.1)  # sides of a distribution go farther
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():  # statistics of the pictures, from which features differ
        model.train()(pixel_values=pictures(6) / 255)
    if hasattr(config, configs.TRAINED):
        setattr(config, configs.TRAINED, True)  # as in every checkpoint
    model.eval().save_pretrained(folder)
    how = {"size": {"height": size, "width": size}, **(processor or {})}
    transformers.RTDetrImageProcessor(**how).save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


def edit(file: Path, **values: Any) -> None:
    """Changes keys of a JSON file; None removes one."""
    content = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
