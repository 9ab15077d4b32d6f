"""Two processes with half a batch each normalise as one with all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ciod import detectors
from ciod.training.sync_norm import SyncNorm, synchronise

HALF = """
import sys, torch, torch.distributed as dist
from pathlib import Path
from tests.training.test_sync_norm import net, picture, weigh
folder, rank = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
model = net(sync=True)
x = picture()[2 * rank : 2 * rank + 2].requires_grad_()
for _ in range(2):
    model.zero_grad()
    x.grad = None
    y = model(x)
    weigh(y, 2 * rank).backward()
torch.save([y.detach(), x.grad, [p.grad for p in model.parameters()], dict(model.state_dict())], folder / f"{rank}.pt")
dist.destroy_process_group()
"""


def net(*, sync: bool) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.SiLU(), nn.Conv2d(4, 2, 1))
    nn.init.uniform_(model[1].weight, 0.5, 1.5)
    if sync:
        synchronise(model)
    return model.train()


def picture() -> torch.Tensor:
    """Half of it brighter by far than the other: statistics of the halves differ."""
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    x[2:] += 5
    return x


def weigh(y: torch.Tensor, first: int) -> torch.Tensor:
    """A loss in which every image has a weight of its own."""
    weight = torch.arange(first + 1.0, first + len(y) + 1)
    return (y.square().mean((1, 2, 3)) * weight).sum()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this PyTorch has no gloo")
def test_two_halves_are_one_whole(tmp_path):
    command = [sys.executable, "-c", HALF, str(tmp_path)]
    running = [subprocess.Popen([*command, str(rank)], cwd=Path(__file__).parents[2]) for rank in (0, 1)]
    assert [p.wait(timeout=600) for p in running] == [0, 0]
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    model, x = net(sync=False), picture().requires_grad_()
    for _ in range(2):
        model.zero_grad()
        x.grad = None
        y = model(x)
        weigh(y, 0).backward()
    torch.testing.assert_close(torch.cat([h[0] for h in halves]), y.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([h[1] for h in halves]), x.grad, rtol=1e-4, atol=1e-5)
    for i, p in enumerate(model.parameters()):
        torch.testing.assert_close(halves[0][2][i] + halves[1][2][i], p.grad, rtol=1e-4, atol=1e-4)
    for key, value in model.state_dict().items():
        for half in halves:
            torch.testing.assert_close(half[3][key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_a_detector_keeps_its_weights_and_its_arithmetic():
    detector = detectors.build(["a"], name="yolox-pico", size=64)
    before = {k: v.data_ptr() for k, v in detector.state_dict().items()}
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = detector.eval()(images)
        synchronise(detector)
        found = detector(images)
    assert {k: v.data_ptr() for k, v in detector.state_dict().items()} == before
    norms = [m for m in detector.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(type(m) is SyncNorm and not m.training for m in norms)
    assert torch.equal(wanted.logits, found.logits)
    plain = net(sync=False)
    assert torch.equal(net(sync=True)(picture()), plain(picture()))
