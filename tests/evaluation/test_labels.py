"""How many labels of a position are scored: as is usual for the detector, unless the settings say."""

from __future__ import annotations

import pytest
import torch

from ciod import detectors
from ciod.config.load import Evaluation
from ciod.core.distributed import World
from ciod.data import formats
from ciod.data.shapes.scenes import write_shapes
from ciod.evaluation.detect import evaluate

USUAL = {"yolox-pico": False, "gfl-pico": True, "retinanet-nano": True, "fcos-nano": True}


@pytest.mark.parametrize(("name", "several"), USUAL.items())
@pytest.mark.parametrize("multi_label", [None, False, True])
def test_labels_of_a_position(name, several, multi_label, tmp_path, monkeypatch):
    index = formats.read(str(write_shapes(tmp_path / "data", train=2, val=2, size=64)), "val")
    detector = detectors.build(index.class_names, name=name, size=64)
    asked = []
    decode = type(detector).decode

    def spy(self, outputs, **given):
        asked.append(given["multi_label"])
        return decode(self, outputs, **given)

    monkeypatch.setattr(type(detector), "decode", spy)
    world = World(device=torch.device("cpu"))
    evaluate(detector, index, Evaluation(multi_label=multi_label), classes=index.class_names, world=world)
    assert asked == [several if multi_label is None else multi_label]
