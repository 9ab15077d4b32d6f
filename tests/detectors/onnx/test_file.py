"""An untrusted file is read within bounds and refused with an error message."""

from __future__ import annotations

import builtins
import os
from pathlib import Path

import numpy as np
import pytest

from ciod.core.errors import CiodError
from ciod.detectors.onnx import file, graph
from tests.detectors.onnx.graphs import SIZE, Net, onnx, small


@pytest.fixture
def path(tmp_path) -> Path:
    return small().save(tmp_path / "m.onnx")


def saved(model, tmp_path) -> Path:
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "m.onnx"


def refused(path: Path, match: str) -> None:
    with pytest.raises(CiodError, match=match):
        file.read(path)


def test_facts_of_a_file(path):
    source = file.read(path)
    assert (source.opset, source.picture.words, source.outputs) == (17, "x [1, 3, 96, 96]", [small().outputs[0].name])
    assert source.data == path.read_bytes()


def test_exposing_changes_no_byte_of_the_file_and_no_output(path):
    source = file.read(path)
    names = graph.Flow(source, SIZE).order[3:9]
    exposed = source.exposing(names)
    assert exposed[: len(source.data)] == source.data
    assert [o.name for o in onnx.load_model_from_string(exposed).graph.output] == source.outputs + names
    feed = source.feed(graph.probe(source, SIZE))
    plain, more = (file.start(path, c, optimised=False) for c in (source.data, exposed))
    assert np.array_equal(file.run(path, plain, None, feed)[0], file.run(path, more, None, feed)[0])


@pytest.mark.parametrize("kind", [onnx.TensorProto.FLOAT16, onnx.TensorProto.UINT8])
def test_pictures_of_other_types(tmp_path, kind):
    model = small().model()
    model.graph.input[0].type.tensor_type.elem_type = kind
    cast = onnx.helper.make_node("Cast", ["x"], ["cast"], to=onnx.TensorProto.FLOAT)
    for node in model.graph.node:
        node.input[:] = ["cast" if i == "x" else i for i in node.input]
    model.graph.node.insert(0, cast)
    source = file.read(saved(model, tmp_path))
    assert graph.Flow(source, SIZE).shapes["x"] == (1, 3, SIZE, SIZE)


def test_whole_numbers_beside_the_pictures_are_their_size(tmp_path):
    net = small()
    model = net.model()
    model.graph.input.append(onnx.helper.make_tensor_value_info("sizes", onnx.TensorProto.INT64, ["n", 2]))
    source = file.read(saved(model, tmp_path))
    assert [*source.sizes] == ["sizes"]
    assert source.feed(np.zeros((2, 3, 64, 64)))["sizes"].tolist() == [[64, 64]] * 2


def scaled(operator: str, kind: int, shape: list, tmp_path) -> file.OnnxFile:
    """A graph with a second input, by which its output is divided or multiplied."""
    inputs = [("x", onnx.TensorProto.FLOAT, [1, 3, 96, 96]), ("s", kind, shape)]
    infos = [onnx.helper.make_tensor_value_info(*i) for i in inputs]
    nodes = [
        onnx.helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        onnx.helper.make_node("Cast", ["s"], ["float"], to=1),
        onnx.helper.make_node(operator, ["most", "float"], ["y"]),
    ]
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    g = onnx.helper.make_graph(nodes, "g", infos, [output])
    model = onnx.helper.make_model(g, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return file.read(saved(model, tmp_path))


@pytest.mark.parametrize(
    ("operator", "kind", "shape", "value"),
    [
        ("Div", onnx.TensorProto.FLOAT, ["n", 2], [[1, 1]]),  # scale_factor
        ("Mul", onnx.TensorProto.FLOAT, ["n", 2], [[96, 96]]),  # im_shape
        ("Div", onnx.TensorProto.INT32, [1, 2], [[96, 96]]),
        ("Mul", onnx.TensorProto.INT64, [2], [96, 96]),
    ],
)
def test_numbers_beside_the_pictures_leave_boxes_in_pixels_of_the_input(tmp_path, operator, kind, shape, value):
    source = scaled(operator, kind, shape, tmp_path)
    feed = source.feed(np.zeros((1, 3, 96, 96), np.float32))
    assert feed["s"].tolist() == value
    assert graph.Flow(source, 96).shapes["y"][-1] == 2


# Files without a detector ---------------------------------------------------------------------------------------------


def test_no_file_and_the_nearest_name(path):
    with pytest.raises(CiodError, match=r"There is no model file .*mm.onnx; did you mean '.*m.onnx'"):
        file.read(path.with_name("mm.onnx"))


def test_an_incomplete_file_is_refused(path):
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, "is not a readable ONNX file .*use a copy")


def test_a_file_of_another_kind(path):
    path.write_bytes(b"")
    refused(path, "is not an ONNX model: it has no graph")


