"""Methods that learn from a second teacher, too: an interim model, which knows a task's new classes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from ciod.detectors.base import Detector

TRAIN = "train"  # the value of a setting: the run trains the interim models


@runtime_checkable
class TakesInterim(Protocol):
    """A method for which ``ciod train`` trains an interim model before each later task."""

    @property
    def trains_interim(self) -> bool:
        """Whether the settings ask for it."""
        ...

    def take_interim(self, model: Detector) -> None:
        """Called before ``begin_task`` of a later task, with a frozen model of the task's new classes."""
        ...
