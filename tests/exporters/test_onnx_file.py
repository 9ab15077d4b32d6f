"""An exported file gives what the model gives, says what it is, and is refused when it does not."""

from __future__ import annotations

import builtins
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import ciod
from ciod import detectors
from ciod.cli import app
from ciod.core.errors import CiodError, ConfigError
from ciod.core.types import Detections
from ciod.data.augment import letterbox
from ciod.data.images import read_image
from ciod.detectors.base import Detector
from ciod.detectors.files.weights import save_model
from ciod.exporters import onnx_file
from ciod.exporters.graphs import Suppressed
from ciod.exporters.onnx_file import export, read_metadata
from ciod.exporters.parts import Part
from tests.inference.networks import NAMES, SIZE, pictures, settled

onnx = pytest.importorskip("onnx", reason="onnx is absent: pip install 'ciod[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")


def run(path, images: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.numpy()})


def assert_same(found: np.ndarray, wanted: Detections) -> None:
    """Rows of the graph against detections; neighbours of nearly equal scores may have changed places."""
    found = found[found[:, 5] >= 0]
    assert len(found) == len(wanted) and (np.diff(found[:, 4]) <= 0).all()
    rows = np.column_stack([wanted.boxes, wanted.scores, wanted.labels])
    off = np.abs(found[:, None] - rows[None]) / [*np.maximum(1, np.abs(rows[:, None, :4]).max()).repeat(4), 0.1, 1e-4]
    assert (off.max(2).min(1) < 1e-4).all() and (off.max(2).min(0) < 1e-4).all()


@pytest.fixture(scope="module")
def pico() -> Detector:
    return settled()


