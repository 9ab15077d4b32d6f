"""Every benchmark runs from its command line, at a size that measures nothing."""

from __future__ import annotations

import importlib
import json
import math

import pytest
import torch

from benchmarks import timing

SMALL = {
    "branches": ["--detector", "yolox-pico", "--size", "64", "--branches", "2", "--rounds", "1"],
    "evaluation": ["--images", "32", "--classes", "3", "--detections", "9", "--size", "64", "--batch", "16"],
    "head": ["--images", "2", "--size", "64", "--classes", "6", "--old", "3", "--objects", "2", "--rounds", "1"],
    "loader": ["--images", "8", "--width", "64", "--height", "48", "--size", "64", "--batch", "4", "--workers", "1",
               "--detector", "yolox-pico"],
    "options": ["--steps", "2", "--images", "16", "--epochs", "40", "--size", "64", "--batch", "4", "--only",
                "channels_last"],
    "predict": ["--detector", "yolox-pico", "--size", "64", "--images", "9", "--rounds", "1"],
    "processes": ["--detector", "yolox-pico", "--size", "64", "--batch", "2", "--classes", "4", "--rounds", "1"],
    "step": ["--detector", "yolox-pico", "--size", "64", "--batch", "2", "--classes", "4", "--old", "2",
             "--rounds", "1", "--methods", "lwf"],
}  # fmt: skip


def numbers(content: object) -> list[float]:
    if isinstance(content, dict):
        return [n for v in content.values() for n in numbers(v)]
    if isinstance(content, list):
        return [n for v in content for n in numbers(v)]
    return [content] if isinstance(content, (int, float)) else []


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_it_runs(name, tmp_path, monkeypatch, capsys):
    module = importlib.import_module(f"benchmarks.{name}")
    file = tmp_path / "figures.json"
    monkeypatch.setattr(
        "sys.argv", [name, *SMALL[name], "--threads", str(torch.get_num_threads()), "--json", str(file)]
    )
    assert not module.main()
    found = numbers(json.loads(file.read_text(encoding="utf-8")))
    assert found and all(math.isfinite(n) for n in found)
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_accuracy_against_time(tmp_path, monkeypatch, capsys):
    from ciod import detectors
    from ciod.data.shapes.scenes import write_shapes
    from ciod.detectors.files import weights

    data, model, file = tmp_path / "data", tmp_path / "model.safetensors", tmp_path / "figures.json"
    write_shapes(data, train=16, val=4, size=64)
    weights.save_model(model, detectors.build(("ring",), name="yolox-pico", size=64))
    words = ["--data", str(data), "--weights", str(model), "--detector", "yolox-pico", "--size", "64", "--batch", "4",
             "--epochs", "3", "--every", "2", "--threads", "1", "--json", str(file), "--plot", str(tmp_path / "a.png"),
             "--set", "split=10"]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["accuracy", *words])
    importlib.import_module("benchmarks.accuracy").main()
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert list(rows) == ["ciod", "plain loop"]
    for row in rows.values():
        points = row["points"]
        assert [p["epoch"] for p in points] == [1, 2, 3] and ["AP" in p for p in points] == [False, True, True]
        assert 0 < points[0]["seconds"] < points[1]["seconds"] < row["seconds"]
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert "of the best AP after" in capsys.readouterr().out


def test_options_compared_on_a_teacher_that_teaches_nothing(monkeypatch):
    words = ["options", *SMALL["options"], "--epochs", "1", "--threads", str(torch.get_num_threads())]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit, match="Nothing was learnt from the teacher"):
        importlib.import_module("benchmarks.options").main()


def test_processes_of_their_own_take_turns(tmp_path):
    log = tmp_path / "log"
    commands = {n: ["tests.benchmarks.served", str(log), n] for n in "ab"}
    seconds, peak = timing.apart(commands, rounds=2, warm=1)
    assert log.read_text(encoding="utf-8").split() == ["a", "b"] * 3
    assert all(seconds[n] >= 0 and peak[n] > 10 for n in "ab")


def test_a_process_that_ends_is_named():
    with pytest.raises(RuntimeError, match="The process of broken ended with 3"):
        timing.apart({"broken": ["tests.benchmarks.served", "fails"]}, rounds=1)


