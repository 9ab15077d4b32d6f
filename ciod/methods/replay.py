"""Replay: fine-tuning with an exemplar memory. A few old images preserve much."""

from __future__ import annotations

from typing import Any, ClassVar

from ciod.methods.finetune import Finetune


class Replay(Finetune):
    """Fine-tuning with a tenth of the old images in half of every batch; see the settings ``memory.…``.

    Any other method can use the same memory: ``method=ilyolox memory=50``.
    """

    run_defaults: ClassVar[dict[str, Any]] = {"memory.size": 0.1}
