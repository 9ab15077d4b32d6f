"""COCO: one JSON per split, as in the official data, Roboflow and most tools."""

from __future__ import annotations

import itertools
import json
import math
import mmap
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ciod.core.errors import DataError
from ciod.core.gc_pause import uncollected
from ciod.core.plural import counted
from ciod.core.reading import ANNOTATIONS, Unreadable, read_bytes, read_text
from ciod.data import federated
from ciod.data.formats.index_builder import Check, Columns, number, size_of, to_index, unique_names
from ciod.data.formats.layout import Files, Layout, Part, child, split_in_name, split_of_name, subfolders
from ciod.data.formats.other_tools import advice, advice_on_list
from ciod.data.formats.plausible import check_categories, check_keys
from ciod.data.index import Index, Problems, count
from ciod.data.masks import box_of
from ciod.data.text_files import ADVICE

LOOKED_FOR = "COCO: train.json, annotations/instances_train2017.json or train/_annotations.coco.json"
_NOT_BOXES = {"captions", "panoptic", "stuff", "info", "labels", "results", "predictions", "detections"}
SAME_ID = "image id of two pictures, both left out: its boxes may belong to either"
_Key = int | float | str | None
# Polygons are nine tenths of COCO and unused: removing them before parsing saves more than half of the time and memory.
# Only numbers, brackets and commas follow, so the match ends with the value; in a string the quotes would be escaped.
_POLYGONS = re.compile(rb'"segmentation"\s*:\s*\[[][\d\s.,eE+-]*\]')


# ---------------------------------------------------------------------------------------------------- recognising


def find_named(root: Path) -> Layout | None:
    """JSONs named after splits, in ``root``, in its annotations/, or one in a folder per split.

    Raises:
        DataError: two JSONs for one split, which is ambiguous.
    """
    found: dict[str, list[tuple[Path, Part]]] = {}
    for path in (p for folder in _json_folders(root) for p in _jsons(folder)):
        if named := split_in_name(path.stem):
            found.setdefault(named[0], []).append((path, _part(path, root, named[1])))
    for folder in subfolders(root):
        split = split_of_name(folder.name)
        if split and not _of_boxes([path for path, _ in found.get(split, [])]):
            jsons = _jsons(folder)
            options = [p for p in jsons if p.name == "_annotations.coco.json"] or _of_boxes(jsons)
            found.setdefault(split, []).extend((p, _part(p, root, folder.name)) for p in options)
    splits = {}
    for split, paths in found.items():
        boxed = _of_boxes([path for path, _ in paths])
        options = [o for o in paths if o[0] in boxed]
        if len(options) > 1:  # the official folder often has the JSONs of 2014 and 2017, but the images of only one
            options = [o for o in options if _own_folder(o[1], o[0])] or options
        if len(options) > 1:
            options = [o for o in options if is_coco(o[0])]
        if len(options) > 1:
            raise DataError(_choose(root, [path for path, _ in options], f" for the split '{split}'"))
        if options:
            splits[split] = (options[0][1],)
    return Layout("coco", root, splits) if splits else None


def find_single(path: Path) -> Layout | None:
    """The given JSON, or the only one of a folder that can have boxes.

    Raises:
        DataError: the folder has several with boxes.
    """
    if path.is_file():
        jsons = [path]
    else:
        jsons = [p for folder in _json_folders(path) for p in _jsons(folder)]
        if len(jsons) > 1:  # CVAT and Datumaro write a JSON per kind of annotation
            jsons = [p for p in _of_boxes(jsons) if is_coco(p)]
    if len(jsons) > 1:
        raise DataError(_choose(path, jsons))
    if not jsons:
        return None
    named = split_in_name(jsons[0].stem)
    split = named[0] if named else split_of_name(jsons[0].parent.name) or "train"
    root = path.parent if path.is_file() else path
    part = _part(jsons[0], root, named[1] if named else jsons[0].stem)
    return Layout("coco", path, {split: (part,)}, single=True)


def _of_boxes(jsons: list[Path]) -> list[Path]:
    """The JSONs whose names do not indicate another kind of annotation; all JSONs if there are none.

    Keypoints include boxes, so they are the second choice.
    """
    for other in (_NOT_BOXES | {"keypoints"}, _NOT_BOXES):
        if found := [p for p in jsons if not other & set(re.split(r"[^a-z]+", p.stem.lower()))]:
            return found
    return []


