"""What a run needs to resume after a crash: the last two states in ``last/``, complete, verified, and without code."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from ciod.core.errors import CiodError
from ciod.core.files import is_file, sync_folder, temporary, whole

NEWEST, BEFORE = "state.pt", "previous.pt"
_COMMENT = re.compile(rb"ciod sha256 ([0-9a-f]{64})")
PLAIN = 100_000  # approximate bytes of everything except tensors
_COMMENT_SIZE = len(b"ciod sha256 ") + 64


class Damaged(CiodError):
    """A state file is incomplete or changed."""


class _Sink:
    """Hashes what is written. A disk error is raised after torch's writer has ended: raised inside, it would end
    Python."""

    def __init__(self, file: IO[bytes]):
        self.file, self.error, self.held = file, None, b""
        self.digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        data = bytes(data)
        if self.error is None:
            # the last two bytes of a zip file are the length of its comment, which torch does not know
            ready, self.held = (self.held + data)[:-2], (self.held + data)[-2:]
            self._put(ready)
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered here."""

    def end(self) -> None:
        """Writes the checksum as the comment of the zip file.

        Raises:
            OSError: the error of an earlier write.
        """
        self._put(struct.pack("<H", _COMMENT_SIZE))
        self._put(b"ciod sha256 " + self.digest.hexdigest().encode())
        if self.error is not None:
            raise self.error

    def _put(self, data: bytes) -> None:
        if self.error is None:
            self.digest.update(data)
            try:
                self.file.write(data)
            except OSError as e:
                self.error = e


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Tensors and plain values only, so that it loads without running code. The previous state becomes ``previous.pt``.

    Raises:
        WriteError: the disk is full or read-only; both older states are intact.
    """
    with whole(path, size=_bytes(state) + PLAIN) as file:
        sink = _Sink(file)
        torch.save(state, sink)  # type: ignore[arg-type]
        sink.end()
        file.flush()
        os.fsync(file.fileno())
        _keep(path)


def _keep(path: Path) -> None:
    """Gives the current state a second name, so that at least one complete state exists at any time."""
    if not is_file(path):
        return
    before = path.with_name(BEFORE)
    beside = temporary(before)
    try:
        os.link(path, beside)
    except OSError:  # a file system without links
        path.replace(before)
    else:
        try:
            beside.replace(before)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
    sync_folder(path.parent)


def load_state(path: Path) -> dict[str, Any] | None:
    """The saved state, or None if there is none.

    Raises:
        Damaged: the file is incomplete or changed since it was written.
    """
    if not is_file(path):
        return None
    _verify(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # zip, pickle, and runtime errors: the file cannot be used, whatever the reason
        raise Damaged(f"{path} cannot be read ({type(e).__name__}: {str(e).splitlines()[0]}).") from e
    if not isinstance(state, dict):
        raise Damaged(f"{path} is not the state of a run: it holds a {type(state).__name__}.")
    return state


def states(folder: Path) -> Iterator[tuple[Path, dict[str, Any] | Damaged]]:
    """The saved states of ``last/``, newest first; for a damaged one, the error."""
    for name in (NEWEST, BEFORE):
        path = folder / name
        try:
            state = load_state(path)
        except Damaged as e:
            yield path, e
            continue
        if state is not None:
            yield path, state


def _verify(path: Path) -> None:
    """Raises Damaged unless the content is what was written."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        left = max(0, size - _COMMENT_SIZE)
        while left:
            block = file.read(min(left, 1 << 20))
            if not block:
                break
            digest.update(block)
            left -= len(block)
        found = _COMMENT.fullmatch(file.read())
    if found is None:
        raise Damaged(f"{path} is incomplete: it has {size} bytes and does not end with a checksum.")
    if found[1].decode() != digest.hexdigest():
        raise Damaged(f"{path} is damaged: its content does not match its checksum.")


def _bytes(value: Any) -> int:
    """Bytes of all tensors in a value."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_bytes, value))
    return 0


def seed_all(*numbers: int) -> None:
    """Seeds every global generator from integers; similar integers give unrelated states."""
    a, b, c = (int(n) for n in np.random.SeedSequence(numbers).generate_state(3, np.uint32))
    torch.manual_seed(a)
    np.random.seed(b)  # noqa: NPY002 (third-party code may use the global one)
    random.seed(c)


def random_state() -> dict[str, Any]:
    """Generators of Python, NumPy (as torch holds it) and torch, CPU and this process's GPU."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            *(int(r) for r in rest[:2]),
            float(rest[2]),
        ],
        "python": [version, list(numbers), gauss],
    }


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"] is not None:
        with contextlib.suppress(RuntimeError):  # from a different kind of GPU
            torch.cuda.set_rng_state(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


def restore_random(states: Sequence[dict[str, Any]], rank: int, *, seed: int, task: int, done: int) -> None:
    """Every generator of this rank as it was saved. A rank that the saved run did not have starts from its own seed.

    Args:
        states: of each rank.
        done: finished steps of the task.
    """
    if rank < len(states):
        set_random_state(states[rank])
    else:
        seed_all(seed, task, rank, done)
