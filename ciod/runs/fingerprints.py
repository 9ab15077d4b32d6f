"""Fingerprints of the data and code of a run, and the differences between two of them."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciod.core import user_code
from ciod.core.files import atomic_write
from ciod.core.plural import counted
from ciod.core.reading import ANNOTATIONS, Unreadable, read_object
from ciod.runs import environment

if TYPE_CHECKING:
    from ciod.data.index import Index

LISTING = "data.json"  # in last/: one number per image, so that a difference can be named
# The packages that determine weights and results: all below ``runs`` except those that only show or send results.
_DECIDING = frozenset({"core", "data", "detectors", "methods", "config", "training", "evaluation", "memory", "runs"})
_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "faster-coco-eval")


Listing = dict[str, list[list[Any]]]  # by split, see ``per_image``


def listing(splits: Mapping[str, Index]) -> Listing:
    """The listing of each split (``train``, ``test``, …)."""
    return {name: per_image(index) for name, index in splits.items()}


def of_data(splits: Mapping[str, Index], images: Listing) -> dict[str, Any]:
    """For each split: class names, counts, and a digest over every image: its name, bytes, size and boxes with their
    class names."""
    return {name: of_index(index, images[name]) for name, index in splits.items()}


def of_index(index: Index, images: list[list[Any]]) -> dict[str, Any]:
    """The same for one split; ``images`` are those of ``per_image``."""
    return {
        "classes": list(index.class_names),
        "images": len(index),
        "boxes": len(index.labels),
        "digest": hashlib.sha256(json.dumps(images).encode()).hexdigest(),
    }


def per_image(index: Index) -> list[list[Any]]:
    """[folder/name, checksum] of each image. The folder of the data set does not count: it may be moved."""
    names = [zlib.crc32(n.encode()) for n in index.class_names]
    rows = []
    for i, file in enumerate(index.files):
        own = index.of_image(i)
        about = [file.stat().st_size if file.is_file() else -1, *index.sizes[i].tolist()]
        about += [names[y] for y in index.labels[own].tolist()]
        flags = index.crowd[own].tobytes() + index.difficult[own].tobytes()
        crc = zlib.crc32(json.dumps(about).encode() + index.boxes[own].tobytes() + flags)
        rows.append([f"{file.parent.name}/{file.name}", crc])
    return rows


def write_listing(folder: Path, images: Listing) -> None:
    """``data.json``, from which ``data_differences`` names images."""
    atomic_write(folder / LISTING, json.dumps(images))


def data_differences(folder: Path, before: dict[str, Any], after: dict[str, Any], images: Listing) -> list[str]:
    """The differences between the data of a run and the present data; [] if there are none."""
    changes = []
    try:
        listed = read_object(folder / LISTING, ANNOTATIONS)
    except Unreadable:
        listed = {}
    for split in after:
        if split not in before:
            changes.append(f"{split} data: {counted(after[split]['images'], 'image')}, previously none")
            continue
        was, now = before[split], after[split]
        if was == now:
            continue
        parts = []
        gone = [n for n in was["classes"] if n not in now["classes"]]
        come = [n for n in now["classes"] if n not in was["classes"]]
        parts += [f"class {n} is missing" for n in gone[:3]] + [f"class {n} is new" for n in come[:3]]
        if was["classes"] != now["classes"] and not gone and not come:
            parts.append("the classes have another order")
        for what in ("images", "boxes"):
            if was[what] != now[what]:
                parts.append(f"{now[what]} {what}, were {was[what]}")
        parts += _named(listed.get(split) or [], images[split])
        changes.append(f"{split} data: " + "; ".join(parts or ["other images or boxes"]))
    return changes


def _named(before: list[list[Any]], now: list[list[Any]]) -> list[str]:
    if not before:
        return []
    a, b = dict(before), dict(now)
    found = {
        "is missing": [n for n in a if n not in b],
        "is new": [n for n in b if n not in a],
        "has other boxes, size or content": [n for n in a if n in b and a[n] != b[n]],
    }
    return [
        f"{names[0]} {what}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for what, names in found.items()
        if names
    ]


def of_code(method: str, detector: str = "", *, also: Sequence[str] = ()) -> dict[str, Any]:
    """Versions, and digests of the source files that determine weights and results, including the user's files.

    Args:
        method, detector: as they are named in the settings.
        also: further packages of ciod that determine them, in addition to those of every run.
    """
    versions = environment.versions()
    return {
        "ciod": versions["ciod"],
        "files": dict(_package(tuple(also))),
        "method": _of_user(user_code.split(method)[0]),
        "detector": _of_user(user_code.split(detector)[0]),
        "packages": {n: versions[n] for n in _PACKAGES},
    }


@cache  # the imported files count, not later versions of them
def _package(also: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    root = Path(__file__).resolve().parents[1]
    found = [(p.relative_to(root).as_posix(), p) for p in sorted(root.rglob("*.py"))]
    deciding = _DECIDING.union(also)
    return tuple((name, _digest(path)) for name, path in found if name.split("/")[0] in deciding)


def code_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The differences between the code of a run and the present code; [] if there are none."""
    changes = []
    if before["ciod"] != now["ciod"]:
        changes.append(f"ciod was {before['ciod']}, is {now['ciod']}")
    old, new = before["packages"], now["packages"]
    changes += [f"{n} was {old.get(n)}, is {new[n]}" for n in new if old.get(n) != new[n]]
    a, b = ({**code["files"], **code["method"], **code.get("detector", {})} for code in (before, now))
    changed = sorted(n for n in {*a, *b} if a.get(n) != b.get(n))
    if changed:
        changes.append(f"{', '.join(changed[:5])}{', …' if len(changed) > 5 else ''} changed")
    return changes


def _of_user(file: str) -> dict[str, str]:
    """Name and digest of a user's file; {} without one."""
    return {Path(file).name: _digest(Path(file))} if file and Path(file).is_file() else {}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
