"""Checkpoints of MMDetection in and out, and commands on them."""

# pyright: reportMissingImports=false
from __future__ import annotations

import json

import pytest
import torch

import ciod
from ciod import detectors
from ciod.core.errors import CiodError
from ciod.detectors.files import mmdet_files, weights
from ciod.exporters import mmdet_file
from tests.mmdet import common


def checkpoint(name: str, path, **meta):
    """As MMDetection writes one: state dict, class names, and the whole config as text."""
    detector = common.make(name, size=64).eval()
    model = {k: v for k, v in detector.config.items() if k != "input"}
    meta = {"dataset_meta": {"classes": list(common.NAMES)}, "cfg": f"model = {model!r}\nwork_dir = 'x'", **meta}
    torch.save({"state_dict": mmdet_files.plain_state(detector), "meta": meta}, path)
    return detector


@pytest.mark.parametrize("name", ["yolox", "retinanet", "rtmdet"])
def test_a_checkpoint_brings_its_config(name, tmp_path):
    detector = checkpoint(name, tmp_path / "epoch_1.pth")
    loaded = ciod.load(tmp_path / "epoch_1.pth")
    assert loaded.class_names == common.NAMES
    with torch.no_grad():
        a, b = detector(common.pictures(size=64)), loaded(common.pictures(size=64))
    torch.testing.assert_close(b.logits, a.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(b.boxes, a.boxes, atol=1e-3, rtol=1e-5)


def test_tensors_that_do_not_fit_are_reported(tmp_path):
    path = tmp_path / "x.pth"
    checkpoint("retinanet", path, cfg=None)
    with pytest.raises(CiodError, match="has no MMDetection config; give the file"):
        ciod.load(path)
    with pytest.raises(CiodError, match=r"does not fit mmdet:.*: of \d+ tensors \d+ differ"):
        ciod.load(f"mmdet:retinanet_r50_fpn_1x_coco,{path}")
    checkpoint("retinanet", path, dataset_meta={})
    with pytest.raises(CiodError, match="has 3 classes but no class names"):
        ciod.load(path)
    assert weights.load(path, classes=["x", "y", "z"]).class_names == ("x", "y", "z")
    with pytest.raises(CiodError, match="has 3 classes, and names= gives 1"):
        weights.load(path, classes=["x"])
    checkpoint("retinanet", path, cfg="import os\nmodel = 1")
    with pytest.raises(CiodError, match="is not executed"):
        ciod.load(path)


def test_back_and_there_again_after_growing(tmp_path):
    detector = common.make("retinanet", size=64).eval()
    detector.grow(["dog", "eel"])
    written = mmdet_file.export(detector, tmp_path)
    again = ciod.load(f"mmdet:{written.config},{written.checkpoint}")
    assert again.class_names == (*common.NAMES, "dog", "eel") and again.growth == [{"rows": 5}]
    with torch.no_grad():
        a, b = detector(common.pictures(size=64)), again(common.pictures(size=64))
    torch.testing.assert_close(b.logits, a.logits, atol=1e-5, rtol=1e-5)


def test_its_own_tools_load_what_is_written(tmp_path):
    from mmdet.apis import init_detector

    detector = common.make("atss", size=64).eval()
    detector.grow(["dog"])
    written = mmdet_file.export(detector, tmp_path)
    built = init_detector(str(written.config), str(written.checkpoint), device="cpu")
    assert list(built.dataset_meta["classes"]) == [*common.NAMES, "dog"] and built.bbox_head.num_classes == 4
    for key, value in mmdet_files.plain_state(detector).items():
        assert torch.equal(built.state_dict()[key], value), key


def test_a_model_file_cannot_name_code(tmp_path):
    detector = common.make("gfl", size=64)
    model = json.loads(detector.settings["config"])
    model["bbox_head"]["loss_cls"]["type"] = "os.system"
    detector.settings["config"] = json.dumps(model)
    weights.save_model(tmp_path / "model.safetensors", detector)
    with pytest.raises(CiodError, match=r"'os\.system' that is not one of MMDetection's; it is refused"):
        ciod.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("source", ["mmdetection", "native"])
def test_backbone_and_neck_are_taken(source, tmp_path):
    if source == "mmdetection":
        path = tmp_path / "epoch_1.pth"
        donor = checkpoint("gfl", path)
        other = common.make("gfl", ("x",), size=64, seed=3)
    else:
        torch.manual_seed(1)
        donor = detectors.build(("a",), name="gfl-r18", size=64)
        path = tmp_path / "model.safetensors"
        weights.save_model(path, donor)
        model = {**mmdet_file.model_config(donor), "input": {"size": 64}}
        other = detectors.build(("x",), name="mmdet:x", size=64, config=json.dumps(model))
    assert weights.load_trunk(other, path).total > 50
    with torch.no_grad():
        for a, b in zip(
            donor.eval()(common.pictures(size=64)).features, other.eval()(common.pictures(size=64)).features
        ):
            torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-4)


