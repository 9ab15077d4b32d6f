"""The adapter against MMDetection's own ``loss`` and ``predict`` of the same model, pictures and boxes."""

# pyright: reportMissingImports=false
from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import fixed
from tests.mmdet import common

THEIRS = {
    "loss_cls": "cls",
    "loss_bbox": "box",
    "loss_obj": "obj",
    "loss_dfl": "dfl",
    "loss_centerness": "centerness",
    "loss_iou": "iou",
    "loss_bbox_rf": "box",
}


def own_losses(built, images, targets):
    """Summed over levels, under our names."""
    from mmengine.logging import MessageHub

    MessageHub.get_current_instance().update_info("epoch", 100)  # TOOD: after its first epochs
    found = built.loss(images, common.samples(targets))
    if "loss_bbox_rf" in found:
        found["coarse"] = found.pop("loss_bbox")
    total = {k: torch.stack(list(v)).sum() if isinstance(v, (list, tuple)) else v for k, v in found.items()}
    return {THEIRS.get(k, k): v for k, v in total.items()}


@pytest.mark.parametrize("counts", [(3, 2), (4, 0), (0, 0)], ids=["boxes", "an image without", "none"])
@pytest.mark.parametrize("name", common.HEADS)
def test_losses_and_gradients_are_its_own(name, counts):
    detector = common.make(name)
    fixed_statistics = [m for m in detector.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    detector.train()
    built = common.reference(detector)
    for m in [*fixed_statistics, *(m for m in built.modules() if isinstance(m, torch.nn.BatchNorm2d))]:
        m.eval()
    images, targets = common.pictures(), common.boxes(counts) if any(counts) else fixed.no_boxes(2)
    outputs = detector(images)
    ours = detector.loss(outputs, targets, detector.match(outputs, targets))
    theirs = own_losses(built, detector.normalise(images), targets)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6), key
    torch.stack(list(ours.values())).sum().backward()
    torch.stack(list(theirs.values())).sum().backward()
    mine = {k: p.grad for k, p in detector.model.named_parameters()}
    compared = 0
    for key, p in built.named_parameters():
        if p.grad is None or mine.get(key) is None:
            continue
        largest = p.grad.abs().max().item()
        assert (mine[key] - p.grad).abs().max().item() <= 1e-4 * largest + 1e-7, key
        compared += 1
    assert compared > 20


@pytest.mark.parametrize("name", common.HEADS)
def test_detections_are_its_own(name):
    detector = common.make(name).eval()
    with torch.no_grad():
        for rows in detector.class_layers():  # untrained classes are all near 0.01
            rows.tensor.copy_(torch.randn(rows.tensor.shape, generator=torch.Generator().manual_seed(3)) * 0.3)
        for key, p in detector.named_parameters():  # nor do they find objects, nor have RTMDet's boxes a size
            if "conv_obj" in key and key.endswith("bias"):
                p.fill_(0)
            if "rtm_reg" in key and key.endswith("bias"):
                p.fill_(1.5)
    built = common.reference(detector).eval()
    floor = float(detector.config["test_cfg"]["score_thr"])
    images = common.pictures()
    with torch.no_grad():
        outputs = detector(images)
        most = int(detector.config["test_cfg"].get("max_per_img", 1 << 30))
        ours = detector.decode(outputs, score_threshold=floor, max_detections=most)
        theirs = built.predict(detector.normalise(images), common.samples(fixed.no_boxes(2)), rescale=False)
    assert sum(len(d) for d in ours) > 20
    for mine, sample in zip(ours, theirs, strict=True):
        found = sample.pred_instances
        wanted = np.column_stack([found.bboxes.numpy(), found.scores.numpy(), found.labels.numpy()])
        rows = np.column_stack([mine.boxes, mine.scores, mine.labels])
        assert rows.shape == wanted.shape
        assert_same(rows, wanted)


def assert_same(rows: np.ndarray, wanted: np.ndarray) -> None:
    """Equal to 1e-4 but for the order of equal scores."""
    a, b = (x[np.lexsort((x[:, 1].round(2), x[:, 0].round(2), x[:, 5], -x[:, 4].round(5)))] for x in (rows, wanted))
    np.testing.assert_allclose(a, b, atol=2e-3, rtol=1e-4)  # pixels
    np.testing.assert_allclose(a[:, 4], b[:, 4], atol=1e-4)
