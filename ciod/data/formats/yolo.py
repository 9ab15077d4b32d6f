"""YOLO: data.yaml (or classes.txt), pictures in images/, one text file a picture in labels/."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ciod.core import yaml_text
from ciod.core.errors import DataError
from ciod.data.formats.index_builder import Check, Columns, number, numbered, to_index, unique_names
from ciod.data.formats.layout import Files, Layout, Part, child, split_of_name, subfolders
from ciod.data.images import SUFFIXES
from ciod.data.index import Index, Problems

LOOKED_FOR = "YOLO: data.yaml, or images/ with labels/ and classes.txt"
_NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt")


# ---------------------------------------------------------------------------------------------------- recognising


def find_yaml(path: Path) -> Layout | None:
    """A data.yaml that was pointed at, or that of a folder.

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
            absent[split] = f"{path.name} says {key}: {', '.join(missing)}, which is not there"
        else:
            splits[split] = tuple(_part(place) for place in found.values() if place)
    if not splits:
        raise DataError(f"{path} names no folder that exists: {'; '.join(absent.values()) or 'it has no key train'}.")
    return Layout("yolo", path.parent, splits, names_file=path, absent=absent)


def find_plain(root: Path) -> Layout | None:
    """images/ + labels/ + classes.txt without a YAML, with or without folders of splits inside or around."""
    names = next((root / n for n in _NAME_FILES if (root / n).is_file()), None)
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
    return Layout("yolo", root, splits, names_file=names) if splits else None


def _is_data(path: Path) -> bool:
    try:
        content = _yaml(path)
    except DataError:
        return False
    return "names" in content and any(split_of_name(str(k)) for k in content)


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml_text.parse(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml_text.NotYAML) as error:
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no keys; a data.yaml of YOLO has names, train and val.")
    return content


def _resolve(value: str, file: Path, base: Any) -> Path | None:
    """The folder or list that ``value`` means. Roboflow writes ../train/images for what lies beside the YAML."""
    value = value.replace("\\", "/")
    bases = [file.parent / str(base), file.parent] if base else [file.parent]
    for folder in bases:
        for text in (value, re.sub(r"^(\.\./)+", "", value)):
            place = Path(os.path.normpath(folder / text))
            try:
                if place.exists():
                    return place
            except (OSError, ValueError):  # longer than a path can be, or with a NUL
                continue
    return None


def _part(place: Path) -> Part:
    return Part(images=(place,)) if place.is_dir() else Part(images=(place.parent,), listing=place)


# -------------------------------------------------------------------------------------------------------- reading


def read(parts: tuple[Part, ...], layout: Layout, source: str, check: Check, problems: Problems) -> Index:
    """The pictures of all parts as an Index; classes by number. Sizes come from the headers of the pictures.

    A picture without a box file is one without boxes: that is how YOLO writes background.

    Raises:
        DataError: no names, none of the pictures has a box file, or nothing usable.
    """
    numbers, names = _classes(layout)
    columns, files = Columns(class_names=names, relative=True), Files()
    rows = _Rows(columns, {n: i for i, n in enumerate(numbers)}, problems, _has_keypoints(layout))
    seen: set[str] = set()
    tried = ""
    labelled = 0
    for part in parts:
        used: set[str] = set()
        for path in _pictures(part, layout, files):
            if path in seen:
                problems.add("picture listed twice, counted once", path)
                continue
            seen.add(path)
            columns.files.append(path)
            columns.sizes.append((0, 0))
            options = _box_files(path)
            tried = tried or options[0]
            box_file = next((p for p in options if files.has(p)), None)
            if box_file:
                used.add(box_file)
                rows.add_file(box_file)
        labelled += len(used)
        if part.listing is None:
            _without_picture(used, files, problems)
    if columns.files and not labelled:
        raise DataError(
            f"{source}: none of the {len(columns.files)} pictures has a box file; looked for {tried} first."
        )
    columns.ids = numbered([Path(f).stem for f in columns.files])
    return to_index(columns, source, check, problems)


