"""Exports a detector to MMDetection: a config for its tools, and a checkpoint with the class names in its metadata.

This does not need MMDetection. It supports ciod's YOLOX and GFL, and detectors of MMDetection (``mmdet:CONFIG``).
"""

from __future__ import annotations

import io
import json
import os
import pprint
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ciod.core.errors import CiodError
from ciod.core.files import atomic_write, is_file
from ciod.core.reading import Unreadable, read_text

if TYPE_CHECKING:
    from ciod.detectors.base import Detector

NORM = {"type": "BN", "momentum": 0.03, "eps": 0.001}
SWISH = {"type": "Swish"}
MARK = "# Written by ciod export."
BEFORE = "default_scope = 'mmdet'\n\nmodel = {'type': "
"""How the configs of ciod 0.1 begin, which have no such mark."""


@dataclass(frozen=True)
class Written:
    config: Path
    checkpoint: Path

    def lines(self) -> list[str]:
        """Text for the terminal."""
        return [f"{self.config} and {self.checkpoint}"]

    def content(self) -> dict[str, str]:
        """The entries for ``--json``."""
        return {"config": str(self.config), "checkpoint": str(self.checkpoint)}


def export(
    model: str | Path | Detector,
    folder: str | Path,
    *,
    size: int | None = None,
    names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Written:
    """Writes ``detector.py`` and ``detector.pth`` into ``folder``.

    Args:
        model: a detector, or a file for ``ciod.load``.
        size: side of the images (default: that of the model).
        names: class names for a checkpoint without them.
        overwrite: also replace files with these names that ``ciod export`` did not write.

    Raises:
        CiodError: no model, a detector that MMDetection does not have, or the folder cannot be written.
    """
    from ciod.detectors.files import mmdet_files
    from ciod.detectors.files.weights import open_detector

    out = Written(Path(folder) / "detector.py", Path(folder) / "detector.pth")
    _keep(out, model, overwrite)
    detector = open_detector(model, size, names).frozen().cpu()
    if not detector.num_classes:
        raise CiodError("The model has no classes yet; train it first.")
    config = _whole(detector, model_config(detector))
    text = f"{MARK}\n\n{_text(config)}"
    content = {
        "meta": {"dataset_meta": {"classes": list(detector.class_names)}, "cfg": text, "ciod": detector.lineage},
        "state_dict": mmdet_files.state_of(detector),
    }
    file = io.BytesIO()
    torch.save(content, file)
    atomic_write(out.checkpoint, file.getvalue())
    atomic_write(out.config, text)
    return out


def _keep(out: Written, model: str | Path | Detector, overwrite: bool) -> None:
    """Raises CiodError if a file would be lost: the model itself, or without ``overwrite`` one that ciod did not
    write."""
    for path in (out.config, out.checkpoint):
        if isinstance(model, (str, Path)) and os.path.realpath(model) == os.path.realpath(path):
            raise CiodError(f"mmdet: {path} is the model itself, which is never overwritten; choose another folder.")
    try:
        start = read_text(out.config)[: len(BEFORE)]
    except Unreadable:
        start = ""
    there = [p for p in (out.config, out.checkpoint) if is_file(p)]
    if there and not overwrite and not start.startswith((MARK, BEFORE)):
        raise CiodError(
            f"mmdet: {there[0]} already exists and was not written by 'ciod export'. Choose another folder, or "
            "write overwrite=true."
        )


def model_config(detector: Detector) -> dict[str, Any]:
    """``model`` of a config of MMDetection 3.

    Raises:
        CiodError: MMDetection has no such detector.
    """
    from ciod.detectors.gfl import GFL
    from ciod.detectors.staged_branches import StagedBranches
    from ciod.detectors.yolox import YOLOX

    if isinstance(detector, StagedBranches) and len(detector.branches):
        raise CiodError(
            "A detector with branches (freeze_branch) cannot be exported to MMDetection, which has no branches."
        )
    if detector.settings["name"].startswith("mmdet:"):
        model = json.loads(detector.settings["config"])
        model.pop("input", None)
        model["bbox_head"]["num_classes"] = detector.num_classes
        return model
    if type(detector) not in (YOLOX, GFL):
        raise CiodError(f"{detector.settings['name']} cannot be exported to MMDetection; only yolox-… and gfl-… can.")
    input_spec = detector.input
    order = slice(None, None, -1 if input_spec.bgr else 1)
    model: dict[str, Any] = {
        "type": "YOLOX" if type(detector) is YOLOX else "GFL",
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            "mean": list(input_spec.mean[order]),
            "std": list(input_spec.std[order]),
            "bgr_to_rgb": not input_spec.bgr,
            "pad_size_divisor": 32,
        },
    }
    shape: Any = type(detector).variants[detector.settings["name"]]
    parts = _yolox(shape, detector.num_classes) if type(detector) is YOLOX else _gfl(shape, detector.num_classes)
    return {**model, **parts}


