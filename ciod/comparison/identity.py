"""What determines a run, as a key: equal keys mean that a finished run can be used again."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ciod.config import Run
    from ciod.data.index import Index

_PACKAGE = Path(__file__).resolve().parents[1]
# None of these changes what a given run learns. Methods are added for the runs that use one.
_OUTSIDE = ("comparison", "inference", "methods", "recipes", "report", "scenarios")
_VERBS = ("api.py", "cli.py", "demo.py", "extend.py", "listing.py")


def facts(
    settings: Run, groups: Sequence[Sequence[str]], data: dict[str, str], *, device: str, first: bool
) -> dict[str, Any]:
    """Everything that determines a run, JSON-ready.

    Args:
        groups: new classes of each task.
        data: split → ``fingerprint`` of its Index.
        device: ``cpu`` or ``cuda``.
        first: of its first task alone, which neither the method nor the settings of later tasks change.
    """
    import torch

    from ciod import __version__
    from ciod.engine import machine

    flat = machine.fingerprint(settings)
    files = {k: _file(flat.get(f"detector.{k}")) for k in ("weights", "backbone_weights")}
    return {
        "settings": machine.first_task(flat) if first else flat,
        "groups": [list(g) for g in groups],
        "data": data,
        "files": {k: v for k, v in files.items() if v},
        "device": device,
        "torch": ".".join(torch.__version__.split(".")[:2]),
        "ciod": f"{__version__} {source(None if first else str(settings.method.get('name', 'ilyolox')))}",
    }


def key(content: dict[str, Any]) -> str:
    """12 hex digits of ``facts``."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def fingerprint(index: Index) -> str:
    """Of a split: its files' names and sizes, its images' sizes and every box. No picture is opened."""
    digest = hashlib.sha256(json.dumps(index.class_names).encode())
    for file in index.files:
        size = file.stat().st_size if file.is_file() else -1
        digest.update(f"{file.parent.name}/{file.name}:{size}\n".encode())
    for column in (index.sizes, index.image, index.boxes, index.labels, index.crowd, index.difficult, index.area):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:16]


@cache
def source(method: str | None) -> str:
    """Digest of the code a run executes: a version or a commit would not tell of changes in a checkout.

    Args:
        method: whose file counts too, by name or as ``FILE.py:Class``; None for a first task.
    """
    files = [p for p in _PACKAGE.rglob("*.py") if p.relative_to(_PACKAGE).parts[0] not in (*_OUTSIDE, *_VERBS)]
    files.append(_PACKAGE / "methods" / "method.py")
    if method is not None:  # whatever it imports from its neighbours
        files += (_PACKAGE / "methods").glob("*.py")
        files += [Path(method.partition(":")[0])] if ".py" in method else []
    digest = hashlib.sha256()
    for path in sorted({p.resolve() for p in files}):
        name = path.relative_to(_PACKAGE).as_posix() if path.is_relative_to(_PACKAGE) else path.name
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _file(path: str | None) -> str | None:
    """Digest of a weights file; None where ``path`` names none."""
    if not path or not Path(path).is_file():
        return None
    with Path(path).open("rb") as f:
        digest = hashlib.sha256()
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
