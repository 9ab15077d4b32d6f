"""Models in and out: ciod's own safetensors files, and the checkpoints of other projects (``foreign``)."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ciod.data import names as known
from ciod.detectors import foreign
from ciod.detectors.detector import Detector
from ciod.errors import CiodError, did_you_mean

FORMAT = 1


def save_model(path: Path, detector: Detector, **extra: Any) -> None:
    """Writes one safetensors file that is enough to load, predict and extend. Written beside, synced, renamed."""
    meta = {
        "format": FORMAT,
        "class_names": list(detector.class_names),
        "detector": detector.settings,
        "blocks": next(iter(detector.class_modules().values())).sizes,
        "growth": detector.growth,
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
    regrow(detector, meta["class_names"], meta.get("growth") or [{"rows": n} for n in meta["blocks"]])
    with safe_open(path, framework="pt") as f:
        state = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (not a dict)
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


def _tensors(content: dict[str, Any]) -> dict[str, Tensor]:
    raw = next((content[k] for k in ("model", "state_dict") if isinstance(content.get(k), dict)), content)
    return {k: v for k, v in raw.items() if isinstance(v, Tensor)}


def _foreign_state(content: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint under our names."""
    return foreign.rename(_tensors(content))


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
    if name is None:
        raise CiodError(
            f"{path} is not a checkpoint of a detector ciod knows ({', '.join(detectors.available())}). Its tensors "
            f"are called, for example, {', '.join(list(state)[:3])}."
        )
    count = foreign.count_classes(state)
    meta = content.get("meta", {})
    if "backbone.body.conv1.weight" in _tensors(content):
        state, classes = _torchvision_classes(state, classes)
        count = foreign.count_classes(state)
    found = classes or (meta.get("dataset_meta") or {}).get("classes") or meta.get("CLASSES")
    if not found and count == len(known.COCO):
        found = known.COCO
    if not found:
        raise CiodError(f"{path} has {count} classes and does not name them; give their names: names=a,b,c.")
    if len(found) != count:
        raise CiodError(f"{path} has {count} classes, but {len(found)} names were given.")
    # torchvision's frozen batch normalisation has no counter: the trunk was trained frozen, and stays so.
    counts = any(k.endswith("num_batches_tracked") for k in state)
    detector = detectors.build(tuple(found), name=name, **({} if counts else {"frozen": True}))
    detector.load_state_dict(state, strict=False)
    detector.lineage = [{"from": path.name, "classes": list(found)}]
    return detector.eval()


def load_trunk(detector: Detector, path: Path) -> int:
    """Copies backbone and neck of a model file into ``detector``; its head stays as it is.

    Detectors that share a backbone share trunks: of another kind of detector the backbone is taken, and the neck
    where it has the same shape.

    Returns:
        How many tensors were taken.

    Raises:
        CiodError: the file is of another architecture.
    """
    donor = load(path, classes=None if path.suffix == ".safetensors" else _anonymous(path))
    taken = 0
    for i, (theirs, own) in enumerate(zip(donor.trunk(), detector.trunk(), strict=False)):
        state, wanted = theirs.state_dict(), own.state_dict()
        if {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in wanted.items()}:
            own.load_state_dict(state)
            taken += len(state)
        elif i == 0:
            raise CiodError(
                f"{path} is a {donor.settings['name']}, but detector.name is {detector.settings['name']}: their "
                "backbones differ."
            )
    return taken


def _anonymous(path: Path) -> list[str]:
    """Placeholder names as long as the checkpoint's class layer: its head is not used."""
    return [str(i) for i in range(foreign.count_classes(_foreign_state(read_checkpoint(path))))]
