"""Trackio. Its folder or Space is that of its own environment variables; the project that of ``TRACKIO_PROJECT``."""

from __future__ import annotations

import importlib
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ciod.trackers.base import Run, flat

REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
"""With one of these it sends to a Space or server."""


class Trackio:
    keeps_all = False  # it writes from a queue, which a killed process loses
    step = 0

    def __init__(self) -> None:
        self.stored: set[tuple[int, str]] = set()  # step and name of the numbers of an earlier process

    def open(self, run: Run) -> str:
        self.trackio = importlib.import_module("trackio")
        self.keeps_all = any(os.environ.get(v) for v in REMOTE)  # what a server has cannot be read from here
        # only the name distinguishes the runs of a project
        name = run.id or f"{run.name}-{uuid.uuid4().hex[:6]}"
        self.run: Any = self.trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "ciod"),
            name=name,
            group=run.group,
            resume="allow",
            config=flat(run.config),
            embed=False,
            auto_log_gpu=False,
        )
        if run.id and not self.keeps_all:
            storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
            rows = storage.get_logs(self.run.project, self.run.name, scalar_only=True)
            self.stored = {(row["step"], key) for row in rows for key in row}
        return name

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.step = step
        fresh = {k: v for k, v in values.items() if (step, k) not in self.stored}
        if fresh:
            self.run.log(fresh, step=step)

    def finish(self, summary: Mapping[str, Any], files: Sequence[Path], pictures: Sequence[Path]) -> None:
        del files  # it keeps numbers, text and pictures
        shown = {f"{f.parent.parent.name}/{f.stem}": self.trackio.Image(str(f)) for f in pictures}
        self.run.log({**flat(summary), **shown}, step=self.step)

    def close(self) -> None:
        self.run.finish()


def make() -> Trackio:
    return Trackio()
