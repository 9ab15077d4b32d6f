"""Every setting of every command with values that no one means: a result or a sentence, never a traceback.

Values of settings that name a place to write into are kept in a folder of the test.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ciod import cli
from ciod.config.load import shorthands
from ciod.data.shapes.scenes import CLASSES, write_shapes
from ciod.extension import settings as extending
from ciod.extension import write

VALUES = [
    "", "true", "-1", "1e30", ".nan", "99999999999999999999", "[]", "[[]]", "[~]", "[a, a]", "{a: {b: 1}}", "{~: 1}",
    "a" * 300, r'"\0"', r'"\ud800"', r'"\udcff"', "2001-01-01", "!!set {a}", "&a {b: *a}", "!!int ''", ".",
]  # fmt: skip
COMPARE = ("methods", "seeds", "jobs", "upper", "against", "out", "cache", "scenario", "split")
EVAL = ("data", "split", "size", "score_threshold", "nms_iou", "max_detections", "device", "classes", "names", "metric",
        "json", "multi_label")  # fmt: skip
PREDICT = ("out", "score", "classes", "draw", "coco", "data", "split", "batch", "size", "nms_iou", "max_detections",
           "device", "names")  # fmt: skip
EXPORT = ("onnx", "size", "dynamic_size", "nms", "opset", "score_threshold", "max_detections", "images", "names")
TRAIN = (*sorted(shorthands()), "method", "method.center_score", "memory", "memory.size", "pool", "detector",
         "protocol", "train", "augment", "eval", "x.y", "", "train.", ".lr", "scenario")  # fmt: skip
EXTEND = (*(k for k in extending.Extend.model_fields if k != "model"), *sorted(extending.SHORT), "method.score")


class Enough(Exception):
    """What was asked is possible."""


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", train=6, val=3, size=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    from ciod import detectors
    from ciod.detectors.files.weights import save_model

    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_model(path, detectors.build(tuple(CLASSES[:3]), name="yolox-pico", size=64))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ("train --dry-run data={data} split=6+4 detector=yolox-pico", TRAIN),
        ("compare --dry-run data={data} split=6+4 methods=finetune,ilyolox", COMPARE),
        ("extend {model} data={data}", EXTEND),
        ("eval {model} data={data} device=cpu", EVAL),
        ("predict {model} {picture} device=cpu", PREDICT),
        ("export {model} opset=0", EXPORT),  # one thing is wrong in any case, as exporting takes its time
        ("export {model}", ("onnx", "mmdet")),
        ("list data {data}", ("x", "split", "data")),
        ("list shapes-6+4", ("data", "split", "order", "images")),
    ],
    ids=lambda p: p if isinstance(p, str) else "",
)
def test_no_value_ends_in_a_traceback(words, keys, shapes, model, tmp_path, monkeypatch, capfd):
    def enough(*_):
        raise Enough

    monkeypatch.setattr(write, "settings", enough)  # the training comes next
    monkeypatch.chdir(tmp_path)
    places = {"data": shapes, "model": model, "picture": next((shapes / "images").iterdir())}
    base = [w.format_map(places) for w in words.split()]
    wrong = []
    for key in keys:
        for value in VALUES:
            monkeypatch.setattr(sys, "argv", ["ciod", *base, f"{key}={value}"])
            try:
                cli.main()
            except (SystemExit, Enough):
                pass
            except BaseException as error:
                wrong.append(f"{key}={value[:40]}: {type(error).__name__}: {error}")
            capfd.readouterr()
    assert wrong == []
    assert [p.name for p in shapes.parent.iterdir()] == ["data"], "nothing is written where nothing was asked for"
