"""Files that a run writes: an append-only log, and JSON files that are either complete or absent."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ciod.core.files import atomic_write, exists, explained
from ciod.core.reading import LOG, read_bytes

METRICS = "metrics.jsonl"
LINE = 1000  # approximate maximum of bytes per line


class RunLog:
    """Appends one JSON object per line to ``metrics.jsonl`` in ``folder`` (created if missing) and flushes each line.

    A killed run may have left an incomplete line; opening removes it, so that the next line is valid.

    Args:
        follow: called with every line that is written.
    """

    def __init__(self, folder: Path | str, follow: Callable[[Mapping[str, Any]], None] | None = None):
        self.path = Path(folder) / METRICS
        self._follow = follow
        self._waiting = 0  # whether some lines may not be on the disk yet
        with explained(self.path, LINE):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _cut_incomplete_line(self.path)
            self._file = self.path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)

    def write(self, kind: str, **fields: Any) -> None:
        """One line. ``kind`` is ``step``, ``epoch`` or ``task``; numbers that are not finite are written as null."""
        entry = plain({"kind": kind, **fields})
        line = json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"
        self._waiting += len(line.encode("utf-8", "backslashreplace"))
        with explained(self.path, self._waiting):
            self._file.write(line)
        if self._follow is not None:
            self._follow(entry)

    def sync(self) -> None:
        """Syncs every line to the disk: a saved state must not include steps that a power cut removes from the log."""
        with explained(self.path, self._waiting or LINE):
            self._file.flush()
            os.fsync(self._file.fileno())
        self._waiting = 0

    def close(self) -> None:
        with explained(self.path, self._waiting or LINE):
            self._file.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(folder: Path | str) -> list[dict[str, Any]]:
    """Every complete line of ``metrics.jsonl``, in order; [] without the file.

    Invalid lines are left out: incomplete ones, and those whose task, epoch or step is not a count.
    """
    path = Path(folder) / METRICS
    if not exists(path):
        return []
    found = (_object(line) for line in read_bytes(path, LOG).split(b"\n"))
    return [entry for entry in found if entry is not None]


def write_json(path: Path | str, obj: Any) -> Path:
    """``obj`` as JSON, atomically. numpy and torch numbers become numbers, NaN and infinities null."""
    return atomic_write(path, json.dumps(plain(obj), ensure_ascii=False, allow_nan=False, indent=1) + "\n")


def plain(obj: Any) -> Any:
    """``obj`` as JSON types: dict, list, str, int, float, bool, None.

    Keys become strings; sets, tuples and arrays lists; numpy and torch scalars numbers; NaN and infinities None.
    """
    if obj is None or isinstance(obj, (str, bool, int)):
        return obj
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else None
    items: Any = obj
    if isinstance(obj, Mapping):
        return {str(k): plain(v) for k, v in items.items()}
    if isinstance(obj, (list, tuple)):
        return [plain(v) for v in items]
    if isinstance(obj, (set, frozenset)):
        return sorted((plain(v) for v in items), key=str)
    if hasattr(obj, "tolist"):  # numpy arrays and scalars, torch tensors
        return plain(obj.tolist())
    return str(obj)  # paths, devices, dtypes


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError):  # also what is not UTF-8: a character cut in half
        return None
    if not _is_object(entry):
        return None
    counts: Iterator[Any] = (entry.get(key, 0) for key in ("task", "epoch", "step"))
    return entry if all(type(n) is int and 0 <= n < 2**53 for n in counts) else None


def _cut_incomplete_line(path: Path) -> None:
    if not exists(path):
        return
    content = read_bytes(path, LOG)
    head, _, tail = content.rpartition(b"\n")
    if not tail:
        return
    with path.open("r+b") as file:
        if _object(tail) is not None:  # complete, only its line end is missing
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        else:
            file.truncate(len(head) + 1 if head else 0)
