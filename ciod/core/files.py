"""Atomic writes: to a temporary file that is synced and renamed; and messages for a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NoReturn

from ciod.core.errors import CiodError, nearest

BLOCK = 4096  # bytes of a disk that the smallest file takes
LOCK = ".lock"  # in the folder of a live run
_PLACES = (  # folders that a run writes into
    "last", "task-*", "task-*/examples", "doubtful", "confused", "old_objects", "old_objects/yolo",
    "old_objects/yolo/*",
)  # fmt: skip
_STATES = ("state.pt", "previous.pt")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/+")  # a Path has one slash of two
_BESIDE = re.compile(r"\..+\.\d+\.(tmp|jpg|png)")
_NO_FOLDER = {errno.EEXIST, errno.ENOTDIR}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


class WriteError(CiodError, OSError):
    """A file could not be written; what was there before is intact."""


def is_model(path: Path) -> bool:
    """Whether a file can hold weights, judged by its name; a saved state of a run cannot."""
    return is_file(path) and path.suffix in (".safetensors", ".pth", ".pt") and path.name not in _STATES


def near_path(path: Path, fits: Callable[[Path], bool]) -> str:
    """The end of a message about a missing path: its neighbour with the most similar name, as it can be typed.

    Args:
        fits: whether a neighbour would be accepted where ``path`` was not.
    """
    if os.path.islink(path):  # noqa: PTH114 (False for an impossible path)
        loop = is_loop(path)
        return (
            "; it is a link that leads to itself."
            if loop
            else f"; it is a link to {path.readlink()}, which is not there."
        )
    try:
        beside = [p.name for p in path.parent.iterdir()]
    except (OSError, ValueError):  # ValueError: a null character
        return "."
    for _ in range(5):
        near = nearest(path.name, beside)
        if near is None:
            break
        if fits(path.parent / near):
            return f"; did you mean '{path.parent / near}'?"
        beside.remove(near)
    return "."


def exists(path: Path | str) -> bool:
    """Whether the file or folder exists; False for an impossible path (too long, a null byte), for which
    ``Path.exists`` raises."""
    return os.path.exists(path)  # noqa: PTH110


def is_address(path: Path | str) -> bool:
    """Whether ``path`` is the address of a web page or stream, such as https://…, and not a file."""
    return bool(_ADDRESS.match(str(path))) and not exists(path)


def is_file(path: Path | str) -> bool:
    """Like ``exists``, for files."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path | str) -> bool:
    """Like ``exists``, for folders."""
    return os.path.isdir(path)  # noqa: PTH112


def expanded(path: Path | str) -> Path:
    """``~`` and ``~user`` replaced, unless something of exactly that name exists or there is no such user (where
    ``Path.expanduser`` raises)."""
    return stored(path if exists(path) else os.path.expanduser(path))  # noqa: PTH111


def stored(path: Path | str) -> Path:
    """``path``, or the existing path of the same name with accents composed in the other way, which copying between
    systems produces."""
    path = Path(path)
    if exists(path) or str(path).isascii():
        return path
    place = Path(path.anchor)
    for part in path.parts[1 if path.anchor else 0 :]:
        there = place / part
        if not exists(there) and is_folder(place):
            there = next((p for p in place.iterdir() if nfc(p.name) == nfc(part)), there)
        place = there
    return place if exists(place) else path


def nfc(text: str) -> str:
    """``text`` with composed accents, so that two names that look the same are the same."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def is_loop(path: Path | str) -> bool:
    """Whether the path leads through a link to itself."""
    try:
        os.stat(path)  # noqa: PTH116 (Path.resolve reports loops only in some versions of Python)
    except OSError as error:
        return error.errno == errno.ELOOP
    except ValueError:
        return False
    return False


def named(path: Path | str) -> Path:
    """``path``, if a file or folder can have that name.

    Raises:
        WriteError: it holds a null byte or half a character, or is a link that leads to itself.
    """
    try:
        if b"\0" not in os.fsencode(path):
            if is_loop(path):
                raise WriteError(f"{path} cannot be written: it is a link that leads to itself.")
            return Path(path)
    except UnicodeEncodeError:
        pass
    raise WriteError(f"{str(path)!r} cannot be written: no file can have that name.")


