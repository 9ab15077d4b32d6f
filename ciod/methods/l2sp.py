"""L2-SP: a penalty keeps the weights near those of the previous task (Li et al., ICML 2018, arXiv 1802.01483)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from ciod.core.types import Batch
from ciod.methods.base.method import Method
from ciod.methods.base.parameters import Shared, shared

if TYPE_CHECKING:
    from ciod.data.scenarios.scenario import Task


class L2SP(Method):
    """Fine-tuning + λ/2 · ‖θ − θ*‖², θ* the weights before the task; rows of new classes are free."""

    uses_teacher: ClassVar[bool] = False
    paper: ClassVar[str] = "Explicit Inductive Bias for Transfer Learning with Convolutional Networks (Li et al., 2018)"

    weight: Annotated[float, Field(ge=0)] = 0.1
    """λ; common values are 0.01 to 1."""

    _held: list[tuple[Shared, Tensor]] = PrivateAttr(default_factory=list)

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        parts = shared(self.detector, self.old) if self.old else ()
        self._held = [(p, p.tensor.detach().clone()) for p in parts if p.tensor.requires_grad]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        losses = super().loss(batch)
        if self._held:
            moved = [part.kept(part.tensor - there).square().sum() for part, there in self._held]
            losses["l2sp"] = self.weight / 2 * torch.stack(moved).sum()
        return losses
