"""Real weights, real photographs: a class COCO has and one it has not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import ciod
from ciod.data import formats
from ciod.detectors import weights as files
from ciod.errors import ConfigError
from tests.data.writers import write_yolo

CLASSES = ("person", "car", "chair", "cup", "gizmo", "toilet")  # sink stands in for a class COCO has not


@pytest.fixture(scope="module")
def folder(datasets, tmp_path_factory):
    """chair and a new class, in YOLO format, as two folders: spelt as COCO does, and not."""
    root = tmp_path_factory.mktemp("photographs")
    for name, chair in (("right", "chair"), ("wrong", "Chairs")):
        for split in ("train", "val"):
            index = replace(formats.read(datasets / "tiny", split), class_names=CLASSES).relabel(("chair", "gizmo"))
            write_yolo(replace(index, class_names=(chair, "gizmo")), root / name, split)
    return root


def test_a_similar_name_is_asked_about(folder, weights, tmp_path):
    with pytest.raises(ConfigError, match=r"'Chairs' and the model 'chair': .*rename='{Chairs: chair}', or new="):
        ciod.extend(weights / "yolox_nano_coco.pth", folder / "wrong", tmp_path / "out")


@pytest.mark.slow
def test_a_known_class_is_taught_further_and_not_doubled(folder, weights, tmp_path):
    results = ciod.extend(
        weights / "yolox_nano_coco.pth", folder / "wrong", tmp_path / "out", rename={"Chairs": "chair"},
        epochs=1, size=160, device="cpu",
    )  # fmt: skip
    assert results["extension"]["names"]["new"] == ["gizmo"] and results["extension"]["names"]["taught"] == ["chair"]
    model = files.load(tmp_path / "out" / "model.safetensors")
    assert model.num_classes == 81 and model.class_names.count("chair") == 1 and model.class_names[-1] == "gizmo"
    assert results["extension"]["retention"]["value"] == 1.0  # all other old classes: the very same boxes
    images = torch.randint(0, 256, (1, 3, 160, 160), dtype=torch.uint8)
    with torch.no_grad():
        before, after = files.load(weights / "yolox_nano_coco.pth")(images), model(images)
    assert torch.equal(after.logits[:, : before.logits.shape[1], :80], before.logits)
