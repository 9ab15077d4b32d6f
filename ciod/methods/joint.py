"""Joint training: the upper bound. One task with the boxes of every class."""

from __future__ import annotations

from typing import ClassVar

from ciod.methods.base.method import Method


class Joint(Method):
    """Fine-tuning on all classes and all boxes at once (the scenario's ``joint`` switch): the upper bound."""

    uses_teacher: ClassVar[bool] = False
