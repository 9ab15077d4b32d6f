"""EWC, elastic weight consolidation: weights that matter for old tasks are penalised for changes, the others are free.

Kirkpatrick et al., PNAS 2017, arXiv 1612.00796; the running sum over tasks is online EWC (Schwarz et al., ICML 2018).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from ciod.core.types import Batch
from ciod.methods.base.method import Method
from ciod.methods.base.parameters import Shared, shared

if TYPE_CHECKING:
    from ciod.data.scenarios.scenario import Task


class EWC(Method):
    """Fine-tuning + λ/2 · Σ F (θ − θ*)², F the Fisher information of earlier tasks."""

    uses_teacher: ClassVar[bool] = False
    paper: ClassVar[str] = "Overcoming catastrophic forgetting in neural networks (Kirkpatrick et al., 2017)"

    weight: Annotated[float, Field(ge=0)] = 1000.0
    """λ; common values are 1e1 to 1e5."""
    decay: Annotated[float, Field(ge=0, le=1)] = 1.0
    """γ: factor on the Fisher information of earlier tasks at the end of a task (online EWC)."""
    normalise: bool = True
    """Divide F by its largest value, so that λ means the same for every detector."""
    quantile: Annotated[float, Field(gt=0, le=1)] = 0.999
    """Before that, values above this quantile are clipped to it: a few are orders of magnitude larger than all
    others, and divided by the largest the rest would be nearly zero. 1: no limit."""
    images: Annotated[int, Field(ge=1)] = 200
    """F is the mean over this number of the task's training images, evenly spaced in its list."""

    _fisher: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    _held: list[tuple[Shared, Tensor, Tensor]] = PrivateAttr(default_factory=list)

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self._held = []
        for part in shared(self.detector, self.old) if self.old else ():
            if part.tensor.requires_grad and part.name in self._fisher:
                fisher = self._fisher[part.name].to(part.tensor.device)
                self._held.append((part, part.tensor.detach().clone(), part.kept(fisher)))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        losses = super().loss(batch)
        if self._held:
            moved = [(fisher * (part.tensor - there).square()).sum() for part, there, fisher in self._held]
            losses["ewc"] = self.weight / 2 * torch.stack(moved).sum()
        return losses

    def end_task(self, task: Task) -> None:
        fresh = self._limited(self.fisher(task))
        for name, value in fresh.items():
            before = self._fisher.get(name)
            self._fisher[name] = value if before is None else self.decay * before.to(value.device) + value

    def fisher(self, task: Task) -> dict[str, Tensor]:
        """Mean over images of the squared gradient of the detector's whole loss, in eval mode, one image at a time."""
        from ciod.data.loader import eval_loader

        detector, count = self.detector, 0
        training = {m: m.training for m in detector.modules()}
        detector.eval()
        named = [(n, p) for n, p in detector.named_parameters() if p.requires_grad]
        total = {n: torch.zeros_like(p) for n, p in named}
        rows = range(0, len(task.train), max(1, len(task.train) // self.images))[: self.images]
        given = detector.input
        how = {"batch": 1, "workers": 0, "pin": False, "rows": rows, "place": given.place}
        loader = eval_loader(task.train, given.size, given.fill, **how)
        for batch in loader:
            if batch.broken:
                continue
            batch = batch.to(detector.device)
            with torch.enable_grad():
                outputs = detector(batch.images)
                losses = detector.loss(outputs, batch.targets, detector.match(outputs, batch.targets))
                found = torch.autograd.grad(sum(losses.values()), [p for _, p in named], allow_unused=True)  # type: ignore
            count += 1
            for (name, _), g in zip(named, found, strict=True):
                if g is not None:
                    total[name] += g.square()
        for m, was in training.items():
            m.training = was
        return {n: v / max(1, count) for n, v in total.items()}

    def _limited(self, fisher: dict[str, Tensor]) -> dict[str, Tensor]:
        values = torch.cat([v.flatten() for v in fisher.values()]) if fisher else torch.zeros(1)
        rank = max(1, round(self.quantile * len(values)))
        limit = values.kthvalue(rank).values
        limit = torch.where(limit > 0, limit, values.max())
        scale = limit.clamp(min=1e-30) if self.normalise else torch.ones_like(limit)
        return {n: v.minimum(limit) / scale for n, v in fisher.items()}

    def state(self) -> dict[str, Any]:
        return {"fisher": dict(self._fisher)}

    def load_state(self, state: dict[str, Any]) -> None:
        self._fisher = dict(state.get("fisher", {}))
