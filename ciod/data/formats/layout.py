"""Where the files of a data set are: the split names of all formats are mapped to train, val and test."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from ciod.core.errors import DataError
from ciod.core.files import nfc

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

    images: tuple[Path, ...]  # image folders, in search order
    boxes: Path | None = None  # COCO: the JSON; VOC, labelme: the folder of their files; YOLO: none
    listing: Path | None = None  # a text file that lists the images; without one, all images of the folder are used


@dataclass(frozen=True)
class Layout:
    """The detected format and files of a data set.

    ``splits`` has the existing ones of train, val, trainval, test, in this order.
    """

    kind: Literal["coco", "voc", "yolo", "labelme"]
    root: Path
    splits: dict[str, tuple[Part, ...]]
    names_file: Path | None = None  # YOLO: data.yaml or classes.txt
    single: bool = False  # a single annotation file was given: it counts as "train", whatever its name
    absent: dict[str, str] = field(default_factory=dict)  # splits that data.yaml lists but that do not exist

    def __post_init__(self) -> None:
        ordered = {s: self.splits[s] for s in _ORDER if s in self.splits}
        object.__setattr__(self, "splits", {**ordered, **self.splits})

    def find(self, split: str) -> str:
        """The name of ``split`` in this layout: valid and val2017 are val; test replaces a missing val, trainval a
        missing train.

        Raises:
            DataError: there is none; the message lists the available splits.
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
    """The split of a full name: valid → val, train2017 → train, anything else None."""
    return _WORDS.get(re.sub(r"\d+$", "", name.lower()))


def split_in_name(name: str) -> tuple[str, str] | None:
    """The split in a file name, and its word: instances_val2017 → ("val", "val2017").

    None if there is no such word, or words of two splits.
    """
    words = [w for w in re.split(r"[^A-Za-z0-9]+", name) if split_of_name(w)]
    found = {split_of_name(w) for w in words}
    return (found.pop() or "", words[0]) if len(found) == 1 else None


def subfolders(folder: Path) -> list[Path]:
    """The direct subfolders, by name; empty if ``folder`` is not a folder."""
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []


def child(folder: Path, *names: str) -> Path | None:
    """The first direct subfolder with one of the names, in any case."""
    inside = {p.name.lower(): p for p in subfolders(folder)}
    return next((inside[n.lower()] for n in names if n.lower() in inside), None)


class Files:
    """Which files exist, from one listing per folder: single queries are slow on a network disk."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, None]] = {}
        self._alike: dict[str, tuple[dict[str, str], dict[str, str]]] = {}

    def names(self, folder: str | Path) -> dict[str, None]:
        """Names in the folder, sorted, with fast lookup; empty if it is not a folder.

        Hidden files are skipped: macOS writes ._a.jpg, which is not an image, beside a.jpg.
        """
        key = folder if isinstance(folder, str) else str(folder)
        if key not in self._names:
            try:
                shown = (n for n in os.listdir(key) if not n.startswith("."))  # noqa: PTH208 (names, not Paths)
                self._names[key] = dict.fromkeys(sorted(shown))
            except (OSError, ValueError):  # a name that no disk can store: a null byte, half a character
                self._names[key] = {}
        return self._names[key]

    def has(self, path: str) -> bool:
        folder, name = os.path.split(path)
        return name in self.names(folder)

    def like(self, folder: str | Path, name: str) -> str | None:
        """``name`` as spelled in ``folder``: equal, or the only name that differs in the form of accents, else the only
        one that differs in case or percent-encoding."""
        if name in self.names(folder):
            return name
        key = str(folder)
        if key not in self._alike:
            self._alike[key] = only(self.names(folder), nfc), only(self.names(folder), folded)
        accents, looser = self._alike[key]
        return accents.get(nfc(name)) or looser.get(folded(name)) or None

    def find(self, folder: str | Path, steps: Iterable[str]) -> str | None:
        """The path of folders and file below ``folder`` as spelled on the disk; each part is found by ``like``."""
        place = str(folder)
        for step in steps:
            found = self.like(place, step)
            if found is None:
                return None
            place = f"{place}/{found}"
        return place

    def resolve(self, folders: Iterable[str | Path], names: Sequence[str]) -> list[str]:
        """The image of each name in the annotations, as a path in one of ``folders``; "" if there is none.

        An exact match is best. Otherwise a name may differ in case, accents (composed or decomposed) and
        percent-encoding, and may have leading folders of another machine. Ambiguous images are not used: those whose
        own name is in ``names``, those that match two names, and images of the same name in another folder if folders
        matter (``cam1/1.jpg`` exists, so ``1.jpg`` is not ``cam2/1.jpg``).
        """
        places = [str(f) for f in folders]
        found = [next((f"{p}/{n}" for p in places if n in self.names(p)), "") for n in names]
        rest: dict[int, tuple[str, str]] = {}  # row → its path and the number of dropped leading folders
        counted: set[str] = (
            set()
        )  # dropped by a name that was found with remaining folders: no other name may drop more
        for row, name in enumerate(names):
            if found[row] or not name:
                continue
            steps = _steps(name)
            found[row] = self._as_written(places, name)
            path, drop = (found[row], 0) if found[row] else self._loosely(places, steps)
            if path and len(steps) - drop > 1:
                counted.add("/".join(steps[:drop]))
            if path and not found[row]:
                rest[row] = path, "/".join(steps[:drop])
        wanted = {path for path, _ in rest.values()}
        meant: dict[str, set[str]] = {path: set() for path in wanted}
        for row, name in enumerate(names) if rest else ():
            path = rest[row][0] if row in rest else found[row]
            if path in wanted:
                meant[path].add(_plain(name))
        for row, (path, dropped) in rest.items():
            if len(meant[path]) == 1 and not any(_inside(dropped, other) for other in counted):
                found[row] = path
        return found

    def _as_written(self, places: list[str], name: str) -> str:
        for text in dict.fromkeys((name, name.replace("\\", "/"))):
            for place in places:
                path = os.path.normpath(os.path.join(place, text))  # noqa: PTH118 (names, not Paths)
                if "/" in text and self.has(path):
                    return path
        return ""

    def _loosely(self, places: list[str], steps: list[str]) -> tuple[str, int]:
        """The path that keeps the most folders of a name, and the number of dropped leading folders."""
        for drop in range(len(steps)):
            for place in places:
                if path := self.find(place, steps[drop:]):
                    return path, drop
        return "", 0


def _plain(name: str) -> str:
    """``name`` with composed accents and without (even repeated) percent-encoding."""
    for _ in range(3):
        if "%" not in name or (plain := unquote(name)) == name:
            break
        name = plain
    return nfc(name)


def folded(name: str) -> str:
    """``name`` for comparisons that ignore case, accents and percent-encoding."""
    return _plain(name).lower()


def _steps(name: str) -> list[str]:
    """Folders and file of a name in the style of any system or web server."""
    if "://" in name:
        name = re.sub(r"[?#].*", "", name.partition("://")[2])
    if "%2f" in name.lower() or "%5c" in name.lower():
        name = _plain(name)
    return [step for step in name.replace("\\", "/").split("/") if step not in ("", ".", "..")]


def _inside(folders: str, above: str) -> bool:
    return folders != above and (not above or folders.startswith(f"{above}/"))


def only(names: Iterable[str], form: Callable[[str], str]) -> dict[str, str]:
    """Form → the name with this form; "" if there are several."""
    out: dict[str, str] = {}
    for name in names:
        key = form(name)
        out[key] = "" if key in out else name
    return out
