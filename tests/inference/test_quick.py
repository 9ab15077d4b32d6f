"""The copy of a detector that ``ciod predict`` detects with: the same detections, faster, and never a wrong one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ciod
from ciod import detectors
from ciod.data.shapes.scenes import write_shapes
from ciod.detectors.base import Detector
from ciod.inference import images
from ciod.inference.quick import FEW, normaliser, quick
from ciod.training import speed


def made(name: str, **settings) -> Detector:
    torch.manual_seed(0)
    detector = detectors.build(["a", "b", "c"], name=name, size=96, **settings).eval()
    for m in detector.modules():  # as after training
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
    return detector


@pytest.mark.parametrize("name", ["yolox-pico", "gfl-pico", "rtdetr-csp-pico"])
def test_outputs_are_equal_except_for_rounding(name):
    try:
        detector = made(name)
    except ciod.CiodError as error:
        pytest.skip(str(error))
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    fast = quick(detector)
    pictures = torch.randint(0, 256, (3, 3, 96, 96), dtype=torch.uint8)
    with torch.no_grad():
        a, b = detector(pictures), fast(pictures)
    assert (a.logits.sigmoid() - b.logits.sigmoid()).abs().max() < 1e-4
    assert (a.boxes - b.boxes).abs().max() < 96 * 1e-4
    after = detector.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items()) and "normalise" not in vars(detector)


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("mean, std", [((0.0,) * 3, (1.0,) * 3), ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))])
def test_preparation_is_bit_equal(bgr, mean, std):
    detector = made("yolox-pico")
    spec = detector.input.__class__(**{**vars(detector.input), "bgr": bgr, "mean": mean, "std": std})
    detector.input, detector.mean, detector.std = (
        spec, torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1),
    )  # fmt: skip
    prepare = normaliser(spec, detector.mean, detector.std)
    for pictures in (torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), torch.rand(2, 3, 32, 32) * 255):
        assert torch.equal(prepare(pictures), detector.normalise(pictures))


class Twice(torch.nn.Module):
    """Uses the input of its activation again."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.act = inner, torch.nn.SiLU()

    def forward(self, x):
        y = self.inner(x)
        return self.act(y) + y


def test_only_activations_overwrite_their_input_that_have_it_to_themselves():
    detector = made("yolox-pico")
    detector.backbone.stem.conv = Twice(detector.backbone.stem.conv)
    fast = quick(detector)
    assert (
        fast is not detector and not fast.backbone.stem.conv.act.inplace and fast.backbone.stem.conv.inner.act.inplace
    )
    x = torch.rand(1, 12, 48, 48)
    with torch.no_grad():
        assert torch.allclose(fast.backbone.stem.conv(x), detector.backbone.stem.conv(x), atol=1e-5)
    assert not any(m.inplace for m in detector.modules() if isinstance(m, torch.nn.SiLU))


def test_a_copy_with_other_outputs_is_not_used(monkeypatch):
    detector = made("yolox-pico")
    monkeypatch.setattr(speed, "same", lambda a, b: not hasattr(b, "looked") and not setattr(b, "looked", 1))
    assert quick(detector) is detector  # the folded copy was right, the finished one was not
    monkeypatch.setattr(speed, "same", lambda a, b: False)
    assert quick(detector) is detector


def test_many_pictures_are_detected_with_it_and_few_without(tmp_path, monkeypatch):
    folder = write_shapes(tmp_path / "data", train=FEW, val=1, size=64)
    detector, used = made("yolox-pico"), []
    monkeypatch.setattr(images, "quick", lambda d, *given: used.append(d) or quick(d, *given))
    pictures = images.files(str(folder))[:FEW]
    few = ciod.predict(detector, pictures[: FEW - 1], score_threshold=0.0, device="cpu")
    assert not used and len(few) == FEW - 1
    many = ciod.predict(detector, pictures, score_threshold=0.0, device="cpu")
    assert used == [detector]
    for path in pictures[: FEW - 1]:
        assert np.allclose(few[path].scores, many[path].scores, atol=1e-4)
        assert len(few[path]) == len(many[path])
