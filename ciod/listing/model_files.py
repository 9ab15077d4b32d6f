"""The content of a model file: one of ciod, an ONNX file, or a checkpoint of another project."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ciod.core.files import is_file, no_model_file
from ciod.core.plural import counted, few
from ciod.listing.sheet import Sheet


def model(path: Path) -> Sheet:
    """A model of ciod: detector, classes, and how it learnt them."""
    from ciod.detectors.files.weights import read_metadata

    if not is_file(path):
        no_model_file(path, (".safetensors",))
    meta = read_metadata(path)
    shown = {k: v for k, v in meta["detector"].items() if k != "config" or len(str(v)) < 80}
    settings = ", ".join(f"{k}={v}" for k, v in shown.items())
    lines = [f"{path}: {settings}; {counted(len(meta['class_names']), 'class')}", *_lineage(meta["lineage"])]
    content = {"kind": "ciod", "detector": meta["detector"], "classes": list(meta["class_names"])}
    return Sheet(lines, content={"file": str(path), **content, "lineage": meta["lineage"]})


def of_hub(name: str) -> Sheet:
    """``hf:FOLDER`` of transformers, or ``hf:user/model`` on the Hub, of ciod or of transformers."""
    from ciod.detectors.files import hub
    from ciod.detectors.query import hf

    if not hub.is_of_transformers(name):
        path = hub.local(name)
        sheet = onnx(path) if path.suffix == ".onnx" else model(path)
        sheet.lines[0] = sheet.lines[0].replace(str(path), name, 1)  # not its place in the cache
        return sheet
    found = hf.describe(name)
    names = [found.labels[i] for i in found.rows]
    place = "stretched" if found.input.place == "stretch" else "with a border"
    classes = f"{counted(len(names), 'class')}: {few(names)}" if names else f"{len(found.labels)} classes, not named"
    kind = found.config["model_type"]
    lines = [f"{name}: {kind}, pictures of {found.input.size} pixels, {place}; {classes}"]
    about = {"kind": "transformers", "detector": {"model_type": kind}, "classes": names or None, "lineage": []}
    return Sheet(lines, content={"file": name, **about})


def onnx(path: Path) -> Sheet:
    """What ciod added to an ONNX file, or else its metadata."""
    from ciod.detectors.onnx import pictures, written

    opened = written.open_file(path)
    whole, extended = opened.whole, opened.written
    maker = f" from {whole.made_by}" if whole.made_by else ""
    names = pictures.names_of(whole, None) if extended is None else extended.class_names
    classes = "classes not named" if names is None else counted(len(names), "class")
    nodes = f"{len(whole.content.graph.node)} nodes, opset {whole.opset}{maker}"
    lineage: Sequence[dict[str, Any]] = [] if extended is None else extended.lineage
    lines = [f"{path}: {nodes}; {classes}", *_lineage(lineage)]
    if extended is None:
        lines.append(f"ciod check {path} says what it is taken for.")
    named = None if names is None else list(names)
    content = {"kind": "onnx", "detector": {"opset": whole.opset, "made_by": whole.made_by}, "classes": named}
    return Sheet(lines, content={"file": str(path), **content, "lineage": list(lineage)})


def checkpoint(path: Path) -> Sheet:
    """A checkpoint of another project: what ciod takes it for, and what can be done with it.

    Raises:
        CiodError: the file is damaged, of another architecture, or needs code to load, and what to do then.
    """
    from ciod.data import names as known
    from ciod.detectors.files import foreign
    from ciod.detectors.files.checkpoint import names_in_metadata, tensors_of
    from ciod.detectors.files.weights import parse

    parsed = parse(path)
    given = names_in_metadata(parsed.content.get("meta"))
    count = len(given) if given else foreign.count_classes(parsed.state)
    ours = parsed.kind == "known"
    what = f"a checkpoint of {parsed.name}" if ours else "a checkpoint of MMDetection (docs/mmdetection.md)"
    coco = ours and not given and count in (len(known.COCO), foreign.COCO_ROWS)
    names = list(given) if given else [*known.COCO] if coco else None
    parameters = sum(t.numel() for t in tensors_of(parsed.content).values())
    lines = [f"{path}: {what}, {parameters / 1e6:.1f} M values; " + _classes(names, count, coco)]
    more = "" if names or not ours else " names='[a, b, …]'"
    lines.append(f"ciod extend {path} data=FOLDER out=DIR{more} adds the classes of a folder.")
    lines.append(f"ciod eval {path} data=FOLDER{more} scores it, ciod predict {path} FILE…{more} finds objects.")
    content = {"kind": "checkpoint", "detector": {"name": parsed.name or "mmdet"}, "classes": names, "lineage": []}
    return Sheet(lines, content={"file": str(path), **content})


def _classes(names: Sequence[str] | None, count: int, coco: bool) -> str:
    if coco:
        return "no names of classes; their number is COCO's, so they are taken to be COCO's 80"
    if names:
        return f"{counted(len(names), 'class')}: {few(names)}"
    return f"{counted(count, 'class')} without names" if count else "classes not named"


def _lineage(lineage: Sequence[dict[str, Any]]) -> list[str]:
    return [line for i, step in enumerate(lineage, 1) for line in (f"{i}. {_arrived(step)}", f"   {_origin(step)}")]


def _arrived(step: dict[str, Any]) -> str:
    """The classes of a step of the lineage: new ones, those trained further, those removed."""
    parts = [few(step.get("classes", []))]
    parts += [
        f"{word} {few(step[key])}" for key, word in (("taught", "further:"), ("dropped", "dropped:")) if step.get(key)
    ]
    return "; ".join(p for p in parts if p)


def _origin(step: dict[str, Any]) -> str:
    """The origin of the classes of a step: data, method, date, hash; unknown values are left out."""
    counts = [f"{step[k]} {k}" for k in ("images", "boxes", "epochs") if k in step]
    method = str((step.get("method") or {}).get("name", ""))
    parts = [
        f"from {step.get('data', step.get('from', 'an unknown place'))}",
        *counts[:2],
        method,
        *counts[2:],
        f"seed {step['seed']}" if "seed" in step else "",
        str(step.get("when", ""))[:10],
        f"data sha256 {step['data_sha256'][:12]}" if step.get("data_sha256") else "",
    ]
    return ", ".join(p for p in parts if p)
