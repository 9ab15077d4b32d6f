"""Matches annotation files with images, for formats with one file per image (VOC, labelme)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from ciod.core.errors import DataError
from ciod.data.folders import below, pictures
from ciod.data.formats.layout import Files, folded, only
from ciod.data.images import Size, read_header
from ciod.data.index import Problems

# A key is the path of a file below its folder, without suffix: the annotation "cam1/7" belongs to the picture "cam1/7".


def annotation_files(folder: Path | None, suffix: str, problems: Problems | None = None) -> dict[str, Path]:
    """Key → file, for all files with ``suffix`` (in any case) in a folder and its subfolders."""
    root, found = str(folder or ""), {}
    for place, names in below(root, None if problems is None else problems.add):
        for name in names:
            if name.lower().endswith(suffix):
                found[_key(root, f"{place}/{name}")] = Path(place, name)
    return found


class Pairs:
    """The images of some folders, matched with annotation files.

    Args:
        folders: the most likely first.
        problems: counts annotation files whose content and file name refer to different images, and skipped files.
    """

    def __init__(self, folders: Sequence[Path], problems: Problems):
        self.folders, self.problems = [str(f) for f in folders], problems
        self.by_key: dict[str, list[str]] = defaultdict(list)
        self.used: set[str] = set()
        seen: set[str] = set()
        for folder in self.folders:
            inside = folder in seen  # it is below one that was walked
            for place, names in pictures(folder, None if inside else problems.add):
                seen.add(place)
                for name in names:
                    path = f"{place}/{name}"
                    self.by_key[_key(folder, path)].append(path)
        self._alike = only(self.by_key, folded)
        self._deeper = only(self.by_key, lambda key: key.rpartition("/")[2])

    def own(self, key: str) -> list[str]:
        """The images of a key; if there are none, those whose key differs only in case, accents or percent-encoding, or
        else is in a deeper folder."""
        for like in (key, self._alike.get(folded(key), ""), self._deeper.get(key, "")):
            if found := self.by_key.get(like):
                return found
        return []

    def choose(self, named: Mapping[str, str], sizes: Mapping[str, Size]) -> dict[str, str]:
        """Key of an annotation file → its image, "" if there is none.

        The name of a file and the image that it names usually agree. If they lead to two images, the stated size
        decides. If it cannot, the named image is used, unless that image has its own annotation file: then the name
        inside the file is outdated.

        Args:
            named: key → the image that the file names; "" if it names none.
            sizes: key → (height, width) that it states; 0 if it states none.
        """
        inside = self._named(named)
        chosen: dict[str, str] = {}
        for key in named:
            own, other = self.own(key), inside[key]
            picture = other if other in own or not own else own[0]
            if other and own and other not in own:
                picture = self._of_two(own[0], other, sizes[key], self._taken(key, other, named, inside))
                if picture == other:
                    what = "annotation file that names another picture than its file name, the named one is used"
                    self.problems.add(what, f"{key}: {os.path.basename(other)}")  # noqa: PTH119
            elif other and not own and self._taken(key, other, named, inside) and not self._same(key, other, inside):
                picture = ""
            chosen[key] = picture
        self.used.update(chosen.values())
        return chosen

    def count_left(self, kind: str) -> None:
        """Counts the images without an annotation file."""
        known: set[str] = set()
        for key, paths in self.by_key.items():
            for path in paths:
                if path not in self.used and path not in known:
                    self.problems.add(kind, key)
                known.add(path)

    def _named(self, named: Mapping[str, str]) -> dict[str, str]:
        """The named images that exist, searched first beside the annotation file."""
        groups: dict[str, list[str]] = defaultdict(list)
        for key in named:
            groups[key.rpartition("/")[0]].append(key)
        files, out = Files(), {}
        for folder, keys in groups.items():
            places = [f"{f}/{folder}" for f in self.folders if folder] + self.folders
            out.update(zip(keys, files.resolve(places, [named[k] for k in keys])))
        return out

    def _taken(self, key: str, picture: str, named: Mapping[str, str], inside: Mapping[str, str]) -> bool:
        """Whether an image has an annotation file of the same name, which names it or nothing that exists."""
        owners = {_key(f, picture) for f in self.folders if picture.startswith(f"{f}/")}
        return any(o != key and o in named and inside[o] in ("", picture) for o in owners)

    def _same(self, key: str, picture: str, inside: Mapping[str, str]) -> bool:
        """Whether the image's own annotation file also names it: then it has two."""
        owners = {_key(f, picture) for f in self.folders if picture.startswith(f"{f}/")}
        return any(o != key and inside.get(o) == picture for o in owners)

    def _of_two(self, own: str, other: str, size: Size, taken: bool) -> str:
        fits = [_has_size(path, size) for path in (own, other)] if all(size) else [False, False]
        if fits[0] != fits[1]:
            return own if fits[0] else other
        return own if taken else other


def _key(folder: str, path: str) -> str:
    return os.path.splitext(path[len(folder) :].lstrip("/"))[0]  # noqa: PTH122 (by the hundred thousand)


def _has_size(path: str, size: Size) -> bool:
    try:
        return size in read_header(path)[:2]
    except DataError:
        return False
