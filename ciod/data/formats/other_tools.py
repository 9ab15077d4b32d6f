"""Names the tool or format of annotations that ciod does not read, so that a refusal can say what to do."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar", ".bz2", ".xz")
_PICTURES = (".jpg", ".jpeg", ".png")
_HEAD = 4096  # bytes of a file that show what it is
EXPORT = "export it as COCO"


def advice(path: Path) -> str:
    """A sentence with a leading space about a file or folder that is not a data set; empty if nothing is recognised."""
    try:
        if path.is_file():
            return next((f" {text}" for find in _FINDERS if (text := find([path], []))), "")
        inside = [path, *[p for p in _some(path) if p.is_dir()][:20]]  # many tools write a folder per split
        found = ([p for p in _some(f) if p.is_file()] for f in inside)
        pairs = [(files, [p for p in _some(f) if p.is_dir()]) for f, files in zip(inside, found)]
        return next((f" {text}" for files, folders in pairs for find in _FINDERS if (text := find(files, folders))), "")
    except (OSError, ValueError):
        return ""


def is_box_file(path: Path) -> bool:
    """Whether the first line of a text file is a box of YOLO: a class number and fractions of the picture."""
    try:
        words = _head(path).split(b"\n")[0].split()
        numbers = [float(w) for w in words]
    except (OSError, ValueError):
        return False
    return len(numbers) >= 5 and numbers[0] == int(numbers[0]) and all(-0.5 <= n <= 1.5 for n in numbers[1:5])


def _some(folder: Path, most: int = 2000) -> list[Path]:
    """What is in a folder, sorted; of very many things some."""
    return sorted(islice(folder.iterdir(), most))


def advice_on_list(content: list[Any]) -> str:
    """Like ``advice``, for a JSON with a list."""
    first = next((c for c in content[:1] if isinstance(c, dict)), {})
    if not content or "image_id" in first:
        return " It looks like detection results, not annotations."
    if isinstance(first.get("annotations"), list):
        return f" It looks like an export of another tool, such as CreateML or Label Studio; {EXPORT}."
    if "labels" in first and "name" in first:
        return " It looks like labels of BDD100K; convert them to COCO."
    return f" It looks like an export of another tool; {EXPORT}." if first else ""


def _of_ciod(files: list[Path], folders: list[Path]) -> str:
    marks = {"results.json": b'"scenario"', "run.yaml": b"versions"}
    if any(marks[p.name] in _head(p) for p in files if p.name in marks):
        return "It is of a run folder of ciod, not of a data set: the run's run.yaml names its data."
    return ""


def _archive(files: list[Path], folders: list[Path]) -> str:
    found = [p for p in files if p.suffix.lower() in _ARCHIVES]
    return f"{found[0].name} is an archive; unpack it first." if found and not folders else ""


def _archive_beside(files: list[Path], folders: list[Path]) -> str:
    return _archive(files, [])


def _boxes_without_names(files: list[Path], folders: list[Path]) -> str:
    inside = [p for f in folders if f.name.lower() == "labels" for p in _some(f)]
    texts = [p for p in (*files, *inside) if p.suffix.lower() == ".txt"]
    found = next((p for p in texts[:20] if is_box_file(p)), None)
    if found is None:
        return ""
    return (
        f"{found.name} looks like a box file of YOLO; write the names of the classes, one per line, into classes.txt."
    )


def _by_content(files: list[Path], folders: list[Path]) -> str:
    for path in files:
        head = _head(path) if path.suffix.lower() in (".xml", ".json") else b""
        for marks, tool, what in _CONTENT:
            if all(mark in head for mark in marks):
                return f"{path.name} looks like an export of {tool}; {what}."
    if any(p.name == "meta.json" for p in files):
        return f"meta.json looks like a project of Supervisely; {EXPORT}."
    return ""


def _by_ending(files: list[Path], folders: list[Path]) -> str:
    for path in files:
        for endings, what in _ENDINGS.items():
            if path.suffix.lower() in endings:
                return f"{path.name} is {what}, which ciod does not read; {EXPORT}."
    return ""


def _by_folder(files: list[Path], folders: list[Path]) -> str:
    for folder in folders:
        if tool := _FOLDERS.get(folder.name.lower()):
            return f"{folder.name}/ looks like annotations of {tool}, which ciod does not read; convert them to COCO."
    names = {f.name.lower(): f for f in folders}
    if "annotations" in names and any(p.suffix.lower() == ".txt" for p in names["annotations"].iterdir()):
        return "Text files in annotations/, as in VisDrone, are not read; convert them to COCO."
    inside = [list(f.iterdir()) for f in folders]
    if inside and all(c and all(p.suffix.lower() in _PICTURES for p in c) for c in inside):
        return "There are only pictures in folders, as for classification: a detector needs boxes."
    return ""


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


_CONTENT = (
    ((b"<annotations>",), "CVAT ('CVAT for images')", "export it as COCO or Pascal VOC"),
    ((b'"regions"', b'"shape_attributes"'), "VIA", EXPORT),
    ((b'"box2d"',), "BDD100K", "convert it to COCO"),
    ((b'"tags"', b'"videoSettings"'), "VoTT", EXPORT),
    ((b'"tags"', b'"assets"'), "VoTT", EXPORT),
    ((b'"items"', b'"categories"', b'"label"'), "Datumaro", EXPORT),
    ((b'"samples"',), "FiftyOne", EXPORT),
    ((b'"documents"',), "Labelbox", EXPORT),
)
_ENDINGS = {
    (".csv", ".tsv"): "a table",
    (".ndjson", ".jsonl"): "a file of JSON lines, as from Labelbox or Hugging Face",
    (".tfrecord", ".record", ".tfrecords"): "a TFRecord",
    (".parquet", ".arrow"): "a Hugging Face table",
    (".mat",): "a MATLAB file",
}
_FOLDERS = {"labeltxt": "DOTA", "label_2": "KITTI", "gtfine": "Cityscapes", "ann": "Supervisely"}
_FINDERS: tuple[Callable[[list[Path], list[Path]], str], ...] = (
    _of_ciod,
    _archive,
    _by_content,
    _by_ending,
    _by_folder,
    _boxes_without_names,
    _archive_beside,
)
