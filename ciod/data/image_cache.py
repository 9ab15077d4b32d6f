"""Decoded images of an Index: read, optionally shrunk, and cached so that each is decoded once."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ciod.core.errors import CiodError, DataError
from ciod.data.images import fit_within, read_within
from ciod.data.index import Index

if TYPE_CHECKING:
    from ciod.data.augment import TrainTransform

Cache = Literal["auto", "off", "disk"]
CACHE_BYTES = 1 << 30  # decoded images are kept in memory if they fit into this


class Pictures:
    """Images of an Index by row.

    Args:
        index: the images.
        cache: ``auto`` keeps them in memory if ``alone`` and all of them fit in ``CACHE_BYTES``; ``disk`` in a file
            that the loader's processes share; ``off`` decodes them each time.
        alone: no other process reads them.
        longest: largest side in pixels; larger images are shrunk when they are read. None: no limit.

    Raises:
        CiodError: ``cache`` is ``disk``, and the temporary folder is too small for them.
    """

    def __init__(self, index: Index, *, cache: Cache = "off", alone: bool = True, longest: int | None = None):
        self.index, self.longest = index, longest
        shapes = index.sizes.reshape(-1, 2)
        if longest is not None:
            shapes = np.array([fit_within(h, w, longest) for h, w in shapes]).reshape(-1, 2)
        self.kept: Memory | Disk | None = None
        if cache == "disk":
            self.kept = Disk(shapes)
        elif cache == "auto" and alone and _bytes(shapes).sum() <= CACHE_BYTES:
            self.kept = Memory()

    def __getitem__(self, i: int) -> np.ndarray:
        """[H, W, 3] uint8. Raises DataError when the file cannot be read."""
        return self.scaled(i)[0]

    def scaled(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """The same, and [2] float32: its pixels per pixel of the file, along x and y."""
        size = (int(self.index.sizes[i, 0]), int(self.index.sizes[i, 1]))
        picture = self.kept.get(i) if self.kept else None
        if picture is None:
            picture, full = read_within(self.index.files[i], size, self.longest, self.index.is_stored(i))
            if full != size:  # annotations that were not compared with the file; cached images have their size
                return picture, _scale(picture, full)
            if self.kept:
                self.kept.put(i, picture)
        return picture, _scale(picture, size)

    def or_next(self, i: int) -> tuple[int, np.ndarray, np.ndarray, list[str]]:
        """Image i with its scale, or the next readable one; and the unreadable files."""
        broken: list[str] = []
        for step in range(len(self.index)):
            j = (i + step) % len(self.index)
            try:
                return j, *self.scaled(j), broken
            except DataError:
                broken.append(str(self.index.files[j]))
        raise CiodError(f"None of the {len(self.index)} images of {self.index.source} can be read.")


def presize_hint(index: Index, transform: TrainTransform, *, presize: bool, cache: Cache) -> str | None:
    """A hint to use ``presize``, if pictures cannot be cached and most of their pixels are not used; or None."""
    if presize or cache == "disk" or _bytes(index.sizes).sum() <= CACHE_BYTES:
        return None
    side, longest = int(np.median(index.sizes.max(1))), transform.longest_side()
    if side < 2 * longest:
        return None
    return (
        f"hint: pictures have {side} pixels along their longer side and are decoded again in each epoch; "
        f"train.presize=true makes them smaller when they are read (to {longest}), which is several times as fast."
    )


class Memory:
    """Pictures in the memory of this process."""

    def __init__(self) -> None:
        self.pictures: dict[int, np.ndarray] = {}

    def get(self, i: int) -> np.ndarray | None:
        return self.pictures.get(i)

    def put(self, i: int, picture: np.ndarray) -> None:
        self.pictures[i] = picture


class Disk:
    """Pictures in a file without a name in the temporary folder; it disappears with its last process, even a killed
    one.

    One byte per picture says whether it is stored, and is written after the pixels. The system keeps the file in memory
    as far as it can. Where processes do not inherit open files, the file keeps its name until the process that made it
    ends.

    Args:
        shapes: [I, 2] heights and widths in pixels.
    """

    def __init__(self, shapes: np.ndarray):
        if not hasattr(os, "pread"):
            raise CiodError("train.picture_cache=disk does not work on this system; leave picture_cache out.")
        self.shapes = shapes
        self.starts = len(shapes) + np.concatenate([[0], np.cumsum(_bytes(shapes))])
        need = int(self.starts[-1])
        try:
            fd, name = tempfile.mkstemp(prefix="ciod-pictures-")
            self.path, self.opened = Path(name), (os.getpid(), fd)
            self.inherited = multiprocessing.get_start_method() == "fork"
            weakref.finalize(self, os.close, fd)
            if self.inherited:
                self.path.unlink()
            else:
                weakref.finalize(self, self.path.unlink, missing_ok=True)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, need)  # now, since the disk may be full later
        except OSError as e:
            raise CiodError(
                f"train.picture_cache=disk needs {need / 1e9:.1f} GB in the temporary folder ({e.strerror or e}); "
                "choose another with the variable TMPDIR, make the pictures smaller with train.presize=true, or leave "
                "picture_cache out."
            ) from e

    def get(self, i: int) -> np.ndarray | None:
        fd = self._fd()
        if os.pread(fd, 1, i) != b"\1":
            return None
        content = os.pread(fd, int(self.starts[i + 1] - self.starts[i]), int(self.starts[i]))
        return np.frombuffer(bytearray(content), np.uint8).reshape(*self.shapes[i], 3)

    def put(self, i: int, picture: np.ndarray) -> None:
        fd, content, done = self._fd(), memoryview(picture.tobytes()), 0
        try:
            while done < len(content):
                done += os.pwrite(fd, content[done:], int(self.starts[i]) + done)
            os.pwrite(fd, b"\1", i)
        except OSError:  # the disk is full, where space could not be reserved: it is decoded again
            return

    def _fd(self) -> int:
        pid, fd = self.opened
        if pid != os.getpid() and not self.inherited:  # a process that was not forked opens the file itself
            fd = os.open(self.path, os.O_RDWR)
        self.opened = os.getpid(), fd
        return fd


def _bytes(shapes: np.ndarray) -> np.ndarray:
    """[I] sizes of the decoded pictures."""
    return shapes.astype(np.int64).prod(1) * 3


def _scale(picture: np.ndarray, full: tuple[int, int]) -> np.ndarray:
    return np.array([picture.shape[1] / full[1], picture.shape[0] / full[0]], np.float32)
