"""Models in and out: ciod's own safetensors files, and the checkpoints of other projects (``foreign``)."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ciod.core.errors import CiodError, did_you_mean
from ciod.core.files import is_file, is_folder
from ciod.data import names as known
from ciod.detectors.base import Detector
from ciod.detectors.files import foreign, model_file
from ciod.detectors.files.model_file import read_metadata, save_model
from ciod.detectors.files.transfer import Taken, start_from

__all__ = [
    "donor",
    "file_of",
    "load",
    "load_fitting",
    "load_trunk",
    "read_checkpoint",
    "read_metadata",
    "save_model",
]


def load(path: str | Path, *, classes: Sequence[str] | None = None) -> Detector:
    """A detector from a file, in eval mode.

    Args:
        path: a ciod model (``.safetensors``), an official YOLOX checkpoint, or one of MMDetection: of YOLOX or GFL, or
            (with the extra mmdet) of any head it supports, with its config inside or as ``mmdet:CONFIG,CHECKPOINT``.
        classes: class names, for a checkpoint that does not carry them. With 80 classes and no names, COCO's.

    Raises:
        CiodError: the file is absent, torn, of another architecture, needs code to load, or lacks class names.
    """
    config, path = _config_of(path)
    if not is_file(path):
        suffixes = (".safetensors", ".pth", ".pt")
        beside = [p.name for p in path.parent.glob("*") if p.suffix in suffixes] if is_folder(path.parent) else []
        hint = did_you_mean(path.name, beside)
        raise CiodError(f"There is no model file {path}" + (f"; {hint}" if "mean" in hint else "."))
    if config is not None:
        from ciod.detectors.files import mmdet_files

        return mmdet_files.load(path, read_checkpoint(path), classes, config)
    return _load_own(path) if path.suffix == ".safetensors" else _load_foreign(path, classes)


def file_of(path: str | Path) -> Path:
    """The file of a model: of ``mmdet:CONFIG,CHECKPOINT`` the checkpoint."""
    return _config_of(path)[1]


def _config_of(path: str | Path) -> tuple[str | None, Path]:
    """``mmdet:CONFIG,CHECKPOINT`` → its parts; anything else is a file.

    Raises:
        CiodError: no checkpoint is named.
    """
    if not str(path).startswith("mmdet:"):
        return None, Path(path)
    config, comma, file = str(path).removeprefix("mmdet:").rpartition(",")
    if not comma:
        raise CiodError(f"{path} names a config and no checkpoint; write mmdet:CONFIG,CHECKPOINT.")
    return config, Path(file)


def _load_own(path: Path) -> Detector:
    from ciod import detectors

    meta, state = model_file.read(path)
    settings = {k: v for k, v in meta["detector"].items() if k != "backbone_weights"}  # a file names no other file
    try:
        detector = detectors.build((), **settings)
    except TypeError as e:
        raise CiodError(f"{path} is no valid ciod model: its detector settings are not known ({e}).") from e
    regrow(detector, meta["class_names"], meta.get("growth") or [{"rows": n} for n in meta["blocks"]])
    try:
        detector.load_state_dict(state)
    except RuntimeError as e:
        raise CiodError(f"{path} does not fit the detector its metadata describes: {e}") from e
    detector.lineage = meta["lineage"]
    return detector.eval()


def regrow(detector: Detector, names: Sequence[str], growth: Sequence[dict[str, Any]]) -> None:
    """Grows a detector without classes as another was grown: in the same blocks and branches, the same arithmetic."""
    first = 0
    for step in growth:
        size = step["branch"] if "branch" in step else step["rows"]
        arriving = names[first : first + size]
        first += size
        if "branch" in step:
            detector.add_branch(arriving, taught=step["taught"], inner=step["inner"])  # type: ignore[attr-defined, operator]
        else:
            detector.grow(arriving)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A foreign ``.pth``, without running any code of it."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise CiodError(
            f"{path} holds more than tensors and plain values, and loading it could run code; it is refused. "
            f"Save its state dict alone with torch.save(model.state_dict(), ...). ({str(e).splitlines()[0]})"
        ) from e
    except Exception as e:  # the unpickler raises almost anything on what is no pickle: a text file is a KeyError
        known = isinstance(e, (RuntimeError, OSError, ValueError))
        why = next(iter(str(e).splitlines()), "it is empty") if known else "it is empty or of another kind"
        raise CiodError(f"{path} is not a readable PyTorch file: {why}") from e
    if not isinstance(content, dict):
        raise CiodError(f"{path} holds a {type(content).__name__}, not a state dict.")
    return content


def tensors_of(content: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict in a checkpoint."""
    raw = next((content[k] for k in ("model", "state_dict") if isinstance(content.get(k), dict)), content)
    return {k: v for k, v in raw.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _foreign_state(content: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint under our names."""
    return foreign.rename(tensors_of(content))


def _torchvision_classes(
    state: dict[str, Tensor], classes: Sequence[str] | None
) -> tuple[dict[str, Tensor], Sequence[str] | None]:
    """Rows of real classes: of COCO's 91 the 80 that have a name; of N + 1 with N names all but the background."""
    count, coco = foreign.count_classes(state), foreign.torchvision_coco()
    if classes is None and count == max(coco.values()) + 1:
        return foreign.class_rows(state, list(coco.values())), list(coco)
    if classes is not None and count == len(classes) + 1:
        return foreign.class_rows(state, list(range(1, count))), classes
    return state, classes


def _load_foreign(path: Path, classes: Sequence[str] | None) -> Detector:
    from ciod import detectors

    content = read_checkpoint(path)
    state = _foreign_state(content)
    name = foreign.recognise(state)
    if name is None and any(k.startswith("bbox_head.") for k in tensors_of(content)):
        from ciod.detectors.files import mmdet_files

        return mmdet_files.load(path, content, classes, None)
    if name is None:
        raise CiodError(
            f"{path} is not a checkpoint of a detector ciod knows ({', '.join(detectors.available())}). Its tensors "
            f"are called, for example, {', '.join(list(state)[:3])}."
        )
    count = foreign.count_classes(state)
    if "backbone.body.conv1.weight" in tensors_of(content):
        state, classes = _torchvision_classes(state, classes)
        count = foreign.count_classes(state)
    found = named(path, content, classes, count)
    # torchvision's frozen batch normalisation has no counter: the trunk was trained frozen, and stays so.
    counts = any(k.endswith("num_batches_tracked") for k in state)
    detector = detectors.build(found, name=name, **({} if counts else {"frozen": True}))
    detector.load_state_dict(state, strict=False)
    detector.lineage = [{"from": path.name, "classes": list(found)}]
    return detector.eval()


def named(path: Path, content: dict[str, Any], classes: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Names of a checkpoint's ``count`` classes: those that were given, or of its metadata; 80 without any are COCO's.

    Raises:
        CiodError: there are none, or not so many.
    """
    found = classes or _in_metadata(content.get("meta"))
    if not found and count == len(known.COCO):
        found = known.COCO
    if not found:
        raise CiodError(f"{path} has {count} classes and does not name them; give their names: names=a,b,c.")
    if len(found) != count:
        raise CiodError(f"{path} has {count} classes, but {len(found)} names were given.")
    return tuple(found)


def _in_metadata(meta: Any) -> list[str] | None:
    """Class names in the metadata of an MMDetection checkpoint."""
    meta = meta if isinstance(meta, dict) else {}
    inner = meta.get("dataset_meta")
    names = (inner.get("classes") if isinstance(inner, dict) else None) or meta.get("CLASSES")
    return [str(n) for n in names] if isinstance(names, (list, tuple)) else None


def donor(path: Path) -> Detector:
    """The model that another one starts from; a checkpoint that does not name its classes gets numbers for names.

    Raises:
        CiodError: as ``load``.
    """
    if path.suffix == ".safetensors":
        return load(path)
    content = read_checkpoint(path)
    named = foreign.count_classes(_foreign_state(content))
    # Without names of its own or COCO's no row can be taken by name: numbers serve, which no class is called.
    knows = named in (len(known.COCO), foreign.COCO_ROWS) or bool(_in_metadata(content.get("meta")))
    return load(path, classes=None if knows else [f"\0{i}" for i in range(named)])


def load_trunk(detector: Detector, path: Path) -> Taken:
    """Copies backbone and neck of a model file into ``detector``; its head stays as it is. See ``start_from``."""
    return load_fitting(detector, path, trunk_only=True)


def load_fitting(
    detector: Detector, model: Detector | Path, *, trunk_only: bool = False, source: Path | None = None
) -> Taken:
    """Copies every tensor of a model that fits into ``detector``, except the rows of classes
    (``transfer.take_class_rows`` takes those once the detector has its classes).

    Args:
        model: a file, or what ``donor`` read from it.
        trunk_only: backbone and neck alone; the head stays as it is.
        source: the file for messages, where ``model`` is none.

    Raises:
        CiodError: the file cannot be read, or its backbone is another.
    """
    if isinstance(model, Path) and detector.settings["name"].startswith("mmdet:"):
        from ciod.detectors.files import mmdet_files

        return mmdet_files.load_fitting(detector, model, trunk_only=trunk_only)  # type: ignore[arg-type]
    other = donor(model) if isinstance(model, Path) else model
    return start_from(detector, other, source or str(model), trunk_only=trunk_only)
