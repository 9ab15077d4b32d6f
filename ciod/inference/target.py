"""Where ``ciod predict`` writes: names that no other file of a call has, and nothing of the user's overwritten."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ciod.core.errors import CiodError
from ciod.core.files import explained, is_file
from ciod.core.reading import Unreadable, read_json, read_text

LISTED = "predictions.json"
UNFINISHED = ".unfinished"  # one line per file that a call wrote before it ended early


class Target:
    """The folder of one call.

    Args:
        out: the folder, which may be there.
        pictures, films: the inputs.
        draw: whether pictures and videos are written beside the JSON.
        coco: file for COCO results.
        overwrite: whether an earlier prediction, and other files of the same names, may be replaced.

    Raises:
        CiodError: something is there that would be overwritten.
    """

    def __init__(
        self,
        out: Path,
        pictures: Sequence[Path],
        films: Sequence[Path],
        *,
        draw: bool = True,
        coco: Path | None = None,
        overwrite: bool = False,
    ):
        self.out, taken = out, set[str]()
        self.stems = {path: _free(path.stem, taken) for path in (*pictures, *films)}
        self.drawn = {path: f"{self.stems[path]}.jpg" for path in pictures} if draw else {}
        names = [*self.drawn.values(), *([LISTED] if pictures else [])]
        for path in films:
            names += [f"{self.stems[path]}.jsonl", *([f"{self.stems[path]}.mp4"] if draw else [])]
        targets = [*(out / name for name in names), *([coco] if coco else [])]
        if coco is not None and _same(coco, out / LISTED):
            raise CiodError(f"coco: {coco} is the file of the predictions themselves; choose another name.")
        self._keep_inputs(targets, [*pictures, *films])
        if coco is not None and is_file(coco) and not _is_results(coco):
            raise CiodError(f"coco: {coco} exists and is not a file of COCO results; choose another name.")
        if not overwrite:
            self._keep_all(targets, coco)
        self._earlier = _drawn_before(out) if overwrite else set()

    def _keep_inputs(self, targets: Sequence[Path], inputs: Sequence[Path]) -> None:
        real = {os.path.realpath(path): path for path in inputs}
        for target in targets:
            if (path := real.get(os.path.realpath(target))) is not None:
                raise CiodError(f"out: {target} is {path}, one of the inputs, which is never overwritten.")

    def _keep_all(self, targets: Sequence[Path], coco: Path | None) -> None:
        # a device or a pipe (/dev/stdout) is written into
        own = {self.out / name for name in _unfinished(self.out)}
        there = [t for t in targets if os.path.lexists(t) and (is_file(t) or t.is_symlink() or t.is_dir())]
        there = [t for t in there if t not in own or not is_file(t)]
        if not there:
            return
        key = "coco" if there == [coco] else "out"
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        what = "holds an earlier prediction" if LISTED in {t.name for t in there} else "would be overwritten in part"
        where = there[0] if key == "coco" else self.out
        raise CiodError(
            f"{key}: {where} {what if key == 'out' else 'already exists'} ({there[0].name}{more}). Choose another "
            f"{key}=, or write overwrite=true."
        )

    def begin(self, name: str) -> None:
        """Notes that ``name`` is written now: if this call ends early, the same command replaces it."""
        path = self.out / UNFINISHED
        with explained(path, len(name) + 1), path.open("a", encoding="utf-8") as file:
            file.write(f"{name}\n")

    def end(self) -> None:
        """Everything is written."""
        (self.out / UNFINISHED).unlink(missing_ok=True)

    def finish(self, drawn: set[str]) -> None:
        """Removes what an earlier prediction drew and this one did not, before the new list of predictions is written.

        Args:
            drawn: names of what this one drew.
        """
        for name in self._earlier - drawn:
            with suppress(OSError):
                (self.out / name).unlink()


def _free(stem: str, taken: set[str]) -> str:
    """A name that no other file of this call has: equal names come from several folders."""
    while stem in taken:
        stem += "_"
    taken.add(stem)
    return stem


def _same(a: Path, b: Path) -> bool:
    return os.path.realpath(a) == os.path.realpath(b)


def _unfinished(out: Path) -> list[str]:
    """Names of the files in ``out`` that a call wrote before it ended early."""
    try:
        return read_text(out / UNFINISHED).splitlines()
    except Unreadable:
        return []


def _drawn_before(out: Path) -> set[str]:
    """Names of pictures in ``out`` that an earlier prediction says it drew."""
    try:
        listed = read_json(out / LISTED)
    except Unreadable:
        return set()
    names = [line.get("drawn") for line in listed if isinstance(line, dict)] if isinstance(listed, list) else []
    # a list of unknown origin must not lead to a file elsewhere, nor to one that is not a drawn picture
    return {n for n in names if isinstance(n, str) and Path(n).name == n and n.endswith(".jpg") and is_file(out / n)}


def _is_results(path: Path) -> bool:
    """Whether a file begins as COCO results do: with a list."""
    try:
        with path.open("rb") as file:
            return file.read(64).lstrip()[:1] == b"["
    except OSError:
        return False