@pytest.mark.parametrize("opset", [13, 17])
def test_raw_outputs_are_the_models(pico, tmp_path, opset):
    done = export(pico, tmp_path / "a.onnx", opset=opset)
    assert done.verified and done.score_difference < 1e-4 and done.detections is None
    opsets = {o.domain: o.version for o in onnx.load(str(done.path)).opset_import}
    assert opsets[""] == done.opset == opset
    for n in (1, 3):
        with torch.no_grad():
            outputs = pico(pictures(n, seed=7))
        boxes, scores = run(done.path, pictures(n, seed=7))
        assert boxes.shape == (n, 84, 4) and scores.shape == (n, 84, 3)
        np.testing.assert_allclose(scores, outputs.scores().numpy(), atol=1e-5)
        np.testing.assert_allclose(boxes, outputs.boxes.numpy(), atol=1e-3, rtol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


@pytest.mark.parametrize("name", [n for n in detectors.available() if n.endswith(("-nano", "-r18"))])
def test_other_detectors(tmp_path, name):
    done = export(settled(name), tmp_path / "a.onnx", nms=True, score_threshold=0.001)
    assert done.verified and done.detections


def test_nms_in_the_graph_is_decode(pico, tmp_path):
    done = export(pico, tmp_path / "a.onnx", nms=True, max_detections=20, score_threshold=0.0, nms_iou=0.5)
    assert done.detections is not None and done.detections > 40
    for n in (1, 3):
        (found,) = run(done.path, pictures(n, seed=3))
        assert found.shape == (n, 20, 6)
        with torch.no_grad():
            wanted = pico.decode(pico(pictures(n, seed=3)), score_threshold=0.0, nms_iou=0.5, max_detections=20)
        assert min(map(len, wanted)) > 5
        for mine, theirs in zip(found, wanted):
            assert_same(mine, theirs)


def test_branches_have_rows_of_their_own(tmp_path):
    """The list is full of each part's boxes: new classes push out none of the old."""
    model = settled()
    for names in (["eel"], ["fox", "gnu"]):
        model.add_branch(names)
    done = export(model, tmp_path / "a.onnx", nms=True, max_detections=6, score_threshold=0.0, nms_iou=0.9)
    assert done.detections == 4 * 18, "those of Detector.decode, on two batches"
    (found,) = run(done.path, pictures(2, seed=3))
    assert found.shape == (2, 18, 6)
    for mine in found:
        assert (np.diff(mine[:, 4]) <= 0).all()
        assert [int(np.isin(mine[:, 5], own).sum()) for own in ([0, 1, 2], [3], [4, 5])] == [6, 6, 6]


def test_unused_rows_are_empty_and_last(pico):
    graph = Suppressed(pico, score_threshold=0.3, nms_iou=0.5, max_detections=4)
    boxes = torch.tensor([[[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [50, 50, 60, 60.0]]])
    scores = torch.tensor([[[0.9, 0.1, 0], [0.8, 0.2, 0], [0.1, 0.7, 0], [0.2, 0.3, 0.1]]])
    # The second overlaps a better one of its class (IoU 9/11), the third is of another class, the fourth is not above.
    assert graph.suppress([Part(boxes, scores.transpose(1, 2), [0, 1, 2])])[0].tolist() == [
        [0, 0, 10, 10, pytest.approx(0.9), 0],
        [0, 0, 10, 10, pytest.approx(0.7), 1],
        [0, 0, 0, 0, 0, -1],
        [0, 0, 0, 0, 0, -1],
    ]


@pytest.mark.parametrize("nms", [False, True])
def test_another_size(pico, tmp_path, nms):
    done = export(pico, tmp_path / "a.onnx", nms=nms, dynamic_size=True, score_threshold=0.001)
    images = pictures(2, size=(96, 32))
    with torch.no_grad():
        outputs = pico(images)
    if nms:
        found = run(done.path, images)[0]
        wanted = pico.decode(outputs, score_threshold=0.001)
        assert min(map(len, wanted)) > 2
        for mine, theirs in zip(found, wanted):
            assert_same(mine, theirs)
    else:
        np.testing.assert_allclose(run(done.path, images)[1], outputs.scores().numpy(), atol=1e-5)


def test_metadata_comes_back(tmp_path):
    names = ("fork & knife", "größe", "猫")
    detector = settled(names=names)
    detector.lineage = [{"classes": list(names), "data": "a farm"}]
    found = read_metadata(export(detector, tmp_path / "a.onnx", nms=True, nms_iou=0.6, max_detections=7).path)
    assert found["class_names"] == list(names) and found["ciod"] == ciod.__version__ and found["opset"] == 17
    assert found["input"]["size"] == SIZE and found["input"]["fill"] == 114
    assert found["normalised_in_graph"] == {"mean": [0, 0, 0], "std": [1, 1, 1], "bgr": True}
    assert found["decoding"] == {"score_threshold": 0.001, "nms_iou": 0.6, "max_detections": 7, "in_graph": True}
    assert found["lineage"] == detector.lineage and found["detector"]["name"] == "yolox-pico"
    # Readable through onnxruntime alone.
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["ciod"]) == found


def test_the_model_is_left_as_it_was(pico, tmp_path):
    before = {k: v.clone() for k, v in pico.state_dict().items()}
    pico.train()
    export(pico, tmp_path / "a.onnx")
    assert pico.training and all(p.requires_grad for p in pico.parameters())
    pico.eval()
    assert all(torch.equal(v, before[k]) for k, v in pico.state_dict().items())


def test_photographs_through_the_real_nano(weights, datasets, tmp_path):
    files = sorted((datasets / "tiny" / "images").glob("*"))[:3]
    model = ciod.load(weights / "yolox_nano_coco.pth")
    images = torch.stack([letterbox(read_image(f), 416, 114)[0].float() for f in files])
    raw = export(model, tmp_path / "raw.onnx", images=datasets / "tiny" / "images")
    done = export(model, tmp_path / "nms.onnx", nms=True, score_threshold=0.2)
    assert raw.score_difference < 1e-4 and done.verified
    for n in (1, 3):
        with torch.no_grad():
            outputs = model(images[:n])
        boxes, scores = run(raw.path, images[:n])
        np.testing.assert_allclose(scores, outputs.scores().numpy(), atol=1e-4)
        np.testing.assert_allclose(boxes, outputs.boxes.numpy(), atol=1e-2, rtol=1e-4)
        (found,) = run(done.path, images[:n])
        wanted = model.decode(outputs, score_threshold=0.2)
        assert sum(map(len, wanted)) > 2
        for mine, theirs in zip(found, wanted):
            assert_same(mine, theirs)


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", ["boxes", "scores", "nan"])
def test_a_file_that_disagrees_is_not_left(pico, tmp_path, monkeypatch, half):
    right = onnx_file.Raw.wanted

    def wrong(self, images):
        boxes, scores, parts = right(self, images)
        change = {"boxes": (1.01, 0), "scores": (1, 0.002), "nan": (1, float("nan"))}[half]
        return boxes * change[0], scores + change[1], parts

    monkeypatch.setattr(onnx_file.Raw, "wanted", wrong)
    (tmp_path / "a.onnx").write_text("the last good one")
    with pytest.raises(CiodError, match="differs from the model"):
        export(pico, tmp_path / "a.onnx", overwrite=True)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["the last good one"]


def test_a_file_that_finds_other_objects_is_not_left(pico, tmp_path, monkeypatch):
    monkeypatch.setattr(pico, "decode", lambda *a, **k: Detector.decode(pico, *a, **{**k, "max_detections": 1}))
    with pytest.raises(CiodError, match="finds other objects than the model"):
        export(pico, tmp_path / "a.onnx", nms=True, score_threshold=0.0)
    assert not list(tmp_path.iterdir())


def test_every_mistake_at_once(pico, tmp_path):
    with pytest.raises(ConfigError, match="3 problems") as caught:
        export(pico, tmp_path / "a.onnx", opset=9, nms_iou=1.5, max_detections=0)
    text = str(caught.value)
    assert "nms_iou: 1.5 is not in 0..1" in text and "opset: 9 is not possible; allowed: 13 to 20" in text
    with pytest.raises(CiodError, match=r"a\.pt must end in \.onnx"):
        export("absent.safetensors", tmp_path / "a.pt")
    with pytest.raises(CiodError, match="no classes yet"):
        export(detectors.build((), name="yolox-pico", size=64), tmp_path / "a.onnx")


def test_nms_of_a_detector_with_several_labels_a_position(pico, tmp_path, monkeypatch):
    monkeypatch.setattr(pico, "one_label", False)
    with pytest.raises(
        ConfigError, match="nms: yolox-pico can give a position several labels, which the graph does not"
    ):
        export(pico, tmp_path / "a.onnx", nms=True)
    assert not list(tmp_path.iterdir())


def test_a_network_with_operators_that_onnx_lacks(tmp_path):
    detector = settled()
    detector.lacks_in_onnx = "deformable convolutions"
    with pytest.raises(
        ConfigError, match="yolox-pico has deformable convolutions, which ONNX does not have; it runs in"
    ):
        export(detector, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_without_the_packages(pico, tmp_path, monkeypatch):
    real = builtins.__import__
    absent: set[str] = set()

    def importing(name, *args, **kwargs):
        if name.split(".")[0] in absent:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)
    absent.add("onnxruntime")
    done = export(pico, tmp_path / "a.onnx")
    assert not done.verified and done.path.is_file()
    save_model(tmp_path / "model.safetensors", pico)
    message = CliRunner().invoke(app, ["export", str(tmp_path / "model.safetensors"), f"onnx={tmp_path / 'b.onnx'}"])
    assert message.exit_code == 0 and "opset 17" in message.output
    assert "Not compared with the model: onnxruntime is not installed (pip install 'ciod[onnx]')." in message.output


def test_without_onnx(pico, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(CiodError, match=r"needs onnx, which is not installed: pip install 'ciod\[onnx\]'"):
        export(pico, tmp_path / "a.onnx")


def test_a_folder_that_cannot_be_written(pico, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CiodError, match="cannot be written"):
        export(pico, tmp_path / "file" / "a.onnx")


def test_a_file_of_others(tmp_path):
    node = onnx.helper.make_node("Identity", ["a"], ["b"])
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "ab"]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
    content = onnx.helper.make_model(graph)
    onnx.save(content, str(tmp_path / "a.onnx"))
    with pytest.raises(CiodError, match="was not exported by ciod"):
        read_metadata(tmp_path / "a.onnx")
    content.metadata_props.add(key=onnx_file.KEY, value="{")
    onnx.save(content, str(tmp_path / "a.onnx"))
    with pytest.raises(CiodError, match=r"a\.onnx is damaged: its metadata are not JSON\. Export it again"):
        read_metadata(tmp_path / "a.onnx")


@pytest.mark.parametrize("name", ["yolox-pico", "gfl-pico"])
def test_a_model_without_its_first_classes_is_exported(name, tmp_path):
    detector = detectors.build(("cat", "dog"), name=name, size=64).eval()
    detector.add_branch(["eel"])
    detector.select(["eel"])
    done = export(detector.eval(), tmp_path / "m.onnx", nms=True)
    assert done.verified and read_metadata(done.path)["class_names"] == ["eel"]


def test_the_command(pico, tmp_path, monkeypatch, capsys):
    import sys

    from ciod import cli

    save_model(tmp_path / "model.safetensors", pico)
    words = ["export", str(tmp_path / "model.safetensors"), f"onnx={tmp_path / 'out' / 'm.onnx'}", "nms=true"]
    monkeypatch.setattr(sys, "argv", ["ciod", *words])
    with pytest.raises(SystemExit) as done:
        cli.main()
    out = capsys.readouterr().out
    assert not done.value.code and "opset 17" in out and "largest difference of a score" in out
    assert "detections compared, all equal" in out
    assert read_metadata(tmp_path / "out" / "m.onnx")["class_names"] == list(NAMES)


def test_only_an_earlier_export_is_replaced(pico, tmp_path):
    done = export(pico, tmp_path / "a.onnx", opset=17)
    export(pico, done.path, opset=13)
    assert read_metadata(done.path)["opset"] == 13
    theirs = onnx.load(str(done.path))
    del theirs.metadata_props[:]
    for content in (theirs.SerializeToString(), b"my notes", b""):
        done.path.write_bytes(content)
        with pytest.raises(CiodError, match=r"a\.onnx already exists and was not written by 'ciod export'\."):
            export(pico, done.path)
        assert done.path.read_bytes() == content
    export(pico, done.path, overwrite=True)
    assert read_metadata(done.path)["opset"] == 17
