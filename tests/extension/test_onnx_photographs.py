"""On real photographs and real detectors: an extended ONNX file gives its old outputs bit for bit."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from ciod.data import formats
from ciod.detectors.onnx import file, merge
from ciod.detectors.onnx.detector import OnnxDetector, load
from ciod.detectors.onnx.recognise import Asked, prepared
from ciod.extension import onnx_model

pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")
LEVELS = ("ORT_ENABLE_ALL", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_BASIC", "ORT_DISABLE_ALL")


def grown(detector: OnnxDetector, images: np.ndarray, *, inner: tuple[int, int, int] | None = None) -> OnnxDetector:
    """With a branch as if it had been trained."""
    torch.manual_seed(0)
    detector.observe(torch.from_numpy(images[:48]))
    branch = detector.add_branch(("ace", "jack", "king"), inner=inner)
    for m in branch.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)  # type: ignore[union-attr, operator]
            m.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
    return detector.eval()


@pytest.mark.slow
def test_old_outputs_on_photographs(tmp_path, datasets, weights):
    """At every level of optimisation, with one thread and with two."""
    detector = load(weights / "yolox_nano_416.onnx", Asked(input="0..255,bgr"))
    images = np.concatenate(
        [
            onnx_model.pictures(detector, formats.read(str(datasets / d), "val"), n)
            for d, n in (("cards6", 67), ("coco671", 50))
        ]
    )
    assert len(images) == 117
    grown(detector, images)
    merge.save(tmp_path / "n.onnx", detector, images[:8])
    old, new = detector.source.opened.whole.data, (tmp_path / "n.onnx").read_bytes()
    ready, path = prepared(images, detector.input), tmp_path / "n.onnx"
    for threads in (1, 2):
        for level in LEVELS:
            pair = [file.start(path, d, level=level, threads=threads) for d in (old, new)]
            every = 1 if (level, threads) == (LEVELS[0], 1) else 10  # the rest on some of them
            for image in ready[::every]:
                a, b = (s.run(["output"], {"images": image[None]})[0] for s in pair)
                np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_detector_of_torchvision(tmp_path):
    """SSDLite as torch exports it: suppressed boxes, scores and labels, without a batch, the background a label."""
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    torch.manual_seed(0)
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        picture = torch.rand(3, 320, 320)
        torch.onnx.export(model, ([picture],), str(tmp_path / "m.onnx"), opset_version=17, dynamo=False)
    asked = Asked(input="0..1,rgb,stretch", names=("__background__", "cat", "dog", "cow"))
    detector = load(tmp_path / "m.onnx", asked)
    assert [c.stride for c in detector.channels] == [8, 16, 32]
    assert detector.class_names == ("cat", "dog", "cow") and detector.parts == [[-1, 0, 1, 2]]
    images = np.random.default_rng(0).integers(0, 255, (4, 3, 320, 320)).astype(np.uint8)
    found = merge.save(tmp_path / "n.onnx", grown(detector, images), images)
    assert found.moved == 0 and found.outputs == 3
    again = load(tmp_path / "n.onnx")
    x = torch.from_numpy(images)
    assert again(x).logits.shape == detector(x).logits.shape
    assert len(again.decode(again(x))) == 4
