"""ciod's own model file: one safetensors file with class names, detector settings and lineage, and a checksum.

Reading runs no code from the file: its metadata are JSON that must match ``Metadata``, and the named detector is one of
this package.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ciod.core.errors import CiodError
from ciod.core.files import atomic_write
from ciod.core.limits import LARGEST
from ciod.core.reading import lfs_hint
from ciod.detectors import is_own, own
from ciod.detectors.base import Detector
from ciod.detectors.query.configs import FAMILIES, PREFIX

FORMAT = 2  # 1 had no checksum
COPY = " It may be truncated; use a copy, if there is one."
LONGEST = 64 << 20  # bytes of metadata

Name = Annotated[str, Field(min_length=1, max_length=1000)]
Scalar = bool | int | float | str | None


class Growth(BaseModel):
    """One growth: ``rows`` in the class layers, or a separate ``branch``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    rows: Annotated[int, Field(ge=0, le=100_000)] = 0
    branch: Annotated[int, Field(ge=0, le=100_000)] = 0
    taught: list[Name] = []
    inner: list[Annotated[int, Field(ge=0, le=4096)]] | None = None
    parent: Name | None = None
    """The known class of which the classes of the branch are kinds."""
    refine: bool | Annotated[int, Field(ge=1, le=4096)] = False
    """Hidden units of the second stage that corrects the boxes of the branch; true: ``refiner.FIRST_HIDDEN``."""
    rescore: bool = False
    """Whether the second stage corrects the scores of the classes too."""


class Metadata(BaseModel):
    """The metadata of a model. Other keys are kept but not used."""

    model_config = ConfigDict(extra="allow", strict=True)

    format: Literal[1, 2]
    class_names: Annotated[list[Name], Field(max_length=100_000)]
    detector: dict[str, Scalar | list[Scalar]]
    blocks: list[Annotated[int, Field(ge=1)]]
    """Number of classes of each growth."""
    growth: list[Growth] | None = None
    lineage: Annotated[list[dict[str, Any]], Field(max_length=10_000)] = []

    @model_validator(mode="after")
    def _fits(self) -> Metadata:
        if self.growth:  # blocks do not include branches
            arrived = sum(g.branch + g.rows for g in self.growth)
            if arrived != len(self.class_names):
                raise ValueError(f"growth has {arrived} classes, but class_names has {len(self.class_names)}")
        elif sum(self.blocks) != len(self.class_names):
            raise ValueError(f"blocks have {sum(self.blocks)} classes, but class_names has {len(self.class_names)}")
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError("a class name appears twice")
        name = self.detector.get("name")
        if not isinstance(name, str):
            raise ValueError("detector has no name")
        if is_own(name) and not own.stored(name):
            raise ValueError(f"detector is {name!r}, a place of code, which no model file may name")
        if name.startswith("mmdet:") and not isinstance(self.detector.get("config"), str):
            raise ValueError(
                f"detector is {name!r}, an MMDetection config outside the model; it is code, which model files "
                "must not run"
            )
        if name.startswith(PREFIX) and not (
            isinstance(self.detector.get("config"), str) and name.removeprefix(PREFIX) in FAMILIES
        ):
            raise ValueError(
                f"detector is {name!r}, a checkpoint that lies outside the model, and no model file may lead to another"
            )
        size = self.detector.get("size")
        if size is not None and not (type(size) is int and 32 <= size <= LARGEST):
            raise ValueError(f"detector.size must be 32..{LARGEST} pixels")
        return self


def save_model(path: Path, detector: Detector, **extra: Any) -> None:
    """Writes one safetensors file that is enough to load, predict and extend, to a temporary name that is then renamed.

    Raises:
        WriteError: a full disk or no permission; an existing file is then unchanged.
    """
    meta = {
        "format": FORMAT,
        "class_names": list(detector.class_names),
        "detector": detector.settings,
        "blocks": next(iter(detector.class_modules().values())).sizes,
        "growth": detector.growth,
        "lineage": detector.lineage,
        **extra,
    }
    meta = json.loads(json.dumps(meta))  # as it is read again: keys are text
    state = {k: v.detach().cpu().contiguous() for k, v in detector.state_dict().items()}
    # a single key: safetensors writes several in random order, but equal models should give equal files
    atomic_write(path, save(state, metadata={"ciod": json.dumps({**meta, "sha256": checksum(meta, state)})}))


def checksum(meta: dict[str, Any], state: dict[str, Tensor]) -> str:
    """SHA-256 of the metadata and of every tensor's name, type, shape and values."""
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_metadata(path: Path) -> dict[str, Any]:
    """Class names, detector settings and lineage of a ciod model, without loading its weights.

    Raises:
        CiodError: the file is damaged, not a ciod model, or its metadata are invalid.
    """
    return _metadata(path, _header(path))


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors, after their checksum is verified.

    Raises:
        CiodError: see ``read_metadata``; or the content was changed.
    """
    meta = read_metadata(path)
    try:
        with safe_open(path, framework="pt") as f:
            state = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as e:
        raise CiodError(f"{path} is not a readable model file ({e}).{lfs_hint(path) or COPY}") from e
    stored = meta.pop("sha256", None)
    if meta["format"] > 1 and stored != checksum(meta, state):
        raise CiodError(
            f"{path} is damaged: its content does not match its checksum. Use a copy of it; without one, train or "
            "download it again."
        )
    return meta, state


def _header(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as f:
            return f.metadata() or {}
    except (SafetensorError, OSError, ValueError) as e:
        raise CiodError(f"{path} is not a readable model file ({e}).{lfs_hint(path) or COPY}") from e


def _metadata(path: Path, header: dict[str, str]) -> dict[str, Any]:
    raw = header.get("ciod")
    if raw is None:
        raise CiodError(f"{path} is a safetensors file, but not a ciod model: it has no class names in its metadata.")
    if len(raw) > LONGEST:
        raise CiodError(
            f"{path} has {len(raw) >> 20} MB of metadata, and at most {LONGEST >> 20} are read; was it saved by ciod?"
        )
    try:
        return Metadata.model_validate(json.loads(raw)).model_dump(exclude_unset=True)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"])) or "metadata"
        message = first["msg"].removeprefix("Value error, ")
        raise CiodError(f"{path} is not a valid ciod model: {where}: {message}.") from e
    except (ValueError, RecursionError) as e:
        raise CiodError(f"{path} is not a valid ciod model: its metadata are not JSON ({e}).") from e
