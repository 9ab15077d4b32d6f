"""Configurations of ``transformers``: checked, reduced to plain values, and built into networks.

A configuration comes from a stranger's folder, or from a model file. It may name no other file, repository or code:
only the fields of the families below are kept, and only values that describe a network.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ciod.core.errors import CiodError

PREFIX = "hf:"
FAMILIES = {
    "rt_detr": "RTDetr",
    "rt_detr_v2": "RTDetrV2",
    "d_fine": "DFine",
    "deimv2": "Deimv2",
    "deformable_detr": "DeformableDetr",
    "lw_detr": "LwDetr",
    "rf_detr": "RfDetr",
}
"""``model_type`` of a configuration → how the names of its classes begin."""
BACKBONES = {
    "rt_detr_resnet": "RTDetrResNetConfig",
    "hgnet_v2": "HGNetV2Config",
    "resnet": "ResNetConfig",
    "dinov3_vit": "DINOv3ViTConfig",
    "lw_detr_vit": "LwDetrViTConfig",
    "rf_detr_dinov2": "RfDetrDinov2Config",
}
TRAINED = "freeze_backbone_batch_norms"  # False: a network that starts from random weights
LARGEST = 16_384  # of any number in a configuration
LONGEST = 64  # entries of a list, characters of a text


def package() -> Any:
    """``transformers``.

    Raises:
        CiodError: it is not installed.
    """
    try:
        importlib.import_module("scipy.optimize")
        return importlib.import_module("transformers")
    except ImportError as error:
        missing = f"{error.name} is not installed, and query detectors need it"
        raise CiodError(f"{missing}: pip install 'ciod[detr]'") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and notices of ``transformers``, which would stand between ciod's own lines."""
    log = package().utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def model_type(raw: Mapping[str, Any], source: str) -> str:
    """The family of a configuration.

    Raises:
        CiodError: it is none of those that ciod reads.
    """
    found = raw.get("model_type")
    if not isinstance(found, str) or found not in FAMILIES:
        raise CiodError(f"{source} is a {str(found)[:LONGEST]!r}; ciod reads {', '.join(FAMILIES)}.")
    return found