def is_coco(path: Path) -> bool:
    """Whether a JSON has COCO's keys and boxes or outlines, without parsing it."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
            if b"\0" in raw[:64]:  # UTF-16, which the parser reads
                return True
            keys = (b'"images"', b'"annotations"', b'"categories"')
            outlines = (b'"bbox"', b'"segmentation"')
            return all(raw.find(key) >= 0 for key in keys) and any(raw.find(key) >= 0 for key in outlines)
    except (OSError, ValueError):  # no file to read, or an empty one
        return False


def _choose(root: Path, paths: list[Path], what: str = "") -> str:
    names = ", ".join(str(p.relative_to(root)) for p in paths[:8]) + (", …" if len(paths) > 8 else "")
    return f"{root} has {counted(len(paths), 'file')}{what}: {names}. Point at one of them."


def _json_folders(root: Path) -> list[Path]:
    inside = child(root, "annotations")
    return [root, *([inside] if inside else [])]


def _jsons(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.[jJ][sS][oO][nN]") if p.is_file() and not p.name.startswith("."))


def _part(path: Path, root: Path, word: str) -> Part:
    """Possible folders of the images of a JSON, the most likely first."""
    bases = [path.parent, root]
    if path.parent.name.lower() in ("annotations", "annotation", "labels"):
        bases.append(path.parent.parent)
    split = split_of_name(word)
    words = [word, *(f.name for b in bases for f in subfolders(b) if split and split_of_name(f.name) == split)]
    words += [path.stem.partition("_")[2]] if "_" in path.stem else []  # instances_default.json: images/default/
    folders = [b / inside / w for b in bases for w in words for inside in ("", "images")]
    folders += [b / inside for inside in ("images", "", "JPEGImages", "data") for b in bases]
    return Part(images=tuple(dict.fromkeys(f for f in folders if f.is_dir())), boxes=path)


def _own_folder(part: Part, path: Path) -> bool:
    """Whether there is an image folder with the name of this JSON, such as train2017/."""
    named = split_in_name(path.stem)
    return bool(named) and any(f.name == named[1] for f in part.images)


# -------------------------------------------------------------------------------------------------------- reading
def read(part: Part, check: Check, problems: Problems) -> Index:
    """One JSON as an Index; categories in the order of their ids.

    Raises:
        DataError: broken JSON, a missing key, two equal class names, segmentations without boxes, nothing usable.
    """
    source = str(part.boxes)
    content = _load(Path(source))
    columns = Columns(form="corner and sides")
    rows = _images(content["images"], part, columns, problems)
    annotations = [a for a in content["annotations"] if isinstance(a, dict)]
    strange = len(content["annotations"]) - len(annotations)
    count(problems, "annotation that is not an object, left out", range(strange), lambda _: source)
    used = [_key(a.get("category_id")) for a in annotations]
    columns.class_names, columns.category_ids = _classes(content["categories"], set(used), source)
    label_of = {_key(k): i for i, k in enumerate(columns.category_ids)}
    check_categories(used, label_of, source)
    absent, odd, drawn = _boxes(annotations, columns, source)

    def where(a: int) -> str:
        return f"annotation {annotations[a].get('id', '?')} of image {annotations[a].get('image_id', '?')}"

    columns.where = where
    columns.labels = np.array([label_of.get(c, -1) for c in used], dtype=np.int64)
    columns.image = np.array([rows.get(_key(a.get("image_id")), -1) for a in annotations], dtype=np.int64)
    count(problems, "box of an unknown image, left out", np.flatnonzero(columns.image < 0), where)
    count(problems, "box of an unknown category, left out", np.flatnonzero(columns.labels < 0), where)
    count(problems, "annotation without a bbox, left out", np.flatnonzero(absent), where)
    count(problems, "bbox that is not four numbers, left out", np.flatnonzero(odd), where)
    count(problems, "polygon or mask without a bbox, its box is used", np.flatnonzero(drawn), where)
    columns.image[absent | odd] = -1
    columns.image[_twice(annotations, columns, problems, where)] = -1
    index = to_index(columns, source, check, problems)
    ids = [index.ids_of(i) for i in range(len(index))]
    index.federated = federated.read(content["images"], content["categories"], ids, label_of, _key)
    return index


def class_names(part: Part) -> tuple[str, ...]:
    """The names, without parsing images and annotations, which takes ten seconds for COCO.

    Raises:
        DataError: see ``read``, as far as the categories show.
    """
    source = str(part.boxes)
    try:
        text = read_text(source, ANNOTATIONS)
    except Unreadable:
        text = ""
    categories = None
    for match in re.finditer(r'"categories"\s*:\s*(?=\[)', text):
        try:
            categories = json.JSONDecoder().raw_decode(text, match.end())[0]
        except (ValueError, RecursionError):
            break
        if all(isinstance(c, dict) and "id" in c for c in categories):
            break
        categories = None
    if categories is None:
        content = _load(Path(source))
        categories = content["categories"]
        used = {_key(a.get("category_id")) for a in content["annotations"] if isinstance(a, dict)}
    else:  # the boxes are searched only for a suspected dummy category
        suspects = {_key(c.get("id")) for c in _dummies(categories)}
        used = {k for k in suspects if re.search(rf'"category_id"\s*:\s*"?{re.escape(str(k))}\b', text)}
    return _classes(categories, used, source)[0]


def _load(path: Path) -> dict[str, Any]:
    try:
        raw = read_bytes(path, ANNOTATIONS)
        check_keys(raw, str(path))
        with uncollected():
            try:
                content = json.loads(_POLYGONS.sub(b'"segmentation":[]', raw))
                if _without_bbox(_listed(content, "annotations")):
                    content = json.loads(raw)  # the polygons are needed after all
            except json.JSONDecodeError:
                content = json.loads(raw)  # for the true line and column
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read as JSON: it is not UTF-8; {ADVICE}.") from error
    except (OSError, ValueError, RecursionError) as error:  # numbers of thousands of digits, deeply nested lists
        raise DataError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        kind, hint = ("a list", advice_on_list(content)) if isinstance(content, list) else (type(content).__name__, "")
        raise DataError(f"{path} should hold an object with images, annotations, categories, but holds {kind}.{hint}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            state = "is not a list" if key in content else "is missing"
            has = ", ".join(content) or "nothing"
            raise DataError(f"{path} is not COCO: its key '{key}' {state}; it has {has[:200]}.{advice(path)}")
    return content


def _listed(content: Any, key: str) -> list[Any]:
    """The list under a key, or an empty one."""
    found = content.get(key) if isinstance(content, dict) else None
    return found if isinstance(found, list) else []


def _key(value: Any) -> _Key:
    """An id that is equal for all spellings: 7, 7.0, "7", "007"."""
    if type(value) is int:
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value if math.isfinite(value) else None
    if isinstance(value, str):
        return int(value) if value.isdecimal() and len(value) < 19 else value
    return None


def _images(images: list[Any], part: Part, columns: Columns, problems: Problems) -> dict[_Key, int]:
    """Fills the image columns; returns the row of each id."""
    rows: dict[_Key, int] = {}
    names: list[str] = []
    unclear: set[int] = set()
    for image in images:
        image = image if isinstance(image, dict) else {}
        key, name = _key(image.get("id")), image.get("file_name") or federated.of_address(image.get("coco_url"))
        if key is None or not isinstance(name, str) or not name:
            problems.add("image without id or file_name, left out", f"{image.get('id', '?')}: {name or '?'}")
            continue
        if key in rows:
            if name != names[rows[key]]:  # a box of this id may belong to either
                problems.add(SAME_ID, f"{key} ({names[rows[key]]} and {name})")
                unclear.add(rows[key])
            continue
        rows[key] = len(names)
        names.append(name)
        columns.own_ids.append(image["id"])
        columns.sizes.append(size_of(image.get("height"), image.get("width")))
    columns.files = ["" if i in unclear else f for i, f in enumerate(Files().resolve(part.images, names))]
    for i, (name, path) in enumerate(zip(names, columns.files)):
        if not path and i not in unclear:
            problems.add("missing image file, left out", name)
    numbers = [k for k in rows if isinstance(k, int) and abs(k) < 2**63]
    columns.ids = numbers if len(numbers) == len(rows) else list(range(1, len(rows) + 1))
    return rows


def _dummies(categories: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Categories that are the supercategory of another one: Roboflow exports one such dummy, with id 0 and no box.

    A category that is its own supercategory is not a dummy; one that has the same name as its subcategory can be.
    """
    parents: dict[Any, int] = {}
    for c in categories:
        parent = c.get("supercategory")
        if isinstance(parent, str):
            parents[parent] = parents.get(parent, 0) + 1
    return [
        c
        for c in categories
        if isinstance(c.get("name"), str) and c.get("supercategory") != c["name"] and parents.get(c["name"])
    ]


