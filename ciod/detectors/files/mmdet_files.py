"""Checkpoints of MMDetection in and out of the adapter: class layers merged or split, class names in the metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ciod.core.errors import CiodError
from ciod.detectors.base import Detector
from ciod.detectors.files import foreign
from ciod.detectors.files.checkpoint import named, tensors_of
from ciod.detectors.files.transfer import Taken, counted
from ciod.detectors.layers.class_layers import ClassConv
from ciod.detectors.mmdet import config as configs
from ciod.detectors.mmdet.build import class_layers
from ciod.detectors.mmdet.detector import MMDet


def plain_state(detector: MMDet) -> dict[str, Tensor]:
    """The detector's tensors under MMDetection's names."""
    state = {k.removeprefix("model."): v.detach().cpu().contiguous() for k, v in detector.model.state_dict().items()}
    return foreign.merge_blocks(
        state, {n: m.kernel for n, m in detector.model.named_modules() if isinstance(m, ClassConv)}
    )


def state_of(detector: Detector) -> dict[str, Tensor]:
    """Like ``plain_state``, for any detector that MMDetection also has."""
    if isinstance(detector, MMDet):
        return plain_state(detector)
    return foreign.to_mmdet({k: v.detach().contiguous() for k, v in detector.state_dict().items()})


def fill(detector: MMDet, state: dict[str, Tensor], source: str) -> None:
    """Loads tensors under MMDetection's names; the detector must have the classes in one block.

    Raises:
        CiodError: they have another architecture or number of classes.
    """
    wanted = detector.model.state_dict()
    anchored = {n: m for n, m in detector.model.named_modules() if isinstance(m, ClassConv)}
    given: dict[str, Tensor] = {}
    for key, value in state.items():
        layer, _, leaf = key.rpartition(".")
        if layer in anchored:
            key = f"{layer}.blocks.0.{leaf}"
            shape = wanted[key].shape if key in wanted else value.shape
            if len(shape) > 1 and shape != value.shape and value.numel() == shape.numel():
                value = value.unflatten(0, (shape[1], shape[0])).transpose(0, 1).reshape(shape).contiguous()
        given[key] = value
    off = [k for k, v in wanted.items() if "num_batches" not in k and (k not in given or given[k].shape != v.shape)]
    off = [k for k in off if k not in _buffers(detector)]
    if off:
        k = off[0]
        shown = "is not in it" if k not in given else f"is {[*given[k].shape]}, not {[*wanted[k].shape]}"
        raise CiodError(
            f"{source} does not fit {detector.settings['name']}: of {len(wanted)} tensors {len(off)} differ; {k} "
            f"{shown}. Name the config that it was trained with."
        )
    # With a prefix, so that MMDetection's renaming of old FCOS names does not change the names of other heads.
    detector.load_state_dict({f"model.{k}": v for k, v in given.items() if k in wanted}, strict=False)


def _buffers(detector: MMDet) -> set[str]:
    """Constants that old checkpoints lack (GFL's bins)."""
    return {n for n, _ in detector.model.named_buffers() if n.endswith("integral.project")}


def build(path: Path, content: dict[str, Any], classes: Sequence[str] | None, given: str | None) -> MMDet:
    """A detector from a checkpoint of MMDetection.

    Args:
        content: content of the file, read without running code.
        classes: class names, if the checkpoint has none.
        given: a config file or name; None: the config in the checkpoint's metadata, which is read as plain values.

    Raises:
        CiodError: there is no config, or no class names, or they do not fit.
    """
    meta = content.get("meta") if isinstance(content.get("meta"), dict) else {}
    if given is not None:
        config, name = configs.read(given), configs.PREFIX + Path(given).name
    else:
        text = (meta or {}).get("cfg")
        if not isinstance(text, str):
            raise CiodError(f"{path} has no MMDetection config; give the file: mmdet:CONFIG.py,{path}")
        whole = configs.literal(text, str(path))
        configs.check_types(whole.get("model"), str(path))
        config, name = configs.of(whole, str(path)), configs.PREFIX + path.stem
        configs.check_apart(config, str(path))
    state = tensors_of(content)
    found = named(path, content, classes, _count(state, config, name))
    detector = MMDet(found, name=name, frozen=True, config=json.dumps(config))
    fill(detector, state, str(path))
    detector.lineage = [{"from": path.name, "classes": list(found)}]
    return detector.eval()


def start_from(detector: MMDet, state: dict[str, Tensor], source: Path, *, trunk_only: bool = False) -> Taken:
    """Copies every tensor that fits into ``detector``, except class layers, and holds what the config freezes.

    Args:
        state: of a checkpoint or model, under MMDetection's names.
        source: its file, for messages.
        trunk_only: only backbone and neck; the head is not changed.

    Raises:
        CiodError: the backbones differ.
    """
    own, taken = detector.model.state_dict(), {}
    for part in ("backbone.", "neck."):
        wanted = {k: v.shape for k, v in own.items() if k.startswith(part) and "num_batches" not in k}
        fits = all(k in state and state[k].shape == shape for k, shape in wanted.items())
        if fits:
            taken |= {k: v for k, v in state.items() if k in own and k.startswith(part)}
        elif part == "backbone.":
            off = next(k for k, shape in wanted.items() if k not in state or state[k].shape != shape)
            raise CiodError(f"{source} has another backbone than {detector.settings['name']}: {off} is missing or has "
                            "another shape.")  # fmt: skip
    if not trunk_only:  # the detector's class layers are named by block, so a checkpoint has none of these keys
        head = {k: v for k, v in state.items() if k.startswith("bbox_head.") and k in own}
        taken |= {k: v for k, v in head.items() if v.shape == own[k].shape}
    detector.load_state_dict({f"model.{k}": v for k, v in taken.items()}, strict=False)
    detector.hold(True)
    return counted(list(own), list(taken))


def _count(state: dict[str, Tensor], config: dict[str, Any], source: str) -> int:
    """Classes by the class layer's rows; the config may inherit another ``num_classes``."""
    configs.require()
    layer, rows = next(iter(class_layers(config, source).items()))
    bias = state.get(f"{layer}.bias")
    return int(config["bbox_head"].get("num_classes", 80)) if bias is None else len(bias) // rows