def temporary(path: Path, suffix: str = ".tmp") -> Path:
    """A new file beside ``path`` to write into before a rename, which ``sweep`` knows. Its name is drawn at random: a
    process number may be the same in two threads, or on two machines that share the folder."""
    return path.with_name(f".{path.name}.{os.getpid()}{secrets.randbelow(10**9):09}{suffix}")


@contextmanager
def whole(path: Path | str, *, size: int = 0) -> Generator[IO[bytes], None, None]:
    """A binary file that replaces ``path`` when the block ends without an error.

    Content and folder are synced, so that even after a power cut there is either the old file or the new one. An
    existing path that is not a regular file (/dev/stdout, a pipe) is written to directly.

    Args:
        size: approximate number of bytes, for the message about a full disk.

    Raises:
        WriteError: the disk is full, permission is missing, ``path`` is a folder, or the disk fails; ``path`` is then
            unchanged.
    """
    path = named(path)
    if is_folder(path):
        raise WriteError(f"{path} cannot be written: it is a folder. Give the name of a file.")
    if exists(path) and not is_file(path):
        with explained(path), path.open("wb") as file:
            yield file
        return
    beside = temporary(path)
    with explained(path, max(size, BLOCK)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
            sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)


def atomic_write(path: Path | str, content: bytes | str) -> Path:
    """Writes ``content`` as a complete file; see ``whole``. Characters that UTF-8 lacks (in file names that are not
    UTF-8) are escaped; JSON reads the escapes as the original."""
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with whole(path, size=len(data)) as file:
        file.write(data)
    return Path(path)


@contextmanager
def explained(path: Path, size: int = 0) -> Generator[None, None, None]:
    """Turns an OSError of the block into a WriteError that names ``path``."""
    try:
        yield
    except WriteError:
        raise
    except OSError as e:
        raise WriteError(why(path, e, size)) from e


def sync_folder(folder: Path) -> None:
    """Makes a rename in ``folder`` durable, where the system can."""
    with contextlib.suppress(OSError, AttributeError):  # not every system can
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def sweep(folder: Path) -> None:
    """Removes the temporary files of processes that died during a write, in the folders that a run writes into.

    Other folders are left alone, and so are folders with their own lock: another run may be using them.
    """
    for place in (folder, *(p for pattern in _PLACES for p in folder.glob(pattern))):
        if place != folder and exists(place / LOCK):
            continue
        for left in place.glob(".*"):
            if _BESIDE.fullmatch(left.name):
                with contextlib.suppress(OSError):
                    left.unlink()


def why(path: Path, error: Exception, size: int = 0) -> str:
    """The message for a file that could not be written.

    Args:
        size: of the content, in bytes; 0 if that is not known.
    """
    code, text = getattr(error, "errno", None), getattr(error, "strerror", None)
    if code in _FULL:
        free = ""
        with contextlib.suppress(OSError):
            free = f" ({shutil.disk_usage(_existing(path)).free / 1e6:.0f} MB are free)"
        needed = f"; it needs {_room(size)}" if size else ""
        return (
            f"{path} cannot be written: no space is left{free}{needed}. What was saved before is intact: free some "
            "space and run the same command again."
        )
    if code in _NO_FOLDER and (file := next((p for p in (path, *path.parents) if is_file(p)), None)):
        return f"{path} cannot be written: {file} is a file, but a folder is needed. Choose another folder."
    if code in _NO_FOLDER and exists(path):
        return f"{path} cannot be written: it is not a folder, but a folder is needed. Choose another folder."
    if code in _REFUSED:
        return f"{path} cannot be written: {text}. Choose a writable folder."
    return f"{path} cannot be written: {text or str(error) or type(error).__name__}."


def _room(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.resolve().parents) if p.exists())


def no_model_file(path: Path, suffixes: Collection[str]) -> NoReturn:
    """Refuses a model file that does not exist.

    Args:
        suffixes: suffixes of the files in the folder that are suggested instead.

    Raises:
        CiodError: always; it names the file of the nearest name.
    """
    if is_folder(path):
        inside = sorted((*path.glob("model.*"), *path.glob("task-*/model.*")))
        hint = next((f"; its model is {p}." for p in reversed(inside) if p.suffix.lower() in suffixes), ".")
        raise CiodError(f"{path} is a folder, not a model file{hint}")
    near = near_path(path, lambda p: is_file(p) and p.suffix.lower() in suffixes and p.name not in _STATES)
    raise CiodError(f"There is no model file {path}{near}")
