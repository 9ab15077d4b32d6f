"""The plain loop of ``benchmarks.accuracy`` trains with YOLOX's loss, and shows the pictures with their boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import plain
from ciod import detectors
from ciod.core.types import Targets
from ciod.data import formats
from ciod.data.shapes.scenes import write_shapes


def test_its_loss_is_yolox_own():
    torch.manual_seed(0)
    detector = detectors.build(("a", "b", "c"), name="yolox-pico", size=64).train()
    boxes = [torch.tensor([[4.0, 4.0, 40.0, 44.0], [30.0, 20.0, 60.0, 60.0]]), torch.zeros(0, 4)]
    labels = [torch.tensor([2, 0]), torch.zeros(0, dtype=torch.long)]
    outputs = detector(torch.randint(0, 256, (2, 3, 64, 64)).float())
    targets = Targets.pad(boxes, labels)
    own = detector.loss(outputs, targets, detector.match(outputs, targets))
    assert plain.loss(outputs, boxes, labels).item() == pytest.approx(
        torch.stack([*own.values()]).sum().item(), rel=1e-5
    )


def test_boxes_move_with_the_picture(tmp_path):
    write_shapes(tmp_path, train=2, val=1, size=64)
    index = formats.read(str(tmp_path), "train")
    for file, box in zip(index.files, index.boxes[index.starts[:-1]], strict=True):  # white where the first box is
        array = np.zeros((64, 64, 3), np.uint8)
        x1, y1, x2, y2 = box.round().astype(int)
        array[y1:y2, x1:x2] = 255
        Image.fromarray(array).save(file)
    pictures = plain.Pictures(index, 96, 0)
    torch.manual_seed(0)
    seen = 0
    for _ in range(10):
        image, boxes, _ = pictures[0]
        white = torch.nonzero(image[0] > 127)
        if len(boxes) and len(white):
            y1, x1 = white.amin(0).tolist()
            y2, x2 = (white.amax(0) + 1).tolist()
            near = (boxes - torch.tensor([x1, y1, x2, y2])).abs().amax(1).amin()
            seen += 1
            assert near < 3
    assert seen > 5
