"""The contract of every detector (tests/detectors/test_contract.py), held by MMDetection's heads too."""

from __future__ import annotations

import pytest
import torch

from ciod import detectors
from ciod.core.errors import CiodError, ConfigError
from tests.detectors import test_contract as contract
from tests.mmdet import common

ALL = (
    "test_only_class_layers_know_classes",
    "test_train_and_eval_mode_differ_only_in_batch_norm",
    "test_matches_and_positives_are_the_same_positions",
    "test_a_match_that_is_not_counted_gives_no_gradient_to_classes_and_boxes",
    "test_masked_channels_get_exactly_no_gradient",
)
SOME = (
    "test_bf16_gives_float32_outputs_and_losses",
    "test_new_classes_start_at_the_prior",
    "test_a_detector_without_classes_works",
    "test_growing_by_nothing_changes_nothing",
    "test_nothing_matches_an_image_without_boxes",
    "test_incomplete_labels_give_exactly_zero_gradient",
    "test_a_teacher_is_apart_from_its_student",
    "test_a_teacher_starts_with_the_weights_of_the_student",
)
FEW = ("yolox", "gfl", "retinanet")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    def make(name: str, names=contract.NAMES, seed: int = 0):
        return common.make(name, names, size=contract.SIZE, seed=seed)

    monkeypatch.setattr(contract, "make", make)
    traits = detectors.traits
    monkeypatch.setattr(detectors, "traits", lambda name: make(name).traits if name in common.CONFIGS else traits(name))
    monkeypatch.setattr("tests.detectors.common.make", make)


@pytest.mark.parametrize("test", ALL)
@pytest.mark.parametrize("name", common.HEADS)
def test_as_every_detector(name, test):
    getattr(contract, test)(name)


@pytest.mark.parametrize("test", SOME)
@pytest.mark.parametrize("name", FEW)
def test_as_every_detector_in_full(name, test):
    getattr(contract, test)(name)


@pytest.mark.parametrize("name", [n for n in common.HEADS if n != "tood"])
def test_growing_keeps_old_outputs_bit_equal(name):
    contract.test_growing_keeps_old_logits_bit_equal(name, contract.NAMES, "cpu")


def test_growing_keeps_the_probabilities_of_tood_to_rounding():
    """Its head returns probabilities, and a sigmoid is vectorised by shape; what goes into it keeps its bits."""
    detector = contract.lively(common.make("tood", contract.NAMES, size=contract.SIZE)).eval()
    seen: list[torch.Tensor] = []
    detector.head.tood_cls.register_forward_hook(lambda module, given, found: seen.append(found))
    with torch.no_grad():
        before = detector(contract.pictures())
        detector.grow(["dog", "eel", "fox"])
        after = detector(contract.pictures())
    known, levels = len(contract.NAMES), len(seen) // 2
    for a, b in zip(seen[:levels], seen[levels:], strict=True):
        assert torch.equal(b[:, :known], a)
    torch.testing.assert_close(after.logits[..., :known], before.logits, rtol=1e-6, atol=2e-6)
    assert torch.equal(after.boxes, before.boxes)


@pytest.mark.parametrize("counts", [[0, 0], [0, 2]], ids=["no boxes at all", "one image without boxes"])
@pytest.mark.parametrize("name", common.HEADS)
def test_losses_and_gradients_are_finite_without_boxes(name, counts):
    contract.test_losses_and_gradients_are_finite_without_boxes(name, counts)


@pytest.mark.parametrize("name", FEW)
def test_growing_from_nothing(name):
    contract.test_growing_keeps_old_logits_bit_equal(name, (), "cpu")


@pytest.mark.parametrize("name", ["yolox", "gfl", "retinanet", "vfnet"])
def test_a_model_file_is_enough(name, tmp_path):
    contract.test_a_model_file_gives_back_the_detector(name, tmp_path)


@pytest.mark.parametrize("name", FEW)
def test_the_forward_is_exportable(name):
    contract.test_the_forward_is_exportable(name)


@pytest.mark.parametrize("name", common.HEADS)
def test_outputs_have_the_promised_shapes(name):
    detector = common.make(name, size=64)
    out = detector(common.pictures(size=64))
    positions = sum(out.levels)
    assert out.logits.shape == (2, positions, 3) and out.boxes.shape == (2, positions, 4)
    assert out.points.shape == (positions, 2) and out.strides.shape == (positions,)
    assert (out.objectness is not None) == bool({"objectness", "centerness"} & detector.traits)
    assert (out.distribution is not None) == ("box_distribution" in detector.traits)
    assert out.boxes.requires_grad and out.boxes.dtype == torch.float32
    cells = [f.shape[2] * f.shape[3] for f in out.features]
    per_cell = 9 if name == "retinanet" else 1
    assert [n * per_cell for n in cells] == list(out.levels)


