"""PASCAL VOC: one XML per picture; official folders, VOCdevkit, Roboflow exports."""

from __future__ import annotations

import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ciod.core.files import nfc
from ciod.core.reading import LABELS, Unreadable, read_bytes
from ciod.data.folders import below
from ciod.data.formats.index_builder import Check, Columns, number, numbered, size_of, to_index
from ciod.data.formats.layout import Layout, Part, child, folded, only, split_of_name, subfolders
from ciod.data.images import SUFFIXES
from ciod.data.index import Index, Problems
from ciod.data.pairs import Pairs, annotation_files
from ciod.data.text_files import ADVICE, encoding_of, read_text

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


def find_below(root: Path) -> Layout | None:
    """Pictures and XMLs side by side in deeper folders, all of them or those in folders of splits."""
    splits = {
        split: (Part(images=(folder,), boxes=folder),)
        for folder in subfolders(root)
        if (split := split_of_name(folder.name)) and _has_xml(folder)
    }
    if not splits and _has_xml(root):
        splits = {"train": (Part(images=(root,), boxes=root),)}
    return Layout("voc", root, splits) if splits else None


def _is_year(folder: Path) -> bool:
    return re.fullmatch(r"VOC\d{4}", folder.name, re.IGNORECASE) is not None


def _source(folder: Path) -> Part | None:
    boxes = child(folder, "Annotations", "Annotation", "xml")
    if boxes and _has_xml(boxes):
        return Part(images=(child(folder, "JPEGImages", "images", "img") or folder,), boxes=boxes)
    boxes, images = child(folder, "labels"), child(folder, "data", "images")  # as FiftyOne writes them
    return Part(images=(images,), boxes=boxes) if boxes and images and _has_xml(boxes) else None


def _beside(folder: Path) -> Part | None:
    names = next((names for _, names in below(folder)), [])
    return Part(images=(folder,), boxes=folder) if any(n.lower().endswith(".xml") for n in names) else None


def _has_xml(folder: Path) -> bool:
    return any(n.lower().endswith(".xml") for _, names in below(folder) for n in names)


def _listings(part: Part) -> list[tuple[str, Path]]:
    """train.txt, val.txt, … of ImageSets, but not the lists per class (cat_train.txt), which are for classification."""
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
    written: str  # the name in the XML, before it is cleaned
    box: tuple[float, float, float, float] | None  # as written, 1-based; None = no bndbox
    difficult: bool
    drawn: bool = False  # the box is that of a polygon or rotated box


@dataclass
class _Annotation:
    file_name: str = ""
    size: tuple[int, int] = (0, 0)  # height, width; 0 = not stated
    objects: list[_Object] = field(default_factory=list)


def read(parts: tuple[Part, ...], layout: Layout, source: str, check: Check, problems: Problems) -> Index:
    """The pictures of all parts as an Index; classes alphabetical over all splits, so that train and val agree.

    Raises:
        DataError: no class, or nothing usable.
    """
    columns = Columns(class_names=class_names(layout), form="two corners")
    label_of = {name: i for i, name in enumerate(columns.class_names)}
    stems: list[str] = []
    for part in parts:
        pairs, files = Pairs(part.images, problems), annotation_files(part.boxes, ".xml", problems)
        good: dict[str, _Annotation] = {}
        for key in _keys(part, files, pairs.by_key, problems):
            if key not in files:
                problems.add("picture without XML, left out: its objects would be trained as background", key)
                pairs.used.update(pairs.by_key.get(key, ()))
                continue
            annotation, wrong = _parse(files[key])
            if annotation is None:
                kind = "unreadable XML, its picture is left out: its objects would be trained as background"
                problems.add(kind, f"{key}.xml ({wrong})")
                pairs.used.update(pairs.own(key))
            else:
                good[key] = annotation
        named = {key: annotation.file_name for key, annotation in good.items()}
        chosen = pairs.choose(named, {key: annotation.size for key, annotation in good.items()})
        for key, annotation in good.items():
            if not chosen[key]:
                problems.add("missing image file, left out", f"picture of {key}.xml")
            columns.files.append(chosen[key])
            columns.sizes.append(annotation.size)
            stems.append(key.rpartition("/")[2])
            for thing in annotation.objects:
                _add(thing, columns, label_of, problems, f"{key}.xml")
        if part.listing is None:
            pairs.count_left("picture without XML, left out: its objects would be trained as background")
    columns.ids = numbered(stems)
    return to_index(columns, source, check, problems)


def class_names(layout: Layout) -> tuple[str, ...]:
    """Alphabetical, over the XMLs of every split."""
    names, done = set[str](), set[Path]()
    for part in (p for parts in layout.splits.values() for p in parts):
        files = annotation_files(part.boxes, ".xml")
        for path in (files[key] for key in _keys(part, files, {}, Problems()) if key in files):
            if path not in done:
                annotation = _parse(path)[0]
                names.update(thing.name for thing in (annotation.objects if annotation else ()))
                done.add(path)
    return tuple(sorted(names - {""}))


