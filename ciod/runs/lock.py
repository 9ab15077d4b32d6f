"""One live run per folder: a lock that the system releases when its owner dies, in any way."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ciod.core.errors import CiodError
from ciod.core.files import LOCK, exists, explained, named
from ciod.core.reading import Unreadable, read_object

NAME = LOCK
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}  # errors of a file system without locks
_PATIENCE = 0.2  # seconds: an owner that exits removes the file, and then the next attempt creates a new one


class Taken(CiodError):
    """Another run is using this folder."""


@contextmanager
def owner_of(folder: Path, name: str = NAME) -> Iterator[None]:
    """This process owns ``folder`` inside the block.

    It is a lock of the system: it ends with its process, and works between machines that share the folder if their file
    system supports it. The owner is written into it for the message. Without such locks, the owner's process is
    checked.

    Args:
        name: of the file of the lock; locks of other names in the same folder are independent.

    Raises:
        Taken: a live run has it.
    """
    path, new = named(folder).resolve() / name, not exists(folder)
    lock = FileLock(path, timeout=_PATIENCE, poll_interval=_PATIENCE / 4, fallback_to_soft=False)
    with explained(path, size=200):
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, folder, path)
        try:
            path.write_text(json.dumps(_me()), encoding="utf-8")
        except BaseException:
            _release(lock, path)
            raise
    try:
        yield
    finally:
        _release(lock, path)
        if new:
            with suppress(OSError):  # something was written
                path.parent.rmdir()


@contextmanager
def turn_in(folder: Path, name: str) -> Iterator[None]:
    """Like ``owner_of``, but waits until the owner has ended."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(owner_of(folder, name))
                break
            except Taken:
                time.sleep(_PATIENCE)
        yield


def holder(folder: Path, name: str) -> str | None:
    """The live process that owns ``folder``, in words; None: no process."""
    path = named(folder).resolve() / name
    if not exists(path):
        return None
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        return _who(_read(path))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            return None  # it has just been removed, or cannot be opened: the next owner finds out
        owner = _read(path)
        return _who(owner) if owner.get("host") == socket.gethostname() and _alive(owner) else None
    lock.release()
    return None


def _acquire(lock: FileLock, folder: Path, path: Path) -> None:
    try:
        lock.acquire()
    except Timeout:
        raise Taken(_sentence(folder, _read(path))) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        owner = _read(path)
        if owner and owner.get("host") == socket.gethostname() and _alive(owner):
            raise Taken(_sentence(folder, owner)) from None


def _release(lock: FileLock, path: Path) -> None:
    path.unlink(missing_ok=True)  # before the lock ends: processes that open it from now on create a new one
    lock.release()


def _me() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "start": _start_of(os.getpid()),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except Unreadable:
        return {}


def _sentence(folder: Path, owner: dict[str, Any]) -> str:
    if owner.get("pid") == os.getpid() and owner.get("host") == socket.gethostname():
        return f"out: {folder} is in use by another run of this process; choose another out=."
    return f"out: {folder} is in use by {_who(owner)}. Wait for it, or choose another out=."


def _who(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    return f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('since')}"


def _alive(owner: dict[str, Any]) -> bool:
    pid = owner.get("pid")
    if not isinstance(pid, int) or os.name == "nt":  # on Windows the check would end it
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return owner.get("start") in (None, _start_of(pid))


def _start_of(pid: int) -> str | None:
    """When a process started, in ticks since boot: distinguishes it from a later process with the same number. None:
    unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
