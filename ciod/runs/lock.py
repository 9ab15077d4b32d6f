"""One live run a folder: a lock that the system takes back when its owner dies, however it dies."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ciod.core.errors import CiodError
from ciod.core.files import explained

NAME = ".lock"
_HELD: set[Path] = set()  # by this process: the system's lock does not tell its threads apart


class Taken(CiodError):
    """Another run works in this folder."""


@contextmanager
def owner_of(folder: Path) -> Iterator[None]:
    """This process owns ``folder`` inside the block.

    The lock is the system's (POSIX): it ends with its process, and holds between machines that share the folder as
    far as their file system passes locks on. The owner is written into it for the message. Where there are no such
    locks, the owner's process is looked for.

    Raises:
        Taken: a live run has it.
    """
    path = folder.resolve() / NAME
    if path in _HELD:
        raise Taken(f"out: {folder} is in use by another run of this process; choose another out=.")
    with explained(path, size=200):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _acquire(folder, path)
    _HELD.add(path)
    try:
        yield
    finally:
        _HELD.discard(path)
        path.unlink(missing_ok=True)  # before the lock ends: who opens it from now on makes a new one
        file.close()


def _acquire(folder: Path, path: Path) -> IO[str]:
    while True:
        file = path.open("a+", encoding="utf-8")
        if not _lock(file):
            owner = _read(file)
            file.close()
            raise Taken(_sentence(folder, owner))
        try:
            same = os.fstat(file.fileno()).st_ino == path.stat().st_ino
        except FileNotFoundError:
            same = False
        if same:
            break
        file.close()  # its owner removed it between our opening and locking it
    try:
        file.truncate(0)
        json.dump(_me(), file)
        file.flush()
    except BaseException:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # it tries to write once more
            file.close()
        raise
    return file


def _lock(file: IO[str]) -> bool:
    """Whether this process has the lock now."""
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except (BlockingIOError, PermissionError):
        return False
    except (ImportError, OSError):  # no such locks here
        owner = _read(file)
        return not owner or owner.get("host") != socket.gethostname() or not _alive(owner)


def _me() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "start": _start_of(os.getpid()),
    }


def _read(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        found = json.loads(file.read())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _sentence(folder: Path, owner: dict[str, Any]) -> str:
    who = (
        f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('since')}" if owner else "another process"
    )
    return f"out: {folder} is in use by {who}. Wait for it, or choose another out=."


def _alive(owner: dict[str, Any]) -> bool:
    pid = owner.get("pid")
    if not isinstance(pid, int) or os.name == "nt":  # there, asking would end it
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return owner.get("start") in (None, _start_of(pid))


def _start_of(pid: int) -> str | None:
    """When a process started, in ticks since boot: tells it from a later one with its number. None: not known."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
