"""Freezing: from the second task on, only a part of the detector is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PrivateAttr
from torch import Tensor, nn

from ciod.core.errors import CiodError
from ciod.core.types import Batch
from ciod.methods.base.method import Method

if TYPE_CHECKING:
    from ciod.data.scenarios.scenario import Task


class Freeze(Method):
    """Trains only a part of the detector; the rest, including its batch statistics, stays bit-equal."""

    uses_teacher: ClassVar[bool] = False

    train: Literal["head", "class_rows", "new_rows"] = "new_rows"
    """``head``: everything except backbone and neck. ``class_rows``: the rows of all classes. ``new_rows``: only the
    rows of the new classes; logits, boxes and objectness of old classes stay bit-equal. This is not true for query
    detectors: new classes also choose queries, which may replace old ones (docs/query-detectors.md)."""

    _still: list[nn.Module] = PrivateAttr(default_factory=list)
    _stopped: list[nn.Parameter] = PrivateAttr(default_factory=list)

    @property
    def cannot_repeat(self) -> str | None:
        return (
            "train=new_rows keeps their rows as they are; write method.train=head" if self.train == "new_rows" else None
        )

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self._still, self._stopped = [], []
        if self.train == "new_rows" and self.detector.num_classes > len(task.seen_classes):
            raise CiodError(
                "method.train=new_rows needs detector.head=grow: in a full head the rows of old and new classes are "
                "one tensor, which cannot be trained in part."
            )
        if not self.old:
            return
        trained = self._trained()
        for p in self.detector.parameters():
            if p.requires_grad and id(p) not in trained:
                p.requires_grad_(False)
                self._stopped.append(p)
        for m in self.detector.modules():
            own = list(m.parameters(recurse=False))
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and not any(p.requires_grad for p in own):
                self._still.append(m)

    def _trained(self) -> set[int]:
        """Parameters that are trained, by identity."""
        if self.train == "head":
            trunk = {id(p) for part in self.detector.trunk() for p in part.parameters()}
            return {id(p) for p in self.detector.parameters()} - trunk
        first = self.old if self.train == "new_rows" else 0
        return {id(r.tensor) for r in self.detector.class_layers() if r.first >= first}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        for m in self._still:  # the engine puts the detector into train mode; a frozen layer keeps its statistics
            m.eval()
        return super().loss(batch)

    def end_task(self, task: Task) -> None:
        for p in self._stopped:
            p.requires_grad_(True)
