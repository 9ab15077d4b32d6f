"""Where the files of a data set lie: the split names of all formats brought to train, val and test."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ciod.core.errors import DataError

_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "minival"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    "trainval": "trainval",
}
_ORDER = ("train", "val", "trainval", "test")


@dataclass(frozen=True)
class Part:
    """One source of a split; a split of several VOC years or several YOLO folders has several."""

    images: tuple[Path, ...]  # folders that hold the pictures, in the order in which to look
    boxes: Path | None = None  # COCO: the JSON; VOC: the folder of XMLs; YOLO: none, labels/ is parallel to images/
    listing: Path | None = None  # a text file that names the pictures; without one all of the folder count


@dataclass(frozen=True)
class Layout:
    """What a data set was recognised as.

    ``splits`` has the names train, val, trainval, test, as far as they exist, in this order.
    """

    kind: Literal["coco", "voc", "yolo"]
    root: Path
    splits: dict[str, tuple[Part, ...]]
    names_file: Path | None = None  # YOLO: data.yaml or classes.txt
    single: bool = False  # a single annotation file was pointed at: it answers to "train" whatever its name
    absent: dict[str, str] = field(default_factory=dict)  # splits that data.yaml promises and that are not there

    def __post_init__(self) -> None:
        ordered = {s: self.splits[s] for s in _ORDER if s in self.splits}
        object.__setattr__(self, "splits", {**ordered, **self.splits})

    def find(self, split: str) -> str:
        """The name under which this layout has ``split``: valid and val2017 are val; test stands in for an absent
        val, trainval for an absent train.

        Raises:
            DataError: there is none; names those available.
        """
        wanted = split_of_name(split) or split
        stand_ins = {"val": ["test"], "train": ["trainval", *(self.splits if self.single else [])]}
        for name in [wanted, *stand_ins.get(wanted, [])]:
            if name in self.splits:
                return name
        text = f"The data set {self.root} has no split '{split}'; available: {', '.join(self.splits)}."
        if wanted in self.absent:
            text += f" ({self.absent[wanted]})"
        raise DataError(text)


def split_of_name(name: str) -> str | None:
    """The split a whole name stands for: valid → val, train2017 → train, anything else None."""
    return _WORDS.get(re.sub(r"\d+$", "", name.lower()))


def split_in_name(name: str) -> tuple[str, str] | None:
    """The split mentioned in a file name and the word itself: instances_val2017 → ("val", "val2017").

    None when there is no such word, or words of two splits.
    """
    words = [w for w in re.split(r"[^A-Za-z0-9]+", name) if split_of_name(w)]
    found = {split_of_name(w) for w in words}
    return (found.pop() or "", words[0]) if len(found) == 1 else None


def subfolders(folder: Path) -> list[Path]:
    """The folders directly inside, by name; none when ``folder`` is none."""
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []


def child(folder: Path, *names: str) -> Path | None:
    """The first folder directly inside with one of the names, whatever their case."""
    inside = {p.name.lower(): p for p in subfolders(folder)}
    return next((inside[n.lower()] for n in names if n.lower() in inside), None)


class Files:
    """Which files exist, from one listing a folder: asking file by file is slow on a network disk."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, None]] = {}

    def names(self, folder: str | Path) -> dict[str, None]:
        """Names in the folder, sorted, with quick membership; empty if it is no folder.

        Hidden ones are skipped: macOS leaves ._a.jpg, which is no picture, beside a.jpg.
        """
        key = folder if isinstance(folder, str) else str(folder)
        if key not in self._names:
            try:
                shown = (n for n in os.listdir(key) if not n.startswith("."))  # noqa: PTH208 (names, not Paths)
                self._names[key] = dict.fromkeys(sorted(shown))
            except (OSError, ValueError):  # a name that no disk could have: a null byte, half a character
                self._names[key] = {}
        return self._names[key]

    def has(self, path: str) -> bool:
        folder, name = os.path.split(path)
        return name in self.names(folder)

    def first(self, folders: Iterable[str | Path], name: str) -> str | None:
        """The first ``folder/name`` that exists; ``name`` may have folders itself, of which the last part is tried
        alone too, since annotations often carry folders of another machine."""
        folders = [str(f) for f in folders]
        if "/" not in name and "\\" not in name:  # nearly all of 118,000: two look-ups each
            return next((f"{f}/{name}" for f in folders if name in self.names(f)), None)
        for tail in dict.fromkeys((name, name.replace("\\", "/"), re.split(r"[\\/]", name)[-1])):
            for folder in folders if tail else []:
                path = os.path.join(folder, tail)  # noqa: PTH118 (names, not Paths)
                if self.has(path):
                    return os.path.normpath(path)
        return None
