"""A model of MMDetection from its config, with class layers that grow."""

# pyright: reportMissingImports=false
from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torchvision
from torch import nn

from ciod.core.errors import CiodError
from ciod.detectors.layers import backbones
from ciod.detectors.layers.class_layers import AnchorClassConv, ClassConv


@contextmanager
def _building(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a wrong value in a config can raise anything
        raise CiodError(f"MMDetection cannot build {source}: {type(error).__name__}: {error}") from error


def network(model: dict[str, Any], classes: int, source: str) -> Any:
    """The model of a config with initial weights.

    Raises:
        CiodError: MMDetection cannot build it.
    """
    from mmdet.models import SingleStageDetector
    from mmdet.registry import MODELS
    from mmengine.logging import MMLogger

    log = MMLogger.get_current_instance()
    level = log.level
    try:
        log.setLevel("WARNING")  # otherwise it prints three lines per parameter
        with _building(source):
            found = MODELS.build(to_build(model, classes))
            found.init_weights()
    finally:
        log.setLevel(level)
    if not isinstance(found, SingleStageDetector):
        raise CiodError(f"{source} is a {type(found).__name__}; only one-stage detectors are supported.")
    return found


def to_build(model: dict[str, Any], classes: int) -> Any:
    """A copy with this number of classes and with batch normalisation of a single process, as in all of ciod's
    detectors."""
    from mmengine.config import ConfigDict

    given = copy.deepcopy({k: v for k, v in model.items() if k not in ("input", "data_preprocessor")})
    given["bbox_head"]["num_classes"] = classes
    stack: list[Any] = [given]
    while stack:
        value = stack.pop()
        if isinstance(value, dict) and value.get("type") in ("SyncBN", "MMSyncBN"):
            value["type"] = "BN"
        if isinstance(value, (dict, list)):
            stack += list(value.values() if isinstance(value, dict) else value)
    return ConfigDict(given)


def class_layers(model: dict[str, Any], source: str) -> dict[str, int]:
    """The layers with rows per class, by name, and their number of rows for one class: those whose shape changes with
    the number of classes.

    Raises:
        CiodError: there are none, or MMDetection cannot build the config.
    """
    from mmdet.registry import MODELS

    with _building(source), torch.device("meta"):
        few, more = (MODELS.build(to_build(model, n)).state_dict() for n in (2, 3))
    found = {k.rpartition(".")[0]: len(more[k]) - len(few[k]) for k in few if few[k].shape != more[k].shape}
    if not found:
        raise CiodError(f"{source}: no layer of the head depends on the number of classes.")
    return dict(sorted(found.items()))


def growing(layer: Any, classes: int, head: Any, source: str) -> ClassConv:
    """A layer that grows, to replace one with fixed classes.

    Raises:
        CiodError: it is not a plain convolution.
    """
    plain = type(layer) is nn.Conv2d and layer.stride == (1, 1) and layer.groups == 1 and layer.bias is not None
    if not plain:
        raise CiodError(
            f"{source}: the class layer is a {type(layer).__name__}, which cannot grow; ciod extends only plain "
            "convolutions."
        )
    kernel, anchors = layer.kernel_size[0], int(getattr(head, "num_base_priors", 1))
    if anchors > 1:
        return AnchorClassConv(layer.in_channels, classes, anchors, kernel)
    return ClassConv(layer.in_channels, classes, kernel)


def put(model: nn.Module, place: str, layer: nn.Module) -> None:
    """Replaces the layer called ``place``."""
    parent, _, name = place.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)


def load_backbone(backbone: Any, given: dict[str, Any], weights: str) -> bool:
    """Loads torchvision's ResNet weights into MMDetection's ResNet, whose tensors have the same names.

    Raises:
        CiodError: it is another backbone.
    """
    depth = given.get("depth")
    if given.get("type") != "ResNet" or depth not in (18, 34, 50, 101, 152) or given.get("style") == "caffe":
        raise CiodError(
            f"detector.backbone_weights: only for ResNets of style pytorch; the config has a {given.get('type')}. "
            "Leave it out; detector.weights takes a checkpoint of the whole detector."
        )
    net = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    if not backbones.load_resnet(net, depth, weights):
        return False
    backbone.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("fc.")}, strict=True)
    return True
