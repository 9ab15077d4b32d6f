"""Merging: the weights from before and after a task are averaged.

``average`` is WiSE-FT (Wortsman et al., CVPR 2022, arXiv 2109.01903); ``duet`` is the layer-wise rule of DuET
(ICCV 2025), from a summary of the paper, not from its code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from ciod.core.types import Batch
from ciod.methods.base.method import Method
from ciod.methods.base.parameters import Shared, shared

if TYPE_CHECKING:
    from ciod.data.scenarios.scenario import Task
    from ciod.detectors.base import Detector


class Merge(Method):
    """Fine-tunes, then merges old and new weights; rows of new classes stay as trained."""

    uses_teacher: ClassVar[bool] = False
    paper: ClassVar[str] = "DuET: Dual Incremental Object Detection via Exemplar-Free Task Arithmetic (2025)"

    rule: Literal["average", "duet"] = "average"
    """``average``: θ = m·θ_old + (1 − m)·θ_new. ``duet``: m is chosen per tensor from how far each task moved
    it, and the rows of old classes are restored."""
    m: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the old weights; a_base of ``duet``."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.5
    """γ of ``duet``: how far a tensor's share may be from ``m``. The paper's value is not known to us."""
    direction: Annotated[float, Field(ge=0)] = 0.0
    """Weight of DuET's direction loss, Σ ReLU(−Δ_t · Δ_{t−1}) over tensors: Δ_t is the change of the weights in this
    task, Δ_{t−1} that in the previous task. 0: off."""

    _base: dict[str, Tensor] = PrivateAttr(default_factory=dict)  # θ_0
    _before: dict[str, Tensor] = PrivateAttr(default_factory=dict)  # θ_{t-1}
    _earlier: dict[str, Tensor] = PrivateAttr(default_factory=dict)  # θ_{t-2}
    _pulled: list[tuple[Shared, Tensor, Tensor]] = PrivateAttr(default_factory=list)

    @property
    def needs_first_task(self) -> bool:
        return self.rule == "duet" or self.direction > 0  # both measure what the first task moved

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        now = _snapshot(self.detector)
        if not self.old:
            self._base = now
            self._earlier = now
            self._before, self._pulled = {}, []
            return
        self._before = now
        self._pulled = [
            (p, now[p.name], now[p.name] - self._earlier[p.name].to(p.tensor.device))
            for p in (shared(self.detector, self.old) if self.direction else ())
            if not p.of_classes and p.tensor.requires_grad and p.name in self._earlier
        ]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        losses = super().loss(batch)
        if self._pulled:
            against = [torch.relu(-((p.tensor - there) * last).sum()) for p, there, last in self._pulled]
            losses["direction"] = self.direction * torch.stack(against).sum()
        return losses

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        if not self._before:
            return
        rows = {r.name: r.first for r in self.detector.class_layers()}
        learnt = set(dict(self.detector.named_parameters()))
        for name, new in self.detector.state_dict().items():
            if not new.dtype.is_floating_point:
                continue
            old = self._before.get(name)
            if name in rows:
                n = max(0, min(len(new), self.old - rows[name]))
                if n and old is not None:
                    share = 1.0 if self.rule == "duet" else self.m
                    new[:n] = new[:n].lerp(old[:n], share)
            elif old is not None and self.rule == "duet" and name in learnt and name in self._base:
                new.copy_(self.duet(self._base[name].to(new.device), old, new))
            elif old is not None:  # batch statistics too: task arithmetic could make a variance negative
                new.lerp_(old, self.m)
        self._earlier = self._before

    def duet(self, base: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """One tensor by DuET's rule: θ_0 + a·τ_old + (1 − a)·τ_cur, which is a·θ_before + (1 − a)·θ_after."""
        old, cur = before - base, after - base
        p = (old.norm() - cur.norm()) / ((old + cur).norm() + 1e-8)
        a = (self.m + self.gamma * torch.tanh(p)).clamp(0, 1)
        return after.lerp(before, a)

    def state(self) -> dict[str, Any]:
        kept = {"base": self._base if self.rule == "duet" else {}, "earlier": self._earlier if self.direction else {}}
        return {k: dict(v) for k, v in kept.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        self._base, self._earlier = dict(state.get("base", {})), dict(state.get("earlier", {}))


def _snapshot(detector: Detector) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in detector.state_dict().items() if v.dtype.is_floating_point}