def _trunk(shape: Any, *, pyramid: bool) -> dict[str, Any]:
    """Backbone and neck; the width of the neck's maps is its ``out_channels``."""
    if isinstance(shape, int):
        wide = 1 if shape == 18 else 4
        backbone = {
            "type": "ResNet",
            "depth": shape,
            "num_stages": 4,
            "out_indices": [1, 2, 3],
            "frozen_stages": 1,
            "norm_cfg": {"type": "BN", "requires_grad": True},
            "norm_eval": True,
            "style": "pytorch",
        }
        channels, width, depth, depthwise = [128 * wide, 256 * wide, 512 * wide], 128, 1, False
    else:
        deepen, widen, depthwise = shape
        backbone = {
            "type": "CSPDarknet",
            "deepen_factor": deepen,
            "widen_factor": widen,
            "out_indices": [2, 3, 4],
            "use_depthwise": depthwise,
            "spp_kernal_sizes": [5, 9, 13],
            "norm_cfg": NORM,
            "act_cfg": SWISH,
        }
        c = int(widen * 64)
        channels, width, depth = [4 * c, 8 * c, 16 * c], int(256 * widen), round(3 * deepen)
    neck: dict[str, Any] = {"in_channels": channels, "out_channels": width}
    if pyramid and isinstance(shape, int):
        neck |= {"type": "FPN", "out_channels": 256, "start_level": 0, "add_extra_convs": "on_output", "num_outs": 5}
    else:
        neck |= {
            "type": "YOLOXPAFPN",
            "num_csp_blocks": depth,
            "use_depthwise": depthwise,
            "upsample_cfg": {"scale_factor": 2, "mode": "nearest"},
            "norm_cfg": NORM,
            "act_cfg": SWISH,
        }
    return {"backbone": backbone, "neck": neck}


def _yolox(shape: Any, classes: int) -> dict[str, Any]:
    parts = _trunk(shape, pyramid=False)
    width = parts["neck"]["out_channels"]
    bce = {"type": "CrossEntropyLoss", "use_sigmoid": True, "reduction": "sum", "loss_weight": 1.0}
    iou = {"type": "IoULoss", "mode": "square", "eps": 1e-16, "reduction": "sum", "loss_weight": 5.0}
    head = {
        "type": "YOLOXHead",
        "num_classes": classes,
        "in_channels": width,
        "feat_channels": width,
        "stacked_convs": 2,
        "strides": [8, 16, 32],
        "use_depthwise": parts["neck"]["use_depthwise"],
        "norm_cfg": NORM,
        "act_cfg": SWISH,
        "loss_cls": bce,
        "loss_bbox": iou,
        "loss_obj": bce,
    }
    return {
        **parts,
        "bbox_head": head,
        "train_cfg": {"assigner": {"type": "SimOTAAssigner", "center_radius": 2.5}},
        "test_cfg": {"score_thr": 0.01, "nms": {"type": "nms", "iou_threshold": 0.65}},
    }


def _gfl(shape: Any, classes: int) -> dict[str, Any]:
    parts, light = _trunk(shape, pyramid=True), not isinstance(shape, int)
    width = parts["neck"]["out_channels"]
    head = {
        "type": "GFLHead",
        "num_classes": classes,
        "in_channels": width,
        "feat_channels": width,
        "stacked_convs": 2 if light else 4,
        "norm_cfg": {"type": "GN", "num_groups": min(32, width // 4), "requires_grad": True},
        "anchor_generator": {
            "type": "AnchorGenerator",
            "ratios": [1.0],
            "octave_base_scale": 8,
            "scales_per_octave": 1,
            "strides": [8, 16, 32] if light else [8, 16, 32, 64, 128],
        },
        "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0},
        "loss_dfl": {"type": "DistributionFocalLoss", "loss_weight": 0.25},
        "reg_max": 16,
        "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
    }
    return {
        **parts,
        "bbox_head": head,
        "train_cfg": {
            "assigner": {"type": "ATSSAssigner", "topk": 9},
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
        "test_cfg": {
            "nms_pre": 1000,
            "min_bbox_size": 0,
            "score_thr": 0.05,
            "nms": {"type": "nms", "iou_threshold": 0.6},
            "max_per_img": 100,
        },
    }


def _whole(detector: Detector, model: dict[str, Any]) -> dict[str, Any]:
    """A config with everything for testing: the image preprocessing of ciod, and a data set in COCO format."""
    side, fill = detector.input.size, detector.input.fill
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": (side, side), "keep_ratio": True},
        {"type": "Pad", "size": (side, side), "pad_val": {"img": (fill, fill, fill)}},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "PackDetInputs", "meta_keys": ["img_id", "img_path", "ori_shape", "img_shape", "scale_factor"]},
    ]
    dataset = {
        "type": "CocoDataset",
        "data_root": "data/",
        "ann_file": "val.json",
        "data_prefix": {"img": "images/"},
        "metainfo": {"classes": list(detector.class_names)},
        "test_mode": True,
        "pipeline": pipeline,
    }
    return {
        "default_scope": "mmdet",
        "model": model,
        "test_dataloader": {
            "batch_size": 1,
            "num_workers": 0,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": dataset,
        },
        "visualizer": {
            "type": "DetLocalVisualizer",
            "vis_backends": [{"type": "LocalVisBackend"}],
            "name": "visualizer",
        },
        "test_evaluator": {"type": "CocoMetric", "ann_file": "data/val.json", "metric": "bbox"},
        "test_cfg": {"type": "TestLoop"},
    }


def _text(config: dict[str, Any]) -> str:
    """Python text for MMDetection, with plain values only."""
    parts = [f"{key} = {pprint.pformat(value, sort_dicts=False, width=120)}" for key, value in config.items()]
    return "\n\n".join(parts) + "\n"
