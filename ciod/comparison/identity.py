"""The key of a run, from everything that determines it: runs with equal keys are interchangeable."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciod.core.version import __version__
from ciod.methods import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ciod.config.load import Run
    from ciod.data.index import Index


def facts(
    settings: Run, groups: Sequence[Sequence[str]], data: dict[str, str], *, device: str, first: bool
) -> dict[str, Any]:
    """Everything that determines a run, JSON-ready.

    Args:
        groups: new classes of each task.
        data: split → ``fingerprint`` of its Index.
        device: ``cpu`` or ``cuda``.
        first: only for its first task, which depends neither on the method nor on the settings of later tasks.
    """
    import torch

    from ciod.runs import environment

    flat = environment.fingerprint(settings)
    files = {k: _file(flat.get(f"detector.{k}")) for k in ("weights", "backbone_weights")}
    method = None if first else str(settings.method.get("name", DEFAULT))
    return {
        "settings": environment.first_task(flat) if first else flat,
        "groups": [list(g) for g in groups],
        "data": data,
        "files": {k: v for k, v in files.items() if v},
        "device": device,
        "torch": ".".join(torch.__version__.split(".")[:2]),
        "ciod": f"{__version__} {source(method, settings.detector.name)}",
    }


def key(content: dict[str, Any]) -> str:
    """12 hex digits of ``facts``."""
    return _digest(content)[:12]


def fingerprint(index: Index) -> str:
    """Fingerprint of a split: classes, names and sizes of files, sizes of images, every box. No image is opened."""
    from ciod.runs import fingerprints

    return _digest(fingerprints.of_index(index, fingerprints.per_image(index)))


def source(method: str | None, detector: str = "") -> str:
    """Digest of the code that a run executes; a version or commit would not show changes in a checkout.

    Args:
        method: its file is included, by name or as ``FILE.py:Class``; None for a first task, which has no method.
        detector: its file is included, if it is one of the user.
    """
    from ciod.runs import fingerprints

    code = fingerprints.of_code(method or "", detector)
    own = [n for n in code["files"] if n.startswith("methods/") and n != "methods/base/method.py"]
    files = code["files"] if method else {n: d for n, d in code["files"].items() if n not in own}
    return _digest([files, code["method"], code["detector"]])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _file(path: str | None) -> str | None:
    """Digest of a weights file; None if ``path`` is not a file."""
    if not path or not Path(path).is_file():
        return None
    with Path(path).open("rb") as f:
        digest = hashlib.sha256()
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
