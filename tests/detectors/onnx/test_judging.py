"""The arbiter between the branches of an ONNX file: in ciod, in the file, and as nodes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import ciod
from ciod.core.errors import CiodError
from ciod.detectors import statistics
from ciod.detectors.onnx import arbiter_text, file, merge
from ciod.detectors.onnx.detector import load
from tests.data.writers import sample_index
from tests.detectors.onnx.graphs import SIZE, onnx, small
from tests.detectors.onnx.test_detector import ASKED, close, images, trained


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return sample_index(tmp_path_factory.mktemp("pictures"), images=6, names=("eel", "fox"))


def judged(path, pictures, names=("eel",)):
    """A detector with one more branch, and statistics of it."""
    detector = trained(load(path, None if "1.onnx" in path.name else ASKED), names)
    statistics.gather(detector, pictures.relabel(detector.class_names))
    return detector


@pytest.fixture(scope="module")
def two(tmp_path_factory, pictures):
    """A file with a branch and its statistics, and a detector with a second branch on it."""
    folder = tmp_path_factory.mktemp("judged")
    first = judged(small(opset=11).save(folder / "m.onnx"), pictures)
    merge.save(folder / "1.onnx", first, images(first).numpy())
    return folder / "1.onnx", judged(folder / "1.onnx", pictures, ("fox",))


def test_scores_of_branches_are_weighed_and_old_ones_are_not(two):
    _, detector = two
    outputs = detector(images(detector))
    raw, weighed = outputs.scores(), detector.scores(outputs)
    first = outputs.parts[0]
    assert len(outputs.parts) == 3 and torch.equal(raw[:, :first], weighed[:, :first])
    assert (weighed[:, first:] <= raw[:, first:]).all() and (weighed[:, first:] < raw[:, first:]).any()
    detector.arbiter.on = False
    assert torch.equal(detector.scores(outputs), raw)
    detector.arbiter.on = True


def test_a_written_file_weighs_as_the_detector_did(two, tmp_path):
    path, detector = two
    found = merge.save(tmp_path / "2.onnx", detector, images(detector).numpy())
    assert found.moved == 0
    again = load(tmp_path / "2.onnx")
    x = images(detector)
    close(again(x), detector(x))
    torch.testing.assert_close(again.scores(again(x)), detector.scores(detector(x)), atol=1e-5, rtol=1e-3)
    assert again.arbiter.count.tolist() == detector.arbiter.count.tolist()
    for off in (ciod.load(tmp_path / "2.onnx", arbiter=False), load(tmp_path / "2.onnx", arbiter=False)):
        outputs = off(x)
        assert torch.equal(off.scores(outputs), outputs.scores())
    assert load(path).arbiter.classes == 4 and again.arbiter.classes == 5


@pytest.mark.parametrize("given", [{"opset": 11}, {"batch": "n", "opset": 21}, {"opset": 13, "side": "s"}])
def test_nodes_weigh_as_ciod_does(tmp_path, pictures, given):
    first = judged(small(**given).save(tmp_path / "m.onnx", imgsz=f"[{SIZE}, {SIZE}]"), pictures)
    merge.save(tmp_path / "1.onnx", first, images(first).numpy())
    detector = judged(tmp_path / "1.onnx", pictures, ("fox",))
    detector.select([n for n in detector.class_names if n != "dog"])
    x = images(detector)
    feed = detector.source.opened.whole.feed((x[:1] / 255).numpy())
    outputs = detector(x[:1])
    wanted = detector.scores(outputs)
    assert (wanted < outputs.scores() * 0.9).any()
    data = merge.merged(detector, nms=True)
    rows = file.start(tmp_path, data).run(["ciod2/detections"], feed)[0][0]
    (expected,) = detector.decode(outputs)
    used = rows[rows[:, 5] >= 0]
    assert len(used) == len(expected) > 0
    np.testing.assert_allclose(np.sort(used[:, 4]), np.sort(expected.scores), atol=1e-4)
    (joined,) = file.start(tmp_path, merge.joined(detector, data)).run(None, feed)
    np.testing.assert_allclose(joined[0, 4:].T, wanted[0].detach(), atol=1e-4)


def test_an_arbiter_that_is_off_is_not_in_the_graph(two):
    _, detector = two
    on = merge.merged(detector, nms=True)
    detector.arbiter.on = False
    off = merge.merged(detector, nms=True)
    detector.arbiter.on = True
    assert len(off) < len(on)


@pytest.mark.parametrize("content", ["%%", "AAAA", "short", "of another count"])
def test_statistics_that_do_not_fit_are_refused(two, tmp_path, content):
    path, _ = two
    detector = load(path)
    if content == "short":
        detector.arbiter.mean = detector.arbiter.mean[:, :-1]
        content = arbiter_text.encode(detector.arbiter)
    elif content == "of another count":
        detector.arbiter.count = detector.arbiter.count[:2]
        content = arbiter_text.encode(detector.arbiter)
    with pytest.raises(CiodError, match="the arbiter's statistics in its metadata do not fit its classes and maps"):
        arbiter_text.decode(load(path), content, path)


def test_a_file_with_damaged_statistics_is_refused(two, tmp_path):
    path, _ = two
    entry = json.loads(file.read(path).metadata["ciod.1"]) | {"arbiter": "AAAA"}
    changed = onnx.ModelProto()
    onnx.helper.set_model_props(changed, {"ciod.1": json.dumps(entry)})
    (tmp_path / "m.onnx").write_bytes(path.read_bytes() + changed.SerializeToString())
    with pytest.raises(CiodError, match=r"m\.onnx is damaged: the arbiter's statistics"):
        load(tmp_path / "m.onnx")
