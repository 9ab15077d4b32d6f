"""YOLO: data.yaml, classes.txt or darknet's obj.data, images in images/, one text file per image in labels/."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from ciod.core import yaml_text
from ciod.core.errors import DataError
from ciod.core.files import is_file
from ciod.core.reading import LABELS, Unreadable, read_bytes
from ciod.data.folders import below, pictures
from ciod.data.formats.index_builder import Check, Columns, number, numbered, to_index, unique_names
from ciod.data.formats.layout import Files, Layout, Part, child, split_of_name, subfolders
from ciod.data.formats.other_tools import is_box_file
from ciod.data.formats.plausible import check_categories
from ciod.data.images import SUFFIXES
from ciod.data.index import Index, Problems
from ciod.data.text_files import encoding_of, read_text

LOOKED_FOR = "YOLO: data.yaml, obj.data, or images/ with labels/ and classes.txt"
_NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt", "_darknet.labels", "labels.txt")


# ---------------------------------------------------------------------------------------------------- recognising


def find_yaml(path: Path) -> Layout | None:
    """The given data.yaml, or that of a folder.

    Raises:
        DataError: it is not valid YAML, or none of the folders it names exists.
    """
    if path.is_dir():
        found = [path / n for n in ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml") if (path / n).is_file()]
        if not found:
            found = [p for p in sorted((*path.glob("*.yaml"), *path.glob("*.yml"))) if _is_data(p)]
        return find_yaml(found[0]) if len(found) == 1 or (found and found[0].stem in ("data", "dataset")) else None
    content = _yaml(path)
    splits, absent = {}, {}
    for key in content:
        split = split_of_name(str(key))
        values = content[key] if isinstance(content[key], list) else [content[key]]
        values = [str(v) for v in values if v]
        if not split or not values:
            continue
        found = {v: _resolve(v, path, content.get("path")) for v in values}
        missing = [v for v, place in found.items() if place is None]
        if missing:
            absent[split] = f"{path.name} says {key}: {', '.join(missing)}, which does not exist"
        else:
            splits[split] = tuple(_part(place) for place in found.values() if place)
    if not splits:
        raise DataError(
            f"{path} has no usable train or val images: {'; '.join(absent.values()) or 'it has no key train'}."
        )
    return Layout("yolo", path.parent, splits, names_file=path, absent=absent)


def find_plain(root: Path) -> Layout | None:
    """images/ + labels/ + classes.txt without a YAML, with or without folders of splits inside or outside; or pictures
    and box files side by side.

    Raises:
        DataError: folders of splits with other names of classes.
    """
    names = _names_file(root) or _names_of_splits(root)
    if names is None:
        return None
    splits: dict[str, tuple[Part, ...]] = {}
    images = child(root, "images")
    for folder in [*subfolders(root), *(subfolders(images) if images else [])]:
        split = split_of_name(folder.name)
        if split and split not in splits:
            splits[split] = (_part(child(folder, "images") or folder),)
    if not splits and images and child(root, "labels"):
        splits = {"train": (_part(images),)}
    if not splits:
        flat = [f for f in (root, child(root, "data", "obj_train_data", "images")) if f and _beside(f)]
        splits = {"train": (_part(flat[0]),)} if flat else {}
    return Layout("yolo", root, splits, names_file=names) if splits else None


def find_darknet(root: Path) -> Layout | None:
    """obj.data with lists of images, as in darknet and CVAT ("YOLO 1.1"); or only its obj.names."""
    splits: dict[str, tuple[Part, ...]] = {}
    names = next((p for n in ("obj.names", "*.names") for p in sorted(root.glob(n))), None)
    given: dict[str, str] = {}
    for file in sorted(root.glob("*.data")):
        lines = [line.partition("=") for line in read_text(file).splitlines()]
        given |= {key.strip().lower(): value.strip() for key, equals, value in lines if equals}
    if "names" in given:
        named = _resolve(given["names"], root / "obj.data", None)
        names = named if named and named.is_file() else names
    lists = {key: _resolve(value, root / "obj.data", None) for key, value in given.items()}
    lists = lists or {p.stem: p for p in sorted(root.glob("*.txt"))}
    for key, place in lists.items():
        if (split := split_of_name(key)) and place and names:
            splits[split] = (_part(place),)
    return Layout("yolo", root, splits, names_file=names) if splits else None


def _names_file(folder: Path) -> Path | None:
    found = (Files().find(folder, name.split("/")) for name in _NAME_FILES)
    return next((Path(p) for p in found if p and is_file(p)), None)


def _names_of_splits(root: Path) -> Path | None:
    """The file of names inside the folders of splits, as Roboflow writes it for darknet."""
    found = [names for f in subfolders(root) if split_of_name(f.name) and (names := _names_file(f))]
    if len({tuple(_lines(names)) for names in found}) > 1:
        listed = ", ".join(str(n.relative_to(root)) for n in found)
        raise DataError(f"{root}: {listed} name other classes; the numbers of boxes would mean several things.")
    return found[0] if found else None


def _beside(folder: Path) -> bool:
    """Whether a picture of the folder has its box file beside it."""
    names = Files().names(folder)
    stems = {stem.lower() for n in names for stem, suffix in [os.path.splitext(n)] if suffix.lower() in SUFFIXES}  # noqa: PTH122
    texts = [n for n in names if n.lower().endswith(".txt") and n[:-4].lower() in stems]
    return any(is_box_file(folder / n) for n in texts[:20])


def _is_data(path: Path) -> bool:
    try:
        content = _yaml(path)
    except DataError:
        return False
    return "names" in content and any(split_of_name(str(k)) for k in content)


def _yaml(path: Path, *, sourced: bool = False) -> dict[str, Any]:
    try:
        content = (yaml_text.parse_sourced if sourced else yaml_text.parse)(read_text(path))
    except yaml_text.NotYAML as error:
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split()).rstrip('.')}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} has no keys; YOLO's data.yaml has names, train and val.")
    return content


def _resolve(value: str, file: Path, base: Any) -> Path | None:
    """The folder or list that ``value`` refers to. Roboflow writes ../train/images for a folder beside the YAML, CVAT
    writes data/train.txt for a file beside obj.data."""
    value = value.replace("\\", "/")
    steps = [step for step in value.split("/") if step not in ("", ".", "..")]
    bases = [file.parent / str(base), file.parent] if base else [file.parent]
    for folder in bases:
        for text in (value, re.sub(r"^(\.\./)+", "", value), re.sub(r"^(\.\./|\./)*data/", "", value)):
            place = Path(os.path.normpath(folder / text))
            try:
                if place.exists():
                    return place
            except (OSError, ValueError):  # too long for a path, or with a NUL
                continue
    found = next((p for folder in bases if (p := Files().find(folder, steps))), None) if steps else None
    return Path(found) if found else None


def _part(place: Path) -> Part:
    return Part(images=(place,)) if place.is_dir() else Part(images=(place.parent,), listing=place)


# -------------------------------------------------------------------------------------------------------- reading


def read(parts: tuple[Part, ...], layout: Layout, source: str, check: Check, problems: Problems) -> Index:
    """The pictures of all parts as an Index; classes by number. Sizes come from the headers of the pictures.

    An image without a box file has no boxes: YOLO marks background images in this way.

    Raises:
        DataError: no names, no image has a box file, or nothing usable.
    """
    numbers, names = _classes(layout)
    columns, files = Columns(class_names=names, relative=True, category_ids=numbers, form="centre and sides"), Files()
    rows = _Rows(columns, {n: i for i, n in enumerate(numbers)}, problems, _has_keypoints(layout))
    seen: set[str] = set()
    tried = ""
    labelled = 0
    for part in parts:
        listed = []
        for path in _pictures(part, layout, files, problems):
            if path in seen:
                problems.add("picture listed twice, counted once", path)
                continue
            seen.add(path)
            listed.append(path)
        boxes = _box_files(listed, files)
        tried = tried or next((f"{f}/{name}" for p in listed[:1] for f, name in [_options(p, files)[0]]), "")
        for path, box_file in zip(listed, boxes):
            columns.files.append(path)
            columns.sizes.append((0, 0))
            if box_file:
                rows.add_file(box_file)
        used = Counter(filter(None, boxes))
        for box_file, times in used.items():
            if times > 1:
                problems.add("box file of several pictures, its boxes are used for each", box_file)
        labelled += len(used)
        if part.listing is None:
            _without_picture(part.images[0], used.keys(), files, problems)
    if columns.files and not labelled:
        raise DataError(
            f"{source}: none of the {len(columns.files)} pictures has a box file; looked for {tried} first."
        )
    check_categories(rows.used, set(numbers), source)
    columns.refused = rows.lines - len(columns.labels)
    columns.ids = numbered([Path(f).stem for f in columns.files])
    return to_index(columns, source, check, problems)


def class_names(layout: Layout) -> tuple[str, ...]:
    """By number.

    Raises:
        DataError: there are none, or two with the same name.
    """
    return _classes(layout)[1]


def _classes(layout: Layout) -> tuple[list[int], tuple[str, ...]]:
    file = layout.names_file or layout.root / "classes.txt"
    if file.suffix.lower() in (".yaml", ".yml"):
        names = _as_written(_yaml(file, sourced=True).get("names"))
        beside = _names_file(file.parent)
        if names is None and beside:
            file, names = beside, _lines(beside)
    else:
        names = _lines(file)
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise DataError(f"{file} has no class names: its key 'names' must be a list, or numbers with names.")
    if not all(str(k).isdecimal() for k in names):
        raise DataError(f"{file}: the keys of 'names' must be the class numbers; got {next(iter(names))!r}.")
    numbers = sorted(names, key=lambda k: int(k))
    return [int(n) for n in numbers], unique_names([names[n] for n in numbers], numbers, str(file))


def _as_written(names: Any) -> Any:
    """Names of classes as text: ``007`` and ``12:30`` are no numbers here. A name may be absent (``~``)."""
    if isinstance(names, yaml_text.Sourced):
        return names.source if names.value is not None else None
    if isinstance(names, dict):
        return {k: _as_written(v) for k, v in names.items()}
    return [_as_written(v) for v in names] if isinstance(names, list) else names


def _lines(file: Path) -> list[str]:
    return read_text(file).rstrip().splitlines()


def _has_keypoints(layout: Layout) -> bool:
    file = layout.names_file
    return bool(file and file.suffix in (".yaml", ".yml") and "kpt_shape" in _yaml(file))


def _pictures(part: Part, layout: Layout, files: Files, problems: Problems) -> Iterator[str]:
    if part.listing is None:
        for folder, names in pictures(part.images[0], problems.add):
            yield from (f"{folder}/{n}" for n in names)
        return
    lines = [line.strip() for line in _lines(part.listing)]
    names = [line.strip("\"'") if len(line) > 1 and line[0] == line[-1] in "\"'" else line for line in lines if line]
    for name, path in zip(names, files.resolve([part.images[0], layout.root], names)):
        yield path or os.path.normpath(part.images[0] / name)


def _options(picture: str, files: Files) -> list[tuple[str, str]]:
    """Possible folders and name of the box file of an image: labels/ parallel to the innermost images/, labels/ beside
    its folder, or beside the image itself."""
    folder, name = os.path.split(picture)
    name = f"{os.path.splitext(name)[0]}.txt"  # noqa: PTH122 (stays text: there may be 118,000)
    return [
        (f, name) for f in (*_parallel(folder, files), f"{folder}/{files.like(folder, 'labels') or 'labels'}", folder)
    ]


def _parallel(folder: str, files: Files) -> list[str]:
    """labels/… for images/…; nothing if no parent folder is called images."""
    steps = folder.replace("\\", "/").split("/")
    at = [i for i, step in enumerate(steps) if step.lower() == "images"]
    if not at:
        return []
    above = "/".join(steps[: at[-1]])
    return ["/".join([above, files.like(above, "labels") or "labels", *steps[at[-1] + 1 :]])]


def _box_files(pictures: Sequence[str], files: Files) -> list[str]:
    """The box file of each image, "" if there is none. A file whose name differs only in case or accents is used if no
    other image has it."""
    options = [_options(p, files) for p in pictures]
    found = [next((f"{f}/{n}" for f, n in own if n in files.names(f)), "") for own in options]
    taken = set(found)
    loose: dict[str, list[int]] = {}
    for row, own in enumerate(options):
        if not found[row] and (like := next((f"{f}/{k}" for f, n in own if (k := files.like(f, n))), "")):
            loose.setdefault(like, []).append(row)
    for box_file, rows in loose.items():
        if box_file not in taken and len(rows) == 1:
            found[rows[0]] = box_file
    return found


def _without_picture(images: Path, used: Collection[str], files: Files, problems: Problems) -> None:
    """Counts box files in the labels folders that belong to no image."""
    roots = {f for f in (*_parallel(str(images), files), f"{images}/labels") if os.path.isdir(f)}  # noqa: PTH112
    folders = {f for root in roots for f, _ in below(root)} | {os.path.split(p)[0] for p in used}
    for folder in sorted(folders):
        for name in files.names(folder):
            stem, suffix = os.path.splitext(name)  # noqa: PTH122
            known = (
                f"{folder}/{name}" in used
                or split_of_name(stem)
                or stem.lower() in ("classes", "obj", "labels", "images")
            )
            if suffix.lower() == ".txt" and not known and not stem.lower().startswith("readme"):
                problems.add("box file without its picture, left out", f"{folder}/{name}")


class _Rows:
    """Reads lines of box files into columns: ``class cx cy w h`` as fractions of the image."""

    def __init__(self, columns: Columns, label_of: dict[int, int], problems: Problems, keypoints: bool):
        self.columns, self.label_of, self.problems, self.keypoints = columns, label_of, problems, keypoints
        self.used: list[float] = []  # class numbers as written
        self.lines = 0

    def add_file(self, path: str) -> None:
        """Reads the boxes of the image that was added last."""
        try:
            raw = read_bytes(path, LABELS)
            text = raw.decode(encoding_of(raw), errors="replace")
        except Unreadable as error:
            self.problems.add(
                "unreadable box file, its picture counts as one without boxes (repair the file, or remove both)",
                f"{path} ({error})",
            )
            return
        for n, line in enumerate(text.splitlines(), 1):
            if words := line.split():
                self.lines += 1
                wrong = self._add(words)
                if wrong:
                    self.problems.add(wrong, f"{os.path.split(path)[1]} line {n}")

    def _add(self, words: list[str]) -> str:
        """Adds a box; returns its problem, or nothing."""
        values = [number(w) for w in words]
        remark = ""
        if any(v != v and w.lower().lstrip("+-") != "nan" for v, w in zip(values, words)):
            return "line with a value that is not a number, left out"
        self.used.append(values[0])
        if values[0] not in self.label_of:  # 3.0 counts as 3; 3.5 and NaN are invalid
            return "box of an unknown class number, left out"
        if len(values) == 5 or (self.keypoints and len(values) > 5):
            cx, cy, w, h = values[1:5]
        elif _marks(values):
            cx, cy, w, h = values[1:5]
            remark = "box with keypoints, which are ignored"
        elif len(values) == 6:
            cx, cy, w, h = values[1:5]
            remark = "line with a sixth number (a confidence), which is ignored"
        elif len(values) >= 7 and len(values) % 2:
            x0, x1 = min(values[1::2]), max(values[1::2])
            y0, y1 = min(values[2::2]), max(values[2::2])
            cx, cy, w, h = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
            remark = "polygon, its box is used"
        else:
            return "line that is neither box (5 numbers) nor polygon (an odd count), left out"
        if 2 < max(abs(cx), abs(cy), abs(w), abs(h)) < float("inf"):
            return "box in pixels instead of fractions of the picture, left out"
        self.columns.add_box((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), self.label_of[int(values[0])])
        return remark


def _marks(values: Sequence[float]) -> bool:
    """Whether the numbers after a box are keypoints (x, y, visibility 0, 1 or 2) and not a polygon.

    A polygon with such numbers would have a point at a corner of the picture for every three numbers.
    """
    cx, cy, w, h = values[1:5] if len(values) > 7 else (0, 0, 0, 0)
    within = 0 < w <= 1 and 0 < h <= 1 and abs(cx - 0.5) + w / 2 <= 0.51 and abs(cy - 0.5) + h / 2 <= 0.51
    return within and len(values) % 3 == 2 and all(v in (0, 1, 2) for v in values[7::3])