@pytest.mark.slow
def test_an_onnx_file_against_its_extension(tmp_path, monkeypatch, capsys):
    """Old outputs that another file does not have are counted."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")
    import numpy as np

    from benchmarks import onnx_extended
    from ciod.data.shapes.scenes import write_shapes
    from ciod.detectors.onnx import merge
    from ciod.detectors.onnx.detector import load
    from ciod.detectors.onnx.recognise import Asked
    from tests.detectors.onnx.graphs import SIZE, onnx, small

    data, file = tmp_path / "data", tmp_path / "figures.json"
    write_shapes(data, train=4, val=3, size=64)
    old, other = small().save(tmp_path / "m.onnx"), tmp_path / "other.onnx"
    model = onnx.load(old)
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
    weight.CopyFrom(onnx.numpy_helper.from_array(1.5 * onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(model, other)
    detector = load(old, Asked(input="0..1,rgb", names=("a", "b", "c")))
    detector.grow(["ring"])
    merge.save(tmp_path / "n.onnx", detector, np.zeros((1, 3, SIZE, SIZE), np.uint8))
    for new, expected in ((tmp_path / "n.onnx", 0), (other, 3)):
        words = [str(old), str(new), "--data", str(data), "--input", "0..1,rgb", "--names", "a,b,c", "--rounds", "2"]
        monkeypatch.setattr("sys.argv", ["onnx_extended", *words, "--json", str(file)])
        onnx_extended.main()
        found = json.loads(file.read_text(encoding="utf-8"))
        assert found["runs"] == 3 and len(found["differing"]) == 8 and set(found["differing"].values()) == {expected}
        assert found["seconds"]["old"] > 0 and f"{3 - expected} of 3 runs bit-equal" in capsys.readouterr().out


@pytest.mark.slow
def test_rows_on_a_held_backbone(tmp_path, monkeypatch, capsys):
    from ciod import detectors
    from ciod.data.formats import read
    from ciod.data.shapes.scenes import write_shapes
    from ciod.detectors.files import weights

    data, model = tmp_path / "data", tmp_path / "first" / "task-1" / "model.safetensors"
    write_shapes(data, train=8, val=4, size=64)
    model.parent.mkdir(parents=True)
    first = sorted(read(data, "train").class_names)[:6]
    weights.save_model(model, detectors.build(first, name="yolox-pico", size=64))
    words = [str(tmp_path / "first"), "pseudo_label", "feature_replay,tie=0", "--steps", "2", "--run"]
    monkeypatch.setattr("sys.argv", ["held_backbone", *words, f"data={data} split=6+4 detector=yolox-pico size=64"])
    importlib.import_module("benchmarks.held_backbone").main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["row"] for r in rows] == ["after the first task", "pseudo_label", "feature_replay,tie=0"]
    assert all(len(r["change"]) == 3 for r in rows[1:])


def test_held_out_frames():
    from benchmarks.held_out_frames import cut

    names = ["a", "a", "a", "a", "a", "b", "a", "a"]  # the class of each frame
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(8)]
    boxes = [{"image_id": i, "category_id": name} for i, name in enumerate(names)]
    parts = cut({"images": images[::-1], "annotations": boxes})
    shown = {name: [i["id"] for i in part["images"]] for name, part in parts.items()}
    assert shown == {"train": [0, 1, 2, 5, 6, 7], "val": [4]}  # frame 3 is beside the tested one
    assert [b["image_id"] for b in parts["val"]["annotations"]] == [4]


def test_quarters_of_one_data_set_do_not_share_neighbours(tmp_path, monkeypatch):
    from benchmarks import held_out_frames

    images = [{"id": i, "file_name": f"{i:02d}.jpg"} for i in range(10)]
    boxes = [{"id": i, "image_id": i, "category_id": int(i > 7)} for i in range(10)]
    (tmp_path / "data" / "images").mkdir(parents=True)
    for name in ("train", "val"):
        part = {"images": images[name == "val" :: 2], "annotations": boxes[name == "val" :: 2], "categories": []}
        (tmp_path / "data" / f"{name}.json").write_text(json.dumps(part))
    monkeypatch.setattr("sys.argv", ["held_out_frames", str(tmp_path / "data"), str(tmp_path / "out"), "--quarters"])
    held_out_frames.main()
    made = json.loads((tmp_path / "out" / "train.json").read_text())
    names = [i["file_name"] for i in made["images"]]
    assert names == [f"quarter-{n}.jpg" for n in ("1-00", "1-01", "2-03", "3-05", "4-07", "2-08")]
    assert sorted(p.name for p in (tmp_path / "out" / "images").iterdir()) == sorted(names)
    shown = {b["image_id"]: b["category_id"] for b in made["annotations"]}
    assert [shown[i["id"]] for i in made["images"]] == [0, 0, 0, 0, 0, 1]


def test_quarters_of_all_frames_test_every_frame_of_a_long_run_once():
    from benchmarks.held_out_frames import cut, whole

    names = "aaaaaaabbaaaaaa"
    parts = [
        {"images": [{"id": i, "file_name": f"{2 * i + k:02d}"} for i in range(n)], "categories": ["a", "b"]}
        for k, n in enumerate((8, 7))
    ]
    for k, part in enumerate(parts):
        part["annotations"] = [
            {"id": i, "image_id": i, "category_id": names[2 * i + k]} for i in range(len(part["images"]))
        ]
    content = whole(parts)
    assert len({a["id"] for a in content["annotations"]}) == len({i["id"] for i in content["images"]}) == 15
    cuts = [cut(content, q) for q in (1, 2, 3, 4)]
    tested = [sorted(int(i["file_name"]) for i in c["val"]["images"]) for c in cuts]
    assert tested == [[0, 1, 9, 10], [2, 3, 11], [4, 12], [5, 6, 13, 14]]
    assert sorted(n for frames in tested for n in frames) == [n for n in range(15) if n not in (7, 8)], (
        "the run of two frames is only trained on"
    )
    for c, frames in zip(cuts, tested, strict=True):
        trained = {int(i["file_name"]) for i in c["train"]["images"]}
        assert not trained & {n + d for n in frames for d in (-1, 0, 1)} - {7, 8}
        assert all(
            names[int(i["file_name"])] == a["category_id"]
            for i, a in zip(c["val"]["images"], c["val"]["annotations"], strict=True)
        )
