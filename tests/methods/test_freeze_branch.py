"""freeze_branch trains the newest branch and nothing else."""

from __future__ import annotations

import torch

from ciod import detectors
from ciod.config.settings import Train
from ciod.methods.freeze_branch import FreezeBranch
from ciod.training import optim
from ciod.training.loop import train_mode
from tests import fixed


def test_steps_change_only_the_branch():
    torch.manual_seed(0)
    detector = detectors.build(("ant", "bee"), name="yolox-pico", size=64)
    method = FreezeBranch()
    method.grow(detector, ["cow"], ["bee"])
    step = {"branch": 1, "taught": ["bee"], "inner": [4, 12, 20], "refine": 16, "rescore": True}
    assert detector.growth[-1] == step
    method.attach(detector, detector, None)
    method.begin_task(fixed.task(("ant", "bee"), ("cow",)))
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    optimizer, ema = optim.optimizer(detector, Train(), 0.01), optim.EMA(detector, 0.9)
    detector.train()
    train_mode(detector, method, "auto", task=1)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    for _ in range(3):
        losses = method.loss(fixed.batch(fixed.boxes_at_random(1, [2, 1], classes=3), images))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        ema.update(detector)
    ema.copy_to(detector)
    changed = {k for k, v in detector.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(k.startswith("branches.0.") for k in changed)
    assert any(k.endswith("running_mean") for k in changed), (
        "the branch gathers statistics although norm=auto keeps them"
    )


def test_an_earlier_branch_keeps_its_statistics():
    detector = detectors.build(("ant", "bee"), name="yolox-pico", size=64)
    method = FreezeBranch()
    for name in ("cow", "dog"):
        method.grow(detector, [name])
    method.attach(detector, detector, None)
    method.begin_task(fixed.task(("ant", "bee", "cow"), ("dog",)))
    train_mode(detector, method, "auto", task=1)
    norms = {n: m.training for n, m in detector.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert {n.startswith("branches.1.") for n, training in norms.items() if training} == {True}
    assert not any(training for n, training in norms.items() if not n.startswith("branches.1."))
    assert any(n.startswith("branches.0.") for n in norms)


def test_the_first_task_is_plain_training():
    detector = detectors.build((), name="yolox-pico", size=64)
    method = FreezeBranch()
    method.grow(detector, ["ant"])
    assert detector.growth == [{"rows": 1}] and not len(detector.branches)
    method.attach(detector, detector, None)
    method.begin_task(fixed.task((), ("ant",)))
    assert all(p.requires_grad for p in detector.parameters())