def _classes(categories: list[Any], used: set[_Key], source: str) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Names and ids as written, in the order of the ids."""
    bad = [c for c in categories if not isinstance(c, dict) or _key(c.get("id")) is None]
    if bad:
        raise DataError(f"{source}: a category is not an object with id and name: {json.dumps(bad[0])[:80]}.")
    empty = [c for c in _dummies(categories) if _key(c["id"]) not in used]
    kept = [c for c in categories if not any(c is e for e in empty)]
    kept.sort(key=lambda c: (isinstance(_key(c["id"]), str), _key(c["id"])))  # numbers first, then text
    ids = [_key(c["id"]) for c in kept]
    names = unique_names([c.get("name") for c in kept], ids, source)
    twice = [i for i, j in itertools.pairwise(ids) if i == j]
    if twice:
        raise DataError(f"{source}: two classes have the category id {twice[0]}; each needs its own.")
    return names, tuple(c["id"] for c in kept)


def _boxes(
    annotations: list[dict[str, Any]], columns: Columns, source: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fills the box columns except image and label, one row per annotation; NaN if there is no box.

    Returns three [A] bool: no bbox, a bbox that is not four numbers, and a box from the polygon or mask.
    """
    raw = [a.get("bbox") for a in annotations]
    drawn = np.zeros(len(raw), dtype=bool)
    for i in _without_bbox(annotations):
        raw[i] = box_of(annotations[i].get("segmentation"))
        drawn[i] = raw[i] is not None
    odd = np.zeros(len(raw), dtype=bool)
    try:
        boxes = np.array(raw, dtype=np.float64).reshape(len(raw), 4)
    except (TypeError, ValueError, OverflowError):  # some are not boxes: read them one by one
        boxes = np.full((len(raw), 4), np.nan)
        for i, box in enumerate(raw):
            box = box if isinstance(box, list) else []
            values = [number(v) for v in box]
            odd[i] = len(values) != 4 or any(v != v and not isinstance(w, float) for v, w in zip(values, box))
            if not odd[i]:
                boxes[i] = values
    absent = np.array([not b for b in raw], dtype=bool)
    if len(raw) and absent.all():
        shapes = any("segmentation" in a or "keypoints" in a for a in annotations)
        has = "segmentations or keypoints" if shapes else "annotations"
        raise DataError(f"{source} has {has} but no 'bbox' in any of its {len(raw)} annotations; ciod needs boxes.")
    boxes[:, 2:] += boxes[:, :2]
    columns.boxes = boxes
    columns.area = _numbers([a.get("area") for a in annotations])
    columns.crowd = _numbers([a.get("iscrowd", 0) for a in annotations]) == 1
    columns.difficult = _numbers([a.get("difficult", 0) for a in annotations]) == 1
    return absent, odd & ~absent, drawn


