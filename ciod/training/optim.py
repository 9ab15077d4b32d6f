"""Optimiser, learning rate and averaged weights of one task."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from ciod.config.load import Train


def optimizer(model: nn.Module, settings: Train, lr: float) -> torch.optim.Optimizer:
    """Over trainable parameters; biases and normalisation without weight decay unless ``decay_norms``.

    Each group has a ``scale``, which its learning rate is multiplied by: ``backbone_lr`` and ``trunk_lr``.
    """
    groups = [g for g in _groups(model, settings) if g["params"]]
    for g in groups:
        g["lr"] = lr * g["scale"]
    if settings.optimizer == "sgd":
        nesterov = settings.nesterov and settings.momentum > 0
        return torch.optim.SGD(groups, lr=lr, momentum=settings.momentum, nesterov=nesterov, fused=True)
    # fused: hundreds of small tensors in one call, each read once; by default a CPU processes them one by one
    return torch.optim.AdamW(groups, lr=lr, betas=(settings.momentum, 0.999), fused=True)


def trunk_scales(model: nn.Module, settings: Train) -> list[tuple[nn.Module, float]]:
    """The parts of the trunk, backbone first, and the factors of their learning rates."""
    first = settings.trunk_lr if settings.backbone_lr is None else settings.backbone_lr
    parts = getattr(model, "trunk", list)()
    return [(part, settings.trunk_lr if i else first) for i, part in enumerate(parts)]


def _groups(model: nn.Module, settings: Train) -> list[dict[str, Any]]:
    """The groups at the full rate come first: the logged learning rate is that of the first group."""
    scales = {p: scale for part, scale in trunk_scales(model, settings) for p in part.parameters()}
    kinds: dict[tuple[float, bool], list[nn.Parameter]] = {
        (scale, decays): [] for scale in dict.fromkeys([1.0, *scales.values()]) for decays in (True, False)
    }
    for name, p in model.named_parameters():
        if p.requires_grad:  # a bias may have two dimensions: one row per class, one entry per anchor
            weight = p.dim() > 1 and not name.endswith("bias")
            kinds[scales.get(p, 1.0), weight or settings.decay_norms].append(p)
    return [
        {
            "params": params,
            "weight_decay": settings.weight_decay if decays else 0.0,
            "scale": scale,
        }
        for (scale, decays), params in kinds.items()
    ]


def warmup_steps(total: int, settings: Train) -> int:
    """Steps of warm-up in a task of ``total`` steps."""
    return min(settings.warmup, int(total * settings.warmup_share))


def rate(step: int, total: int, settings: Train, lr: float) -> float:
    """Learning rate of a step: linear warm-up, then cosine to 1 % or ×0.1 at the milestones.

    Warm-up is at most a fifth of the task by default: small tasks would otherwise be all warm-up (ilYOLOX trap T12).
    """
    warm = warmup_steps(total, settings)
    if step < warm:
        return lr * (0.001 + 0.999 * step / warm)
    if settings.schedule == "step":
        return lr * 0.1 ** sum(step >= m * total for m in settings.milestones)
    progress = (step - warm) / max(1, total - warm)
    return lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


class EMA:
    """Exponential moving average of weights and statistics, starting fast: after n steps the decay is at most
    (1 + n) / (10 + n), so that short tasks are averaged too."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.steps = decay, 0
        # Listed once: the model's tensors are changed in place, and listing them costs as much as averaging them.
        self.model, self.now = model, {k: v.detach() for k, v in model.state_dict().items()}
        self.state = {k: v.clone() for k, v in self.now.items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Call after each step of ``model``, which must be the model given to the constructor."""
        assert model is self.model
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        floats = [k for k, v in self.now.items() if v.dtype.is_floating_point]
        torch._foreach_lerp_([self.state[k] for k in floats], [self.now[k] for k in floats], 1 - decay)
        for k in self.now.keys() - floats:
            self.state[k].copy_(self.now[k])

    def copy_to(self, model: nn.Module) -> None:
        model.load_state_dict(self.state)
