"""Marks of a setting in addition to its type: which results it changes.

>>> class Train(BaseModel):
...     workers: Annotated[int, NO_RESULT] = 0
...     lr_later: Annotated[float, LATER_TASKS] = 0.1
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True)
class Effect:
    """The mark itself, in a field's ``Annotated``. A setting without one changes weights or results of every task."""

    on: str


NO_RESULT = Effect("nothing")
"""Changes neither the weights nor the results of a run: it may differ when a run is resumed."""
LATER_TASKS = Effect("later tasks")
"""Does not affect the first task: runs that differ in it can share one."""


def marked(model: type[BaseModel], mark: Effect) -> frozenset[str]:
    """Dotted keys of the settings of ``model`` with this mark; a marked section is one key."""
    return frozenset(key for key, annotations in _marks(model) if mark in annotations)


def _marks(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field.metadata
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _marks(kind, f"{prefix}{name}.")
