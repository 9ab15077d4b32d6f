"""A pool: images without labels, from which the student learns only through its teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ciod.core.errors import CiodError, DataError
from ciod.core.files import expanded, is_file, is_folder, near_path
from ciod.data import folders
from ciod.data.images import SUFFIXES, header_sizes
from ciod.data.index import Index, Problems, empty_columns


def read(folder: str | Path, classes: tuple[str, ...] = ()) -> Index:
    """Every image below a folder, in order of path, as an Index without boxes; it counts unreadable ones.

    Linked folders are followed; hidden files and folders are skipped.

    Raises:
        CiodError: there is no such folder, it has no image, or none can be read.
    """
    place = expanded(folder)
    if not is_folder(place):
        raise CiodError(f"pool: there is no folder {folder}{near_path(place, folders.has_pictures)}")
    problems = Problems()
    pictures = []
    for inside, names in folders.pictures(place, problems.add):
        for path in (Path(inside, name) for name in names):
            if is_file(path):
                pictures.append(path)
            else:
                problems.add(folders.NO_TARGET, str(path.relative_to(place)))
    if not pictures:
        raise CiodError(f"pool: there is no picture in {folder} (looked for {', '.join(sorted(SUFFIXES))}).")
    files, sizes = [], []
    for path in sorted(pictures):
        try:
            sizes.append(header_sizes(path)[0])
            files.append(path.resolve())
        except DataError:
            problems.add("picture that cannot be read, left out", str(path.relative_to(place)))
    if not files:
        raise CiodError(f"pool: none of the {len(pictures)} pictures in {folder} can be read.")
    return Index(
        classes,
        files,
        np.array(sizes, np.int32),
        np.arange(len(files), dtype=np.int64),
        **empty_columns(),
        source=str(folder),
        problems=problems,
    )
