"""ciod extend of an ONNX file: from a file to a file, on tiny pictures."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import ciod
from ciod import detectors
from ciod.cli import app
from ciod.core.errors import CiodError, ConfigError
from ciod.core.types import Detections
from ciod.data import formats
from ciod.detectors.files import weights
from ciod.detectors.onnx import file, mirror
from ciod.detectors.onnx.detector import OnnxDetector
from ciod.extension import onnx_model, settings
from ciod.extension.run import extend
from ciod.training.hooks import Hooks
from tests.data.writers import sample_index, write_coco
from tests.detectors.onnx.graphs import SIZE, Net, small

OLD = ["cat", "dog", "cow"]
QUICK = {"epochs": 1, "batch": 2, "device": "cpu"}
SAID = {"input": "0..1,rgb", "names": OLD}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A detector of three classes, and a folder that knows one of them and a new one."""
    root = tmp_path_factory.mktemp("extend")
    small().save(root / "m.onnx")
    write_coco(sample_index(root / "raw", images=6, names=("dog", "eel")), root / "folder")
    return root


@pytest.fixture(scope="module")
def one(place):
    results = ciod.extend(place / "m.onnx", place / "folder", place / "one", **SAID, **QUICK)
    return place / "one", results


def outputs(path, images):
    session = file.start(path, path.read_bytes())
    return [session.run(None, {"x": image[None]}) for image in images]


def test_what_an_extension_leaves(one, place):
    out, results = one
    for name in ("model.onnx", "report.html", "results.json", "run.yaml", "metrics.jsonl", "last/state.pt"):
        assert (out / name).is_file(), name
    assert not (out / "model.safetensors").exists()
    assert results["extension"]["names"]["new"] == ["eel"]
    assert results["extension"]["onnx"]["moved"] == 0 and results["extension"]["onnx"]["pictures"] == 6
    assert "ms per run on one thread" in results["extension"]["cost"]
    assert any("bit-equal on 6 pictures" in line for line in results["scenario"]["protocol"])
    images = np.random.default_rng(0).random((3, 3, SIZE, SIZE), np.float32)
    for before, after in zip(outputs(place / "m.onnx", images), outputs(out / "model.onnx", images)):
        np.testing.assert_array_equal(after[0], before[0])
        assert after[1].shape == (1, 189, 4) and after[2].shape == (1, 189, 2)


def test_the_result_is_extended_again_and_used(one, place, tmp_path):
    out, _ = one
    write_coco(sample_index(tmp_path / "raw", images=4, names=("fox",)), tmp_path / "more")
    results = ciod.extend(out / "model.onnx", tmp_path / "more", tmp_path / "two", **QUICK)
    assert results["extension"]["onnx"]["outputs"] == 3
    made = tmp_path / "two" / "model.onnx"
    detector = ciod.load(made)
    assert detector.class_names == (*OLD, "eel", "fox")
    assert [step.get("classes") for step in detector.lineage] == [OLD, ["eel"], ["fox"]]
    assert (detector.arbiter.count[[4 - 1, 4]] > 0).all() and not detector.arbiter.count[:1].any()
    run = CliRunner().invoke
    shown = run(app, ["list", str(made)]).output
    assert "5 classes" in shown and "eel" in shown and "data sha256" in shown
    assert "extended by ciod 2 times: dog, eel, fox" in run(app, ["check", str(made)]).output
    picture = next((tmp_path / "raw").glob("*.png"))
    done = run(app, ["predict", str(made), str(picture), f"out={tmp_path / 'p'}", "score=0"])
    assert done.exit_code == 0 and "1 file" in done.output, done.output
    scored = ciod.evaluate(made, tmp_path / "more", split="train", device="cpu")
    assert scored.scored == ("fox",)
    model = made.read_bytes()
    assert ciod.extend(out / "model.onnx", tmp_path / "more", tmp_path / "two", **QUICK) == results  # finished already
    assert made.read_bytes() == model
    with pytest.raises(CiodError, match="holds a run with other settings"):
        ciod.extend(out / "model.onnx", tmp_path / "more", tmp_path / "two", **QUICK, seed=7)