def plain(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The part of a ``config.json`` that describes the network: neither classes nor names of other files.

    Layers behind the one that answers (``eval_idx``) are left out, and sizes that would switch off positions.

    Raises:
        CiodError: another family, another backbone, or values that no network has.
    """
    kinds, family = package(), model_type(raw, source)
    found = _fields(getattr(kinds, f"{FAMILIES[family]}Config"), raw)
    backbone = raw.get("backbone_config")
    kind = backbone.get("model_type") if isinstance(backbone, Mapping) else None
    if not isinstance(backbone, Mapping) or not isinstance(kind, str) or kind not in BACKBONES:
        raise CiodError(
            f"{source}: its backbone is {str(kind or raw.get('backbone') or 'not described')[:LONGEST]!r}; ciod reads "
            f"{', '.join(BACKBONES)}."
        )
    inner = _fields(getattr(kinds, BACKBONES[kind]), backbone)
    for key in ("out_indices", "out_features"):
        if isinstance(backbone.get(key), (list, tuple)):
            inner[key] = list(backbone[key])
    found |= {"model_type": family, "backbone_config": {"model_type": kind, **inner}}
    if raw.get(TRAINED) is False:  # ours, where a family of transformers has no such field
        found[TRAINED] = False
    if found.get("two_stage"):
        raise CiodError(
            f"{source}: Deformable DETR with two_stage=true, whose encoder proposes the queries, cannot be read; ciod "
            "reads it with learnt queries."
        )
    if found.pop("learn_initial_query", False) or not found.pop("use_focal_loss", True):
        raise CiodError(f"{source}: learnt initial queries and softmax scores (use_focal_loss=false) cannot be read.")
    answers, layers = found.pop("eval_idx", -1), found.get("decoder_layers", 6)
    if isinstance(answers, int) and isinstance(layers, int) and 0 <= answers < layers:
        found["decoder_layers"] = answers + 1
    # transformers leaves out the position embedding where eval_size is set, and keeps anchors of one size
    for key in ("eval_size", "anchor_image_size", "num_denoising"):
        found.pop(key, None)
    wrong = next(_unusual(found), None)
    if wrong is not None:
        raise CiodError(
            f"{source}: {wrong} in its configuration is not a value that a network can have; compare it with "
            "the original."
        )
    return json.loads(json.dumps(found))


def multiple(config: Mapping[str, Any]) -> int:
    """Sides of the input must be a multiple of this: of a stride, or of a window of patches.

    Args:
        config: from ``plain``.
    """
    backbone = config["backbone_config"]
    windows, kind = backbone.get("num_windows"), backbone["model_type"]
    if kind == "rf_detr_dinov2":
        return backbone.get("patch_size", 14) * (windows or 4)
    if kind == "lw_detr_vit":
        return backbone.get("patch_size", 16) * math.isqrt(windows or 16)
    return 32


def _fields(kind: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Values for the fields that this configuration adds to those of every model."""
    every = {f.name for f in dataclasses.fields(package().PreTrainedConfig)}
    own = {f.name for f in dataclasses.fields(kind)} - every - {"backbone_config"}
    return {k: v for k, v in raw.items() if k in own and not k.startswith("_")}


def _unusual(value: Any, key: str = "") -> Iterator[str]:
    """Values that are too large or of a kind that no network has, in words."""
    if isinstance(value, Mapping):
        for k, v in value.items():
            yield from _unusual(v, str(k))
    elif isinstance(value, (list, tuple)):
        if len(value) > LONGEST:
            yield f"{key} with {len(value)} entries"
        for v in value[:LONGEST]:
            yield from _unusual(v, key)
    elif isinstance(value, str):
        if len(value) > LONGEST:
            yield f"{key} with {len(value)} characters"
    elif isinstance(value, (int, float)):
        limit = LONGEST if any(word in key for word in ("layers", "depths", "blocks", "levels", "points")) else LARGEST
        if not (math.isfinite(value) and abs(value) <= limit):
            yield f"{key}={value}"
    elif value is not None:
        yield f"{key} (a {type(value).__name__})"


def configuration(config: Mapping[str, Any], names: Sequence[str], source: str) -> Any:
    """A configuration of ``transformers``.

    Args:
        config: from ``plain``.
        names: class names.

    Raises:
        CiodError: ``transformers`` refuses it.
    """
    kinds, given = package(), dict(config)
    family = model_type(given, source)
    backbone = dict(given.pop("backbone_config"))
    del given["model_type"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    try:
        inner = getattr(kinds, BACKBONES[backbone.pop("model_type")])(**backbone)
        kind = getattr(kinds, f"{FAMILIES[family]}Config")
        fields = {f.name for f in dataclasses.fields(kind)}
        if "num_denoising" in fields:
            given["num_denoising"] = 0
        if TRAINED not in fields:
            given.pop(TRAINED, None)
        return kind(backbone_config=inner, **labels, **given)
    except Exception as error:  # a wrong value can raise anything
        raise refused(source, error) from error


def refused(source: str, error: Exception) -> CiodError:
    """What ``transformers`` says about a checkpoint, in one line."""
    why = " ".join(str(error).split())[:300] or type(error).__name__
    return CiodError(f"{source} cannot be built by transformers: {why}")


def network(config: Any, source: str) -> Any:
    """A whole model of ``transformers`` with random weights.

    Raises:
        CiodError: it cannot be built.
    """
    family = FAMILIES[config.model_type]
    try:
        with quiet():
            built = getattr(package(), f"{family}ForObjectDetection")(config)
        return built.to(torch.empty(0).device)  # a few tensors are made on the CPU, wherever the others are
    except Exception as error:
        raise refused(source, error) from error
