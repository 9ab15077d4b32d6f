"""Reads COCO, VOC, YOLO and labelme folders into an Index; the format is detected."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ciod.core.errors import DataError
from ciod.core.files import exists, expanded, is_file, is_folder, near_path
from ciod.core.reading import check_regular
from ciod.data import labelme
from ciod.data.formats import coco, voc, yolo
from ciod.data.formats.index_builder import Check
from ciod.data.formats.layout import Layout, Part, subfolders
from ciod.data.formats.other_tools import advice
from ciod.data.index import Index, Problems

_READERS = {"voc": voc, "yolo": yolo, "labelme": labelme}

__all__ = ["Check", "Layout", "Part", "class_names", "merge_names", "open_split", "read", "recognise", "splits"]


def recognise(path: str | Path) -> Layout:
    """What kind of data set ``path`` is, and where its splits are.

    Args:
        path: a folder, or a file: a COCO JSON, or a data.yaml of YOLO.

    Raises:
        DataError: the path does not exist, or has none of the four formats; the message says what was expected.
    """
    path = expanded(path).absolute()
    if not exists(path):
        absent = "" if is_folder(path.parent) else f"; nor does {path.parent}"
        raise DataError(f"The data set {path} does not exist{absent or near_path(path, is_data_set)}")
    if is_file(path):
        suffix = path.suffix.lower()
        layout = coco.find_single(path) if suffix == ".json" and not labelme.is_labelme(path) else None
        if suffix == ".json" and layout is None:
            raise DataError(f"{path} is a labelme file of one picture; give its folder, {path.parent}.")
        if suffix in (".yaml", ".yml"):
            layout = yolo.find_yaml(path)
        if layout is None:
            raise DataError(f"{path} is not a data set: a file must be a COCO .json or a YOLO data.yaml.{advice(path)}")
        return layout
    if not is_folder(path):
        check_regular(path)
    layout = _look(path) or voc.find_below(path)
    if layout is not None:
        return layout
    inside = sorted(p.name + ("/" if p.is_dir() else "") for p in path.iterdir())
    folders = subfolders(path)[:20]
    deeper = [p for p in (*folders, *(inner for f in folders for inner in subfolders(f)[:20])) if is_data_set(p)]
    found = ", ".join(inside[:8]) + (", …" if len(inside) > 8 else "") if inside else "nothing"
    raise DataError(
        f"{path} is not a data set that ciod knows. Looked for {coco.LOOKED_FOR}; {voc.LOOKED_FOR}; {yolo.LOOKED_FOR}; "
        f"{labelme.LOOKED_FOR}. Found: {found}." + (f" Did you mean {deeper[0]}?" if deeper else advice(path))
    )


def splits(path: str | Path) -> list[str]:
    """The available splits of train, val, trainval, test.

    Raises:
        DataError: see ``recognise``.
    """
    return list(recognise(path).splits)


def read(path: str | Path, split: str = "train", check: Check = "headers") -> Index:
    """One split of a data set.

    Images and boxes with problems are left out and counted in ``Index.problems``.

    Args:
        path: see ``recognise``.
        split: train, val or test. valid and val2017 mean val; test replaces a missing val, trainval a missing train.
        check: "headers": open each image and scale the boxes to its size; "pixels": also decode it; "files": only check
            that it exists, and trust the size in the annotations.

    Raises:
        DataError: no such data set or split, annotations that are not in the format, or nothing usable in them.
    """
    return open_split(recognise(path), split, check)


def open_split(layout: Layout, split: str, check: Check = "headers") -> Index:
    """Like ``read``, for the result of ``recognise``. Raises ValueError for another ``check``."""
    if check not in ("files", "headers", "pixels"):
        raise ValueError(f"check must be 'files', 'headers' or 'pixels', not {check!r}")
    name = layout.find(split)
    parts, problems = layout.splits[name], Problems()
    if layout.kind == "coco":
        return coco.read(parts[0], check, problems)
    return _READERS[layout.kind].read(parts, layout, f"{layout.root} ({name})", check, problems)


def class_names(path: str | Path, split: str | None = None) -> tuple[str, ...]:
    """The class names of a split, or of all (train first), without reading images and boxes if possible.

    Raises:
        DataError: see ``read``.
    """
    layout = recognise(path)
    if layout.kind != "coco":
        layout.find(split or next(iter(layout.splits)))
        names = _READERS[layout.kind].class_names(layout)
    else:
        wanted = [layout.find(split)] if split else list(layout.splits)
        names = _merged(coco.class_names(layout.splits[s][0]) for s in wanted)
    if not names:
        raise DataError(f"{layout.root} has no class names.")
    return names


def merge_names(indexes: Iterable[Index]) -> tuple[str, ...]:
    """Every class name once, in order of first appearance. ``Index.relabel`` converts an Index to it."""
    return _merged(index.class_names for index in indexes)


def _merged(lists: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for names in lists for name in names))


def _look(folder: Path) -> Layout | None:
    # labelme's JSONs may be named after anything. Files named after splits are the clearest sign; a single JSON of any
    # name is the weakest (YOLO and VOC folders may hold one).
    finders = (
        labelme.find, coco.find_named, yolo.find_yaml, voc.find, yolo.find_plain, yolo.find_darknet, coco.find_single,
    )  # fmt: skip
    for find in finders:
        if layout := find(folder):
            return layout
    return None


def is_data_set(path: Path) -> bool:
    """Whether it can be read as a data set, as far as names and keys of its files show."""
    try:
        layout = _look(path) if is_folder(path) else recognise(path) if exists(path) else None
    except DataError:
        return False
    if layout is None or layout.kind != "coco":
        return layout is not None
    return all(coco.is_coco(part.boxes) for parts in layout.splits.values() for part in parts if part.boxes)
