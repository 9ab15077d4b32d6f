"""ciod data coco|voc out=DIR: downloads the official archives, verifies them and unpacks them into ciod's layout.

An interrupted download resumes where it stopped. An archive is unpacked only if its checksum is right and all its
members are plain files below the expected folder. Archives that the user has put into ``out`` are not downloaded.

This does not use pooch, which verifies and retries, but starts every attempt at the first byte: an archive of 19 GB
that fails near the end would be downloaded again.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ciod.core.errors import ConfigError, DataError, did_you_mean
from ciod.core.files import expanded, explained
from ciod.core.reading import Unreadable, read_object
from ciod.core.run_log import write_json
from ciod.data.archives import CHUNK, Say, check_room, human_bytes, unpack

RECORD = "ciod-data.json"  # list of unpacked archives, so that nothing is downloaded twice
PATIENCE = 60  # seconds without a byte
TRIES, WAIT = 5, 2.0  # attempts in a row without progress, and seconds between them


@dataclass(frozen=True)
class Archive:
    """One file to fetch."""

    url: str
    folder: str  # the folder it unpacks to; other members are refused
    md5: str
    size: int | None = None  # bytes, if known

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Source:
    """A data set as its authors publish it."""

    title: str
    variable: str  # environment variable that scenarios read
    archives: tuple[Archive, ...]
    layout: tuple[str, ...]


_COCO, _VOC = "http://images.cocodataset.org", "https://thor.robots.ox.ac.uk/pascal/VOC/voc2007"
# VOC's sums are torchvision's (torchvision.datasets.voc). COCO publishes none: its sizes and sums are those on which
# several independent projects agree.
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
    """Raises ConfigError: there is no data set of that name to download."""
    if name not in SOURCES:
        raise ConfigError([f"data: there is no '{name}' to fetch; {did_you_mean(name, SOURCES)}"])
    return SOURCES[name]


def where(source: Source, out: str = "DIR") -> str:
    """Where the files go, and what to download."""
    lines = [f"{source.title} below {out}:", *(f"  {line}" for line in source.layout), "unpacked from"]
    for a in source.archives:
        lines.append(f"  {a.url}" + (f" ({human_bytes(a.size)})" if a.size else "") + f", MD5 {a.md5}")
    return "\n".join(lines)


def fetch(name: str, out: str | Path, *, mirror: str | None = None, keep: bool = False, say: Say = print) -> Path:
    """Downloads a data set into ``out``; existing files are kept, and an interrupted call resumes.

    Args:
        name: ``coco`` or ``voc``.
        mirror: address of a folder with the same archives; the checksums stay the same.
        keep: keep the archives in ``out`` after unpacking.
        say: is called with lines about the progress.

    Returns:
        ``out``.

    Raises:
        ConfigError: no such data set, or a mirror that is not a web address.
        DataError: no network, a full disk, a wrong checksum, or an archive with unexpected members.
        WriteError: ``out`` cannot be written.
    """
    source, out = find(name), expanded(out)
    if mirror is not None and not mirror.startswith(("http://", "https://")):
        raise ConfigError([f"mirror: '{mirror}' is not a web address; it must begin with http:// or https://."])
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
        return read_object(out / RECORD)
    except Unreadable:
        return {}


# ---------------------------------------------------------------------------------------------------------- fetching


def _get(archive: Archive, url: str, out: Path, say: Say) -> Path:
    """The complete archive under its name in ``out``; until it is complete, its bytes are in ``NAME.part``."""
    complete, part = out / archive.name, out / f"{archive.name}.part"
    if complete.is_file():
        say(f"{archive.name}: found in {out}")
        return complete
    idle = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        problem = _continue(archive, url, part, say)
        if problem is None:
            break
        now = part.stat().st_size if part.exists() else 0
        idle = 0 if now > before else idle + 1
        if now == 0 or idle >= TRIES:
            so_far = f"; {human_bytes(now)} of it are in {part}" if now else ""
            raise DataError(
                f"{archive.name} could not be fetched from {url} ({problem}){so_far}. Run the same command again to "
                f"resume, or download it elsewhere and put it into {out} under its own name."
            )
        say(f"{archive.name}: {problem} at {human_bytes(now)}; resuming")
        time.sleep(WAIT * idle)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(complete)
    return complete


def _continue(archive: Archive, url: str, part: Path, say: Say) -> str | None:
    """Downloads the missing bytes of ``part``; returns why it is incomplete, or None.

    Raises:
        DataError: no space is left, or the server has another file.
    """
    import urllib.error
    import urllib.request

    have = part.stat().st_size if part.exists() else 0
    if archive.size is not None and have == archive.size:
        return None
    # Without "identity" a server may compress, and then byte counts differ from those of the file.
    headers = {"User-Agent": "ciod", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=PATIENCE) as answer:
            if have and (answer.status != 206 or not _starts_at(answer.headers.get("Content-Range"), have)):
                say(f"{archive.name}: the server cannot resume; starting again")
                have = 0
            length = answer.headers.get("Content-Length")
            total = archive.size if length is None else have + int(length)
            if archive.size is not None and total != archive.size:
                raise DataError(
                    f"{url} has {total} bytes, but {archive.name} has {archive.size}: it is another file or an error "
                    "page."
                )
            check_room(part.parent, (total or 0) - have, archive.name)
            return _copy(answer, part, have, total, archive.name, say)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # more than the size of the file: these bytes belong to another one
            part.unlink()
            return _continue(archive, url, part, say)
        return f"the server answers {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return f"no connection: {error.reason}"
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        return f"the connection broke: {error}"


def _starts_at(content_range: str | None, first: int) -> bool:
    return (content_range or "").replace("bytes ", "").partition("-")[0].strip() == str(first)


def _copy(answer: IO[bytes], part: Path, have: int, total: int | None, name: str, say: Say) -> str | None:
    """Appends ``answer`` to the first ``have`` bytes of ``part``, with a progress line per 2 % of the file."""
    began, first, printed = time.monotonic(), have, -1
    with part.open("r+b" if part.exists() else "wb") as file:
        file.truncate(have)
        file.seek(have)
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            have += len(chunk)
            if total is not None and have > total:
                raise DataError(f"{name}: the server sends more than the {total} bytes it announced.")
            if total and have * 50 // total > printed:
                printed = have * 50 // total
                speed = (have - first) / max(time.monotonic() - began, 1e-3)
                left = (total - have) / max(speed, 1)
                done = f"{human_bytes(have)} of {human_bytes(total)}, {human_bytes(speed)}/s"
                say(f"{name}: {done}, {left / 60:.0f} min left")
    return None if total is None or have == total else "the connection ended early"


def _verify(archive: Archive, file: Path) -> None:
    """Raises DataError: the file is not the published one. It is set aside, so the next call downloads it again."""
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != archive.md5:
        aside = file.replace(file.with_name(f"{file.name}.wrong"))
        raise DataError(
            f"{file} has the MD5 sum {digest.hexdigest()}, not {archive.md5}: it was damaged in transfer, or "
            f"is another file. It is now {aside.name}; repeat the command to download it again."
        )


def ending(name: str, out: Path) -> str:
    """What to do next."""
    folder = shlex.quote(str(out))
    return (
        f"Done. Scenarios find it with\n  export {find(name).variable}={folder}\nLook at the data:\n"
        f"  ciod list data {folder}"
    )


def run(name: str, out: str | None, *, mirror: str | None, keep: bool, say: Say) -> None:
    """The command; without ``out`` it only prints where the files go.

    Raises:
        ConfigError, DataError: as ``fetch``.
    """
    source = find(name)
    say(where(source, out or "DIR"))
    if out is None:
        say(f"To fetch it: ciod data {name} out=DIR")
        return
    say(ending(name, fetch(name, out, mirror=mirror, keep=keep, say=say)))
