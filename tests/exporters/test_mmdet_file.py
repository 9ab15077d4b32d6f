"""``ciod export MODEL mmdet=FOLDER`` without MMDetection: names, class rows, config. tests/mmdet has it read by it."""

from __future__ import annotations

import sys

import pytest
import torch

import ciod
from ciod import detectors
from ciod.core.errors import CiodError
from ciod.detectors.files import foreign, weights
from ciod.detectors.mmdet import config as mmdet_config
from ciod.exporters import mmdet_file
from tests.detectors.common import NAMES, make, pictures

OURS = [n for n in detectors.available() if n.startswith(("yolox-", "gfl-")) and "mobilenet" not in n]


@pytest.mark.parametrize("name", OURS)
def test_names_survive_the_round_trip(name):
    with torch.device("meta"):
        detector = make(name)
        detector.grow(["dog", "eel"])
        own = foreign.merge_blocks(detector.state_dict())
        there = foreign.to_mmdet(detector.state_dict())
    back = foreign.rename(there)
    assert {k.replace(".blocks.0.", ".") if ".cls." in k or k.startswith("head.cls") else k for k in back} == set(own)
    assert len(there) == len(own) and not any(k.startswith("head.") for k in there)
    rows = {v.shape[0] for k, v in there.items() if "conv_cls" in k or "gfl_cls" in k}
    assert rows == {5}


@pytest.mark.parametrize("name", ["yolox-nano", "yolox-pico", "gfl-pico", "gfl-r18", "yolox-r18"])
def test_a_written_checkpoint_is_read_back(name, tmp_path):
    detector = make(name).eval()
    detector.grow(["dog", "eel"])
    written = mmdet_file.export(detector, tmp_path)
    loaded = weights.load(written.checkpoint)
    assert loaded.class_names == (*NAMES, "dog", "eel") and loaded.settings["name"] == name
    with torch.no_grad():
        mine, theirs = detector(pictures()), loaded(pictures())
    # one block of five rows may be summed in another order than blocks of three and two
    torch.testing.assert_close(theirs.logits, mine.logits, atol=1e-6, rtol=1e-6)
    assert torch.equal(theirs.boxes, mine.boxes)
    content = weights.read_checkpoint(written.checkpoint)
    config = mmdet_config.literal(content["meta"]["cfg"], "it")
    assert content["meta"]["cfg"] == written.config.read_text()
    model = mmdet_config.of(config, "it")
    assert model["bbox_head"]["num_classes"] == 5
    input_spec = mmdet_config.input_spec(model, None)
    assert input_spec == detector.input
    assert config["test_dataloader"]["dataset"]["metainfo"]["classes"] == [*NAMES, "dog", "eel"]


def test_detectors_that_mmdetection_lacks_are_refused(tmp_path):
    with pytest.raises(CiodError, match="fcos-nano cannot be exported to MMDetection; only yolox-… and gfl-… can"):
        mmdet_file.export(make("fcos-nano"), tmp_path)
    branched = make("yolox-pico")
    branched.add_branch(["dog"])
    with pytest.raises(CiodError, match="A detector with branches"):
        mmdet_file.export(branched, tmp_path)
    with pytest.raises(CiodError, match="no classes yet"):
        mmdet_file.export(make("yolox-pico", ()), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import os", "line 1 is not an assignment"),
        ("a = __import__('os').system('true')", "plain values"),
        ("a = [open]", "plain values"),
        ("a = dict(**b)", "line 1 unpacks a dict"),
        ("a = (", "plain values"),
    ],
)
def test_a_config_inside_a_checkpoint_is_never_run(text, why):
    with pytest.raises(CiodError, match=r"is not executed; give the file: mmdet:CONFIG\.py,x\.pth") as e:
        mmdet_config.literal(text, "x.pth")
    assert why in str(e.value)


def test_plain_values_of_a_config_are_read():
    text = "a = dict(type='X', n=(1, -2.5), inner=[dict(b=None), {'c': True}])\nd = 'text'"
    assert mmdet_config.literal(text, "x") == {
        "a": {"type": "X", "n": [1, -2.5], "inner": [{"b": None}, {"c": True}]},
        "d": "text",
    }


@pytest.mark.parametrize("kind", ["os.system", "mmpretrain.ConvNeXt", 3])
def test_a_model_file_names_only_registered_classes(kind):
    with pytest.raises(CiodError, match="not one of MMDetection's; it is refused"):
        mmdet_config.check_types({"bbox_head": {"type": "GFLHead", "x": [{"type": kind}]}}, "model.safetensors")


def test_without_mmdetection_the_extra_is_named(monkeypatch):
    for name in ("mmdet", "mmdet.models"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(CiodError, match="need the extra mmdet"):
        detectors.traits("mmdet:gfl_r50_fpn_1x_coco")
    with pytest.raises(CiodError, match="names a config but no checkpoint; write mmdet:CONFIG,CHECKPOINT"):
        ciod.load("mmdet:gfl_r50_fpn_1x_coco")