def test_a_trunk_from_a_checkpoint_of_yolox(request):
    """Its own project's names: MMDetection's YOLOX starts from the same file as ciod's."""
    native = detectors.build((), name="yolox-nano", size=64)
    model = {**mmdet_file.model_config(native), "input": {"size": 64}}
    theirs = detectors.build((), name="mmdet:x", size=64, config=json.dumps(model))
    path = request.getfixturevalue("weights") / "yolox_nano_coco.pth"
    assert weights.load_trunk(theirs, path).total == weights.load_trunk(native, path).total > 300
    with torch.no_grad():
        for a, b in zip(*(d.eval()(common.pictures(size=64)).features for d in (native, theirs)), strict=True):
            torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["yolox", "gfl"])
def test_two_tasks_and_an_extension(name, tmp_path):
    """ciod train and ciod extend, with the commands' own words."""
    from ciod.config.load import load
    from ciod.data.shapes.scenes import write_shapes
    from ciod.extension.run import extend
    from ciod.extension.settings import load as load_extension
    from ciod.runs.run import train

    data = write_shapes(tmp_path / "shapes", train=12, val=4)
    config = tmp_path / f"small_{name}.py"
    model = {k: v for k, v in common.config(name).items() if k != "input"}
    config.write_text(f"model = {model!r}")
    words = [f"data={data}", "split=[[circle, square], [star]]", f"detector=mmdet:{config}", "size=96", "epochs=1"]
    out = train(load(None, [*words, "batch=4", "method=ilyolox", f"out={tmp_path / 'run'}"]))
    model_file = out / "task-2" / "model.safetensors"
    found = ciod.load(model_file)
    assert found.class_names == ("circle", "square", "star") and found.settings["name"] == f"mmdet:small_{name}"
    written = mmdet_file.export(found, tmp_path / "there")
    grown = extend(
        load_extension(
            {
                "model": f"mmdet:{written.config},{written.checkpoint}",
                "data": str(data),
                "new": ["triangle"],
                "epochs": 1,
                "batch": 4,
                "method": "pseudo_label",
                "out": str(tmp_path / "more"),
            }
        )
    )
    assert "triangle" in ciod.load(grown / "model.safetensors").class_names


def test_the_head_is_taken_but_its_class_layer(tmp_path):
    path = tmp_path / "epoch_1.pth"
    donor = checkpoint("gfl", path)
    other = common.make("gfl", ("x",), size=64, seed=3)
    taken = weights.load_fitting(other, path)
    assert sum(n for part, n in taken.taken.items() if part.startswith("bbox_head.")) > 5
    assert set(taken.left) == {"bbox_head.gfl_cls"}
    a, b = donor.state_dict(), other.state_dict()
    rows = {r.name for r in other.class_layers()}
    for key, value in b.items():
        if key not in rows:
            assert torch.equal(value, a[key]), key