def test_suppression_in_the_graph_is_for_one_label_a_position(tmp_path):
    from ciod.exporters.onnx_file import export

    pytest.importorskip("onnx", reason="onnx is absent: pip install 'ciod[onnx]'")
    with pytest.raises(
        CiodError, match="can give a position several labels, which the graph does not support; leave nms out"
    ):
        export(common.make("gfl", size=64), tmp_path / "x.onnx", nms=True)


@pytest.mark.parametrize("name", common.HEADS)
def test_an_onnx_file_of_any_batch_is_the_model(name, tmp_path):
    from ciod.exporters.onnx_file import export

    pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")
    detector = common.make(name, size=96).eval()
    if name in ("vfnet", "tood"):
        with pytest.raises(
            ConfigError, match="has deformable convolutions, which ONNX does not have; it runs in PyTorch"
        ):
            export(detector, tmp_path / "x.onnx")
        return
    found = export(detector, tmp_path / "x.onnx")  # compared for one, two and three images
    assert found.verified and found.score_difference < 1e-5


def test_classes_are_selected_and_renamed_with_anchors():
    detector = common.make("retinanet", size=64).eval()
    detector.grow(["dog", "eel"])
    images = common.pictures(size=64)
    with torch.no_grad():
        before = detector(images).logits
        detector.select(["bee", "eel"])
        after = detector(images).logits
    assert detector.class_names == ("bee", "eel") and detector.head.num_classes == 2
    torch.testing.assert_close(after, before[..., [1, 4]], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "FSAFHead"}, "a FSAFHead is not supported; YOLOXHead, GFLHead, .* are"),
        ({"loss_cls": {"type": "GHMC", "use_sigmoid": True}}, "loss_cls of the RetinaHead is a GHMC; supported are"),
        ({"loss_cls": {"type": "CrossEntropyLoss"}}, "has a softmax over classes and background; use_sigmoid=True"),
        ({"nonsense": 1}, "MMDetection cannot build"),
    ],
)
def test_what_a_head_lacks_is_reported(change, message):
    import json

    from ciod import detectors

    model = common.config("retinanet")
    model["bbox_head"].update(change)
    with pytest.raises(CiodError, match=message):
        detectors.build(("a",), name="mmdet:x", size=64, config=json.dumps(model))


def test_names_of_configs():
    from ciod.detectors.mmdet import config as mmdet_config

    found = mmdet_config.locate("gfl/gfl_r50_fpn_1x_coco.py")
    assert found == mmdet_config.locate("gfl_r50_fpn_1x_coco") and found.is_file()
    with pytest.raises(CiodError, match="did you mean 'gfl_r50_fpn_1x_coco'"):
        mmdet_config.locate("gfl_r50_fpn_1x_coc")
    with pytest.raises(CiodError, match="two-stage detectors and DETRs of MMDetection are not supported"):
        detectors.traits("mmdet:faster-rcnn_r50_fpn_1x_coco")
    assert detectors.traits("mmdet:gfl_r50_fpn_1x_coco") == {"dense", "features", "box_distribution", "branches"}
    assert detectors.default_backbone("mmdet:gfl_r50_fpn_1x_coco") == "imagenet"
    assert detectors.default_backbone("mmdet:yolox_s_8xb8-300e_coco") is None


def test_pictures_as_the_config_wants_them():
    from ciod.detectors.mmdet import config as mmdet_config

    yolox = mmdet_config.input_spec(mmdet_config.read("yolox_tiny_8xb8-300e_coco"), None)
    assert (yolox.size, yolox.mean, yolox.std, yolox.bgr, yolox.fill) == (416, (0, 0, 0), (1, 1, 1), True, 114)
    gfl = mmdet_config.input_spec(mmdet_config.read("gfl_r50_fpn_1x_coco"), None)
    assert gfl.size == 1344 and not gfl.bgr and gfl.mean == (123.675, 116.28, 103.53)
    caffe = mmdet_config.input_spec(mmdet_config.read(common.CONFIGS["fcos-plain"]), 640)
    assert caffe.size == 640 and caffe.bgr and caffe.mean == (122.7717, 115.9465, 102.9801)


def test_the_config_freezes_layers_only_with_weights():
    free = common.make("gfl", size=64).train()
    assert all(p.requires_grad for p in free.parameters()) and free.model.backbone.bn1.training
    held = common.make("gfl", size=64, frozen=True).train()
    assert not held.model.backbone.conv1.weight.requires_grad and not held.model.backbone.bn1.training
    assert held.model.backbone.layer4[0].conv1.weight.requires_grad
