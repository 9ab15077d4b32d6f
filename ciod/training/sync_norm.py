"""Batch normalisation with one set of statistics over all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Sum(torch.autograd.Function):
    """Sum over processes; the gradient is summed in the same way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient


class SyncNorm(nn.BatchNorm2d):
    """In train mode mean and variance are those of the batch over all processes, which have equal numbers of images.

    PyTorch's own class runs only on GPUs. Statistics are float32; sums are taken around the running mean, which is the
    same in all processes, so that squares do not cancel.
    """

    def forward(self, x: Tensor) -> Tensor:
        alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
        if not self.training or alone:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        ranks = dist.get_world_size()
        shift = self.running_mean.clone()
        y = x.float() - shift[:, None, None]
        mean, square = _Sum.apply(torch.stack([y.mean((0, 2, 3)), y.square().mean((0, 2, 3))])).unbind()
        mean, square = mean / ranks, square / ranks
        var = (square - mean.square()).clamp(min=0)
        with torch.no_grad():
            n = ranks * y.numel() // y.shape[1]
            self.running_mean.lerp_(shift + mean, self.momentum)
            self.running_var.lerp_(var * n / max(1, n - 1), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = self.weight * (var + self.eps).rsqrt()
        return ((y - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def synchronise(module: nn.Module) -> None:
    """Replaces every trainable batch normalisation below ``module`` by a SyncNorm with its weights and statistics."""
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d) or isinstance(child, SyncNorm):
            synchronise(child)
            continue
        if not child.affine or not child.track_running_stats or child.momentum is None:
            continue
        new = SyncNorm(child.num_features, child.eps, child.momentum, device="meta")
        new.weight, new.bias = child.weight, child.bias
        new.running_mean, new.running_var = child.running_mean, child.running_var
        new.num_batches_tracked = child.num_batches_tracked
        setattr(module, name, new.train(child.training))
