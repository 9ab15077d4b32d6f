"""PASCAL VOC: one XML a picture; official folders, VOCdevkit, Roboflow exports."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ciod.core.errors import DataError
from ciod.data.formats.index_builder import Check, Columns, number, numbered, size_of, to_index
from ciod.data.formats.layout import Files, Layout, Part, child, split_of_name, subfolders
from ciod.data.images import SUFFIXES
from ciod.data.index import Index, Problems

LOOKED_FOR = "VOC: Annotations/*.xml with JPEGImages/, or pictures and *.xml side by side in train/ and val/"


# ---------------------------------------------------------------------------------------------------- recognising


def find(root: Path) -> Layout | None:
    """Annotations/ + JPEGImages/ (+ ImageSets/Main/*.txt), here or in VOC2007/ …; or folders train/, val/ of either."""
    years = [f for base in (root, child(root, "VOCdevkit")) if base for f in subfolders(base) if _is_year(f)]
    sources = [found for folder in [root, *years] for found in [_source(folder)] if found]
    splits: dict[str, tuple[Part, ...]] = {}
    for part in sources:
        for split, listing in _listings(part) or [("train", None)]:
            splits[split] = (*splits.get(split, ()), Part(part.images, part.boxes, listing))
    if not splits:
        for folder in subfolders(root):
            split = split_of_name(folder.name)
            part = (_source(folder) or _beside(folder)) if split else None
            if split and part:
                splits[split] = (*splits.get(split, ()), part)
    if not splits:
        part = _beside(root)
        splits = {"train": (part,)} if part else {}
    return Layout("voc", root, splits) if splits else None


def _is_year(folder: Path) -> bool:
    return re.fullmatch(r"VOC\d{4}", folder.name, re.IGNORECASE) is not None


def _source(folder: Path) -> Part | None:
    boxes = child(folder, "Annotations", "Annotation", "xml")
    if not boxes or not _has_xml(boxes):
        return None
    return Part(images=(child(folder, "JPEGImages", "images", "img") or folder,), boxes=boxes)


def _beside(folder: Path) -> Part | None:
    return Part(images=(folder,), boxes=folder) if _has_xml(folder) else None


def _has_xml(folder: Path) -> bool:
    return any(name.lower().endswith(".xml") for name in Files().names(folder))


def _listings(part: Part) -> list[tuple[str, Path]]:
    """train.txt, val.txt, … of ImageSets; the lists a class (cat_train.txt) are for classification."""
    sets = child(part.boxes.parent, "ImageSets") if part.boxes else None
    for folder in (child(sets, "Main"), sets) if sets else ():
        found = [(split_of_name(p.stem), p) for p in sorted(folder.glob("*.txt"))] if folder else []
        if named := [(split, path) for split, path in found if split]:
            return named
    return []


# -------------------------------------------------------------------------------------------------------- reading


@dataclass
class _Object:
    name: str
    box: tuple[float, float, float, float] | None  # as written, 1-based; None = no bndbox
    difficult: bool


@dataclass
class _Annotation:
    file_name: str = ""
    size: tuple[int, int] = (0, 0)  # height, width; 0 = not said
    objects: list[_Object] = field(default_factory=list)


def read(parts: tuple[Part, ...], layout: Layout, source: str, check: Check, problems: Problems) -> Index:
    """The pictures of all parts as an Index; classes alphabetical over all splits, so that train and val agree.

    Raises:
        DataError: no class, or nothing usable.
    """
    columns, files = Columns(), Files()
    columns.class_names = class_names(layout)
    label_of = {name: i for i, name in enumerate(columns.class_names)}
    stems: list[str] = []
    for part in parts:
        pictures = _pictures(part, files)
        for stem in _stems(part, files, problems, pictures):
            if not files.has(f"{part.boxes}/{stem}.xml"):
                problems.add("picture without XML, left out: its objects would be taught as background", stem)
                continue
            annotation, wrong = _parse(Path(f"{part.boxes}/{stem}.xml"))
            if annotation is None:
                kind = "unreadable XML, its picture is left out: its objects would be taught as background"
                problems.add(kind, f"{stem}.xml ({wrong})")
                continue
            path = pictures.get(stem) or files.first(part.images, annotation.file_name) or ""
            if not path:
                problems.add("missing image file, left out", f"picture of {stem}.xml")
            columns.files.append(path)
            columns.sizes.append(annotation.size)
            stems.append(stem)
            for thing in annotation.objects:
                _add(thing, columns, label_of, problems, f"{stem}.xml")
    columns.ids = numbered(stems)
    return to_index(columns, source, check, problems)


def class_names(layout: Layout) -> tuple[str, ...]:
    """Alphabetical, over the XMLs of every split."""
    files, names, done = Files(), set[str](), set[Path]()
    for part in (p for parts in layout.splits.values() for p in parts):
        for stem in _stems(part, files, Problems(), {}):
            path = Path(f"{part.boxes}/{stem}.xml")
            if path not in done and files.has(str(path)):
                annotation = _parse(path)[0]
                names.update(thing.name for thing in (annotation.objects if annotation else ()))
                done.add(path)
    return tuple(sorted(names - {""}))


def _pictures(part: Part, files: Files) -> dict[str, str]:
    """The picture of each stem. The official data joins by stem; <filename> is often that of another tool."""
    found = {}
    for folder in part.images:
        for name in files.names(folder):
            stem, dot, suffix = name.rpartition(".")
            if dot and f".{suffix.lower()}" in SUFFIXES:
                found.setdefault(stem, f"{folder}/{name}")
    return found


def _stems(part: Part, files: Files, problems: Problems, pictures: dict[str, str]) -> Iterator[str]:
    """Stems of a listing, or of all XMLs and pictures of the folder."""
    if part.listing is None:
        stems = [n[:-4] for n in files.names(part.boxes or "") if n.endswith(".xml")]
        yield from stems
        yield from sorted(pictures.keys() - set(stems))
        return
    seen = set()
    try:
        lines = part.listing.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"The list {part.listing} cannot be read: {error}.") from error
    for line in lines:
        stem = re.sub(r"\s+-?[01]$", "", line.strip())  # lists a class have a 1, 0 or -1 behind the name
        if Path(stem).suffix.lower() in SUFFIXES:
            stem = Path(stem).stem
        if stem in seen:
            problems.add("picture listed twice, counted once", f"{stem} in {part.listing.name}")
        elif stem:
            seen.add(stem)
            yield stem


def _add(thing: _Object, columns: Columns, label_of: dict[str, int], problems: Problems, where: str) -> None:
    if not thing.name:
        problems.add("object without a class name, left out", where)
    elif thing.box is None:
        problems.add("object without a bndbox of four numbers, left out", f"{thing.name} in {where}")
    else:
        x0, y0, x1, y1 = thing.box
        # VOC counts pixels from 1 and its last one is inside the box.
        columns.add_box((x0 - 1, y0 - 1, x1, y1), label_of[thing.name], thing.difficult)


def _parse(path: Path) -> tuple[_Annotation | None, str]:
    """What an XML says, or None and what is wrong with it."""
    try:
        text = _text(path.read_bytes())
        if re.search(r"<!\s*(DOCTYPE|ENTITY)", text):
            # Entities that expand to gigabytes or read other files; no annotation tool writes any.
            return None, "it has a DOCTYPE or ENTITY, which is refused as unsafe"
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, OSError, ValueError, LookupError, RecursionError) as error:
        return None, str(error)
    if root.tag != "annotation":
        return None, f"its root is <{root.tag}>, not <annotation>"
    size = size_of(root.findtext("size/height"), root.findtext("size/width"))
    out = _Annotation((root.findtext("filename") or "").strip(), size)
    for item in root.iter("object"):
        corners = [item.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        x0, y0, x1, y1 = (number(c) for c in corners)
        named = all(c is not None and (number(c) == number(c) or c.strip().lower() == "nan") for c in corners)
        name = (item.findtext("name") or "").strip()
        out.objects.append(_Object(name, (x0, y0, x1, y1) if named else None, number(item.findtext("difficult")) == 1))
    return out, ""


def _text(raw: bytes) -> str:
    """Decoded here and not by the parser, so that a DOCTYPE cannot hide behind an encoding."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16")
    declared = re.match(rb"(?:\xef\xbb\xbf)?\s*<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]+)", raw)
    return raw.decode(declared[1].decode() if declared else "utf-8").lstrip("\ufeff")
