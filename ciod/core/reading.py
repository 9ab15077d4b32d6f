"""Reads files: only regular files, only up to a maximum size, with a message for every other case.

A device, a pipe or a link to one could be read forever, or until the memory is full. A folder of data from strangers
may contain any of them under any name.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from ciod.core import yaml_text
from ciod.core.errors import DataError

MB = 1 << 20
# Maximum bytes of a file, by content: far above the files of real tools, and below the size of the memory.
SETTINGS = 1 * MB
VALUES = 20_000  # of settings, including keys: every wrong value gets a message
RESULTS = 64 * MB  # JSON that ciod writes
LOG = 2048 * MB  # one line per several steps of a long run
LABELS = 64 * MB  # XML, text or names of one picture or data set
EMBEDDED = 1024 * MB  # labelme puts the picture into its JSON
_LFS = b"version https://git-lfs.github.com/spec/"
ANNOTATIONS = 8192 * MB  # COCO: one JSON for millions of pictures


class Unreadable(DataError):
    """A file that is missing, not a regular file, too large, or not in the requested format."""


def check_regular(path: Path | str) -> int:
    """Size in bytes of a regular file, or of the target of a link.

    Raises:
        Unreadable: it is anything else.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 (asked for every picture)
    except FileNotFoundError:
        raise Unreadable(f"The file {path} does not exist.") from None
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path} cannot be read: {_reason(error)}.") from error
    if stat.S_ISDIR(found.st_mode):
        raise Unreadable(f"{path} is a folder, not a file; name a file in it.")
    if not stat.S_ISREG(found.st_mode):
        raise Unreadable(f"{path} is not a regular file but a device, a pipe or a socket; ciod does not read those.")
    return found.st_size


def read_bytes(path: Path | str, limit: int = RESULTS) -> bytes:
    """Content of a regular file of at most ``limit`` bytes.

    Raises:
        Unreadable: it is larger, not a regular file, or cannot be read.
    """
    size = check_regular(path)
    try:
        if size <= limit:
            with Path(path).open("rb") as file:
                # Not limit + 1 bytes at once: Python would allocate them all, however small the file is.
                content = file.read(size + 1)
                while len(content) <= limit and (more := file.read(MB)):  # a file of /proc, or one that grows
                    content += more
            if len(content) <= limit:
                return content
            size = len(content)
    except (OSError, MemoryError) as error:
        raise Unreadable(f"{path} cannot be read: {_reason(error)}.") from error
    raise Unreadable(f"{path} has {size / MB:,.0f} MB; at most {limit / MB:,.0f} MB are read from such a file.")


def lfs_hint(path: Path | str) -> str:
    """Advice for a file that Git LFS has not fetched: it has three lines of text instead of its content."""
    try:
        with Path(path).open("rb") as file:
            pointer = file.read(len(_LFS)) == _LFS
    except (OSError, ValueError):
        return ""
    return " It is a pointer of Git LFS, not the file itself; fetch it with 'git lfs pull'." if pointer else ""


def read_text(path: Path | str, limit: int = RESULTS) -> str:
    """Like ``read_bytes``, for text in UTF-8 with or without a byte order mark.

    Raises:
        Unreadable: as ``read_bytes``, or it is not UTF-8.
    """
    return _text(read_bytes(path, limit), path)


def read_json(path: Path | str, limit: int = RESULTS) -> Any:
    """The content of a JSON file.

    Raises:
        Unreadable: as ``read_text``, or it is not JSON; says where.
    """
    content = read_bytes(path, limit)
    if not content.strip():
        raise Unreadable(f"{path} is empty; it should hold JSON.")
    try:
        return json.loads(_text(content, path))
    except json.JSONDecodeError as error:
        raise Unreadable(f"{path} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}.") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, deeply nested lists
        raise Unreadable(f"{path} is not JSON: {error}.") from error


def read_object(path: Path | str, limit: int = RESULTS) -> dict[str, Any]:
    """Like ``read_json``, for a file that holds an object.

    Raises:
        Unreadable: as ``read_json``, or it holds something else.
    """
    found = read_json(path, limit)
    if not yaml_text.is_mapping(found):
        raise Unreadable(f"{path} should hold an object with keys, but holds {_kind(found)}.")
    return found


def read_yaml(path: Path | str, limit: int = SETTINGS, *, sourced: bool = False) -> Any:
    """The content of a YAML file; None if it is empty.

    Args:
        sourced: also keep what was written for each value that is not text; see ``yaml_text.parse_sourced``.

    Raises:
        Unreadable: as ``read_text``, or it is not YAML; says where.
    """
    try:
        read = yaml_text.parse_sourced if sourced else yaml_text.parse
        return read(read_text(path, limit), VALUES)
    except yaml_text.NotYAML as error:
        raise Unreadable(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def _text(content: bytes, path: Path | str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Unreadable(f"{path} is not text in UTF-8: line {line} cannot be read. Save it as UTF-8.") from error


def _kind(value: Any) -> str:
    kinds: dict[Any, str] = {list: "a list", type(None): "nothing", str: "text", bool: "true or false"}
    return kinds.get(type(value), "a number")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
