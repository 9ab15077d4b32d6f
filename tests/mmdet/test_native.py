"""ciod's own YOLOX and GFL in MMDetection: written, read there, the same boxes; and methods that learn the same."""

# pyright: reportMissingImports=false
from __future__ import annotations

import numpy as np
import pytest
import torch

from ciod import detectors
from ciod.core.types import Targets
from ciod.data import formats
from ciod.data.augment import letterbox
from ciod.data.images import read_image
from ciod.detectors.files import weights as files
from ciod.exporters import mmdet_file
from ciod.methods.erd import ERD
from ciod.methods.ilyolox import ILYOLOX
from ciod.methods.pseudo_label import PseudoLabel
from tests import fixed
from tests.detectors.common import bn_eval
from tests.mmdet import common
from tests.mmdet.test_equal import assert_same

OLD, NEW = ("ant", "bee", "cow"), ("dog", "eel")
METHODS = {"ilyolox": ILYOLOX, "erd": ERD, "pseudo_label": PseudoLabel}


def pair(name: str, folder, names=OLD):
    """A native detector and MMDetection's with the same weights."""
    torch.manual_seed(0)
    native = detectors.build(names, name=name, size=common.SIZE)
    with torch.no_grad():
        for rows in native.class_layers():  # classes that differ
            rows.tensor.copy_(torch.randn(rows.tensor.shape) * 0.3 - (1 if rows.name.endswith("bias") else 0))
    written = mmdet_file.export(native, folder)
    return native, files.load(f"mmdet:{written.config},{written.checkpoint}")


@pytest.mark.parametrize("name", ["yolox-pico", "gfl-pico", "gfl-r18"])
def test_outputs_are_those_of_the_native_one(name, tmp_path):
    native, theirs = (d.eval() for d in pair(name, tmp_path))
    assert theirs.class_names == OLD and theirs.input == native.input
    with torch.no_grad():
        a, b = native(common.pictures()), theirs(common.pictures())
    for field in ("logits", "boxes", "points", "strides", "objectness", "distribution"):
        x, y = getattr(a, field), getattr(b, field)
        assert (x is None) == (y is None)
        if x is not None:
            torch.testing.assert_close(y, x, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["yolox-pico", "gfl-pico"])
def test_the_first_steps_of_a_second_task_are_those_of_the_native_one(name, method, tmp_path):
    """Equal weights, rows, pictures and boxes: losses of three SGD steps differ by rounding alone."""
    found = []
    for detector in pair(name, tmp_path):
        learner = METHODS[method]()
        teacher = detector.frozen()
        torch.manual_seed(5)
        detector.grow(NEW)
        learner.attach(detector, detector, teacher)
        learner.begin_task(fixed.task(OLD, NEW))
        bn_eval(detector.train())
        optimizer = torch.optim.SGD(detector.parameters(), lr=0.01)
        steps = []
        for step in range(3):
            targets = common.boxes((3, 2), classes=2, seed=step)
            targets.labels = targets.labels + len(OLD)
            losses = learner.loss(fixed.batch(targets, common.pictures(seed=step)))
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            steps.append({k: v.item() for k, v in losses.items()})
        found.append(steps)
    for step, (native, theirs) in enumerate(zip(*found, strict=True)):
        assert native.keys() == theirs.keys()
        assert theirs == pytest.approx(native, rel=1e-4 * 4**step, abs=1e-5), step


def test_a_trained_model_learns_the_same_from_photographs(tmp_path, weights, datasets):
    """Real scores and real boxes: every match, loss and gradient of a batch of eight.

    Boxes of 32 pixels and more: smaller ones have fewer positions than they want, and all others cost 1e8 more, where
    floats are 8 apart and either side takes any.
    """
    native = files.load(weights / "yolox_nano_coco.pth")
    written = mmdet_file.export(native, tmp_path)
    theirs = files.load(f"mmdet:{written.config},{written.checkpoint}")
    index = formats.read(datasets / "coco671", "val")
    size, pictures, boxes, labels = 256, [], [], []
    shown = index.sizes.max(1)[index.image][:, None]
    large = ((index.boxes[:, 2:] - index.boxes[:, :2]) * size / shown).min(1) >= 32
    index = index.select(boxes=large)
    for i in np.flatnonzero(np.diff(index.starts) > 1)[:8]:
        rows = index.of_image(int(i))
        picture, _ = letterbox(read_image(index.files[i]), size, native.input.fill)
        pictures.append(picture)
        boxes.append(torch.from_numpy(index.boxes[rows] * (size / index.sizes[i].max())))
        labels.append(torch.tensor([native.class_names.index(index.class_names[y]) for y in index.labels[rows]]))
    targets, found = Targets.pad(boxes, labels), []
    for detector in (native, theirs):
        detector.train().requires_grad_(True)
        outputs = detector(torch.stack(pictures))
        matches = detector.match(outputs, targets)
        losses = detector.loss(outputs, targets, matches)
        torch.stack(list(losses.values())).sum().backward()
        norm = torch.stack([p.grad.norm() for p in detector.parameters() if p.grad is not None]).norm()
        found.append((matches, {k: v.item() for k, v in losses.items()}, norm.item()))
    (a, ours, our_norm), (b, others, other_norm) = found
    assert int(a.valid.sum()) > 80 and torch.equal(a.positive, b.positive) and torch.equal(a.position, b.position)
    assert torch.equal(a.target, b.target)
    assert others == pytest.approx(ours, rel=1e-5)
    assert other_norm == pytest.approx(our_norm, rel=1e-4)


def test_50_photographs_have_the_same_boxes_in_its_inferencer(tmp_path, weights, datasets):
    """Pictures are letterboxed first, so that both sides see the same pixels: MMDetection resizes with OpenCV."""
    from mmdet.apis import DetInferencer

    native = files.load(weights / "yolox_nano_coco.pth")
    written = mmdet_file.export(native, tmp_path)
    photos = sorted((datasets / "cards6").rglob("*.jpg"))[:50]
    assert len(photos) == 50
    inferencer = DetInferencer(str(written.config), str(written.checkpoint), device="cpu", show_progress=False)
    assert inferencer.model.dataset_meta["classes"] == list(native.class_names)
    size, fill = native.input.size, native.input.fill
    total = 0
    for photo in photos:
        image, _ = letterbox(read_image(photo), size, fill)
        picture = image.permute(1, 2, 0).numpy()
        theirs = inferencer(np.ascontiguousarray(picture[..., ::-1]), return_datasamples=True)["predictions"][0]
        found = theirs.pred_instances
        with torch.no_grad():
            (ours,) = native.decode(native(image[None]), score_threshold=0.01, max_detections=10_000)
        rows = np.column_stack([ours.boxes, ours.scores, ours.labels])
        wanted = np.column_stack([found.bboxes.numpy(), found.scores.numpy(), found.labels.numpy()])
        assert rows.shape == wanted.shape
        total += len(rows)
        assert_same(rows, wanted)
    assert total > 400
