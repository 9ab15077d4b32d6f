"""ciod data coco|voc out=DIR: the official archives, fetched, checked and unpacked into the layout ciod reads.

A download that breaks off goes on where it stopped. An archive is unpacked only when its checksum is right and all its
members are plain files below the folder it should hold. What was put into ``out`` by hand is taken instead of fetched.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shlex
import shutil
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from ciod.core.errors import ConfigError, DataError, did_you_mean
from ciod.core.files import explained
from ciod.core.run_log import write_json

RECORD = "ciod-data.json"  # archives that are unpacked: nothing is fetched twice
_CHUNK = 1 << 20
_PATIENCE = 60  # seconds without a byte
_TRIES, _WAIT = 5, 2.0  # attempts in a row without progress, and seconds between them
_SWELL, _SLACK = 8, 1 << 20  # unpacked bytes an archive may have per packed byte; COCO's annotations have about 3
_MEMBERS = 1_000_000
Say = Callable[[str], None]


@dataclass(frozen=True)
class Archive:
    """One file to fetch."""

    url: str
    folder: str  # what it unpacks to; anything else in it is refused
    md5: str
    size: int | None = None  # bytes, where known

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Source:
    """A data set as its authors publish it."""

    title: str
    variable: str  # the environment variable that scenarios read
    archives: tuple[Archive, ...]
    layout: tuple[str, ...]


_COCO, _VOC = "http://images.cocodataset.org", "https://thor.robots.ox.ac.uk/pascal/VOC/voc2007"
# VOC's sums are torchvision's (torchvision.datasets.voc). COCO publishes none: its sizes and sums are those that many
# independent projects agree on.
SOURCES = {
    "coco": Source(
        "COCO 2017",
        "COCO",
        (
            Archive(
                f"{_COCO}/annotations/annotations_trainval2017.zip",
                "annotations",
                "f4bbac642086de4f52a3fdda2de5fa2c",
                252_907_541,
            ),
            Archive(f"{_COCO}/zips/val2017.zip", "val2017", "442b8da7639aecaf257c1dceb8ba8c80", 815_585_330),
            Archive(f"{_COCO}/zips/train2017.zip", "train2017", "cced6f7f71b7629ddf16f17bbcfab6b2", 19_336_861_798),
        ),
        (
            "annotations/instances_train2017.json, annotations/instances_val2017.json",
            "train2017/*.jpg, val2017/*.jpg",
        ),
    ),
    "voc": Source(
        "Pascal VOC 2007",
        "VOC",
        (
            Archive(f"{_VOC}/VOCtrainval_06-Nov-2007.tar", "VOCdevkit", "c52e279531787c972589f7e41ab4ae64"),
            Archive(f"{_VOC}/VOCtest_06-Nov-2007.tar", "VOCdevkit", "b6e924de25625d8de591ea690078ad9f"),
        ),
        (
            "VOCdevkit/VOC2007/Annotations/*.xml, VOCdevkit/VOC2007/JPEGImages/*.jpg",
            "VOCdevkit/VOC2007/ImageSets/Main/trainval.txt, test.txt",
        ),
    ),
}


def find(name: str) -> Source:
    """Raises ConfigError: there is no data set of that name to fetch."""
    if name not in SOURCES:
        raise ConfigError([f"data: there is no '{name}' to fetch; {did_you_mean(name, SOURCES)}"])
    return SOURCES[name]


def where(source: Source, out: str = "DIR") -> str:
    """Where the files go, and what to fetch."""
    lines = [f"{source.title} below {out}:", *(f"  {line}" for line in source.layout), "unpacked from"]
    for a in source.archives:
        lines.append(f"  {a.url}" + (f" ({_bytes(a.size)})" if a.size else "") + f", MD5 {a.md5}")
    return "\n".join(lines)


def fetch(name: str, out: str | Path, *, mirror: str | None = None, keep: bool = False, say: Say = print) -> Path:
    """Makes ``out`` hold a data set; what is there is kept, and an interrupted call goes on.

    Args:
        name: ``coco`` or ``voc``.
        mirror: address of a folder that has the same archives; the checksums stay.
        keep: leave the archives in ``out`` once they are unpacked.
        say: takes lines about the progress.

    Returns:
        ``out``.

    Raises:
        ConfigError: no such data set, or a mirror that is no web address.
        DataError: no network, no room, a wrong checksum, an archive with something else in it.
        WriteError: ``out`` cannot be written.
    """
    source, out = find(name), Path(out).expanduser()
    if mirror is not None and not mirror.startswith(("http://", "https://")):
        raise ConfigError([f"mirror: '{mirror}' is no web address; it must begin with http:// or https://."])
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
        done = _record(out)
        for archive in source.archives:
            if done.get(archive.name) == archive.md5 and (out / archive.folder).is_dir():
                say(f"{archive.name}: already unpacked")
                continue
            url = archive.url if mirror is None else f"{mirror.rstrip('/')}/{archive.name}"
            file = _get(archive, url, out, say)
            say(f"{archive.name}: checking")
            _verify(archive, file)
            unpack(file, out, archive.folder, say)
            done[archive.name] = archive.md5
            write_json(out / RECORD, done)
            if not keep:
                file.unlink()
    return out


def _record(out: Path) -> dict[str, str]:
    try:
        content = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# ---------------------------------------------------------------------------------------------------------- fetching


def _get(archive: Archive, url: str, out: Path, say: Say) -> Path:
    """The archive, whole, under its name in ``out``; until then its bytes are in ``NAME.part``."""
    whole, part = out / archive.name, out / f"{archive.name}.part"
    if whole.is_file():
        say(f"{archive.name}: found in {out}")
        return whole
    idle = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        problem = _go_on(archive, url, part, say)
        if problem is None:
            break
        now = part.stat().st_size if part.exists() else 0
        idle = 0 if now > before else idle + 1
        if now == 0 or idle >= _TRIES:
            so_far = f"; {_bytes(now)} of it are in {part}" if now else ""
            raise DataError(
                f"{archive.name} could not be fetched from {url} ({problem}){so_far}. Run the same command again to go "
                f"on, or fetch it elsewhere and put it into {out} under its own name."
            )
        say(f"{archive.name}: {problem} at {_bytes(now)}; going on")
        time.sleep(_WAIT * idle)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(whole)
    return whole


def _go_on(archive: Archive, url: str, part: Path, say: Say) -> str | None:
    """Fetches what ``part`` lacks; returns why it is not whole, or None.

    Raises:
        DataError: there is no room, or the file there is another one.
    """
    import urllib.error
    import urllib.request

    have = part.stat().st_size if part.exists() else 0
    if archive.size is not None and have == archive.size:
        return None
    # Without "identity" a server may compress, and then counts of bytes are not those of the file.
    headers = {"User-Agent": "ciod", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_PATIENCE) as answer:
            if have and (answer.status != 206 or not _starts_at(answer.headers.get("Content-Range"), have)):
                say(f"{archive.name}: the server cannot go on in the middle; from the beginning")
                have = 0
            length = answer.headers.get("Content-Length")
            total = archive.size if length is None else have + int(length)
            if archive.size is not None and total != archive.size:
                raise DataError(
                    f"{url} has {total} bytes, and {archive.name} has {archive.size}: it is another file, or a page "
                    "with a message."
                )
            _room(part.parent, (total or 0) - have, archive.name)
            return _copy(answer, part, have, total, archive.name, say)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # more than the file has: these bytes are not its beginning
            part.unlink()
            return _go_on(archive, url, part, say)
        return f"the server answers {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return f"no connection: {error.reason}"
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        return f"the connection broke: {error}"


def _starts_at(content_range: str | None, first: int) -> bool:
    return (content_range or "").replace("bytes ", "").partition("-")[0].strip() == str(first)


def _copy(answer: IO[bytes], part: Path, have: int, total: int | None, name: str, say: Say) -> str | None:
    """Appends ``answer`` to the first ``have`` bytes of ``part``, with a line every fiftieth of the whole."""
    began, first, told = time.monotonic(), have, -1
    with part.open("r+b" if part.exists() else "wb") as file:
        file.truncate(have)
        file.seek(have)
        while chunk := answer.read(_CHUNK):
            file.write(chunk)
            have += len(chunk)
            if total is not None and have > total:
                raise DataError(f"{name}: the server sends more than the {total} bytes it announced.")
            if total and have * 50 // total > told:
                told = have * 50 // total
                speed = (have - first) / max(time.monotonic() - began, 1e-3)
                left = (total - have) / max(speed, 1)
                say(f"{name}: {_bytes(have)} of {_bytes(total)}, {_bytes(speed)}/s, {left / 60:.0f} min left")
    return None if total is None or have == total else "the connection ended early"


def _room(folder: Path, needed: int, name: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(f"{name} needs {_bytes(needed)} more in {folder}, which has {_bytes(free)} of room.")


def _verify(archive: Archive, file: Path) -> None:
    """Raises DataError: the file is not the published one; it is set aside, so that the next call fetches it anew."""
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != archive.md5:
        aside = file.replace(file.with_name(f"{file.name}.wrong"))
        raise DataError(
            f"{file} has the MD5 sum {digest.hexdigest()} and should have {archive.md5}: it was damaged on the way, or "
            f"is another file. It is now {aside.name}; run the same command again to fetch it anew."
        )


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"


# --------------------------------------------------------------------------------------------------------- unpacking


@dataclass(frozen=True)
class Member:
    """One entry of an archive."""

    name: str
    size: int
    kind: str  # "file", "folder", or the word for what is refused


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
                    shutil.copyfileobj(source, target, _CHUNK)


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
                    shutil.copyfileobj(source, target, _CHUNK)


def unpack(archive: Path, out: Path, folder: str, say: Say = print) -> None:
    """Unpacks an archive whose members all lie below ``folder`` into ``out``, beside first and then moved.

    Raises:
        DataError: it is no zip or tar, is damaged, or has links, devices, paths that lead elsewhere, or an absurd size.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                _unpack(_Zip(file), archive, out, folder, say)
        else:
            with tarfile.open(archive, "r:") as file:  # plain only: neither archive of VOC is compressed
                _unpack(_Tar(file), archive, out, folder, say)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise DataError(f"{archive} is no zip or tar that can be read: {error}.") from error


