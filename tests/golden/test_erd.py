"""The published ERD against ours on its own outputs: positions chosen, distillation terms, their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ciod.core.types import Outputs, Targets
from ciod.detectors.gfl import GFL, assemble
from ciod.methods.erd import ERD
from tests import fixed, paths

OLD, NEW = tuple(f"old {i}" for i in range(6)), tuple(f"new {i}" for i in range(4))
STRIDES = (8, 16, 32, 64, 128)
THEIRS = {"cls": "loss_cls", "box": "loss_bbox", "dfl": "loss_dfl",
          "distill_cls": "loss_dist_cls", "distill_box": "loss_dist_bbox"}  # fmt: skip
FILES = sorted(paths.GOLDEN.glob("erd.seed*.npz"))
ABSENT = pytest.param(None, marks=pytest.mark.skip(f"no golden case in {paths.GOLDEN}; set CIOD_GOLDEN"), id="absent")


def read(case, who: str, grad: bool = False) -> tuple[Outputs, dict[str, list[torch.Tensor]]]:
    maps = {
        kind: [torch.from_numpy(case[f"{who}.{kind}.{i}"]).requires_grad_(grad) for i in range(5)]
        for kind in ("cls", "dist")
    }
    return assemble(maps["cls"], maps["dist"], STRIDES), maps


@pytest.fixture(scope="module")
def detector() -> GFL:
    return GFL(OLD + NEW, name="gfl-pico", size=128)


@pytest.mark.parametrize("file", [pytest.param(f, id=f.name) for f in FILES] or [ABSENT])
def test_agrees_with_the_published_code(file, detector):
    case = np.load(file)
    method = ERD(cls_weight=1, box_weight=1, nms_scale="stride", reduction="image_sum")
    (knowledge, _), (outputs, maps) = read(case, "teacher"), read(case, "student", grad=True)
    method.attach(fixed.Returns(outputs), detector, fixed.Returns(knowledge))
    method.begin_task(fixed.task(OLD, NEW))
    real = Targets.pad(*([torch.from_numpy(case[f"gt_{k}.{b}"]) for b in range(2)] for k in ("boxes", "labels")))

    for mask, key in ((method.choose_classes(knowledge), "keep_cls"), (method.candidates(knowledge), "keep_box")):
        for b in range(2):
            assert np.array_equal(mask[b].nonzero().squeeze(1).numpy(), case[f"{key}.{b}"]), f"{key} of image {b}"

    losses = method.loss(fixed.batch(real))
    published = {k: float(case[f"loss.{theirs}"]) for k, theirs in THEIRS.items()}
    assert losses.keys() == published.keys()
    if not np.isfinite(published["distill_cls"]):  # an image without a chosen position: NaN there, a term of 0 here
        rows = torch.from_numpy(case["keep_cls.0"])
        error = (outputs.logits[0, rows, :6] - knowledge.logits[0, rows, :6]).square().mean()
        assert not len(case["keep_cls.1"])
        published["distill_cls"] = error.item()
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(published, rel=1e-4)

    torch.stack(list(losses.values())).sum().backward()
    for kind, levels in maps.items():
        for level, leaf in enumerate(levels):
            assert leaf.grad is not None
            expected = case[f"grad.student.{kind}.{level}"]
            error = np.abs(leaf.grad.numpy() - expected).max()
            assert error <= 1e-4 * np.abs(expected).max() + 1e-12, f"{kind} of level {level}: off by {error}"
