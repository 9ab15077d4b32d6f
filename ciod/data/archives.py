"""Downloaded archives: unpacked only if every member is a plain file below the expected folder."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from ciod.core.errors import DataError
from ciod.core.plural import counted

CHUNK = 1 << 20  # bytes read at a time
_SWELL, _SLACK = 8, 1 << 20  # unpacked bytes an archive may have per packed byte; COCO's annotations have about 3
_MEMBERS = 1_000_000
Say = Callable[[str], None]


def human_bytes(n: float) -> str:
    """A number of bytes in the largest unit that fits: ``815 MB``."""
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"


def check_room(folder: Path, needed: int, name: str) -> None:
    """Raises DataError: the disk of ``folder`` has fewer than ``needed`` bytes left."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(f"{name} needs {human_bytes(needed)} more in {folder}, but only {human_bytes(free)} are free.")


@dataclass(frozen=True)
class Member:
    """One entry of an archive."""

    name: str
    size: int
    kind: str  # "file", "folder", or what it is instead, which is refused


class _Reader(Protocol):
    def members(self) -> Iterator[Member]: ...
    def copy(self, take: Callable[[str], IO[bytes] | None]) -> None: ...


class _Zip:
    def __init__(self, file: zipfile.ZipFile):
        self.file = file

    def members(self) -> Iterator[Member]:
        for info in self.file.infolist():
            mode = info.external_attr >> 28  # the type of file, where the archive was made on Unix
            kind = "folder" if info.is_dir() else "file" if mode in (0, 8) else "link or device"
            yield Member(info.orig_filename, info.file_size, "encrypted file" if info.flag_bits & 1 else kind)

    def copy(self, take: Callable[[str], IO[bytes] | None]) -> None:
        for info in self.file.infolist():
            target = None if info.is_dir() else take(info.orig_filename)
            if target:
                with self.file.open(info) as source, target:
                    shutil.copyfileobj(source, target, CHUNK)


class _Tar:
    def __init__(self, file: tarfile.TarFile):
        self.file = file

    def members(self) -> Iterator[Member]:
        for info in self.file:
            plain = info.isreg() and not info.issparse()
            yield Member(info.name, info.size, "folder" if info.isdir() else "file" if plain else "link or device")

    def copy(self, take: Callable[[str], IO[bytes] | None]) -> None:
        for info in self.file:
            source = self.file.extractfile(info) if info.isreg() else None
            target = take(info.name) if source else None
            if source and target:
                with source, target:
                    shutil.copyfileobj(source, target, CHUNK)


def unpack(archive: Path, out: Path, folder: str, say: Say = print) -> None:
    """Unpacks an archive whose members are all below ``folder`` into a temporary folder, then moves them to ``out``.

    Raises:
        DataError: it is not a zip or tar file, is damaged, has links, devices or paths outside, or is absurdly large.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                _unpack(_Zip(file), archive, out, folder, say)
        else:
            with tarfile.open(archive, "r:") as file:  # plain only: neither archive of VOC is compressed
                _unpack(_Tar(file), archive, out, folder, say)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{archive} is not a readable zip or tar: {error}. Is it complete? Remove it and download it again."
        ) from error


def _unpack(reader: _Reader, archive: Path, out: Path, folder: str, say: Say) -> None:
    files, size = _checked(reader, archive, folder)
    check_room(out, size, f"{archive.name}, unpacked,")
    say(f"{archive.name}: unpacking {counted(files, 'file')}, {human_bytes(size)}")
    with tempfile.TemporaryDirectory(prefix=f".{archive.name}-", dir=out) as beside:
        made: list[PurePosixPath] = []
        known: set[Path] = set()

        def take(name: str) -> IO[bytes]:
            path = PurePosixPath(name)
            target = Path(beside, *path.parts)
            if target.parent not in known:
                target.parent.mkdir(parents=True, exist_ok=True)
                known.add(target.parent)
            made.append(path)
            return target.open("wb")

        reader.copy(take)
        known.clear()
        for path in dict.fromkeys(made):
            target = Path(out, *path.parts)
            if target.parent not in known:
                target.parent.mkdir(parents=True, exist_ok=True)
                known.add(target.parent)
            Path(beside, *path.parts).replace(target)


def _checked(reader: _Reader, archive: Path, folder: str) -> tuple[int, int]:
    """Number of files and their bytes; raises DataError before a byte is written."""
    files, size, limit = 0, 0, _SWELL * archive.stat().st_size + _SLACK
    for n, m in enumerate(reader.members()):
        path = PurePosixPath(m.name)
        if m.kind not in ("file", "folder"):
            raise DataError(
                f"{archive} is refused: it has a {m.kind}, {m.name!r}, which could lead to a file elsewhere."
            )
        if path.is_absolute() or ".." in path.parts or "\\" in m.name or ":" in m.name or "\0" in m.name:
            raise DataError(f"{archive} is refused: {m.name!r} leads out of the folder.")
        inside = path.parts[:1] == (folder,) and (m.kind == "folder" or len(path.parts) > 1)
        if not inside and path.parts:
            raise DataError(f"{archive} is refused: {m.name!r} is not in {folder}/, where everything should be.")
        files, size = files + (m.kind == "file"), size + m.size
        if size > limit or n >= _MEMBERS:
            raise DataError(f"{archive} is refused: it would unpack to more than {human_bytes(min(size, limit))}.")
    if not files:
        raise DataError(f"{archive} has no files, so it is not the archive of a data set; remove it and try again.")
    return files, size
