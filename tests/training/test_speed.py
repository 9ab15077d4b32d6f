"""A cheap teacher teaches what the exact one does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ciod import detectors
from ciod.config.load import Train
from ciod.core.types import Targets
from ciod.detectors.base import Detector
from ciod.methods.ilyolox import ILYOLOX
from ciod.runs import environment
from ciod.training import speed
from tests import fixed


def trained(name: str = "yolox-pico") -> Detector:
    """Random weights with statistics of their own, and a head that is sure of something."""
    torch.manual_seed(0)
    detector = detectors.build(["a", "b", "c"], name=name, size=64, backbone_weights=None)
    for m in detector.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.1)
    for rows in detector.class_layers():
        nn.init.normal_(rows.tensor, 0, 0.5)
    return detector


def grown(student: Detector, *, train_norms: bool = False) -> Detector:
    """The student as a second task has it: a new class, in train mode."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        student.grow(["d"])
    student.train()
    for m in student.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.train(train_norms)
    return student


@pytest.mark.parametrize("name", ["yolox-pico", "yolox-nano", "yolox-r18"])
def test_folding_changes_rounding_only(name: str):
    detector = trained(name).eval()
    folded = speed.fold(detector)
    assert folded is not detector
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules()), "every normalisation has a convolution"
    images = torch.randint(0, 256, (2, 3, 96, 64), dtype=torch.uint8)
    with torch.no_grad():
        a, b = detector(images), folded(images)
    torch.testing.assert_close(a.logits, b.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a.boxes, b.boxes, rtol=1e-4, atol=1e-3)


class NormFirst(nn.Module):
    """Defined in one order, executed in the other."""

    def __init__(self, after: nn.Module, channels: int):
        super().__init__()
        self.after = after
        self.conv = nn.Conv2d(channels, channels, 1)
        self.bn = nn.BatchNorm2d(channels)
        nn.init.uniform_(self.bn.weight, 0.5, 1.5)
        nn.init.normal_(self.bn.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.bn(self.after(x)))


def test_a_folding_that_changes_outputs_is_not_used():
    detector = trained()
    tower = detector.head.cls_tower
    tower[0] = NormFirst(tower[0], 32)
    assert speed.fold(detector.eval()) is detector


@pytest.mark.parametrize(("kind", "limit"), [("exact", 0.0), ("folded", 1e-4), ("bf16", 0.05)])
def test_losses_with_a_cheap_teacher(kind: str, limit: float):
    """How far a whole ilYOLOX step's losses may move; bf16 has three digits."""
    detector = trained()
    batch = fixed.batch(
        Targets.pad([torch.tensor([[8.0, 8, 40, 44]])] * 2, [torch.tensor([3])] * 2),
        torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)),
    )

    def losses(kind: str) -> dict[str, torch.Tensor]:
        teacher = speed.make_teacher(detector, Train(teacher=kind))
        student = trained()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            student.grow(["d"])
        # Thresholds far from any score: a position that falls on the other side would not be rounding.
        method = ILYOLOX(center_score=0.0, other_score=0.0, nms_iou=0.5)
        method.attach(student, student, teacher)
        method.begin_task(fixed.task(("a", "b", "c"), ("d",)))
        assert not teacher.detector.training
        assert method.teach(batch).logits.dtype == torch.float32
        return method.loss(batch)

    exact, cheap = losses("exact"), losses(kind)
    assert exact["distill_cls"] > 0
    for name, value in exact.items():
        assert abs(cheap[name].item() - value.item()) <= limit * abs(value.item()), name


def test_channels_last_changes_rounding_only():
    detector = trained().eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        before = detector(images)
        speed.lay_out(detector, Train())
        after = detector(images)
    weight = next(p for p in detector.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(before.logits, after.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["yolox-nano", "yolox-mobilenet", "gfl-pico", "retinanet-r50"])
def test_on_one_thread_pointwise_convolutions_leave_the_slow_way(name: str):
    """PyTorch's name for it is ``_slow_conv2d``. Nothing but rounding changes, and no name of a weight."""
    detector = grown(trained(name))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)

    def slow() -> tuple[int, Tensor]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen, torch.no_grad():
            logits = detector(images).logits
        return sum(e.count for e in seen.key_averages() if e.key == "aten::_slow_conv2d_forward"), logits

    threads, names = torch.get_num_threads(), list(detector.state_dict())
    torch.set_num_threads(1)
    try:
        before, was = slow()
        speed.lay_out(detector, Train())
        after, now = slow()
    finally:
        torch.set_num_threads(threads)
    assert before > 0 and after == 0
    assert list(detector.state_dict()) == names
    torch.testing.assert_close(was, now, rtol=1e-4, atol=1e-4)


def test_peak_memory_is_of_this_process_and_not_of_its_parent():
    """A run started by a larger process (``ciod compare``) must not report that one's peak."""
    ballast = bytearray(400 << 20)
    ballast[:: 1 << 12] = b"x" * len(ballast[:: 1 << 12])
    code = "from ciod.runs.environment import peak_memory_mb; print(peak_memory_mb())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells a process's own peak")
    assert float(child.stdout) < environment.peak_memory_mb() - 300
