"""On real photographs and real detectors: an extended ONNX file gives its old outputs bit for bit."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from ciod.data import formats
from ciod.detectors.onnx import file, merge, mirror
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
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
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


@pytest.mark.slow
def test_a_detector_of_transformers(tmp_path, monkeypatch):
    """RT-DETR as torch exports it: boxes and logits of queries, a transformer between backbone and neck."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers", reason="transformers is absent: pip install transformers")
    torch.manual_seed(0)
    stages = {"out_features": ["stage2", "stage3", "stage4"], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    backbone = transformers.RTDetrResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 48], **stages)
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    config = transformers.RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=32, encoder_in_channels=[16, 24, 48], d_model=32, decoder_layers=1,
        decoder_in_channels=[32, 32, 32], num_queries=20, num_labels=3, anchor_image_size=None, num_denoising=0,
        disable_custom_kernels=True, **heads,
    )  # fmt: skip
    model = transformers.RTDetrForObjectDetection(config).eval()

    class Outputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x):
            found = self.model(pixel_values=x)
            return found.logits, found.pred_boxes

    images = np.random.default_rng(0).integers(0, 255, (3, 3, 160, 160)).astype(np.uint8)
    x = torch.from_numpy(images) / 255
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(Outputs(), (x[:1],), str(tmp_path / "m.onnx"), opset_version=17, dynamo=False)
    detector = load(tmp_path / "m.onnx", Asked(input="0..1,rgb,stretch", names=("cat", "dog", "cow")))
    levels = detector.source.found.levels
    assert [(v.stride, v.early.channels, v.late.channels, v.towers) for v in levels] == [
        (8, 16, 32, ()), (16, 24, 32, ()), (32, 48, 32, ()),
    ]  # fmt: skip
    assert all("/backbone/" in v.early.name for v in levels)
    assert [v.late.name.split("/")[-2] for v in levels] == ["fpn_blocks.1", "pan_blocks.0", "pan_blocks.1"]
    whole = detector.source.opened.whole
    session = file.start(whole.path, whole.data)
    raw = [file.run(whole.path, session, None, whole.feed(x[i : i + 1].numpy())) for i in range(3)]
    logits, boxes = (torch.from_numpy(np.concatenate(each)) for each in zip(*raw))
    found = detector(torch.from_numpy(images))
    torch.testing.assert_close(found.scores(), logits.sigmoid(), atol=1e-5, rtol=1e-5)
    centre, side = (160 * boxes).split(2, 2)
    torch.testing.assert_close(found.boxes, torch.cat([centre - side / 2, centre + side / 2], 2), atol=1e-3, rtol=1e-5)
    written = merge.save(tmp_path / "n.onnx", grown(detector, images), images)
    assert written.moved == 0 and written.outputs == 2
    again = load(tmp_path / "n.onnx")
    assert again(torch.from_numpy(images)).logits.shape == (3, 20 + 400 + 100 + 25, 6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("0..255,bgr", ""),
        ("0..1,bgr", "The old detector finds 0 objects in 24 images: is input= right?"),
    ],
)
def test_a_wrong_input_is_warned_of(datasets, weights, given, expected):
    detector = load(weights / "yolox_nano_416.onnx", Asked(input=given))
    images = onnx_model.pictures(detector, formats.read(str(datasets / "coco671"), "val"), 24)
    assert "".join(mirror.input_warnings(detector, images))[: len(expected) or None] == expected
