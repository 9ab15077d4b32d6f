"""Fine-tuning: the lower bound. Nothing is done against forgetting."""

from __future__ import annotations

from typing import ClassVar

from ciod.methods.method import Method


class Finetune(Method):
    """Trains on the new classes' boxes alone. What it forgets is what there is to save."""

    uses_teacher: ClassVar[bool] = False