def test_a_package_that_is_not_installed(path, monkeypatch):
    def absent(name, *args, **kwargs):
        if name == "onnx":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    real = builtins.__import__
    monkeypatch.setattr(file.importlib, "import_module", absent)
    refused(path, r"ONNX models need onnx, which is not installed: pip install 'ciod\[onnx\]'")


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        ([["n", 4]], "does not take one picture"),
        ([[1, 3, 96, 64]], "takes pictures of 64 × 96 pixels; ciod gives square ones"),
        ([[1, 3, 96, 96], [1, 3, 96, 96]], "does not take one picture"),
        (
            [[1, 3, 96, 96], [1, 7]],
            "also has other inputs .*Export the detector so that pictures are its only input",
        ),
    ],
)
def test_inputs_that_ciod_cannot_give(tmp_path, shapes, match):
    inputs = [onnx.helper.make_tensor_value_info(f"x{i}", onnx.TensorProto.FLOAT, s) for i, s in enumerate(shapes)]
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    g = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x0"], ["y"])], "g", inputs, [output])
    model = onnx.helper.make_model(g, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    refused(saved(model, tmp_path), match)


@pytest.mark.parametrize(
    ("operator", "domain", "match"),
    [
        ("TRTBatchedNMS", "trt", "uses the operator TRTBatchedNMS of domain 'trt', which onnxruntime cannot run"),
        ("EfficientNMS_TRT", "", "uses the operator EfficientNMS_TRT, which onnxruntime cannot run. Export the model"),
    ],
)
def test_operators_of_others(tmp_path, operator, domain, match):
    net = small()
    net.output(net.node(operator, [net.outputs[0].name], 1, domain=domain))
    refused(net.save(tmp_path / "m.onnx"), match)


def test_what_onnxruntime_refuses(tmp_path):
    net = small()
    net.output(net.node("Identity", ["nowhere"], 1))
    refused(net.save(tmp_path / "m.onnx"), "onnxruntime cannot open .*m.onnx")


def test_an_operator_that_the_runtime_lacks_for_this_type(tmp_path):
    nodes = [
        onnx.helper.make_node("Cast", ["x"], ["d"], to=onnx.TensorProto.DOUBLE),
        onnx.helper.make_node("Conv", ["d", "w"], ["y"]),
    ]
    infos = [
        onnx.helper.make_tensor_value_info(n, t, s)
        for n, t, s in (("x", 1, [1, 3, 96, 96]), ("y", onnx.TensorProto.DOUBLE, None))
    ]
    weight = onnx.numpy_helper.from_array(np.zeros((1, 3, 1, 1)), "w")
    g = onnx.helper.make_graph(nodes, "g", infos[:1], infos[1:], [weight])
    model = onnx.helper.make_model(g, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    refused(saved(model, tmp_path), "implementation for Conv.*Export the model in float32, or with another opset")


@pytest.mark.parametrize("opset", [6, 28])
def test_an_opset_out_of_range(tmp_path, opset):
    model = small().model()
    model.opset_import[0].version = opset
    refused(saved(model, tmp_path), f"has opset {opset}; 7 to 27 can be read")


# Bombs ----------------------------------------------------------------------------------------------------------------


def test_graphs_inside_graphs_without_end(tmp_path):
    """Two thousand levels overflow no stack: protobuf's own limit ends it."""
    inner = b""
    for number in (6, 5, 1) * 2000 + (7,):  # attribute.g, node.attribute, graph.node; at last model.graph
        size, length = len(inner), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        inner = bytes([number << 3 | 2]) + length + bytes([size]) + inner
    path = tmp_path / "m.onnx"
    path.write_bytes(small().model().SerializeToString() + inner)
    refused(path, "is not a readable ONNX file")


def test_a_file_larger_than_a_protobuf(path):
    os.truncate(path, (1 << 31) + 1)  # a hole: it takes no room
    refused(path, "has 2.1 GB; an ONNX file has at most 2.1 GB")


def test_too_many_nodes(path, monkeypatch):
    monkeypatch.setattr(file, "NODES", 20)
    refused(path, "nodes, more than any detector needs; it is not opened")


@pytest.mark.parametrize(("dims", "match"), [([1 << 40], "a tensor of 1,099,511,627,776"), ([-1], "a negative size")])
def test_a_tensor_that_claims_to_be_huge(tmp_path, dims, match):
    model = small().model()
    model.graph.initializer.append(onnx.TensorProto(name="w", dims=dims, data_type=onnx.TensorProto.FLOAT))
    refused(saved(model, tmp_path), match)


def test_a_run_takes_no_more_memory_than_allowed(tmp_path):
    """The size comes of the picture's values, so that no one can know it before."""
    net = small()
    whole = net.node("ReduceSum", [net.node("Abs", ["x"], 3)], 1, keepdims=0)
    large = net.node("Mul", [whole, net.const(np.array([1e9], np.float32))], 1)
    size = net.node("Cast", [large], 1, to=onnx.TensorProto.INT64)
    net.output(net.node("ReduceSum", [net.node("ConstantOfShape", [size], 1)], 1))
    source = file.read(net.save(tmp_path / "m.onnx"))
    with pytest.raises(CiodError, match=r"onnxruntime cannot run .*m.onnx: .*smaller than requested"):
        graph.Flow(source, SIZE)


def test_a_tensor_that_will_be_huge_is_not_made(tmp_path):
    net = small()
    wide = net.node("Expand", ["x", net.const(np.array([1 << 16, 3, SIZE, SIZE], np.int64))], 3)
    net.output(net.node("ReduceSum", [wide], 1))
    source = file.read(net.save(tmp_path / "m.onnx"))
    with pytest.raises(CiodError, match=r"makes a tensor of more than 1,073,741,824 elements; it is not run"):
        graph.Flow(source, SIZE)


def test_a_loop_without_end_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(file, "PATIENCE", 0.2)
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["go"], ["still"]), onnx.helper.make_node("Add", ["v", "v"], ["w"])], "b",
        [onnx.helper.make_tensor_value_info(n, k, []) for n, k in (("i", 7), ("go", 9), ("v", 1))],
        [onnx.helper.make_tensor_value_info(n, k, []) for n, k in (("still", 9), ("w", 1))],
    )  # fmt: skip
    net = small()
    start = net.node("ReduceSum", ["x"], 1, keepdims=0)
    net.output(net.node("Loop", ["", net.const(np.array(True)), start], 1, body=body))
    source = file.read(net.save(tmp_path / "m.onnx"))
    session = file.start(source.path, source.data)
    with pytest.raises(CiodError, match="onnxruntime cannot run"):
        file.run(source.path, session, None, source.feed(graph.probe(source, SIZE)))