def test_a_file_of_another_framework_is_listed_and_evaluated(place):
    shown = CliRunner().invoke(app, ["list", str(place / "m.onnx")]).output
    assert "classes not named" in shown and "ciod check" in shown
    words = [
        "eval",
        str(place / "m.onnx"),
        f"data={place / 'folder'}",
        "split=train",
        "input=0..1,rgb",
        "names=cat,dog,cow",
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "not in the model, left out: eel" in done.output, done.output


def test_unknown_outputs_are_named(tmp_path, place):
    net = Net()
    net.output(net.head(net.fpn(net.backbone(), 8), 3, towers=1)[1][2])
    path = net.save(tmp_path / "m.onnx")
    results = ciod.extend(path, place / "folder", tmp_path / "out", input="0..1,rgb", **QUICK)
    assert results["extension"]["names"]["new"] == ["dog", "eel"]
    assert any("not understood" in line for line in results["extension"]["onnx"]["recognised"])
    assert ciod.load(tmp_path / "out" / "model.onnx").class_names == ("dog", "eel")


class StopsAfterAnEpoch(Hooks):
    def __init__(self, last: int = 0):
        self.last = last

    def on_epoch(self, at, epoch):
        if epoch == self.last:
            raise KeyboardInterrupt


def test_an_interrupted_extension_resumes_and_ends_the_same(one, place, tmp_path):
    words = {**SAID, **QUICK, "model": str(place / "m.onnx"), "data": str(place / "folder")}
    chosen = settings.load({**words, "out": str(tmp_path / "part")})
    with pytest.raises(KeyboardInterrupt):
        extend(chosen, hooks=[StopsAfterAnEpoch()])
    assert not (tmp_path / "part" / "model.onnx").exists()
    extend(chosen)
    images = np.random.default_rng(0).random((2, 3, SIZE, SIZE), np.float32)
    whole, part = (outputs(out / "model.onnx", images) for out in (one[0], tmp_path / "part"))
    for a, b in zip(whole, part):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_maps_of_views_are_kept_and_a_resumed_extension_ends_the_same(place, tmp_path, monkeypatch):
    words = {**SAID, **QUICK, "epochs": 5, "views": 2, "model": str(place / "m.onnx"), "data": str(place / "folder")}
    counted = []
    packed = OnnxDetector.packed
    monkeypatch.setattr(OnnxDetector, "packed", lambda self, x: counted.append(len(x)) or packed(self, x))
    whole = extend(settings.load({**words, "out": str(tmp_path / "whole")}))
    assert sum(counted) == 2 * 5  # two views of five images; one image is held out
    plan = json.loads((whole / "results.json").read_text(encoding="utf-8"))["extension"]["plan"]
    assert plan["views"] == 2 and "2 views per image are computed for 5 epochs" in plan["why"][-1]
    part = settings.load({**words, "out": str(tmp_path / "part")})
    with pytest.raises(KeyboardInterrupt):
        extend(part, hooks=[StopsAfterAnEpoch(2)])
    extend(part)
    images = np.random.default_rng(0).random((2, 3, SIZE, SIZE), np.float32)
    for a, b in zip(outputs(whole / "model.onnx", images), outputs(tmp_path / "part" / "model.onnx", images)):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_an_onnx_file_is_not_exported(place, tmp_path):
    with pytest.raises(CiodError, match=r"m.onnx is an ONNX file already"):
        ciod.export(place / "m.onnx", tmp_path / "n.onnx")


def test_other_methods_are_refused(place, tmp_path):
    with pytest.raises(CiodError, match="finetune trains the weights of the model, which an ONNX file keeps"):
        ciod.extend(place / "m.onnx", place / "folder", tmp_path / "out", method="finetune", **SAID, **QUICK)


def test_input_is_asked_for(place, tmp_path):
    with pytest.raises(CiodError, match=r"does not say how pictures must be given. Write input="):
        ciod.extend(place / "m.onnx", place / "folder", tmp_path / "out", **QUICK)
    with pytest.raises(ConfigError, match="input: this is a setting of ONNX files"):
        ciod.extend(place / "m.pth", place / "folder", tmp_path / "out", input=["0..1", "rgb"], **QUICK)


def test_folders_without_a_readable_picture(place):
    index = formats.read(str(place / "folder"), "train")
    gone = replace(index, files=[place / "none.png"] * len(index))
    with pytest.raises(CiodError, match=r"None of the images of .* can be read"):
        onnx_model.pictures(ciod.load(place / "m.onnx", input="0..1,rgb", classes=OLD), gone, 3)


# The mirror test ------------------------------------------------------------------------------------------------------


class Fixed:
    """Returns the given detections, in a picture and in the mirrored one."""

    def __init__(self, detector, mirrored: float):
        self.source, self.mirrored = detector.source, mirrored

    def __call__(self, images):
        return images

    def decode(self, images, score_threshold):
        boxes = np.array([[10, 10, 30, 40], [50, 20, 80, 60]], np.float32)
        other = np.stack([SIZE - boxes[:, 2], boxes[:, 1], SIZE - boxes[:, 0], boxes[:, 3]], 1) + self.mirrored
        return [Detections(b, np.ones(2), np.arange(2), ("a", "b")) for b in (boxes, other)]


@pytest.mark.parametrize(("moved", "expected"), [(0, []), (1, []), (25, ["0 of 10 old detections are found again"])])
def test_what_is_not_found_again_in_the_mirror_is_warned_of(place, moved, expected):
    detector = Fixed(ciod.load(place / "m.onnx", input="0..1,rgb", classes=OLD), moved)
    found = mirror.input_warnings(detector, np.zeros((5, 3, SIZE, SIZE), np.uint8))
    assert len(found) == len(expected) and all(a in b for a, b in zip(expected, found))
    assert mirror.input_warnings(detector, np.zeros((4, 3, SIZE, SIZE), np.uint8)) == []


def test_a_detector_that_finds_nothing_is_warned_of(place):
    detector = Fixed(ciod.load(place / "m.onnx", input="0..1,rgb", classes=OLD), 0)
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0), np.zeros(0, np.int64))
    detector.decode = lambda images, score_threshold: [nothing] * 2
    found = mirror.input_warnings(detector, np.zeros((9, 3, SIZE, SIZE), np.uint8))
    assert found[0].startswith("The old detector finds 0 objects in 9 images: is input= right?")


