"""Joint training: the upper bound. One task with the boxes of every class."""

from __future__ import annotations

from typing import ClassVar

from ciod.methods.base.method import Method


class Joint(Method):
    """Fine-tuning with the scenario's ``joint`` switch on: it sees all old data, which the other methods may not."""

    uses_teacher: ClassVar[bool] = False
