"""Weights & Biases. Project, entity, server and offline mode are those of its environment variables."""

from __future__ import annotations

import importlib
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ciod.trackers.base import Run


class Wandb:
    keeps_all = False

    def open(self, run: Run) -> str:
        self.wandb = importlib.import_module("wandb")
        # its own identifiers are drawn from the generator that a run is seeded with
        identifier = run.id or uuid.uuid4().hex[:12]
        self.run: Any = self.wandb.init(
            id=identifier,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", "ciod"),
            name=run.name,
            group=os.environ.get("WANDB_RUN_GROUP", run.group),
            dir=str(run.folder),
            config=dict(run.config),
            settings=self.wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )
        return identifier

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, Any], files: Sequence[Path], pictures: Sequence[Path]) -> None:
        if pictures:
            shown = [self.wandb.Image(str(f), caption=f"{f.parent.parent.name} {f.stem}") for f in pictures]
            self.run.log({"examples": shown})
        self.run.summary.update(dict(summary))
        report = self.wandb.Artifact(f"ciod-{self.run.id}", type="report")
        for file in files:
            report.add_file(str(file), name=file.name)
        self.run.log_artifact(report)

    def close(self) -> None:
        self.run.finish()


def make() -> Wandb:
    return Wandb()