def _without_bbox(annotations: list[Any]) -> list[int]:
    """Rows with a segmentation and no bbox, or one of four zeros."""
    return [
        i
        for i, a in enumerate(annotations)
        if isinstance(a, dict) and "segmentation" in a and (not (b := a.get("bbox")) or b == [0, 0, 0, 0])
    ]


def _numbers(values: list[Any]) -> np.ndarray:
    """[A] float64, NaN for everything that is not a number."""
    try:
        return np.array(values, dtype=np.float64).reshape(len(values))
    except (TypeError, ValueError, OverflowError):
        return np.array([number(v) for v in values], dtype=np.float64)


def _twice(
    annotations: list[dict[str, Any]],
    columns: Columns,
    problems: Problems,
    where: Callable[[int], str],
) -> list[int]:
    """Rows to leave out: repeated boxes with the same id."""
    out: list[int] = []
    row_of_id: dict[_Key, int] = {}
    keys = [_key(annotation.get("id")) for annotation in annotations]
    for a, key in enumerate(keys) if len(set(keys)) < len(keys) else ():
        b = row_of_id.setdefault(key, a)
        if b == a or key is None:
            continue
        same = columns.image[b] == columns.image[a] and np.array_equal(columns.boxes[b], columns.boxes[a])
        kind = "the same box is left out" if same else "both boxes are kept"
        count(problems, f"annotation id given twice, {kind}", [a], where)
        if same:
            out.append(a)
    return out
