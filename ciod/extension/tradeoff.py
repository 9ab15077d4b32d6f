"""Between the old model and the new: weights are interpolated and every mixture is measured on held-out data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ciod.detectors.base import Detector

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass
class Mixture:
    """One place on the way: ``share`` of the step from the old weights to the new."""

    share: float
    kept: float | None  # retention
    learnt: float | None  # AP50 of the classes that were taught

    def row(self) -> dict[str, Any]:
        return {"share": self.share, "kept": self.kept, "learnt": self.learnt}


def moved(old: dict[str, Tensor], new: dict[str, Tensor]) -> bool:
    """Whether any weight that both models have differs."""
    weights = {k: v for k, v in old.items() if not k.startswith("arbiter.")}  # statistics, not weights
    return any(k in new and v.shape == new[k].shape and not torch.equal(v, new[k].to(v)) for k, v in weights.items())


def mix(old: dict[str, Tensor], new: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights ``share`` of the way from old to new (WiSE-FT, Wortsman et al., CVPR 2022).

    Tensors only the new model has (rows and branches of new classes) are the new model's.
    """
    out = {}
    for k, v in new.items():
        before = old.get(k)
        same = before is not None and before.shape == v.shape and v.dtype.is_floating_point
        out[k] = torch.lerp(before.to(v), v, share) if same and before is not None else v.clone()
    return out


def scan(
    old: Detector,
    new: Detector,
    measure: Callable[[Detector], tuple[float | None, float | None]],
    shares: Sequence[float] = SHARES,
) -> list[Mixture]:
    """Measures (retention, AP50 of the taught classes) at every share. ``new`` is not changed."""
    before, after = old.state_dict(), new.state_dict()
    model = copy.deepcopy(new)
    found = []
    for share in shares:
        model.load_state_dict(mix(before, after, share))
        found.append(Mixture(share, *measure(model)))
    return found


def best(mixtures: Sequence[Mixture], least: float | None) -> Mixture:
    """The mixture that learnt most among those that keep ``least``; if none does, the one that keeps most."""
    keeping = [m for m in mixtures if m.kept is not None and (least is None or m.kept >= least)]
    if keeping:
        return max(keeping, key=lambda m: (m.learnt or 0.0, m.kept or 0.0))
    return max(mixtures, key=lambda m: (m.kept or 0.0, m.learnt or 0.0))