# Weights outside ------------------------------------------------------------------------------------------------------


def outside(tmp_path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(small().model(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    return path


def named(path: Path, **entries: str) -> None:
    """Changes where the first tensor lies."""
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = entries.get(entry.key, entry.value)
    path.write_bytes(model.SerializeToString())


def test_external_weights_are_read(tmp_path):
    source = file.read(outside(tmp_path))
    assert [t.raw_data for t in source.content.graph.initializer] == [
        t.raw_data for t in small().model().graph.initializer
    ]
    assert onnx.load_model_from_string(source.data) == source.content


@pytest.mark.parametrize("location", ["../m.data", "/etc/hostname", "", "link"])
def test_weights_outside_the_folder_are_refused(tmp_path, location):
    (tmp_path / "in").mkdir()
    path = outside(tmp_path / "in")
    (tmp_path / "m.data").write_bytes(b"secret" * 1000)
    (tmp_path / "in" / "link").symlink_to(tmp_path / "m.data")
    named(path, location=location)
    refused(path, "asks for weights in .*outside its own folder; that is refused")


def test_weights_that_are_absent_or_short(tmp_path):
    path = outside(tmp_path)
    data = tmp_path / "m.data"
    data.write_bytes(data.read_bytes()[:-8])
    refused(path, "needs .* bytes at .* of m.data, which is shorter")
    named(path, offset="many")
    refused(path, "is damaged: 'many' is not a position in a file of weights")
    data.unlink()
    refused(path, "needs m.data in the same folder; it does not exist")


def test_weights_of_more_than_a_protobuf(tmp_path, monkeypatch):
    path = outside(tmp_path)
    monkeypatch.setattr(file, "LARGEST", path.stat().st_size + 100)
    refused(path, "has more than 2.1 GB of weights; a file of that size cannot be extended")


def test_large_graphs_are_measured_in_portions(path, monkeypatch):
    source = file.read(path)
    whole = graph.Flow(source, SIZE).shapes
    monkeypatch.setattr(graph, "AT_ONCE", 40_000)
    assert graph.Flow(source, SIZE).shapes == whole


def test_dominators_of_a_diamond(tmp_path):
    """a → b, c → d: every path to d passes a, none of b and c alone."""
    net = Net()
    a = net.conv(net.first, 4)
    b, c = net.conv(a, 4, act=None), net.conv(a, 4, act=None)
    d = net.node("Add", [b, c], 4)
    net.output(d)
    flow = graph.Flow(file.read(net.save(tmp_path / "m.onnx")), SIZE)
    assert flow.above[d] == a and flow.common([b, c]) == a and flow.common([d, b]) == a and flow.common([b]) == b
    assert list(flow.below(a)) == [b, c, d] and next(flow.chain(d)) == d


def test_a_file_that_is_too_new_for_the_runtime(tmp_path):
    class Session:
        def run(self, *_):
            raise RuntimeError("Status Message: Unsupported model IR version: 14, max supported IR version: 13.")

    with pytest.raises(CiodError, match=r"IR version: 13\. Update onnxruntime \(pip install -U"):
        file.run(tmp_path / "m.onnx", Session(), None, {})