def _keys(part: Part, files: Collection[str], pictures: Collection[str], problems: Problems) -> list[str]:
    """Keys of all XMLs, or of those in a list."""
    if part.listing is None:
        return list(files)
    known, alike = {*files, *pictures}, only([*files, *(p for p in pictures if p not in files)], folded)
    found: dict[str, None] = {}
    for line in filter(None, map(str.strip, read_text(part.listing).splitlines())):
        forms = list(_forms(line))
        key = next((f for f in forms if f in known), "") or next((k for f in forms if (k := alike.get(folded(f)))), "")
        key = key or forms[-1]
        if key in found:
            problems.add("picture listed twice, counted once", f"{key} in {part.listing.name}")
        found[key] = None
    return list(found)


def _forms(line: str) -> Iterator[str]:
    """Possible meanings of a line of a list, the most likely first. Names can contain spaces, end with a number or be
    quoted. Lists per class append 1, 0 or -1. Some tools write the suffix and folders of the image."""
    for text in dict.fromkeys((line, re.sub(r"\s+-?[01]$", "", line))):
        for bare in dict.fromkeys((text, text.strip("\"'").strip())):
            stem, suffix = os.path.splitext(bare)  # noqa: PTH122 (names, not Paths)
            yield bare
            if suffix.lower() in SUFFIXES or suffix.lower() == ".xml":
                yield stem
                bare = stem
            if "/" in bare or "\\" in bare:
                yield re.split(r"[\\/]", bare)[-1]


def _add(thing: _Object, columns: Columns, label_of: dict[str, int], problems: Problems, where: str) -> None:
    columns.refused += not thing.name or thing.box is None
    if not thing.name:
        problems.add("object without a class name, left out", where)
    elif thing.box is None:
        problems.add("object without a bndbox of four numbers, left out", f"{thing.name} in {where}")
    else:
        if thing.drawn:
            problems.add("polygon or rotated box, its box is used", f"{thing.name} in {where}")
        x0, y0, x1, y1 = thing.box
        # VOC counts pixels from 1, and the last pixel is inside the box.
        columns.add_box((x0 - 1, y0 - 1, x1, y1), label_of[thing.name], thing.difficult)
        columns.written.setdefault(thing.name, Counter())[thing.written] += 1


def _parse(path: Path) -> tuple[_Annotation | None, str]:
    """The content of an XML, or None and the problem."""
    try:
        text = _text(read_bytes(path, LABELS))
        if re.search(r"<!\s*(DOCTYPE|ENTITY)", text):
            # Entities can expand to gigabytes or read other files; no annotation tool writes them.
            return None, "it has a DOCTYPE or ENTITY, which is refused as unsafe"
        root = ElementTree.fromstring(text)
    except UnicodeDecodeError:
        return None, f"it is not in the encoding that it declares; {ADVICE}"
    except (ElementTree.ParseError, Unreadable, ValueError, LookupError, RecursionError) as error:
        return None, str(error)
    if root.tag != "annotation":
        hint = "; CVAT can export as Pascal VOC or COCO" if root.tag == "annotations" else ""
        return None, f"its root is <{root.tag}>, not <annotation>{hint}"
    size = size_of(root.findtext("size/height"), root.findtext("size/width"))
    out = _Annotation((root.findtext("filename") or "").strip(), size)
    for item in root.iter("object"):
        corners = [item.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        x0, y0, x1, y1 = (number(c) for c in corners)
        named = all(c is not None and (number(c) == number(c) or c.strip().lower() == "nan") for c in corners)
        written = item.findtext("name") or ""
        name = nfc(written).strip()
        drawn = _drawn(item) if item.find("bndbox") is None else None
        box = (x0, y0, x1, y1) if named else drawn
        difficult = number(item.findtext("difficult")) == 1
        out.objects.append(_Object(name, written, box, difficult, drawn=drawn is not None))
    return out, ""


def _drawn(item: ElementTree.Element) -> tuple[float, float, float, float] | None:
    """The box of an object that is a polygon (Roboflow, labelme) or a rotated box in radians (roLabelImg); counted from
    1, like the others."""
    points = [c for c in item.iterfind("polygon//*") if re.fullmatch(r"[xy]\d*", c.tag)]
    xs, ys = ([number(c.text) for c in points if c.tag[0] == axis] for axis in "xy")
    if (turned := item.find("robndbox")) is not None:
        cx, cy, w, h, angle = (number(turned.findtext(k)) for k in ("cx", "cy", "w", "h", "angle"))
        if math.isfinite(angle):
            cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
            half = (w * cos + h * sin) / 2, (w * sin + h * cos) / 2
            xs, ys = [cx - half[0], cx + half[0]], [cy - half[1], cy + half[1]]
    if len(xs) < 2 or len(xs) != len(ys) or not all(map(math.isfinite, (*xs, *ys))):
        return None
    return min(xs) + 1, min(ys) + 1, max(xs), max(ys)


def _text(raw: bytes) -> str:
    """Decodes the XML before the parser does, so that a DOCTYPE cannot hide in an encoding."""
    encoding = encoding_of(raw)
    declared = re.match(rb"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]+)", raw) if encoding == "utf-8" else None
    return raw.decode(declared[1].decode() if declared else encoding)
