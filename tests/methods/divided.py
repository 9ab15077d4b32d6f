"""A step of a second task on a share of four images, for a test of two processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ciod import detectors
from ciod.methods import find
from ciod.methods.abr import ABR
from tests import fixed
from tests.detectors.common import SIZE, bn_eval, pictures

OLD, NEW = ("ant", "bee"), ("cow", "dog", "eel")
LIKELY: dict[str, dict[str, Any]] = {"pseudo_label": {"score": 0.3}, "bpf": {"score": 0.3}, "query_kd": {"score": 0.3}}
"""Settings with which a teacher that knows little teaches something."""
CASES = [
    ("freeze_branch", "rtdetr-pico"),
    ("pseudo_label", "rtdetr-pico"),
    ("query_kd", "dfine-pico"),
    ("mma", "fasterrcnn-pico"),
    ("abr", "fasterrcnn-pico"),
    ("bpf", "fasterrcnn-pico"),
]


def gradients(method: str, name: str, rank: int = 0, size: int = 1) -> dict[str, Tensor]:
    """The gradients of a step on this rank's share of four images with 3, 0, 1 and 2 boxes of new classes."""
    torch.manual_seed(0)
    detector = detectors.build(OLD, name=name, size=SIZE)
    for rows in detector.class_layers():
        nn.init.normal_(rows.tensor, std=0.5)
    made = find(method)(**LIKELY.get(method, {}))
    teacher = detector.frozen() if made.uses_teacher else None
    made.grow(detector, NEW)
    with torch.no_grad():
        for p in detector.parameters():
            p.add_(torch.randn_like(p), alpha=-0.02)
    if isinstance(made, ABR):  # two kept boxes of each old class
        labels = torch.tensor([0, 1, 0, 1])
        pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
        made.load_state({"pixels": pixels, "shapes": torch.full((4, 2), 0.25), "labels": labels})
    made.attach(detector, detector, teacher)
    made.begin_task(fixed.task(OLD, NEW))
    bn_eval(detector.train())
    made.attach(nn.parallel.DistributedDataParallel(detector) if size > 1 else detector, detector, teacher)
    mine = slice(4 * rank // size, 4 * (rank + 1) // size)
    targets = fixed.boxes_at_random(4, [3, 0, 1, 2], classes=len(NEW), size=SIZE)
    targets = replace(targets, labels=targets.labels + len(OLD) * targets.valid)
    share = replace(targets, **{k: getattr(targets, k)[mine] for k in ("boxes", "labels", "valid")})
    losses = made.loss(fixed.batch(share, pictures(4)[mine]))
    assert size > 1 or all(v > 0 for v in losses.values()), losses
    torch.stack(list(losses.values())).sum().backward()
    return {n: p.grad for n, p in detector.named_parameters() if p.grad is not None}
