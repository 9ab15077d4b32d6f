"""What computes the maps of a frozen detector: ONNX Runtime for many images, else PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ciod import detectors
from ciod.config.settings import Train
from ciod.core.errors import CiodError
from ciod.detectors.packing import Packs
from ciod.inference import maps

NAMES = ("ant", "bee", "cow")
SIZE = 64


def make(name: str):
    torch.manual_seed(0)
    detector = detectors.build(NAMES, name=name, size=SIZE).eval()
    for m in detector.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
    assert isinstance(detector, Packs)
    return detector


def pictures(count: int = 3) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=g, dtype=torch.uint8)


@pytest.mark.parametrize("name", ["yolox-pico", "gfl-pico", "retinanet-nano", "fcos-nano"])
def test_onnx_runtime_gives_the_same_rows(name):
    pytest.importorskip("onnxruntime")
    detector, x = make(name), pictures()
    packer = maps.packer(detector, Train(), maps.MANY)
    assert isinstance(packer, maps.InRuntime) and packer.packed_width == detector.packed_width
    rows = packer.packed(x)
    assert rows.dtype == torch.float16
    torch.testing.assert_close(rows, detector.packed(x), atol=0.01, rtol=0.01)
    assert torch.equal(packer.packed(x[1:2]), rows[1:2]), "a row does not depend on the images beside it"


@pytest.mark.parametrize(("teacher", "images"), [("folded", maps.MANY - 1), ("exact", maps.MANY)])
def test_pytorch_computes_few_images_and_exact_ones(teacher, images):
    detector, x = make("yolox-pico"), pictures()
    packer = maps.packer(detector, Train(teacher=teacher), images)
    assert isinstance(packer, type(detector)) and packer is not detector
    torch.testing.assert_close(packer.packed(x), detector.packed(x), atol=0.01, rtol=0.01)


def test_pytorch_computes_what_onnx_runtime_cannot(monkeypatch):
    class Session:
        def run(self, *args):
            raise RuntimeError("no such kernel")

    monkeypatch.setattr(maps, "started", lambda *args: Session())
    monkeypatch.setattr(maps, "available", lambda: True)
    detector = make("yolox-pico")
    assert isinstance(maps.packer(detector, Train(), maps.MANY), type(detector))


def test_other_maps_are_refused(monkeypatch):
    pytest.importorskip("onnxruntime")
    detector = make("yolox-pico")
    monkeypatch.setattr(maps, "CLOSE", 0.0)
    with pytest.raises(CiodError, match="yolox-pico cannot run in ONNX Runtime: its maps would not be the same"):
        maps.InRuntime(detector)
