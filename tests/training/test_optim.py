"""Learning rate, optimiser groups and averaged weights by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from ciod import detectors
from ciod.config.load import Train
from ciod.training import optim

COSINE = Train(schedule="cosine", warmup=10)
STEP = Train(schedule="step", warmup=10, milestones=[0.5, 0.75])


@pytest.mark.parametrize(
    ("settings", "step", "total", "share"),
    [
        (COSINE, 0, 110, 0.001),  # warm-up from a thousandth
        (COSINE, 5, 110, 0.5005),
        (COSINE, 10, 110, 1.0),
        (COSINE, 60, 110, 0.505),  # half way: (1 + 0.01) / 2
        (COSINE, 109, 110, 0.01 + 0.99 * 0.000246719),
        (COSINE, 110, 110, 0.01),
        (STEP, 5, 100, 0.5005),
        (STEP, 10, 100, 1.0),
        (STEP, 49, 100, 1.0),
        (STEP, 50, 100, 0.1),
        (STEP, 74, 100, 0.1),
        (STEP, 75, 100, 0.01),
        (STEP, 99, 100, 0.01),
        (Train(warmup=1500), 19, 100, 0.001 + 0.999 * 19 / 20),  # at most a fifth of the task
        (Train(warmup=1500), 20, 100, 1.0),
        (Train(warmup=0), 0, 100, 1.0),
        (Train(warmup=10), 0, 3, 1.0),  # a task of three steps has no warm-up
        (COSINE, 0, 1, 1.0),
    ],
)
def test_rate(settings, step, total, share):
    assert optim.rate(step, total, settings, 2.0) == pytest.approx(2.0 * share, rel=1e-4)


def test_rate_of_the_paper():
    """ilyolox.md .6: 12 epochs, ×0.1 from the ninth and ×0.01 from the twelfth."""
    paper = Train(schedule="step", warmup=0, milestones=[8 / 12, 11 / 12])
    rates = [optim.rate(epoch * 100, 1200, paper, 0.02) for epoch in range(12)]
    assert rates == pytest.approx([0.02] * 8 + [0.002] * 3 + [0.0002])


def test_rate_never_rises_after_warm_up():
    for settings in (COSINE, STEP):
        rates = [optim.rate(s, 200, settings, 1.0) for s in range(200)]
        assert all(a < b for a, b in pairwise(rates[:11])) and all(a >= b for a, b in pairwise(rates[10:]))
        assert min(rates) > 0


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_biases_and_normalisation_do_not_decay(name):
    groups = optim.optimizer(net(), Train(optimizer=name, weight_decay=0.1), 0.5).param_groups
    assert [(g["weight_decay"], len(g["params"]), g["lr"]) for g in groups] == [(0.1, 2, 0.5), (0.0, 4, 0.5)]
    (everything,) = optim.optimizer(net(), Train(optimizer=name, decay_norms=True), 0.5).param_groups
    assert len(everything["params"]) == 6


def test_the_trunk_has_a_rate_of_its_own():
    detector = detectors.build(["a"], name="yolox-pico", size=64)
    settings = Train(trunk_lr=0.1, weight_decay=0.1)
    optimizer = optim.optimizer(detector, settings, 0.5)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    trunk = {id(p) for part in detector.trunk() for p in part.parameters()}
    assert {rates[i] for i in trunk} == {0.05}
    assert {r for i, r in rates.items() if i not in trunk} == {0.5}
    assert optimizer.param_groups[0]["lr"] == 0.5, "the first group's rate is the one that is logged"
    assert sorted({g["weight_decay"] for g in optimizer.param_groups}) == [0.0, 0.1]


def test_the_backbone_has_a_rate_of_its_own():
    detector = detectors.build(["a"], name="yolox-pico", size=64)
    for settings, (backbone, neck) in [
        (Train(backbone_lr=0.1), (0.05, 0.5)),
        (Train(backbone_lr=0.1, trunk_lr=0.2), (0.05, 0.1)),
        (Train(backbone_lr=1, trunk_lr=0.2), (0.5, 0.1)),
    ]:
        optimizer = optim.optimizer(detector, settings, 0.5)
        rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
        assert {rates.pop(id(p)) for p in detector.trunk()[0].parameters()} == {backbone}
        assert {rates.pop(id(p)) for p in detector.trunk()[1].parameters()} == {neck}
        assert set(rates.values()) == {0.5} == {optimizer.param_groups[0]["lr"]}


def test_frozen_parameters_are_left_out():
    model = net()
    model[0].requires_grad_(False)
    groups = optim.optimizer(model, Train(), 0.5).param_groups
    assert sum(len(g["params"]) for g in groups) == 4


def test_average_starts_fast_and_slows_down():
    """After n steps the decay is at most (1 + n) / (10 + n)."""
    model = nn.BatchNorm1d(1)
    model.weight.data.fill_(0)
    ema = optim.EMA(model, 0.5)
    expected = 0.0
    for step in range(1, 12):
        model.weight.data.fill_(step)
        assert model.num_batches_tracked is not None
        model.num_batches_tracked += 1
        ema.update(model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert ema.state["weight"].item() == pytest.approx(expected, rel=1e-6)
    assert (1 + 8) / (10 + 8) == 0.5  # from the eighth step on the setting counts
    assert ema.state["num_batches_tracked"] == 11  # counts are taken over, not averaged


def test_average_includes_statistics_and_goes_back_into_the_model():
    model = nn.BatchNorm1d(2)
    ema = optim.EMA(model, 0.9)
    assert model.running_mean is not None
    model.running_mean += 11
    ema.update(model)
    assert ema.state["running_mean"].tolist() == pytest.approx([9.0, 9.0])  # 2/11 of 0, 9/11 of 11
    assert model.running_mean.tolist() == [11, 11]  # training continues with its own
    ema.copy_to(model)
    assert model.running_mean.tolist() == pytest.approx([9.0, 9.0])


def test_average_keeps_no_reference_to_the_weights():
    model = net()
    ema = optim.EMA(model, 0.9)
    before = ema.state["0.weight"].clone()
    model[0].weight.data.add_(1)
    assert torch.equal(ema.state["0.weight"], before)