def _unpack(reader: _Reader, archive: Path, out: Path, folder: str, say: Say) -> None:
    files, size = _checked(reader, archive, folder)
    _room(out, size, f"{archive.name}, unpacked,")
    say(f"{archive.name}: unpacking {files} files, {_bytes(size)}")
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
    """How many files there are and their bytes; raises DataError before a byte is written."""
    files, size, limit = 0, 0, _SWELL * archive.stat().st_size + _SLACK
    for n, m in enumerate(reader.members()):
        path = PurePosixPath(m.name)
        if m.kind not in ("file", "folder"):
            raise DataError(f"{archive} is refused: it has a {m.kind}, {m.name!r}.")
        if path.is_absolute() or ".." in path.parts or "\\" in m.name or ":" in m.name or "\0" in m.name:
            raise DataError(f"{archive} is refused: {m.name!r} leads out of the folder.")
        inside = path.parts[:1] == (folder,) and (m.kind == "folder" or len(path.parts) > 1)
        if not inside and path.parts:
            raise DataError(f"{archive} is refused: {m.name!r} is not in {folder}/, where everything should be.")
        files, size = files + (m.kind == "file"), size + m.size
        if size > limit or n >= _MEMBERS:
            raise DataError(f"{archive} is refused: it would unpack to more than {_bytes(min(size, limit))}.")
    if not files:
        raise DataError(f"{archive} has no files.")
    return files, size


def ending(name: str, out: Path) -> str:
    """What to do next."""
    folder = shlex.quote(str(out))
    return (
        f"Done. Scenarios find it with\n  export {find(name).variable}={folder}\nSee what is there:\n"
        f"  ciod list data {folder}"
    )


def run(name: str, out: str | None, *, mirror: str | None, keep: bool, say: Say) -> None:
    """The command: without ``out`` only says where the files go.

    Raises:
        ConfigError, DataError: as ``fetch``.
    """
    source = find(name)
    say(where(source, out or "DIR"))
    if out is None:
        say(f"To fetch it: ciod data {name} out=DIR")
        return
    say(ending(name, fetch(name, out, mirror=mirror, keep=keep, say=say)))
