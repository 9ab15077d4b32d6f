"""Error messages for configs and checkpoints that the adapter cannot use (for heads: test_contract.py)."""

# pyright: reportMissingImports=false
from __future__ import annotations

import builtins
import json
import re

import pytest
import torch
from torch import nn

import ciod
from ciod import detectors
from ciod.core.errors import CiodError
from ciod.detectors.files import mmdet_files, weights
from ciod.detectors.mmdet import config as mmdet_config
from tests.mmdet import common


def build(model: dict, **more):
    return detectors.build(("a",), name="mmdet:x", size=64, config=json.dumps(model), **more)


def test_what_a_config_asks_of_a_head():
    model = common.config("retinanet")
    del model["bbox_head"]["type"]
    with pytest.raises(CiodError, match=r"x: a head without type is not supported; YOLOXHead, GFLHead, .* are\."):
        build(model)
    model = common.config("vfnet")
    model["bbox_head"]["use_vfl"] = False
    with pytest.raises(CiodError, match="a VFNetHead is supported with use_atss and use_vfl; without them FCOSHead is"):
        build(model)
    model = common.config("yolox")
    model["bbox_head"]["loss_bbox"] = {"type": "L1Loss"}
    with pytest.raises(CiodError, match=r"loss_bbox of a YOLOXHead must compare boxes \(IoULoss, GIoULoss, "):
        build(model)
    model = common.config("retinanet")
    with pytest.raises(CiodError, match=r"model\.train_cfg has no assigner, so the RetinaHead cannot be trained"):
        build({**model, "train_cfg": None})
    model["train_cfg"]["sampler"] = {"type": "RandomSampler", "num": 9, "pos_fraction": 0.5}
    model["bbox_head"]["loss_cls"] = {"type": "CrossEntropyLoss", "use_sigmoid": True}
    with pytest.raises(CiodError, match="RetinaHead samples positions; only heads that use all of them are supported"):
        build(model)


def test_a_detector_of_another_kind(monkeypatch):
    """A config is code: it may register a class of its own."""
    from mmdet.registry import MODELS

    class Own(nn.Module):
        def __init__(self, **_):
            super().__init__()

        def init_weights(self):
            pass

    monkeypatch.setitem(MODELS.module_dict, "Own", Own)
    with pytest.raises(CiodError, match=r"x is a Own; only one-stage detectors are supported\."):
        build({**common.config("retinanet"), "type": "Own"})


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda old, _: nn.Conv2d(old.in_channels, 8, 3), "x: no layer of the head depends on the number of classes"),
        (
            lambda old, n: nn.Conv2d(old.in_channels, n, 3, bias=False),
            "x: the class layer is a Conv2d, which cannot grow",
        ),
    ],
)
def test_a_head_with_other_layers(layer, message, monkeypatch):
    from mmdet.models.dense_heads import RetinaHead
    from mmdet.registry import MODELS

    class Other(RetinaHead):
        def _init_layers(self):
            super()._init_layers()
            self.retina_cls = layer(self.retina_cls, self.num_classes * self.num_base_priors)

    monkeypatch.setitem(MODELS.module_dict, "RetinaHead", Other)
    with pytest.raises(CiodError, match=message):
        build(common.config("retinanet"))


def test_weights_of_a_backbone_are_for_resnets():
    with pytest.raises(
        CiodError,
        match=r"detector\.backbone_weights: only for ResNets of style pytorch; the config has a CSPDarkn",
    ):
        build(common.config("yolox"), backbone_weights="imagenet")


def test_parts_of_mmdetection_that_do_not_go_together(monkeypatch):
    real = builtins.__import__

    def importing(name, *args, **kwargs):
        if name == "mmdet.models":
            raise AssertionError("MMCV==1.0.0 is used but incompatible.")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(
        CiodError, match=r"Incompatible versions of MMDetection packages: MMCV==1\.0\.0 is used but incompat"
    ):
        mmdet_config.require()


def test_configs_that_are_absent_or_unreadable(tmp_path):
    with pytest.raises(CiodError, match=r"There is no config file x, nor a config .* a path ending in \.py, or a name"):
        mmdet_config.locate("x")
    path = tmp_path / "mine.py"
    path.write_text("model = dict(type='RetinaNet', bbox_head=dict(type=")
    with pytest.raises(CiodError, match=rf"{re.escape(str(path))} cannot be read: \w+: "):
        detectors.traits(f"mmdet:{path}")
    path.write_text("model = dict(type='RetinaNet')")
    with pytest.raises(CiodError, match=r"mine\.py has no one-stage detector with a bbox_head \(its model is a Retina"):
        detectors.traits(f"mmdet:{path}")
    path.write_text("model = dict(type='RetinaNet', bbox_head=dict(type='RetinaHead', loss_cls=3j))")
    with pytest.raises(CiodError, match=r"The config holds a complex \(3j\); only plain values can be kept in a model"):
        detectors.traits(f"mmdet:{path}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "m holds no readable config of MMDetection: "),
        ('{"backbone": {}}', "m holds no config of a one-stage detector of MMDetection"),
        (
            '{"bbox_head": {"type": "GFLHead", "_scope_": "mmpretrain"}}',
            r"m asks for imports \(_scope_\); it is",
        ),
    ],
)
def test_a_config_in_a_model_file(text, message):
    with pytest.raises(CiodError, match=message):
        mmdet_config.loads(text, "m")


def test_a_checkpoint_that_lacks_a_layer(tmp_path):
    detector = common.make("gfl", size=64)
    state = mmdet_files.plain_state(detector)
    path = tmp_path / "x.pth"
    model = {k: v for k, v in detector.config.items() if k != "input"}
    meta = {"dataset_meta": {"classes": list(common.NAMES)}, "cfg": f"model = {model!r}"}
    torch.save({"state_dict": {k: v for k, v in state.items() if "gfl_reg.bias" not in k}, "meta": meta}, path)
    with pytest.raises(CiodError, match=r"of \d+ tensors 1 differ; bbox_head\.gfl_reg\.bias is not in it\."):
        ciod.load(path)
    with pytest.raises(
        CiodError, match=r"x\.pth has another backbone than mmdet:yolox: backbone\.stem.* is missing or has"
    ):
        weights.load_trunk(common.make("yolox", size=64), path)


def test_a_config_that_cannot_be_built_beside_a_checkpoint(tmp_path):
    """The classes of a checkpoint are counted before the detector is made."""
    model = {k: v for k, v in common.config("gfl").items() if k != "input"}
    model["bbox_head"]["nonsense"] = 1
    (tmp_path / "mine.py").write_text(f"model = {model!r}")
    torch.save({"state_dict": {"bbox_head.gfl_cls.bias": torch.zeros(3)}}, tmp_path / "x.pth")
    with pytest.raises(CiodError, match=r"MMDetection cannot build mmdet:mine\.py: TypeError: .*nonsense"):
        ciod.load(f"mmdet:{tmp_path / 'mine.py'},{tmp_path / 'x.pth'}")
