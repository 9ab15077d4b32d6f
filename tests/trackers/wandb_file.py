"""Reads what Weights & Biases keeps offline: records in LevelDB's log format, after a header of seven bytes.

https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[bytes]:
    """Every complete record; what a killed process has cut off is left out."""
    content = path.read_bytes()
    at, parts = HEADER, b""
    while at + HEADER <= len(content):
        left = BLOCK - at % BLOCK
        if left < HEADER:  # the rest of a block is padding
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        start = at + HEADER
        if kind == 0 or start + length > len(content):
            return
        parts += content[start : start + length]
        if kind in (FULL, LAST):
            yield parts
            parts = b""
        at = start + length
