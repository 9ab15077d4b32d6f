"""An ONNX file as a detector: old outputs as detections, branches on its maps, the merged file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import ciod
from ciod.core.errors import CiodError, ConfigError
from ciod.core.types import Targets
from ciod.detectors.onnx import file, merge, written
from ciod.detectors.onnx.detector import load
from ciod.detectors.onnx.graph import probe
from ciod.detectors.onnx.recognise import Asked
from tests.detectors.onnx.graphs import SIZE, Net, TensorProto, helper, numpy_helper, onnx, small

NAMES = ("cat", "dog", "cow")
ASKED = Asked(input="0..1,rgb", names=NAMES)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return small().save(tmp_path_factory.mktemp("onnx") / "m.onnx")


def images(detector, count: int = 2) -> torch.Tensor:
    return torch.from_numpy(255 * probe(detector.source.opened.base, SIZE, count))[:count]


def trained(detector, names=("eel",), **given):
    """A branch, as if it had been trained."""
    torch.manual_seed(0)
    detector.observe(images(detector, 4))
    branch = detector.add_branch(names, **given)
    for m in branch.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 2)
        elif isinstance(m, torch.nn.Conv2d):
            m.weight.data += 0.1 * torch.randn_like(m.weight)
    return detector.eval()


def written_by(detector, path, count: int = 2, *, within: float = 1e-4):
    found = merge.save(path, detector, images(detector, count).numpy())
    assert found.moved == 0 and found.difference < within
    return load(path)


def close(a, b, classes=slice(None)) -> None:
    torch.testing.assert_close(a.scores()[..., classes], b.scores()[..., classes], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(a.boxes, b.boxes, atol=1e-3, rtol=1e-4)


# Old outputs ----------------------------------------------------------------------------------------------------------


def test_outputs_are_those_of_the_layout(path):
    detector = load(path, ASKED)
    assert detector.class_names == NAMES and detector.num_classes == 3
    x = images(detector)
    outputs = detector(x)
    session = file.start(path, path.read_bytes())
    for i in range(2):
        raw = session.run(None, {"x": (x[i : i + 1] / 255).numpy()})
        boxes, scores = detector.source.found.layout.decode([raw[0][0]])
        np.testing.assert_allclose(outputs.scores()[i], scores, atol=1e-6)
        np.testing.assert_array_equal(outputs.boxes[i], boxes)


def test_detections_are_in_pixels_of_the_picture(tmp_path):
    """The border is removed again for a detector with letterboxed input."""
    path = small().save(tmp_path / "m.onnx")
    picture = np.random.default_rng(0).integers(0, 255, (48, 96, 3), dtype=np.uint8)
    corner, middle = (
        load(path, Asked(input=f"0..1,rgb,{place}", names=NAMES)).predict(picture, score_threshold=0.0)
        for place in ("corner", "letterbox")
    )
    for found in (corner, middle):
        assert found.boxes[:, [0, 2]].max() <= 96 and found.boxes[:, [1, 3]].max() <= 48
    assert not np.array_equal(corner.boxes, middle.boxes)


def test_rows_without_a_valid_box_are_left_out(path, monkeypatch):
    """A layout is recognised on a few pictures; on others the outputs may be something else."""
    detector = load(path, ASKED)
    boxes = np.array([[1, 1, 2, 2], [3, 3, 2, 4], [np.nan, 1, 2, 2], [0, 0, np.inf, 1]], np.float32)
    made = boxes, np.full((4, 3), 0.5, np.float32)
    monkeypatch.setattr(type(detector.source.found.layout), "decode", lambda layout, outputs: made)
    found = detector(images(detector, 1))
    assert (found.scores() > 0.1).all(2).tolist() == [[True, False, False, False]]
    assert found.boxes.isfinite().all()


def test_load_of_the_package(path):
    assert ciod.load(path, input="0..1,rgb", classes=NAMES).class_names == NAMES
    with pytest.raises(CiodError, match="does not say how pictures must be given"):
        ciod.load(path)
    with pytest.raises(ConfigError, match=r"input: this is a setting of ONNX files, and m.pth is none"):
        ciod.load("m.pth", input="0..1,rgb")


def test_dropped_classes_are_hidden(path):
    detector = load(path, ASKED)
    x = images(detector)
    before = detector(x)
    detector.select(["cat", "cow"])
    detector.rename({"cow": "ox"})
    assert detector.class_names == ("cat", "ox")
    assert torch.equal(detector(x).logits, before.logits[..., [0, 2]])


# Branches -------------------------------------------------------------------------------------------------------------


def test_only_the_branch_is_computed_and_trained(path):
    detector = load(path, ASKED)
    detector.grow(["eel", "fox"])
    x = images(detector)
    before = load(path, ASKED)(x)
    whole = detector(x)
    assert torch.equal(whole.logits[:, :189, :3], before.logits) and whole.logits.shape == (2, 378, 5)
    detector.train()
    outputs = detector(x)
    assert outputs.levels == (144, 36, 9) and outputs.logits.shape[1] == 189
    targets = Targets.pad([torch.tensor([[10.0, 10, 60, 70]])] * 2, [torch.tensor([3])] * 2)
    matches = detector.match(outputs, targets)
    losses = detector.loss(detector.newest(outputs), targets, matches)
    sum(losses.values()).backward()
    assert {n.partition(".")[0] for n, p in detector.named_parameters() if p.grad is not None} == {"branches"}
    shifted = detector.match(whole, targets)
    assert int(shifted.position[shifted.valid].min()) >= 189 and shifted.positive.shape == (2, 378)
    assert set(detector.state_dict()) == {n for n in detector.state_dict() if n.startswith("branches.0.")}
    assert {r.first for r in detector.class_layers()} == {3}


def test_maps_are_standardised(path):
    detector = load(path, ASKED)
    x = images(detector, 8)
    detector.observe(x)
    branch = detector.add_branch(["eel"])
    maps = detector.tensors(detector.source.runner.maps(detector.normalise(x).numpy()))
    for level, order in zip(branch.levels, detector.order):
        for standard, t in zip(level.standards, order):
            ready = standard(maps[t]).transpose(0, 1).flatten(1)
            silent = maps[t].transpose(0, 1).flatten(1).std(1) == 0
            assert ready.mean(1).abs().max() < 1e-3
            assert (ready[silent] == 0).all()
            assert ready[~silent].std(1).max() < 1.01


def test_a_branch_needs_new_names_or_known_ones_to_teach(path):
    detector = load(path, ASKED)
    with pytest.raises(CiodError, match="already knows 'cat'"):
        detector.add_branch(["cat"])
    with pytest.raises(CiodError, match="A branch needs classes"):
        detector.add_branch([], taught=["eel"])


# The merged file ------------------------------------------------------------------------------------------------------


def test_the_old_file_comes_first_and_its_outputs_do_not_change(path, tmp_path):
    detector = trained(load(path, ASKED), ("eel", "fox"), taught=["dog"])
    again = written_by(detector, tmp_path / "n.onnx")
    old, new = path.read_bytes(), (tmp_path / "n.onnx").read_bytes()
    assert new.startswith(old)
    before, after = onnx.load_from_string(old), onnx.load_from_string(new)
    count = len(before.graph.node)
    assert [n.SerializeToString() for n in after.graph.node[:count]] == [
        n.SerializeToString() for n in before.graph.node
    ]
    assert again.class_names == (*NAMES, "eel", "fox") and again.parts == [[0, 1, 2], [1, 3, 4]]
    x = images(detector)
    close(again(x), detector(x))


def test_an_extended_file_is_extended_again(path, tmp_path):
    first = written_by(trained(load(path, ASKED)), tmp_path / "1.onnx")
    first.lineage = [*first.lineage, {"classes": ["eel"]}]
    second = trained(first, ("fox",), taught=["eel"])
    third = written_by(second, tmp_path / "2.onnx")
    assert (tmp_path / "2.onnx").read_bytes().startswith((tmp_path / "1.onnx").read_bytes())
    assert third.class_names == (*NAMES, "eel", "fox") and third.parts[1:] == [[3], [3, 4]]
    assert third.lineage == second.lineage
    x = images(third)
    close(third(x), second(x))
    third.select(["cat", "fox"])
    fourth = written_by(trained(third, ("gnu",)), tmp_path / "3.onnx")
    assert fourth.class_names == ("cat", "fox", "gnu") and fourth.parts == [[0, -1, -1], [-1], [-1, 1], [2]]
    assert fourth(x).logits.shape == (2, 4 * 189, 3)


@pytest.mark.parametrize("inner", [(0, 8, 12), (4, 0, 0), None])
@pytest.mark.parametrize("towers", [0, 1])
def test_nodes_compute_what_the_branch_computes(tmp_path, inner, towers):
    net = Net()
    net.rows(net.head(net.fpn(net.backbone(), 8, joined=True, pan=True), 3, towers=towers))
    detector = load(net.save(tmp_path / "m.onnx"), ASKED)
    written_by(trained(detector, ("eel", "fox"), inner=inner), tmp_path / "n.onnx")


@pytest.mark.parametrize(
    "given", [{"opset": 9}, {"opset": 21}, {"last": True}, {"batch": 2}, {"batch": "n"}, {"side": "s", "opset": 11}]
)
def test_graphs_of_all_kinds(tmp_path, given):
    path = small(**given).save(tmp_path / "m.onnx", imgsz=f"[{SIZE}, {SIZE}]")
    detector = trained(load(path, ASKED), ("eel", "fox"))
    again = written_by(detector, tmp_path / "n.onnx", count=4)
    x = images(detector, 3)
    close(again(x), detector(x))


def test_a_dynamic_graph_is_run_at_other_sizes(tmp_path):
    path = small(side="s").save(tmp_path / "m.onnx", imgsz=f"[{SIZE}, {SIZE}]")
    again = written_by(trained(load(path, ASKED)), tmp_path / "n.onnx")
    session = file.start(path, again.source.opened.whole.data)
    boxes, scores = session.run(["ciod1/boxes", "ciod1/scores"], {"x": np.zeros((1, 3, 64, 128), np.float32)})
    assert boxes.shape == (1, 8 * 16 + 4 * 8 + 2 * 4, 4) and scores.shape == (1, 168, 1)


def test_weights_of_old_files_may_be_inputs_too(tmp_path):
    net = small(opset=9)
    model = net.model()
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in model.graph.initializer
    )
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    again = written_by(trained(load(tmp_path / "m.onnx", ASKED)), tmp_path / "n.onnx")
    whole = again.source.opened.whole.content
    assert len(whole.graph.initializer) == len(model.graph.initializer)


def test_half_precision(tmp_path):
    net = small()
    for i, t in enumerate(net.weights):
        if t.data_type == TensorProto.FLOAT:
            net.weights[i] = numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16), t.name)
    scales = {n.input[2] for n in net.nodes if n.op_type == "Resize"}
    for i, t in enumerate(net.weights):
        if t.name in scales:
            net.weights[i] = numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float32), t.name)
    net.input = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 3, SIZE, SIZE])
    net.outputs[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    detector = trained(load(net.save(tmp_path / "m.onnx"), ASKED))
    again = written_by(detector, tmp_path / "n.onnx", within=0.1)
    assert again(images(again)).logits.dtype == torch.float32


def test_quantised_maps(tmp_path):
    net = Net()
    scale, zero = net.const(np.array(0.1, np.float32)), net.const(np.array(0, np.uint8))
    for i, x in enumerate(maps := net.fpn(net.backbone(), 8, pan=True)):
        maps[i] = net.node("DequantizeLinear", [net.node("QuantizeLinear", [x, scale, zero], 8), scale, zero], 8)
    net.rows(net.head(maps, 3, towers=1))
    written_by(trained(load(net.save(tmp_path / "m.onnx"), ASKED)), tmp_path / "n.onnx")


def test_unknown_outputs_stay_unchanged(tmp_path):
    net = Net()
    net.output(net.head(net.fpn(net.backbone(), 8), 3, towers=1)[1][2])
    detector = load(net.save(tmp_path / "m.onnx"), Asked(input="0..1,rgb"))
    assert detector.class_names == () and detector(images(detector)).logits.shape == (2, 0, 0)
    again = written_by(trained(detector), tmp_path / "n.onnx")
    assert again.class_names == ("eel",)
    close(again(images(again)), detector(images(again)))


def test_an_opset_that_is_too_old(tmp_path):
    detector = trained(load(small(opset=9).save(tmp_path / "m.onnx"), ASKED))
    detector.source.opened.whole.content.opset_import[0].version = 8
    with pytest.raises(CiodError, match="has opset 8; 9 is the oldest that can be extended"):
        merge.merged(detector)


def test_a_graph_with_different_outputs_is_not_written(path, tmp_path, monkeypatch):
    detector = trained(load(path, ASKED))
    monkeypatch.setattr(merge.n, "LARGEST_LOG", -1.0)
    with pytest.raises(CiodError, match=r"The merged graph disagrees with the branch by .*No model was written"):
        merge.save(tmp_path / "n.onnx", detector, images(detector).numpy())
    assert not (tmp_path / "n.onnx").exists()


def test_names_that_are_taken_by_chance(tmp_path):
    net = small()
    net.nodes[0].name = "ciod7/first"
    again = written_by(trained(load(net.save(tmp_path / "m.onnx"), ASKED)), tmp_path / "n.onnx")
    assert again.source.opened.written.parts[1].boxes == "ciod8/boxes"


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def extended(path, tmp_path_factory):
    target = tmp_path_factory.mktemp("extended") / "n.onnx"
    written_by(trained(load(path, ASKED)), target)
    return target


def test_a_file_that_ciod_wrote_needs_no_settings(extended):
    with pytest.raises(ConfigError, match=r"input: n.onnx was written by ciod and has it already"):
        load(extended, ASKED)
    with pytest.raises(ConfigError, match=r"size: n.onnx was written by ciod"):
        load(extended, Asked(size=128, old_outputs="none"))


def test_a_file_that_another_program_wrote_again(extended, tmp_path):
    model = onnx.load(str(extended))
    model.graph.node[0].name = "renamed"
    (tmp_path / "n.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(
        CiodError, match=r"was changed after ciod wrote it: its first .* bytes are not the file that was"
    ):
        load(tmp_path / "n.onnx")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"parts": []}, "what ciod wrote into its metadata does not fit"),
        ({"class_names": ["a", "a", "b", "c"]}, "a class name appears twice"),
        ({"class_names": ["a"]}, "a column has a class without a name"),
        ({"base": 1 << 40}, "the original detector is longer than the file"),
        ({"parts": [{"columns": [0, 1, 2]}, {"columns": [3], "boxes": "b", "scores": "s"}]}, "it has no output 'b'"),
        (
            {"parts": [{"columns": [0]}, {"columns": [3], "boxes": "ciod1/boxes", "scores": "ciod1/scores"}]},
            "not those",
        ),
    ],
)
def test_damaged_metadata(extended, tmp_path, change, match):
    content = json.loads(file.read(extended).metadata["ciod.1"]) | change
    props = helper.make_model(helper.make_graph([], "", [], []))
    added = onnx.ModelProto()
    helper.set_model_props(added, {"ciod.2": json.dumps(content)})
    del props
    (tmp_path / "n.onnx").write_bytes(extended.read_bytes() + added.SerializeToString())
    with pytest.raises(CiodError, match=match):
        load(tmp_path / "n.onnx")


def test_outputs_of_another_shape_than_the_metadata_say(extended, tmp_path):
    content = json.loads(file.read(extended).metadata["ciod.1"])
    content["parts"][1]["columns"] = [3, 3]
    added = onnx.ModelProto()
    helper.set_model_props(added, {"ciod.2": json.dumps(content)})
    (tmp_path / "n.onnx").write_bytes(extended.read_bytes() + added.SerializeToString())
    detector = load(tmp_path / "n.onnx")
    with pytest.raises(CiodError, match="outputs of a branch have another shape"):
        detector(images(detector))


def test_what_ciod_wrote_is_read_as_it_was_written(extended):
    found = written.open_file(extended)
    assert found.base.data == found.whole.data[: found.written.base]
    assert found.written.asked.taps[0][0] == 8
