"""labelme: one JSON per picture, as labelme, X-AnyLabeling and AnyLabeling write it."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from ciod.core.errors import DataError
from ciod.core.files import nfc
from ciod.core.reading import EMBEDDED, Unreadable, check_regular, read_bytes
from ciod.data.formats.index_builder import Check, Columns, number, numbered, size_of, to_index
from ciod.data.formats.layout import Layout, Part, child, split_of_name, subfolders
from ciod.data.index import Index, Problems
from ciod.data.pairs import Pairs, annotation_files
from ciod.data.text_files import decoded

LOOKED_FOR = "labelme: a JSON beside each picture"
_HEAD = 1 << 20  # bytes to recognise a labelme file; the image itself may follow, in base64
_OUTLINES = {"rectangle", "polygon", "circle", "mask", "rotation", "quadrilateral", "cuboid", None}


def find(root: Path) -> Layout | None:
    """JSONs of labelme in ``root`` or a folder below it, with or without folders of splits."""
    splits: dict[str, tuple[Part, ...]] = {}
    for folder in subfolders(root):
        if (split := split_of_name(folder.name)) and (part := _part(folder)):
            splits[split] = (*splits.get(split, ()), part)
    if not splits and (part := _part(root)):
        splits = {"train": (part,)}
    return Layout("labelme", root, splits) if splits else None


def is_labelme(path: Path) -> bool:
    """Whether a JSON is one of labelme's, judged by its beginning."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except (Unreadable, OSError):
        return False
    return b'"shapes"' in head and b'"annotations"' not in head and (b'"imagePath"' in head or len(head) == _HEAD)


def _part(folder: Path) -> Part | None:
    places = [child(folder, name) for name in ("annotations", "labels", "json", "jsons")]
    for place in (folder, *(p for p in places if p)):
        jsons = sorted(p for p in place.glob("*.[jJ][sS][oO][nN]") if not p.name.startswith("."))
        if jsons and is_labelme(jsons[0]):
            images = [child(folder, name) for name in ("images", "JPEGImages", "img", "imgs")]
            return Part(images=tuple(dict.fromkeys((place, *(i for i in images if i), folder))), boxes=place)
    return None


def read(parts: tuple[Part, ...], layout: Layout, source: str, check: Check, problems: Problems) -> Index:
    """The pictures of all parts as an Index; classes alphabetical over all splits, so that train and val agree.

    Raises:
        DataError: no class, or nothing usable.
    """
    columns = Columns(class_names=class_names(layout))
    label_of = {name: i for i, name in enumerate(columns.class_names)}
    stems: list[str] = []
    for part in parts:
        good: dict[str, dict[str, Any]] = {}
        for key, path in annotation_files(part.boxes, ".json", problems).items():
            content, wrong = _parse(path)
            if content is None:
                problems.add("JSON that is not labelme's, skipped", f"{path.name} ({wrong})")
            else:
                good[key] = content
        pairs = Pairs(part.images, problems)
        named = {key: str(content.get("imagePath") or "") for key, content in good.items()}
        pictures = pairs.choose(named, {key: _size(content) for key, content in good.items()})
        for key, content in good.items():
            if not pictures[key]:
                problems.add("missing image file, left out", f"picture of {key}.json")
            columns.files.append(pictures[key])
            columns.sizes.append(_size(content))
            stems.append(key.rpartition("/")[2])
            for shape in content["shapes"]:
                _add(shape, columns, label_of, problems, f"{key}.json")
        pairs.count_left("picture without JSON, left out: its objects would be trained as background")
    columns.ids = numbered(stems)
    return to_index(columns, source, check, problems)


def class_names(layout: Layout) -> tuple[str, ...]:
    """Alphabetical, over the JSONs of every split; those of shapes that have a box."""
    names = {
        _label(shape)
        for parts in layout.splits.values()
        for part in parts
        for path in annotation_files(part.boxes, ".json").values()
        for shape in (_parse(path)[0] or {"shapes": []})["shapes"]
        if isinstance(shape, dict) and _has_box(shape.get("shape_type"))
    }
    return tuple(sorted(names - {""}))


def _parse(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The content of a JSON, or None and the problem."""
    try:
        content = json.loads(decoded(read_bytes(path, EMBEDDED), path))
    except DataError as error:
        return None, str(error)
    except (ValueError, RecursionError) as error:
        return None, f"not valid JSON: {error}"
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        return None, "it has no list of shapes"
    return content, ""


def _size(content: dict[str, Any]) -> tuple[int, int]:
    return size_of(content.get("imageHeight"), content.get("imageWidth"))


def _has_box(kind: Any) -> bool:
    return (kind is None or isinstance(kind, str)) and kind in _OUTLINES


def _label(shape: dict[str, Any]) -> str:
    label = shape.get("label")
    return nfc(str(label)).strip() if isinstance(label, (str, int, float)) else ""


def _add(shape: Any, columns: Columns, label_of: dict[str, int], problems: Problems, where: str) -> None:
    """A rectangle, or the box around a polygon, a circle or a mask."""
    shape = shape if isinstance(shape, dict) else {}
    kind, name = shape.get("shape_type"), _label(shape)
    if not _has_box(kind):
        problems.add("shape that is neither rectangle, polygon, circle nor mask, left out", f"{kind} in {where}")
    elif not name or name not in label_of:
        problems.add("shape without a label, left out", where)
    elif (box := _box(shape.get("points"), circle=kind == "circle")) is None:
        problems.add("shape without two points of two numbers, left out", f"{name} in {where}")
    else:
        columns.add_box(box, label_of[name])
        columns.written.setdefault(name, Counter())[str(shape["label"])] += 1
        if kind not in ("rectangle", None):
            problems.add("polygon, circle or mask, its box is used", f"{name} in {where}")


def _box(points: Any, *, circle: bool) -> tuple[float, float, float, float] | None:
    """xyxy around points; for a circle, its centre and a point on it are given."""
    pairs = points if isinstance(points, list) and len(points) > 1 else []
    if not pairs or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        return None
    xs, ys = [number(p[0]) for p in pairs], [number(p[1]) for p in pairs]
    if circle:
        r = math.hypot(xs[1] - xs[0], ys[1] - ys[0])
        return xs[0] - r, ys[0] - r, xs[0] + r, ys[0] + r
    if any(v != v for v in (*xs, *ys)):
        return math.nan, math.nan, math.nan, math.nan
    return min(xs), min(ys), max(xs), max(ys)
