"""python -m tests.faults.disk [--real] [--kinds] [--folder DIR]

Finds every point at which a run of two tasks writes (folders made, files opened, each write to them, syncs, renames,
links), by tracing one. Then runs it again and again on a disk that is full from one of these points on. Each must stop
with an error message that names the file and the space it needs, and what was saved before must be intact. The same
command, when there is space, must end with bit-identical weights, losses and results.

Of the many writes of one file the first, the middle and the last are tried. ``--kinds``: one point of each kind of
file, by turns its opening, its writing, its syncing and its renaming.
``--real``: a small tmpfs that is really full, instead of an injected ENOSPC; needs the right to mount one.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import gc
import hashlib
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from ciod.core.errors import CiodError
from ciod.data.shapes.scenes import write_shapes
from ciod.training import checkpoint
from tests.runs.commands import assert_equal, go

WORDS = ["split=1+1", "epochs=1", "batch=4", "save_every=2", "log_every=2"]
SENTENCE = re.compile(
    r"(?P<file>\S+) cannot be written: no space is left \(\d+ MB are free\); it needs [\d.]+ [kM]B\. "
    r"What was saved before is intact: free some space and run the same command again\."
)
# before the run starts
BEFORE = re.compile(r"out: (?P<file>\S+) has only \d+ MB of free space; a run needs a few hundred\.")
_BESIDE = re.compile(r"\.(.+)\.\d+\.(tmp|jpg)")


class Point(NamedTuple):
    """Something a run does that needs room: what, and to which file (relative to the run folder)."""

    what: str
    file: str


class Disk:
    """Follows what this process writes below ``folder``; from point ``full`` on, ``fill`` comes before each."""

    def __init__(self, folder: Path, full: int | None = None, fill: Callable[[], None] | None = None):
        self.folder, self.full, self.fill = str(folder), full, fill or no_room
        self.points: list[Point] = []
        self.ended, self.late = False, set[str]()  # files left open, which Python writes when it likes
        self.saved: dict[str, str] = {}  # what was there when the disk became full

    def mine(self, path: Any) -> bool:
        return isinstance(path, (str, os.PathLike)) and f"{os.path.abspath(path)}/".startswith(f"{self.folder}/")  # noqa: PTH100

    def at(self, what: str, path: Any) -> None:
        name = os.path.relpath(path, self.folder)
        if self.ended:
            self.late.add(name)
            return
        beside = _BESIDE.fullmatch(os.path.basename(name))  # noqa: PTH119
        if beside:
            tail = "" if beside[2] == "tmp" else f".{beside[2]}"
            name = os.path.join(os.path.dirname(name), beside[1] + tail)  # noqa: PTH118, PTH120
        if self.full is not None and len(self.points) == self.full:
            self.saved = saved(Path(self.folder))
        self.points.append(Point(what, name))
        if self.full is not None and len(self.points) > self.full:
            self.fill()

    @contextmanager
    def watching(self) -> Iterator[Disk]:
        """Python's doors to the disk, with this disk behind them."""
        disk = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                disk.at("write", self.name)
                return super().write(data)

        real = {n: getattr(os, n) for n in ("mkdir", "rename", "replace", "link", "fsync")}
        real_open, names = io.open, {}

        def opened(path, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *more, **kw):
            if not disk.mine(path) or not set(mode) & set("wax+"):
                return real_open(path, mode, buffering, encoding, errors, newline, *more, **kw)
            disk.at("open", path)
            raw = Raw(path, mode.replace("b", "").replace("t", ""))
            names[raw.fileno()] = path
            buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
            if "b" in mode:
                return buffered
            text = io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)
            text.mode = mode
            return text

        def mkdir(path, *more, **kw):
            if disk.mine(path) and not os.path.isdir(path):  # noqa: PTH112
                disk.at("mkdir", path)
            return real["mkdir"](path, *more, **kw)

        def moving(what):
            def move(source, target, **kw):
                if disk.mine(target):
                    disk.at(what, target)
                return real[what](source, target, **kw)

            return move

        def fsync(fd):
            path = names.get(fd)
            if path is not None and os.path.exists(path) and os.path.samestat(os.fstat(fd), os.stat(path)):  # noqa: PTH110, PTH116
                disk.at("fsync", path)
            return real["fsync"](fd)

        new = {"mkdir": mkdir, "fsync": fsync, **{n: moving(n) for n in ("rename", "replace", "link")}}
        places = [(os, n, f) for n, f in new.items()] + [(io, "open", opened), (builtins, "open", opened)]
        accessor = getattr(pathlib, "_NormalAccessor", None)  # Python 3.10 holds them in a class
        if accessor is not None:
            places += [
                (accessor, n, staticmethod(f)) for n, f in {**new, "open": opened}.items() if n in vars(accessor)
            ]
        before = [(owner, name, vars(owner)[name]) for owner, name, _ in places]
        for owner, name, function in places:
            setattr(owner, name, function)
        try:
            yield self
        finally:
            self.ended = True
            for owner, name, function in before:
                setattr(owner, name, function)


