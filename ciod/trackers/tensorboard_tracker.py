"""TensorBoard: event files in ``tensorboard/`` of the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ciod.trackers.base import Run


class TensorBoard:
    """A process writes one event file; TensorBoard joins those of a folder into one run."""

    keeps_all = True

    def open(self, run: Run) -> str:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(run.folder / "tensorboard"), flush_secs=10)
        if run.id is None:
            self.writer.add_text("settings", _code(run.config), 0)
        return "tensorboard"

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.step = step

    def finish(self, summary: Mapping[str, Any], files: Sequence[Path], pictures: Sequence[Path]) -> None:
        import numpy as np
        from PIL import Image

        self.writer.add_text("summary", _code(summary), self.step)
        self.writer.add_text("files", "\n".join(f"- {f}" for f in files), self.step)
        for file in pictures:
            with Image.open(file, formats=("JPEG", "PNG")) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self.writer.add_image(f"{file.parent.parent.name}/{file.stem}", pixels, self.step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()

    step = 0


def _code(content: Any) -> str:
    """JSON as a block of code in Markdown."""
    return "\n".join(f"    {line}" for line in json.dumps(content, indent=1, ensure_ascii=False).splitlines())


def make() -> TensorBoard:
    return TensorBoard()
