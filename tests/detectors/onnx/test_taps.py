"""The maps that a branch reads are found by data flow and shapes alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from ciod.core.errors import CiodError, ConfigError
from ciod.detectors.onnx import file, graph, taps
from tests.detectors.onnx.graphs import SIZE, Net, onnx, small


def find(net: Net, tmp_path, size: int = SIZE) -> list[taps.Level]:
    source = file.read(net.save(tmp_path / "m.onnx"))
    return taps.find(graph.Flow(source, size), source.path)


def assert_as_built(net: Net, levels: list[taps.Level]) -> None:
    assert [v.stride for v in levels] == [8, 16, 32]
    for level in levels:
        expected = net.expected[level.stride]
        found = (level.early and level.early.name, level.late and level.late.name, sorted(t.name for t in level.towers))
        assert found == (expected.early, expected.late, sorted(expected.towers)), level.stride
        assert all(t.channels == net.channels[t.name] for t in level.taps)


@pytest.mark.parametrize("opset", [9, 11, 17, 21])
def test_a_yolox_like_graph_of_any_opset(tmp_path, opset):
    net = small(opset=opset)
    assert_as_built(net, find(net, tmp_path))


@pytest.mark.parametrize("seed", range(24))
def test_random_pyramids_are_found_as_they_were_built(tmp_path, seed):
    rng = np.random.default_rng(seed)
    net = Net(seed, last=bool(rng.integers(2)), batch=[1, "n"][rng.integers(2)], side=[SIZE, "s"][rng.integers(2)])
    widths = np.cumsum(rng.integers(2, 6, 5))
    maps = net.backbone(tuple(int(w) for w in widths), residual=int(rng.integers(0, 3)))
    if rng.integers(4):
        maps = net.fpn(maps, int(rng.integers(4, 12)), joined=bool(rng.integers(2)), pan=bool(rng.integers(2)))
    towers, coupled = int(rng.integers(3)), bool(rng.integers(2))
    act = ["Relu", "SiLU"][rng.integers(2)]
    net.rows(net.head(maps, int(rng.integers(1, 6)), towers=towers, coupled=coupled, act=act))
    assert_as_built(net, find(net, tmp_path))


def test_two_pictures_per_run(tmp_path):
    net = small(batch=2)
    assert_as_built(net, find(net, tmp_path))


def test_a_head_on_one_stride_reads_the_backbone_on_all(tmp_path):
    """FastestDet's way: three stages brought to stride 16 and joined."""
    net = Net()
    c8, c16, c32 = net.backbone()
    pooled = net.node("AveragePool", [c8], net.channels[c8], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    joined = net.conv(net.join(pooled, c16, net.up(c32)), 8, 1)
    net.rows(net.head([joined], 3, towers=1))
    net.expected[16], net.expected[8] = net.expected[8], net.expected[16]
    net.expected[16].early, net.expected[8].early = c16, c8
    assert_as_built(net, find(net, tmp_path))


def test_the_backbone_is_followed_through_tokens(tmp_path):
    """RT-DETR's way: the deepest map goes through a transformer as a sequence before the neck."""
    net = Net()
    c8, c16, c32 = net.backbone()
    width = 8
    x = net.conv(c32, width, 1)
    tokens = net.node("Reshape", [x, net.const(np.array([1, width, -1], np.int64))], width)
    tokens = net.node("Transpose", [tokens], width, perm=[0, 2, 1])
    square = net.const(net.rng.standard_normal((width, width)).astype(np.float32))
    attention = net.node("Softmax", [net.node("MatMul", [tokens, square], width)], width, axis=-1)
    tokens = net.node("Add", [tokens, attention], width)
    back = net.node("Transpose", [tokens], width, perm=[0, 2, 1])
    x = net.node("Reshape", [back, net.const(np.array([1, width, 3, 3], np.int64))], width)
    net.rows(net.head(net.fpn([c8, c16, x], width, pan=True), 3, towers=0))
    assert_as_built(net, find(net, tmp_path))


def test_a_neck_that_is_read_as_tokens(tmp_path):
    """D-FINE's way: no layer of its own between the neck and the sequence of the decoder."""
    net = Net()
    maps = net.fpn(net.backbone(), 8, joined=True, pan=True)
    shape = net.const(np.array([1, 8, -1], np.int64))
    tokens = net.node("Concat", [net.node("Reshape", [x, shape], 8) for x in maps], 8, axis=2)
    tokens = net.node("Transpose", [tokens], 8, perm=[0, 2, 1])
    square = net.const(net.rng.standard_normal((8, 8)).astype(np.float32))
    net.output(net.node("MatMul", [tokens, square], 8))
    levels = find(net, tmp_path)
    assert [v.early.name for v in levels] == [net.expected[s].early for s in (8, 16, 32)]
    assert [v.late.name for v in levels[:2]] == maps[:2]


def test_a_projector_behind_a_transformer_is_enough(tmp_path):
    """RF-DETR's way: a plain transformer, then convolutions on its tokens at one stride."""
    net = Net()
    x = net.conv(net.first, 8, 16, stride=16)
    x = net.node("Slice", [x, *(net.const(np.array(v)) for v in ([0, 0], [6, 6], [2, 3]))], 8)  # 6 × 6 cells
    tokens = net.node("Reshape", [x, net.const(np.array([1, 8, -1], np.int64))], 8)
    tokens = net.node("Softmax", [tokens], 8, axis=-1)
    back = net.node("Reshape", [tokens, net.const(np.array([1, 8, 6, 6], np.int64))], 8)
    projected = net.conv(net.conv(back, 8), 16)
    net.output(net.node("Reshape", [projected, net.const(np.array([1, 16, -1], np.int64))], 16))
    (level,) = find(net, tmp_path)
    assert level.stride == 16 and projected in [t.name for t in level.taps]


def test_tables_made_of_shapes_alone_are_not_maps(tmp_path):
    """A table for a graph of any size, of as many cells as the deepest map: it is not made of the pictures."""
    net = Net(side="s")
    c8, c16, c32 = net.backbone()
    shape = net.node("Div", [net.node("Shape", ["x"], 0), net.const(np.array([1, 1, 32, 32]))], 0)
    table = net.node("ConstantOfShape", [shape], 3)
    net.rows(net.head(net.fpn([c8, c16, net.conv(net.join(c32, table), 24)], 8, pan=True), 3, towers=1))
    net.expected[32].early = c32
    levels = find(net, tmp_path)
    assert [v.early.name for v in levels][:2] == [c8, c16] and len(levels) == 3


def test_layers_of_a_dynamically_quantised_file(tmp_path):
    """Their zero point depends on the pictures too; they are layers with weights all the same."""
    quantization = pytest.importorskip("onnxruntime.quantization", reason="onnxruntime lacks its quantization")
    path, ready = small().save(tmp_path / "f.onnx"), tmp_path / "q.onnx"
    quantization.quantize_dynamic(path, ready, weight_type=quantization.QuantType.QUInt8)
    both = [taps.find(graph.Flow(file.read(p), SIZE), p) for p in (path, ready)]
    assert [v.words for v in both[0]] == [v.words for v in both[1]]


def test_a_mask_branch_that_upsamples_does_not_hide_the_head(tmp_path):
    net = Net()
    maps = net.fpn(net.backbone(), 8, pan=True)
    net.rows(net.head(maps, 3, towers=1))
    net.output(net.conv(net.up(net.conv(maps[0], 8)), 4, act=None))
    assert_as_built(net, find(net, tmp_path))


def test_the_same_file_gives_the_same_taps_in_every_process(tmp_path):
    path = small().save(tmp_path / "m.onnx")
    code = (
        "import sys; from pathlib import Path; from ciod.detectors.onnx import file, graph, taps\n"
        f"s = file.read(Path(sys.argv[1])); print(taps.find(graph.Flow(s, {SIZE}), s.path))"
    )
    found = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], env={**__import__("os").environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found.add(done.stdout)
    assert len(found) == 1


def test_megviis_nano_has_the_maps_that_ciods_own_has(weights, tmp_path):
    """Both have the same network: backbone and neck of the one are taps of the other."""
    import torch

    import ciod

    source = file.read(weights / "yolox_nano_416.onnx")
    levels = taps.find(graph.Flow(source, 416), source.path)
    model = ciod.load(weights / "yolox_nano_coco.pth")
    images = 255 * graph.probe(source, 416)
    with torch.no_grad():
        maps, necks = model.extract(torch.from_numpy(images))
    names = [t.name for v in levels for t in (v.early, v.late)]
    session = file.start(source.path, source.exposing(names))
    found = file.run(source.path, session, names, source.feed(images[:, ::-1]))
    for mine, theirs in zip(found, [m for pair in zip(maps, necks) for m in pair], strict=True):
        assert np.corrcoef(mine.ravel(), theirs.numpy().ravel())[0, 1] > 0.9995
    assert [sum(t.channels for t in v.towers) for v in levels] == [128] * 3


# Refused --------------------------------------------------------------------------------------------------------------


def test_a_classifier_is_refused(tmp_path):
    net = Net()
    x = net.conv(net.first, 4, stride=8)
    pooled = net.node("GlobalAveragePool", [x], 4)
    net.output(net.conv(pooled, 3, 1, act=None))
    with pytest.raises(
        CiodError, match="classifier or segmenter: no output looks like boxes, and no two of the strides"
    ):
        find(net, tmp_path)


def test_a_plain_transformer_is_refused(tmp_path):
    net = Net()
    x = net.conv(net.first, 8, 16, stride=16)
    tokens = net.node("Reshape", [x, net.const(np.array([1, 8, -1], np.int64))], 8)
    net.output(net.node("Softmax", [tokens], 8, axis=-1))
    with pytest.raises(CiodError, match="token sequences"):
        find(net, tmp_path)


# By hand --------------------------------------------------------------------------------------------------------------


def flow(net: Net, tmp_path) -> graph.Flow:
    return graph.Flow(file.read(net.save(tmp_path / "m.onnx")), SIZE)


def test_taps_by_hand(tmp_path):
    net = small()
    e = net.expected
    text = f"32:{e[32].early} 8:-,{e[8].late},{','.join(e[8].towers)}"
    fine, coarse = taps.by_hand(text, flow(net, tmp_path))
    assert (fine.stride, fine.early, fine.late.name, len(fine.towers)) == (8, None, e[8].late, 2)
    assert (coarse.stride, coarse.early.name, coarse.late, coarse.towers) == (32, e[32].early, None, ())


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("4:a", "is not of the form 8:tensor,tensor; strides are 8, 16 and 32"),
        ("8:nothing", "the graph has no tensor 'nothing'"),
        ("16:{8}", r"is \[1, 12, 12, 12\], not a map of stride 16 at 96 px"),
        ("", "name each stride once, and at least one tensor"),
        ("8:{8} 8:{8}", "name each stride once"),
    ],
)
def test_taps_by_hand_that_cannot_be(tmp_path, text, match):
    net = small()
    with pytest.raises(ConfigError, match=match):
        taps.by_hand(text.replace("{8}", net.expected[8].early), flow(net, tmp_path))


def test_a_tap_that_changes_outputs_gives_way_to_the_map_before(tmp_path):
    net = small()
    source = flow(net, tmp_path)
    level = taps.find(source, tmp_path)[0]
    moved = taps.moved_up(level, level.towers[0].name, source)
    assert moved.early == level.early and moved.late == level.late
    assert moved.towers != level.towers and {t.name for t in moved.towers} - {t.name for t in level.towers}


def test_a_tensor_inside_a_condition_counts_as_read(tmp_path):
    """An If whose branches take a map from outside: the map is used."""
    net = small()
    last = net.outputs.pop()
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [last.name], ["inner"])], "b", [],
        [onnx.helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, None)],
    )  # fmt: skip
    net.output(net.node("If", [net.const(np.array(True))], 0, then_branch=branch, else_branch=branch))
    assert_as_built(net, find(net, tmp_path))
