"""Models in and out: ciod's own safetensors files, official YOLOX checkpoints and MMDetection's YOLOX checkpoints."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ciod.data import names as known
from ciod.detectors.detector import Detector
from ciod.detectors.yolox import VARIANTS
from ciod.errors import CiodError, did_you_mean

FORMAT = 1

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

# MMDetection's names (YOLOX on CSPDarknet or ResNet) → ours.
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
]


def save_model(path: Path, detector: Detector, **extra: Any) -> None:
    """Writes one safetensors file that is enough to load, predict and extend. Written beside, synced, renamed."""
    meta = {
        "format": FORMAT,
        "class_names": list(detector.class_names),
        "detector": detector.settings,
        "blocks": [len(m.bias) for m in next(iter(detector.class_modules().values())).blocks],  # type: ignore
        "lineage": detector.lineage,
        **extra,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    state = {k: v.detach().cpu().contiguous() for k, v in detector.state_dict().items()}
    save_file(state, beside, metadata={"ciod": json.dumps(meta)})
    with beside.open("rb") as f:
        os.fsync(f.fileno())
    beside.replace(path)


def read_metadata(path: Path) -> dict[str, Any]:
    """Class names, detector settings and lineage of a ciod model, without loading its weights."""
    try:
        with safe_open(path, framework="pt") as f:
            raw = (f.metadata() or {}).get("ciod")
    except (SafetensorError, OSError) as e:
        raise CiodError(f"{path} is not a readable model file ({e}). It may be truncated; is there a copy?") from e
    if raw is None:
        raise CiodError(f"{path} is a safetensors file, but not a ciod model: it has no class names in its metadata.")
    return json.loads(raw)


def load(path: str | Path, *, classes: Sequence[str] | None = None) -> Detector:
    """A detector from a file, in eval mode.

    Args:
        path: a ciod model (``.safetensors``), an official YOLOX checkpoint, or an MMDetection YOLOX checkpoint.
        classes: class names, for a checkpoint that does not carry them. With 80 classes and no names, COCO's.

    Raises:
        CiodError: the file is absent, torn, of another architecture, needs code to load, or lacks class names.
    """
    path = Path(path)
    if not path.is_file():
        suffixes = (".safetensors", ".pth", ".pt")
        beside = [p.name for p in path.parent.glob("*") if p.suffix in suffixes] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, beside)
        raise CiodError(f"There is no model file {path}" + (f"; {hint}" if "mean" in hint else "."))
    return _load_own(path) if path.suffix == ".safetensors" else _load_foreign(path, classes)


def _load_own(path: Path) -> Detector:
    from ciod import detectors

    meta = read_metadata(path)
    detector = detectors.build((), **meta["detector"])
    first = 0
    for rows in meta["blocks"]:  # the same blocks as it was grown in: the same arithmetic
        detector.grow(meta["class_names"][first : first + rows])
        first += rows
    with safe_open(path, framework="pt") as f:
        state = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (not a dict)
    try:
        detector.load_state_dict(state)
    except RuntimeError as e:
        raise CiodError(f"{path} does not fit the detector its metadata describes: {e}") from e
    detector.lineage = meta["lineage"]
    return detector.eval()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A foreign ``.pth``, without running any code of it."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise CiodError(
            f"{path} holds more than tensors and plain values, and loading it could run code; it is refused. "
            f"Save its state dict alone with torch.save(model.state_dict(), ...). ({str(e).splitlines()[0]})"
        ) from e
    except (RuntimeError, EOFError, OSError, ValueError) as e:
        why = next(iter(str(e).splitlines()), "it is empty")
        raise CiodError(f"{path} is not a readable PyTorch file: {why}") from e
    if not isinstance(content, dict):
        raise CiodError(f"{path} holds a {type(content).__name__}, not a state dict.")
    return content


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official or MMDetection key names → ours; unknown names pass unchanged."""
    rules = _MMDET if any(k.startswith("bbox_head.") for k in state) else _OFFICIAL
    out = {}
    for key, value in state.items():
        for pattern, to in rules:
            key = re.sub(pattern, to, key)
        for old, new in _SHARED:
            key = key.replace(f".{old}.", f".{new}.")
        out[key] = value
    return out


def _recognise(state: dict[str, Tensor], path: Path) -> str:
    """Which YOLOX variant a renamed state dict is."""
    from ciod import detectors

    shapes = {k: v.shape for k, v in state.items() if not k.startswith("head.cls.")}
    for name in VARIANTS:
        with torch.device("meta"):
            wanted = detectors.build(("x",), name=name, backbone_weights=None).state_dict()
        if all(
            shapes.get(k) == v.shape
            for k, v in wanted.items()
            if not k.startswith("head.cls.") and "num_batches" not in k
        ):
            return name
    raise CiodError(
        f"{path} is not a checkpoint of a detector ciod knows ({', '.join(VARIANTS)}). Its tensors are called, for "
        f"example, {', '.join(list(state)[:3])}."
    )


def _load_foreign(path: Path, classes: Sequence[str] | None) -> Detector:
    from ciod import detectors

    content = read_checkpoint(path)
    raw = next((content[k] for k in ("model", "state_dict") if isinstance(content.get(k), dict)), content)
    state = rename({k: v for k, v in raw.items() if isinstance(v, Tensor)})
    name = _recognise(state, path)
    count = len(state["head.cls.0.blocks.0.bias"])
    meta = content.get("meta", {})
    found = classes or (meta.get("dataset_meta") or {}).get("classes") or meta.get("CLASSES")
    if not found and count == len(known.COCO):
        found = known.COCO
    if not found:
        raise CiodError(f"{path} has {count} classes and does not name them; give their names with --classes a,b,c.")
    if len(found) != count:
        raise CiodError(f"{path} has {count} classes, but {len(found)} names were given.")
    detector = detectors.build(tuple(found), name=name)
    detector.load_state_dict(state, strict=False)
    detector.lineage = [{"from": path.name, "classes": list(found)}]
    return detector.eval()


def load_trunk(detector: Detector, path: Path) -> int:
    """Copies backbone and neck of a model file into ``detector``; its head stays as it is.

    Returns:
        How many tensors were taken.

    Raises:
        CiodError: the file is of another architecture.
    """
    donor = load(path, classes=None if path.suffix == ".safetensors" else _anonymous(path))
    taken = {k: v for k, v in donor.state_dict().items() if not k.startswith("head.")}
    own = detector.state_dict()
    if donor.settings["name"] != detector.settings["name"]:
        raise CiodError(f"{path} is a {donor.settings['name']}, but detector.name is {detector.settings['name']}.")
    detector.load_state_dict({**own, **taken})
    return len(taken)


def _anonymous(path: Path) -> list[str]:
    """Placeholder names as long as the checkpoint's class layer: its head is not used."""
    content = read_checkpoint(path)
    raw = next((content[k] for k in ("model", "state_dict") if isinstance(content.get(k), dict)), content)
    bias = next((v for k, v in rename(raw).items() if k == "head.cls.0.blocks.0.bias"), None)
    return [str(i) for i in range(0 if bias is None else len(bias))]
