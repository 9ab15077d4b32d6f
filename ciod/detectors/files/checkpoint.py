"""Checkpoints of other projects: read without running code, their tensors and the class names in their metadata."""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ciod.core.errors import CiodError
from ciod.core.files import is_file
from ciod.core.plural import counted
from ciod.core.reading import lfs_hint
from ciod.data import names as known
from ciod.data.text_files import read_text


def _asked_for(error: Exception) -> str:
    """The class or function that a pickle asks for. PyTorch's own advice is to run it, so it is left out."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f" It asks for {found[1]}." if found else ""


_MAKERS = {  # first part of the name of what a pickle asks for → whose files these are
    "ultralytics": "Ultralytics",
    "models": "YOLOv5 or YOLOv7",
    "yolov5": "YOLOv5",
    "yolov6": "YOLOv6",
    "super_gradients": "SuperGradients",
    "nets": "another YOLO project",
}


def _maker(error: Exception) -> str | None:
    """Whose whole model a pickle holds, by what it asks for; None: not known, or not of a detector."""
    found = re.search(r"GLOBAL (\w+)\.", str(error))
    return _MAKERS.get(found[1]) if found else None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A foreign ``.pth``, without running any code of it.

    Raises:
        CiodError: it is not a PyTorch file, could run code, or does not contain a dict.
    """
    with path.open("rb") as file:
        start = file.read(2)
    if start and not start.startswith((b"PK", b"\x80")):  # a zip or a pickle
        raise CiodError(f"{path} is not a readable PyTorch file, ciod model or ONNX model.{lfs_hint(path)}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        if maker := _maker(e):
            raise CiodError(
                f"{path} is a model of {maker}, pickled with the code of its maker, which ciod never runs. Export it "
                "to ONNX with that tool, and give the ONNX file: ciod extends, scores and runs those "
                f"(docs/extend-onnx.md).{_asked_for(e)}"
            ) from e
        raise CiodError(
            f"{path} contains more than tensors and plain values, and loading it could run code; it is refused. "
            "Save only its state dict with torch.save(model.state_dict(), ...), or, of a detector that ciod does not "
            f"have, export it to ONNX (docs/extend-onnx.md).{_asked_for(e)}"
        ) from e
    except Exception as e:  # the unpickler raises almost anything on other files: a text file is a KeyError
        known = isinstance(e, (RuntimeError, OSError, ValueError))
        why = next(iter(str(e).splitlines()), "it is empty") if known else "it is empty or another kind of file"
        raise CiodError(f"{path} is not a readable PyTorch file: {why.partition('. ')[0]}") from e
    if not isinstance(content, dict):
        raise CiodError(f"{path} contains a {type(content).__name__}, not a state dict.")
    return content


def tensors_of(content: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict in a checkpoint."""
    raw = next((content[k] for k in ("model", "state_dict") if isinstance(content.get(k), dict)), content)
    return {k: v for k, v in raw.items() if isinstance(k, str) and isinstance(v, Tensor)}


def named(path: Path, content: dict[str, Any], classes: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Names of a checkpoint's ``count`` classes: the given ones, or those of its metadata; 80 classes without names are
    COCO's.

    Raises:
        CiodError: there are no names, or another number of them.
    """
    found = spelled_out(classes) if classes else names_in_metadata(content.get("meta"))
    if not found and count == len(known.COCO):
        found = known.COCO
    if not found:
        raise CiodError(f"{path} has {counted(count, 'class')} but no class names; give them: names=a,b,c.")
    if len(found) != count:
        raise CiodError(f"names: {path} has {counted(count, 'class')}, and names= gives {len(found)}.")
    return tuple(found)


def spelled_out(given: Sequence[str]) -> tuple[str, ...]:
    """Class names as ``names=`` gives them: a list, ``coco``, or one file with a name per line."""
    found = tuple(given)
    if found == ("coco",):
        return tuple(known.COCO)
    if len(found) == 1 and is_file(found[0]):
        return tuple(line.strip() for line in read_text(Path(found[0])).splitlines() if line.strip())
    return found


def names_in_metadata(meta: Any) -> list[str] | None:
    """Class names in the metadata of an MMDetection checkpoint."""
    meta = meta if isinstance(meta, dict) else {}
    inner = meta.get("dataset_meta")
    names = (inner.get("classes") if isinstance(inner, dict) else None) or meta.get("CLASSES")
    return [str(n) for n in names] if isinstance(names, (list, tuple)) else None
