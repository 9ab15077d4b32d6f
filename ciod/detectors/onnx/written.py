"""What ``ciod extend`` wrote into an ONNX file: the original file comes first, byte for byte; then what was added.

An entry ``ciod.N`` of the metadata says how to read the Nth extension; the last one counts.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ciod.core.errors import CiodError
from ciod.detectors.onnx import file as f
from ciod.detectors.onnx.file import OnnxFile
from ciod.detectors.onnx.pictures import ciod_metadata

FORMAT = 1
Name = Annotated[str, Field(min_length=1, max_length=1000)]
Column = Annotated[int, Field(ge=-1, le=100_000)]


class Part(BaseModel):
    """One part of the outputs, and the class number of each of its columns; -1: it was dropped."""

    model_config = ConfigDict(extra="forbid", strict=True)

    columns: Annotated[list[Column], Field(max_length=100_000)]
    boxes: str = ""
    scores: str = ""
    """Outputs [n, P, 4] xyxy in pixels of the input, and [n, P, columns] in 0..1; "" for the original detector."""


class Asked(BaseModel):
    """How to read the original detector, as ``recognise.Asked``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: str
    size: Annotated[int, Field(ge=1, le=8192)]
    names: Annotated[list[str], Field(max_length=100_000)] | None
    old_outputs: str
    taps: Annotated[list[tuple[int, list[str | None]]], Field(max_length=8)]


class Written(BaseModel):
    """One entry. Other keys are kept but not used."""

    model_config = ConfigDict(extra="allow", strict=True)

    format: Literal[1]
    class_names: Annotated[list[Name], Field(max_length=100_000)]
    asked: Asked
    base: Annotated[int, Field(ge=1)]
    """Bytes of the detector before its first extension."""
    before: Annotated[int, Field(ge=1)]
    """Bytes of the file before this extension."""
    sha256: str
    """Checksum of the file before this extension."""
    parts: Annotated[list[Part], Field(min_length=2, max_length=1000)]
    """The original detector, then one per branch."""
    lineage: Annotated[list[dict[str, Any]], Field(max_length=10_000)] = []
    arbiter: Annotated[str, Field(max_length=16_000_000)] | None = None
    """Statistics of the arbiter between the branches, as ``arbiter_text.encode`` makes them."""

    @model_validator(mode="after")
    def _fits(self) -> Written:
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError("a class name appears twice")
        if any(c >= len(self.class_names) for p in self.parts for c in p.columns):
            raise ValueError("a column has a class without a name")
        if self.base > self.before:
            raise ValueError("the original detector is longer than the file that was extended")
        return self


def of(source: OnnxFile) -> Written | None:
    """What ``ciod extend`` wrote; None: the file is from elsewhere, or from ``ciod export``.

    Raises:
        CiodError: it is damaged, or another program wrote the file again.
    """
    content = ciod_metadata(source)
    if "parts" not in content:
        return None
    path = source.path
    try:
        found = Written.model_validate_json(json.dumps(content))  # as JSON: a list may stand for a tuple
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise CiodError(f"{path} is damaged: what ciod wrote into its metadata does not fit ({why}).") from error
    if hashlib.sha256(source.data[: found.before]).hexdigest() != found.sha256:
        raise CiodError(
            f"{path} was changed after ciod wrote it: its first {found.before:,} bytes are not the file that was "
            "extended. Use the file as ciod wrote it."
        )
    lacking = [n for p in found.parts[1:] for n in (p.boxes, p.scores) if n not in source.outputs]
    if lacking:
        raise CiodError(
            f"{path} is damaged: it has no output {lacking[0]!r}. Use a copy as ciod wrote it, if there is one."
        )
    return found


@dataclass(frozen=True)
class Opened:
    """A file, and the file before its first extension by ciod: the same file if there was none."""

    whole: OnnxFile
    base: OnnxFile
    written: Written | None


def open_file(path: Path) -> Opened:
    """Reads a file.

    Raises:
        CiodError: see ``file.read`` and ``of``.
    """
    whole = f.read(path)
    written = of(whole)
    base = whole if written is None else f.of_bytes(path, whole.data[: written.base])
    return Opened(whole, base, written)
