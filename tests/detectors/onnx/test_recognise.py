"""What a file is taken for: how pictures are given, names, and the sentences of ``ciod check``."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from ciod import api
from ciod.cli import app
from ciod.core.errors import CiodError, ConfigError
from ciod.detectors.base import IMAGENET, Input
from ciod.detectors.onnx import file, graph, pictures, recognise, taps
from tests.detectors.onnx.graphs import SIZE, Net, small

ULTRALYTICS = {
    "names": "{0: 'cat', 1: 'dog', 2: 'cow'}",
    "stride": "32",
    "imgsz": f"[{SIZE}, {SIZE}]",
    "task": "detect",
}


@pytest.fixture
def path(tmp_path):
    return small().save(tmp_path / "m.onnx")


# How pictures are given -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0..1,rgb", Input(std=(255,) * 3)),
        ("BGR, 0..255, 0", Input(bgr=True, fill=0)),
        ("imagenet,bgr,letterbox", Input(bgr=True, place="letterbox", **IMAGENET)),
        ("-1..1,rgb,stretch,127", Input(mean=(127.5,) * 3, std=(127.5,) * 3, fill=127, place="stretch")),
        ("1,2,3,4,5,6,rgb", Input(mean=(1, 2, 3), std=(4, 5, 6))),
        (["1", 2, 3, 4, 5, 6, 7, "rgb", "corner"], Input(mean=(1, 2, 3), std=(4, 5, 6), fill=7)),
    ],
)
def test_words_of_input(text, expected):
    assert pictures.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("0..2,rgb", "'0..2' is unknown; did you mean '0..255'|'0..1'"),
        ("0..1,0..255,rgb", "it has 0..1 and 0..255; give only one"),
        ("0..1", "lacks the order of colours, rgb or bgr"),
        ("rgb", "lacks the range of values: 0..1, 0..255"),
        ("rgb,1,2,3", "3 numbers; write mean and deviation of R, G, B"),
        ("rgb,1,2,3,0,5,6", "a deviation must be above 0"),
        ("nan,rgb", "'nan' is unknown"),
    ],
)
def test_words_of_input_that_cannot_be(text, match):
    with pytest.raises(ConfigError, match=match):
        pictures.parse(text)


def test_it_is_asked_for_where_nothing_says_it(path):
    with pytest.raises(CiodError, match=r"does not say how pictures must be given. Write input=0..1,rgb \(YOLOv5"):
        api.check(path, names=["a", "b", "c"])


def test_metadata_of_ultralytics(tmp_path):
    path = small().save(tmp_path / "m.onnx", **ULTRALYTICS, license="AGPL-3.0", author="Ultralytics")
    lines = api.check(path)
    assert f"input: 0..1, RGB, letterbox, {SIZE} px (from metadata of Ultralytics)" in lines
    assert any(line.endswith("3 classes; cat, dog, cow") for line in lines)
    assert "the file states: license AGPL-3.0, author Ultralytics; that still applies to it." in lines


def test_input_that_contradicts_the_metadata(tmp_path):
    path = small().save(tmp_path / "m.onnx", **ULTRALYTICS)
    with pytest.raises(ConfigError, match=r"takes 0..1, RGB, letterbox .*input=0..255,bgr contradicts it"):
        api.check(path, input="0..255,bgr")
    assert api.check(path, input="0..1,rgb")


def test_another_task_of_a_network_is_reported(tmp_path):
    path = small().save(tmp_path / "m.onnx", **ULTRALYTICS | {"task": "pose"})
    assert "the task of m.onnx is pose: new classes get only boxes." in api.check(path)


def test_metadata_of_ciod(tmp_path):
    meta = {"class_names": ["a", "b", "c"], "normalised_in_graph": {}, "input": {"size": SIZE, "fill": 7.0}}
    path = small(side="s").save(tmp_path / "m.onnx", ciod=json.dumps(meta))
    assert any(f"0..255, RGB, corner, {SIZE} px (from metadata of ciod)" in line for line in api.check(path))
    assert pictures.of_metadata(file.read(path))[0].fill == 7


def test_of_several_metadata_of_ciod_the_last_counts(tmp_path):
    def meta(fill):
        return json.dumps(
            {"class_names": ["a", "b", "c"], "input": {"mean": [1, 2, 3], "std": [4, 5, 6], "fill": fill}}
        )

    path = small().save(tmp_path / "m.onnx", **{"ciod": meta(1), "ciod.10": meta(10), "ciod.9": meta(9)})
    assert pictures.of_metadata(file.read(path))[0] == Input(mean=(1, 2, 3), std=(4, 5, 6), fill=10)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[", "what ciod wrote into its metadata is not readable"),
        ("[1]", "what ciod wrote into its metadata is not readable"),
        ('{"input": {"mean": [1], "other": 1}}', "its metadata do not describe an input"),
    ],
)
def test_damaged_metadata_of_ciod(tmp_path, text, match):
    source = file.read(small().save(tmp_path / "m.onnx", ciod=text))
    with pytest.raises(CiodError, match=match):
        pictures.of_metadata(source)


@pytest.mark.parametrize("key", ["ciod.\u00b2", "ciod." + "9" * 6000, "7", "ciodx", "ciod."])
def test_metadata_of_others_with_odd_keys_are_not_of_ciod(tmp_path, key):
    source = file.read(small().save(tmp_path / "m.onnx", **{key: "{}"}))
    assert pictures.ciod_metadata(source) == {}


@pytest.mark.parametrize("names", ["__import__('os').system('x')", "((((", "{0: 'a'" + "}" * 1000, "1" * 100])
def test_names_in_metadata_that_are_not_names(tmp_path, names):
    source = file.read(small().save(tmp_path / "m.onnx", names=names, stride="32"))
    assert pictures.names_of(source, None) is None and pictures.of_metadata(source) is None


def test_size(tmp_path, path):
    with pytest.raises(ConfigError, match=r"size: m.onnx takes pictures of 96 pixels and no others"):
        api.check(path, input="0..1,rgb", names=["a", "b", "c"], size=128)
    free = file.read(small(side="s").save(tmp_path / "f.onnx", imgsz="[128, 160]"))
    assert pictures.size_of(free, None) == 160 and pictures.size_of(free, 96) == 96
    free.metadata.clear()
    assert pictures.size_of(free, None) == 640


# Names ----------------------------------------------------------------------------------------------------------------


def test_names_are_given_in_three_ways(tmp_path, path):
    source = file.read(path)
    (tmp_path / "n.txt").write_text("a\n\nb \n")
    assert pictures.names_of(source, ["x", "y"]) == ("x", "y")
    assert pictures.names_of(source, [str(tmp_path / "n.txt")]) == ("a", "b")
    assert len(pictures.names_of(source, ["coco"])) == 80


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (None, "has 3 classes without names; give them: names=a,b,c"),
        (["a", "b"], "has 3 classes without names, but names= gives 2"),
        (["a", "a"], "names: 'a' appears twice"),
    ],
)
def test_names_that_do_not_fit(path, names, match):
    with pytest.raises(CiodError, match=match):
        api.check(path, input="0..1,rgb", names=names)


def test_names_that_contradict_the_metadata(tmp_path):
    path = small().save(tmp_path / "m.onnx", **ULTRALYTICS)
    with pytest.raises(ConfigError, match=r"m.onnx has 3 classes, but names= gives 2"):
        api.check(path, names=["a", "b"])


def test_eighty_classes_without_names_are_cocos(tmp_path):
    path = small(classes=80).save(tmp_path / "m.onnx")
    assert any("80 classes; person, bicycle, car, …" in line for line in api.check(path, input="0..1,rgb"))


def suppressed(tmp_path):
    """A detector whose suppression found nothing: one output [1, 5, 6] of zeros."""
    net = small()
    whole = net.node("ReduceSum", [net.outputs.pop().name], 1, keepdims=0)
    net.output(net.node("Mul", [net.const(np.zeros((1, 5, 6), np.float32)), whole], 1))
    return net.save(tmp_path / "m.onnx")


def test_labels_need_names(tmp_path):
    path = suppressed(tmp_path)
    with pytest.raises(CiodError, match="has no class names; give names= in the order of the labels"):
        api.check(path, input="0..1,rgb")
    assert any("by shape alone" in line for line in api.check(path, input="0..1,rgb", names=["a"]))


# Messages ---------------------------------------------------------------------------------------------------------


def test_lines_of_check(path):
    result = CliRunner().invoke(app, ["check", str(path), "input=0..255,bgr", "names=a,b,c"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].endswith("nodes, opset 17; input x [1, 3, 96, 96]")
    assert lines[1] == (
        "reads: stride 8: 12 + 8 + 16 channels; 16: 16 + 8 + 16; 32: 24 + 8 + 16 (backbone, neck, towers; 12 tensors)"
    )
    assert lines[2].startswith("old outputs: t") and "[1, 189, 8]: one row per position (strides 8, 16, 32)" in lines[2]
    assert lines[3] == f"input: 0..255, BGR, corner, {SIZE} px (from input=)"


def test_check_accepts_only_onnx():
    with pytest.raises(CiodError, match=r"check takes an ONNX file, not m\.safetensors"):
        api.check("m.safetensors")


def test_all_that_is_wrong_at_once(path):
    with pytest.raises(ConfigError) as found:
        api.check(path, input="0..1", names=["a", "a"], size=128, old_outputs="gird")
    assert [p.partition(":")[0] for p in found.value.problems] == ["size", "names", "input", "old_outputs"]
    assert "there is no layout 'gird'; did you mean 'grid'?" in str(found.value)


def test_outputs_that_are_not_of_the_kind_asked_for(path):
    with pytest.raises(
        ConfigError, match=r"old_outputs: rows does not fit m.onnx, whose outputs have the shapes \[189, 8\]"
    ):
        api.check(path, input="0..1,rgb", names=["a", "b", "c"], old_outputs="rows")


def test_outputs_with_an_unknown_layout_are_not_an_error(tmp_path):
    net = Net()
    net.output(net.head(net.fpn(net.backbone(), 8), 3, towers=1)[1][2])
    lines = api.check(net.save(tmp_path / "m.onnx"), input="0..1,rgb")
    assert any("not understood (t" in line and "new classes can still be added" in line for line in lines)


def test_taps_by_hand(path):
    e = small().expected
    lines = api.check(path, input="0..1,rgb", names=["a", "b", "c"], taps=f"8:{e[8].early} 16:{e[16].early}")
    assert "reads: stride 8: 12 channels; 16: 16 (backbone; 2 tensors)" in lines


def test_a_quantised_file_is_reported(tmp_path):
    net = Net()
    scale, zero = net.const(np.array(0.1, np.float32)), net.const(np.array(0, np.uint8))
    for i, x in enumerate(maps := net.fpn(net.backbone(), 8, pan=True)):
        maps[i] = net.node("DequantizeLinear", [net.node("QuantizeLinear", [x, scale, zero], 8), scale, zero], 8)
    net.rows(net.head(maps, 3, towers=1))
    lines = api.check(net.save(tmp_path / "m.onnx"), input="0..1,rgb", names=["a", "b", "c"])
    assert any("m.onnx is quantised to int8: new classes will be less exact" in line for line in lines)


def test_a_tap_that_would_move_the_outputs_is_replaced(path, monkeypatch):
    """Operators that onnxruntime no longer fuses may change the last digits; simulated, as it depends on the CPU."""
    source = file.read(path)
    flow = graph.Flow(source, SIZE)
    levels = taps.find(flow, path)
    guilty = levels[0].towers[0].name
    run = file.run

    def moved(path, session, names, feed):
        values = run(path, session, names, feed)
        if guilty in [o.name for o in session.get_outputs()]:
            values[0] = values[0] + np.float32(1e-6)
        return values

    monkeypatch.setattr(recognise.f, "run", moved)
    _, found, notes = recognise.steady(source, flow, levels, graph.probe(source, SIZE))
    assert guilty not in taps.names_of(found)
    assert notes == [f"reading {guilty} would change the old outputs, so an earlier map is read"]
    assert found[1:] == levels[1:]
