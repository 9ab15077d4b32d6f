"""Trackio. Its folder or Space is that of its own environment variables; the project that of ``TRACKIO_PROJECT``."""

from __future__ import annotations

import importlib
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ciod.trackers.base import Run, flat


class Trackio:
    keeps_all = True

    def open(self, run: Run) -> str:
        self.trackio = importlib.import_module("trackio")
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
        return name

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)
        self.step = step

    def finish(self, summary: Mapping[str, Any], files: Sequence[Path], pictures: Sequence[Path]) -> None:
        del files  # it keeps numbers, text and pictures
        shown = {f"{f.parent.parent.name}/{f.stem}": self.trackio.Image(str(f)) for f in pictures}
        self.run.log({**flat(summary), **shown}, step=self.step)

    def close(self) -> None:
        self.run.finish()

    step = 0


def make() -> Trackio:
    return Trackio()
