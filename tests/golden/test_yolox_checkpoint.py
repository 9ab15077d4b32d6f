"""Foreign YOLOX checkpoints give their own outputs: MMDetection's format, and the official nano against its ONNX."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ciod.core.errors import CiodError
from ciod.core.types import Targets
from ciod.data.augment import letterbox
from ciod.data.images import read_image
from ciod.data.names import COCO
from ciod.detectors.files.weights import load
from ciod.detectors.layers.blocks import ConvBN


@pytest.fixture(scope="module")
def mmdet(golden):
    if not (golden / "mmdet_yolox_nano20.pth").is_file():
        pytest.skip(f"mmdet_yolox_nano20.pth is absent from {golden}")
    names = [f"class {i}" for i in range(20)]
    detector = load(golden / "mmdet_yolox_nano20.pth", classes=names)
    detector.input = replace(detector.input, bgr=False)  # the golden pictures were fed as they are
    return detector, np.load(golden / "mmdet_yolox_nano20.npz")


def test_mmdetection_checkpoint_gives_its_outputs(mmdet):
    detector, case = mmdet
    assert detector.settings["name"] == "yolox-nano" and detector.num_classes == 20
    with torch.no_grad():
        features = detector.neck(detector.backbone(detector.normalise(torch.from_numpy(case["images"]))))
        maps = dict(zip(("cls", "reg", "obj"), detector.head(features)))
        for kind, levels in maps.items():
            for level, found in enumerate(levels):
                # values reach ±40, where the oracle's own float32 rounding is 1e-4: relative beyond 1
                np.testing.assert_allclose(found, case[f"out.{kind}.{level}"], rtol=1e-4, atol=1e-4)


def test_mmdetection_checkpoint_gives_its_losses(mmdet):
    detector, case = mmdet
    outputs = detector(torch.from_numpy(case["images"]))
    targets = Targets.pad(
        [torch.from_numpy(case[f"gt_boxes.{b}"]) for b in range(2)],
        [torch.from_numpy(case[f"gt_labels.{b}"]) for b in range(2)],
    )
    losses = detector.loss(outputs, targets, detector.match(outputs, targets))
    for ours, theirs in {"cls": "loss_cls", "box": "loss_bbox", "obj": "loss_obj"}.items():
        expected = float(case[f"loss.{theirs}"])
        assert abs(float(losses[ours].detach()) - expected) <= 1e-4 * max(1, abs(expected)), ours


def test_checkpoint_without_names_needs_them(golden, mmdet):
    from ciod.detectors.files.weights import read_checkpoint

    content = read_checkpoint(golden / "mmdet_yolox_nano20.pth")
    named = content.get("meta", {}).get("dataset_meta", {}).get("classes") or content.get("meta", {}).get("CLASSES")
    if named:
        assert load(golden / "mmdet_yolox_nano20.pth").class_names == tuple(named)
    else:
        with pytest.raises(CiodError, match="20 classes but no class names"):
            load(golden / "mmdet_yolox_nano20.pth")


@pytest.fixture(scope="module")
def nano(weights):
    return load(weights / "yolox_nano_coco.pth")


def test_official_nano_knows_coco(nano):
    assert nano.class_names == COCO and len(COCO) == 80
    assert (COCO[0], COCO[79]) == ("person", "toothbrush")  # COCO's own order, not the alphabet's
    assert not nano.training and nano.input.size == 416 and nano.input.bgr


@pytest.fixture(scope="module")
def photographs(datasets):
    """[4, 3, 416, 416] uint8 RGB."""
    files = sorted((datasets / "tiny" / "images").rglob("*.jpg"))[:4]
    return torch.stack([letterbox(read_image(f), 416, 114)[0] for f in files])


def _oracle(weights, photographs):
    """Outputs of the official export: [B, P, 85], boxes not decoded, class and objectness as probabilities."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")
    oracle = runtime.InferenceSession(str(weights / "yolox_nano_416.onnx"), providers=["CPUExecutionProvider"])
    name = oracle.get_inputs()[0].name
    bgr = photographs.flip(1).float()
    return torch.from_numpy(np.concatenate([oracle.run(None, {name: x[None].numpy()})[0] for x in bgr]))


def _assert_equal_to(raw, out):
    assert (out.logits.sigmoid() - raw[..., 5:]).abs().max() <= 1e-3
    assert (out.objectness.sigmoid() - raw[..., 4]).abs().max() <= 1e-3
    # The export leaves boxes undecoded: dx, dy, log w, log h in cells, from the cell's corner.
    corner = out.points - out.strides[:, None] / 2
    half = raw[..., 2:4].exp() * out.strides[:, None] / 2
    centre = corner + raw[..., :2] * out.strides[:, None]
    expected = torch.cat([centre - half, centre + half], -1)
    wide = 2 * torch.maximum(half.amax(-1, keepdim=True), out.strides[:, None])  # errors of a log size grow with it
    assert ((out.boxes - expected).abs() / wide).max() <= 1e-3


def test_official_nano_equals_its_onnx(nano, weights, photographs, request):
    state = nano.state_dict()
    batches = {k: int(v) for k, v in state.items() if k.endswith("num_batches_tracked")}
    if len(set(batches.values())) > 1:
        # Its SOURCE.md says the statistics were set so that outputs equal the export's. In the file, those of
        # backbone and neck have seen one batch more than the head's, and fold to other convolutions than the export's.
        reason = "the checkpoint's trunk statistics are one batch further than its head's; see the next test"
        request.node.add_marker(pytest.mark.xfail(reason=reason, strict=True))
    with torch.no_grad():
        _assert_equal_to(_oracle(weights, photographs), nano(photographs))


def test_our_nano_with_the_statistics_of_the_onnx_equals_it(nano, weights, photographs):
    """Whatever happened to the checkpoint's statistics: with those that fold to the export's convolutions, the
    network is the export."""
    onnx = pytest.importorskip("onnx", reason="onnx is absent: pip install 'ciod[onnx]'")
    graph = onnx.load(str(weights / "yolox_nano_416.onnx")).graph
    stored = {i.name: torch.from_numpy(onnx.numpy_helper.to_array(i).copy()).double() for i in graph.initializer}
    folded = [(stored[n.input[1]], stored[n.input[2]]) for n in graph.node if n.op_type == "Conv"]
    copy = nano.frozen()
    for block in copy.modules():
        if not isinstance(block, ConvBN):
            continue
        own, bn = block.conv.weight.double(), block.bn
        scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
        ours = own * scale[:, None, None, None]
        near = [(w, b) for w, b in folded if w.shape == ours.shape]
        kernel, bias = min(near, key=lambda pair: float((ours - pair[0]).abs().max()))
        assert (ours - kernel).abs().max() <= 0.02 * kernel.abs().max()  # it is the same layer
        scale = scale * (kernel * ours).flatten(1).sum(1) / ours.square().flatten(1).sum(1)
        bn.running_var.copy_((bn.weight.double() / scale).square() - bn.eps)
        bn.running_mean.copy_((bn.bias.double() - bias) / scale)
    with torch.no_grad():
        _assert_equal_to(_oracle(weights, photographs), copy(photographs))


def test_official_nano_finds_the_objects_in_a_photograph(nano, datasets):
    """Colours in the right order, boxes in pixels of the picture: people where people are."""
    from ciod.data import formats

    index = formats.read(datasets / "tiny", "val")
    people = index.class_names.index("person")
    rows = np.flatnonzero(np.bincount(index.image[index.labels == people], minlength=len(index)))
    assert any("person" in {d["class"] for d in nano.predict(index.files[i]).to_list()} for i in rows)