def no_room() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def saved(out: Path) -> dict[str, str]:
    """Checksum of each state and model."""
    return {
        p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in out.rglob("*")
        if p.suffix in (".pt", ".safetensors") and not p.name.startswith(".")
    }


def chosen(points: list[Point], *, kinds: bool) -> list[int]:
    """Which points to try: all, but of adjacent writes to one file the first, middle and last. ``kinds``: one per
    kind of file."""
    blocks: list[list[int]] = []
    for i, point in enumerate(points):
        if blocks and point.what == "write" and points[blocks[-1][-1]] == point and point.file != "metrics.jsonl":
            blocks[-1].append(i)
        else:
            blocks.append([i])
    if not kinds:
        return sorted({b[at] for b in blocks for at in (0, len(b) // 2, -1)})
    found = []
    by_file: dict[str, dict[str, list[list[int]]]] = {}
    for block in blocks:
        point = points[block[0]]
        by_file.setdefault(kind(point.file), {}).setdefault(point.what, []).append(block)
    for i, ways in enumerate(by_file.values()):
        group = list(ways.values())[i % len(ways)]
        block = group[len(group) // 2]
        found.append(block[len(block) // 2])
    return sorted(found)


def kind(file: str) -> str:
    """Tasks are alike, and pictures."""
    return re.sub(r"\d+", "N", file)


def check(data: Path, whole: Path, out: Path, at: int, fill: Callable[[], None], room: Callable[[], None]) -> bool:
    """A run whose disk is full from point ``at`` on, and the same command with room. Returns whether it was stopped."""
    disk = Disk(out, at, fill)
    stopped = True
    try:
        with disk.watching():
            go(data, out, *WORDS)
        stopped = False
    except CiodError as e:
        match = SENTENCE.fullmatch(str(e)) or (fill is not no_room and BEFORE.match(str(e)))
        assert match, f"{disk.points[at]}: {e}"
        named = disk.points[-1] if fill is not no_room else disk.points[at]
        names = [Path(f).name.replace("previous.pt", "state.pt") for f in (match["file"], named.file)]
        assert named.what == "mkdir" or match.re is BEFORE or names[0] == names[1], f"{named}: {e}"
    room()
    assert stopped or fill is not no_room, f"{disk.points[at]}: no error message"
    left = [p.name for p in out.rglob("*") if _BESIDE.fullmatch(p.name)]
    assert not left, f"{disk.points[at]}: {left} left over"
    now = saved(out)
    for name, digest in disk.saved.items():
        if stopped:
            kept = {now.get(name)} | ({now.get("last/previous.pt")} if name == "last/state.pt" else set())
            newer = name == "last/previous.pt" and disk.saved["last/state.pt"] in now.values()
            assert digest in kept or newer, f"{disk.points[at]}: {name} is not what it was"
    for path, state in checkpoint.states(out / "last"):
        assert isinstance(state, dict), f"{path} is damaged"
    go(data, out, *WORDS)
    gc.collect()
    assert not disk.late, f"{disk.points[at]}: {disk.late} were left open, and written into the next run"
    assert_equal(whole, out)
    return stopped


_OPENED: list[set[str]] = []  # where Python's own audit notes what is opened for writing; an audit has no end


def _audit(event: str, given: tuple) -> None:
    if _OPENED and event == "open" and isinstance(given[0], (str, os.PathLike)):
        _, mode, flags = given
        if set(mode or "") & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR):
            _OPENED[-1].add(os.path.abspath(given[0]))  # noqa: PTH100


def trace(data: Path, out: Path) -> list[Point]:
    """The write points of a run without a fault.

    Raises:
        AssertionError: it wrote something at none of them.
    """
    sys.addaudithook(_audit)
    _OPENED.append(set())
    try:
        with Disk(out).watching() as disk:
            go(data, out, *WORDS)
    finally:
        opened = _OPENED.pop()
    files = {p.file for p in disk.points}
    there = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert there <= files, f"{there - files} came without a write point"
    beside = {_BESIDE.sub(r"\1", Path(p).name).removesuffix(".jpg") for p in opened if p.startswith(f"{out}/")}
    notes = os.environ.get("CIOD_REACHED")  # of tests.reached, not of the run
    fine = ("/dev/", f"{out}/", *([f"{notes}/"] if notes else []))
    strange = {p for p in opened if not p.startswith(fine)}
    assert not strange, f"a run writes to {strange}"
    assert beside <= {Path(f).name.removesuffix(".jpg") for f in files}, f"{beside} were opened, {files} followed"
    return disk.points


class Tmpfs:
    """A disk of 320 MB that can be filled up; a run needs about 200 MB free to start."""

    def __init__(self, folder: Path):
        self.folder, self.filler = folder, folder / "filler"
        folder.mkdir(parents=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=320m", "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            folder.rmdir()
            raise PermissionError(done.stderr.decode().strip())

    def fill(self) -> None:
        fd = os.open(self.filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            room = os.statvfs(self.folder)
            if room.f_bavail:
                os.posix_fallocate(fd, os.fstat(fd).st_size, room.f_bavail * room.f_frsize)
        finally:
            os.close(fd)

    def room(self) -> None:
        self.filler.unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=False)
        with suppress(OSError):
            self.folder.rmdir()


def every(
    folder: Path, *, kinds: bool, real: bool, only: Sequence[str] = (), say: Callable[[str], None] = print
) -> tuple[list[Point], int, int]:
    """Tries the points. Returns those of the run, how many were tried, and how many runs were stopped.

    Args:
        only: parts of names of files; others are left out.

    Raises:
        AssertionError: one of them did not end as it must.
        PermissionError: ``real``, and no tmpfs may be mounted.
    """
    data = write_shapes(folder / "data", train=12, val=3, size=64)
    points = trace(data, folder / "whole")
    tries, stops = chosen(points, kinds=kinds), 0
    tries = [t for t in tries if not only or any(o in points[t].file for o in only)]
    disk = Tmpfs(folder / "disk") if real else None
    try:
        for at in tries:
            out = folder / "disk" / "run"
            stopped = check(data, folder / "whole", out, at, disk.fill if disk else no_room, disk.room if disk else int)
            stops += stopped
            say(f"full at {points[at].what} of {points[at].file} ({at}): {'stopped' if stopped else 'had room'}, equal")
            shutil.rmtree(out)
    finally:
        if disk:
            disk.close()
    return points, len(tries), stops


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--kinds", action="store_true")
    parser.add_argument("--folder", type=Path, default=None)
    given = parser.parse_args(words)
    root = (given.folder or Path(tempfile.mkdtemp(prefix="ciod-disk-"))).resolve()
    root.mkdir(parents=True, exist_ok=True)
    points, tried, stopped = every(root, kinds=given.kinds, real=given.real, say=lambda line: print(line, flush=True))
    how = "a full tmpfs" if given.real else "an injected ENOSPC"
    print(f"{len(points)} write points, {tried} tried with {how}: {stopped} runs stopped, all went on and ended equal")
    if given.folder is None:
        shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