def class_names(layout: Layout) -> tuple[str, ...]:
    """By number.

    Raises:
        DataError: there are none, or two of one name.
    """
    return _classes(layout)[1]


def _classes(layout: Layout) -> tuple[list[int], tuple[str, ...]]:
    file = layout.names_file or layout.root / "classes.txt"
    if file.suffix.lower() in (".yaml", ".yml"):
        names = _yaml(file).get("names")
        beside = next((file.parent / n for n in _NAME_FILES if (file.parent / n).is_file()), None)
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


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}.") from error
    return lines


def _has_keypoints(layout: Layout) -> bool:
    file = layout.names_file
    return bool(file and file.suffix in (".yaml", ".yml") and "kpt_shape" in _yaml(file))


def _pictures(part: Part, layout: Layout, files: Files) -> Iterator[str]:
    if part.listing is None:
        for folder, inside, _ in os.walk(part.images[0]):
            inside[:] = sorted(name for name in inside if not name.startswith("."))
            yield from (f"{folder}/{n}" for n in files.names(folder) if Path(n).suffix.lower() in SUFFIXES)
        return
    folders = [part.images[0], layout.root]
    for line in _lines(part.listing):
        if name := line.strip():
            yield files.first(folders, name) or os.path.normpath(part.images[0] / name)


def _box_files(picture: str) -> list[str]:
    """Where the boxes of a picture may be: labels/ parallel to the innermost images/, labels/ beside its folder,
    or beside the picture itself."""
    folder, name = os.path.split(picture)
    name = f"{os.path.splitext(name)[0]}.txt"  # noqa: PTH122 (stays text: there may be 118,000)
    steps = folder.replace("\\", "/").split("/")
    at = [i for i, step in enumerate(steps) if step.lower() == "images"]
    options = ["/".join([*steps[: at[-1]], "labels", *steps[at[-1] + 1 :]])] if at else []
    return [f"{f}/{name}" for f in (*options, f"{folder}/labels", folder)]


def _without_picture(used: set[str], files: Files, problems: Problems) -> None:
    for folder in sorted({os.path.split(p)[0] for p in used}):
        for name in files.names(folder):
            known = f"{folder}/{name}" in used or split_of_name(Path(name).stem) or name == "classes.txt"
            if name.endswith(".txt") and not known and not name.lower().startswith("readme"):
                problems.add("box file without its picture, left out", f"{folder}/{name}")


class _Rows:
    """Lines of box files into columns: ``class cx cy w h`` in fractions of the picture."""

    def __init__(self, columns: Columns, label_of: dict[int, int], problems: Problems, keypoints: bool):
        self.columns, self.label_of, self.problems, self.keypoints = columns, label_of, problems, keypoints

    def add_file(self, path: str) -> None:
        """The boxes of the picture added to the columns last."""
        try:
            text = Path(path).read_text(encoding="utf-8-sig", errors="replace")
        except OSError as error:
            self.problems.add("unreadable box file, its picture counts as without boxes", f"{path} ({error})")
            return
        for n, line in enumerate(text.splitlines(), 1):
            if words := line.split():
                wrong = self._add(words)
                if wrong:
                    self.problems.add(wrong, f"{os.path.split(path)[1]} line {n}")

    def _add(self, words: list[str]) -> str:
        """Adds a box; returns what is to be counted about it, or nothing."""
        values = [number(w) for w in words]
        remark = ""
        if any(v != v and w.lower().lstrip("+-") != "nan" for v, w in zip(values, words)):
            return "line with something that is not a number, left out"
        if values[0] not in self.label_of:  # 3.0 is 3 here; 3.5 and NaN are none
            return "box of an unknown class number, left out"
        if len(values) == 5 or (self.keypoints and len(values) > 5):
            cx, cy, w, h = values[1:5]
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
            return "box in pixels where fractions of the picture are wanted, left out"
        self.columns.add_box((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), self.label_of[int(values[0])])
        return remark
