"""The published ilYOLOX against ours on its own outputs: selection, losses, gradients. Any number of seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ciod.core.types import Outputs, Targets
from ciod.detectors.yolox import YOLOX, assemble
from ciod.methods.base import selection
from ciod.methods.base.method import Method
from ciod.methods.ilyolox import ILYOLOX
from ciod.methods.pseudo_label import PseudoLabel
from tests import fixed, paths
from tests.golden.heads import assert_gradients

# What the published code does in each case, in our settings. The published thresholds do not look at labels.
CASES: dict[str, Method] = {
    "crs_ckd": ILYOLOX(detach_weights=False, nms_iou=0.95),
    "crs_nms65_ckd": ILYOLOX(detach_weights=False, nms_iou=0.65),
    "crs_unweighted": ILYOLOX(weighted=False, nms_iou=0.95),
    "threshold_ckd": ILYOLOX(select="threshold", detach_weights=False, nms_iou=0.95, only_old=False),
    "meanstd_ckd": ILYOLOX(select="all_mean_std", detach_weights=False, nms_iou=0.95, only_old=False),
    "pseudo_hard": PseudoLabel(score=0.3, nms_iou=0.65, guard_iou=None, only_old=False),
}
THEIRS = {
    "cls": "loss_cls",
    "box": "loss_iou",
    "obj": "loss_obj",
    "distill_cls": "loss_cd_soft",
    "distill_box": "loss_ld_iou",
}
NAMES = tuple(f"class {i}" for i in range(12))

FILES = sorted(f for f in paths.GOLDEN.glob("*.npz") if f.name.split(".")[0] in CASES)
ABSENT = pytest.param(None, marks=pytest.mark.skip(f"no golden case in {paths.GOLDEN}; set CIOD_GOLDEN"), id="absent")


@pytest.fixture(scope="module")
def detector() -> YOLOX:
    return YOLOX(NAMES, name="yolox-nano", size=128)


def read(case, who: str, grad: bool = False) -> tuple[Outputs, dict[str, list[torch.Tensor]]]:
    maps = {
        kind: [torch.from_numpy(case[f"{who}.{kind}.{level}"]).requires_grad_(grad) for level in range(3)]
        for kind in ("cls", "reg", "obj")
    }
    return assemble(maps["cls"], maps["reg"], maps["obj"]), maps


def chosen(method: Method, knowledge: Outputs) -> selection.Kept:
    if isinstance(method, ILYOLOX):
        return method.choose(knowledge)
    assert isinstance(method, PseudoLabel)
    return selection.by_threshold(knowledge, score=method.score, nms_iou=method.nms_iou, classes=None)


@pytest.mark.parametrize("file", [pytest.param(f, id=f.name) for f in FILES] or [ABSENT])
def test_agrees_with_the_published_code(file, detector):
    case = np.load(file)
    method = CASES[file.name.split(".")[0]].model_copy()
    knowledge, _ = read(case, "teacher")
    outputs, maps = read(case, "student", grad=True)
    images = len(case["keep"])
    real = Targets.pad(
        [torch.from_numpy(case[f"gt_boxes.{b}"]) for b in range(images)],
        [torch.from_numpy(case[f"gt_labels.{b}"]) for b in range(images)],
    )
    method.attach(fixed.Returns(outputs), detector, fixed.Returns(knowledge))
    method.begin_task(fixed.task(NAMES[:6], NAMES[6:]))

    kept = chosen(method, knowledge)
    assert np.array_equal(kept.mask(outputs.logits.shape[1]).numpy(), case["keep"])
    for b in range(images):
        ok = kept.valid[b]
        np.testing.assert_allclose(kept.boxes[b, ok], case[f"pseudo_boxes.{b}"], rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(kept.labels[b, ok], case[f"pseudo_labels.{b}"])
        np.testing.assert_allclose(kept.scores[b, ok], case[f"pseudo_scores.{b}"], rtol=1e-5, atol=1e-6)

    losses = method.loss(fixed.batch(real))
    given = {k.removeprefix("loss."): float(case[k]) for k in case.files if k.startswith("loss.")}
    for ours, theirs in THEIRS.items():
        if theirs in given:
            found = losses.get(ours, torch.zeros(()))  # a case without distillation has zeros there
            assert found.item() == pytest.approx(given[theirs], rel=1e-4, abs=1e-6), ours
    assert {THEIRS[k] for k in losses} <= set(given), "a loss the published code does not have"

    torch.stack(list(losses.values())).sum().backward()
    assert_gradients(case, maps)