def test_changed_outputs_are_reported():
    verified = onnx_model.Verified(pictures=50, outputs=2, moved=1e-6, difference=0.0)
    made = onnx_model.Made(b"", verified, "", None)
    assert made.sentence() == "The 2 old outputs differ by up to 1e-06 on 50 pictures."


# One output of all classes --------------------------------------------------------------------------------------------


def test_one_output_of_all_classes(place, tmp_path):
    ciod.extend(place / "m.onnx", place / "folder", tmp_path / "out", nms=True, outputs="joined", **SAID, **QUICK)
    images = np.random.default_rng(0).random((1, 3, SIZE, SIZE), np.float32)
    found = outputs(tmp_path / "out" / "model.onnx", images)[0]
    assert [a.shape for a in found] == [(1, 189, 8), (1, 189, 4), (1, 189, 2), (1, 200, 6)]
    assert outputs(tmp_path / "out" / "joined.onnx", images)[0][0].shape == (1, 4 + 4, 2 * 189)


def test_one_output_that_cannot_be(place, tmp_path):
    net = Net()
    net.output(net.head(net.fpn(net.backbone(), 8), 3, towers=1)[1][2])
    path = net.save(tmp_path / "m.onnx")
    with pytest.raises(CiodError, match=r"nms: the old outputs of m.onnx are not understood"):
        ciod.extend(path, place / "folder", tmp_path / "out", input="0..1,rgb", nms=True, **QUICK)
    weights.save_model(tmp_path / "m.safetensors", detectors.build(OLD, name="yolox-pico", size=64))
    with pytest.raises(ConfigError, match=r"outputs: this is a setting of ONNX files, and .*safetensors is none"):
        ciod.extend(tmp_path / "m.safetensors", place / "folder", tmp_path / "out", outputs="joined", **QUICK)
