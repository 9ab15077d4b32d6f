"""Old outputs decoded in the graph, one suppressed output of all classes, and files in YOLOv8's form."""

from __future__ import annotations

import ast

import numpy as np
import pytest

from ciod.core.errors import CiodError
from ciod.detectors.onnx import file, merge, old_nodes, suppressed
from ciod.detectors.onnx.detector import load
from ciod.detectors.onnx.layout import Facts
from ciod.detectors.onnx.layouts import per_picture, recognise
from ciod.detectors.onnx.nodes import Nodes
from ciod.detectors.onnx.recognise import Asked
from tests.detectors.onnx.graphs import Net, TensorProto, helper, onnx, small
from tests.detectors.onnx.test_detector import ASKED, NAMES, images, trained
from tests.detectors.onnx.test_layouts import MADE, detections
from tests.detectors.onnx.test_layouts import SIZE as MADE_SIZE

KINDS = {"f": TensorProto.FLOAT, "i": TensorProto.INT64}


def session(path, data):
    return file.start(path, data)


@pytest.mark.parametrize("name", MADE)
def test_nodes_decode_as_the_layout_does(name, tmp_path):
    make, _, named, _ = MADE[name]
    given = [[np.asarray(a) for a in make(*detections(seed))] for seed in range(3)]
    given = [[a.astype(np.int64 if a.dtype.kind in "iu" else np.float32) for a in arrays] for arrays in given]
    pictures = [per_picture(arrays, 1)[0] for arrays in given]
    layout = recognise(pictures, Facts(MADE_SIZE, named))
    assert layout is not None
    nodes = Nodes("x/")
    inputs = [f"o{i}" for i in range(len(given[0]))]
    boxes, scores = old_nodes.decoded(nodes, layout, inputs, [a.shape for a in given[0]])
    nodes.output(boxes, [None, None, 4])
    nodes.output(scores, [None, None, None])
    infos = [
        helper.make_tensor_value_info(n, KINDS[a.dtype.kind], a.shape) for n, a in zip(inputs, given[0], strict=True)
    ]
    graph = helper.make_graph(nodes.nodes, "g", infos, nodes.outputs, nodes.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    made = session(tmp_path, model.SerializeToString()).run(None, dict(zip(inputs, given[0], strict=True)))
    wanted = layout.decode(pictures[0])
    if wanted[0].shape == made[0][0].shape:
        np.testing.assert_allclose(made[0][0], wanted[0], atol=1e-3)
    kept = made[1][0].max(1) > 0  # rows without an object are left out by the layout alone
    np.testing.assert_allclose(made[1][0][kept], wanted[1][wanted[1].max(1) > 0], atol=1e-5)


@pytest.mark.parametrize("given", [{"opset": 11}, {"batch": 2}, {"batch": "n", "opset": 21}])
def test_the_suppressed_output_is_what_ciod_finds(tmp_path, given):
    path = small(**given).save(tmp_path / "m.onnx")
    first = trained(load(path, ASKED))
    merge.save(tmp_path / "1.onnx", first, images(first).numpy())
    second = load(tmp_path / "1.onnx")
    second.select(["cat", "cow", "eel"])
    second = trained(second, ("fox",))
    data = merge.merged(second, nms=True)
    x = images(second)
    wanted = second.decode(second(x))
    runner, batch = session(path, data), second.source.opened.whole.picture.batch or 1
    ready = second.source.opened.whole.feed((x / 255).numpy())["x"]
    found = [runner.run(["ciod2/detections"], {"x": ready[i : i + batch]})[0] for i in range(0, 2, batch)]
    for rows, expected in zip(np.concatenate(found), wanted, strict=True):
        used = rows[rows[:, 5] >= 0]
        assert rows.shape == (300, 6) and len(used) == len(expected) > 0
        np.testing.assert_allclose(used[:, 4], expected.scores, atol=1e-5)
        order = np.lexsort(used[:, :2].T), np.lexsort(expected.boxes[:, :2].T)
        np.testing.assert_allclose(used[order[0], :4], expected.boxes[order[1]], atol=0.01)
        assert {int(v) for v in used[:, 5]} == set(expected.labels)
        assert (rows[len(used) :] == [0, 0, 0, 0, 0, -1]).all()


def eight(tmp_path, **metadata):
    """A graph with an output as YOLOv8's: [1, 4 + C, P], boxes as centre and size in pixels."""
    net = Net()
    maps = net.head(net.fpn(net.backbone(), 8, joined=True, pan=True), 3, towers=1)
    flat = []
    for stride, (reg, _, cls) in zip((8, 16, 32), maps):
        side = 96 // stride
        cells = net.const((np.stack(np.meshgrid(np.arange(side), np.arange(side)))[None] * stride).astype(np.float32))
        both = net.node("Split", [reg], 2, axis=1)
        node = net.nodes[-1]
        node.output.append(net.name())
        if net.opset >= 18:
            node.attribute.append(helper.make_attribute("num_outputs", 2))
        centre = net.node("Add", [net.node("Sigmoid", [both], 2), cells], 2)
        size = net.node("Mul", [net.node("Sigmoid", [node.output[1]], 2), net.const(np.float32([60]))], 2)
        x = net.join(centre, size, net.node("Sigmoid", [cls], 3))
        flat.append(net.node("Reshape", [x, net.const(np.array([0, 7, -1], np.int64))], 7))
    net.output(net.node("Concat", flat, 7, axis=2))
    return net.save(tmp_path / "m.onnx", **metadata)


def test_the_joined_file_has_old_columns_to_the_bit_and_all_names(tmp_path):
    path = eight(tmp_path, names=str(dict(enumerate(NAMES))), stride="32", imgsz="[96, 96]", author="someone")
    detector = trained(load(path), ("eel", "fox"))
    assert suppressed.plain(detector)
    data = merge.joined(detector, merge.merged(detector))
    x = images(detector)
    found = session(path, data).run(None, {"x": (x[:1] / 255).numpy()})
    old = session(path, path.read_bytes()).run(None, {"x": (x[:1] / 255).numpy()})[0]
    assert len(found) == 1 and found[0].shape == (1, 4 + 5, 2 * 189)
    np.testing.assert_array_equal(found[0][:, :7, :189], old)
    assert (found[0][:, 7:, :189] == 0).all() and (found[0][:, 4:7, 189:] == 0).all()
    outputs = detector(x[:1])
    np.testing.assert_allclose(found[0][0, 4:].T, outputs.scores()[0].detach(), atol=1e-5)
    meta = {p.key: p.value for p in onnx.load_from_string(data).metadata_props}
    assert ast.literal_eval(meta["names"]) == dict(enumerate((*NAMES, "eel", "fox")))
    assert meta["author"] == "someone" and meta["task"] == "detect" and "ciod.1" not in meta


def test_the_joined_file_of_other_layouts_has_decoded_boxes(tmp_path):
    detector = trained(load(small().save(tmp_path / "m.onnx"), ASKED))
    data = merge.joined(detector, merge.merged(detector))
    x = images(detector)[:1]
    found = session(tmp_path, data).run(None, {"x": (x / 255).numpy()})[0][0]
    outputs = detector(x)
    boxes = found[:4].T
    np.testing.assert_allclose(boxes[:, :2] - boxes[:, 2:] / 2, outputs.boxes[0, :, :2].detach(), atol=0.01, rtol=1e-3)
    again = merge.f.of_bytes(tmp_path, data)
    assert again.metadata["imgsz"] == "[96, 96]"


def test_one_output_needs_old_ones_that_are_understood(tmp_path):
    net = Net()
    net.output(net.head(net.fpn(net.backbone(), 8), 3, towers=1)[1][2])
    detector = trained(load(net.save(tmp_path / "m.onnx"), Asked(input="0..1,rgb")))
    with pytest.raises(CiodError, match=r"nms: the old outputs of m.onnx are not understood; leave it out"):
        merge.merged(detector, nms=True)
    detector = trained(load(small(opset=9).save(tmp_path / "9.onnx"), ASKED))
    with pytest.raises(CiodError, match=r"outputs: 9.onnx has opset 9; this needs 11"):
        merge.joined(detector, merge.merged(detector))
