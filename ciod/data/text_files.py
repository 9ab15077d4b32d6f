"""Reads text files of other tools (class names, lists, box files) in UTF-8 or UTF-16."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from pathlib import Path

from ciod.core.errors import DataError
from ciod.core.files import nfc
from ciod.core.reading import EMBEDDED, read_bytes

_MARKS = (  # the byte order marks of UTF-32 begin with those of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
ADVICE = "save it as UTF-8"


def same_names(names: Iterable[str]) -> tuple[str, ...]:
    """Class names with composed accents; unchanged if two would become equal (in models of older versions)."""
    names = tuple(names)
    composed = tuple(map(nfc, names))
    return composed if len(set(composed)) == len(set(names)) else names


def encoding_of(raw: bytes) -> str:
    """The encoding by its byte order mark, or by the zero bytes of UTF-16 without one; otherwise UTF-8."""
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            return encoding
    head = raw[:512]
    if b"\0" in head:
        even, odd = head[::2].count(0), head[1::2].count(0)
        return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8"


def read_text(path: Path) -> str:
    """Text of a file.

    Raises:
        DataError: it cannot be read, is not a regular file, or is neither UTF-8 nor UTF-16; says what to do.
    """
    return decoded(read_bytes(path, EMBEDDED), path)


def decoded(raw: bytes, path: Path) -> str:
    """``raw`` as text. Raises DataError like ``read_text``; ``path`` is for the message."""
    encoding = encoding_of(raw)
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} cannot be read: line {line} is not UTF-8, perhaps a Windows or regional encoding; {ADVICE}."
        ) from error
