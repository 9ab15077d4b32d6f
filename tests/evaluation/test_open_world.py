"""U-Recall, A-OSE and WI, counted by hand on a few boxes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from ciod.core.types import Detections
from ciod.evaluation import open_world
from tests.fixed import index_of

NAMES = ("cat", "dog", "owl")
KNOWN = ("cat", "dog")


def truth(*rows: tuple[int, str, int], crowd=()):
    """(image, class, x of the corner) of boxes of 10 pixels, which do not overlap if x differs by 10 or more."""
    made = index_of([(i, n) for i, n, _ in rows], NAMES, 3)
    x = np.array([x for _, _, x in rows], np.float32)[:, None]
    ignored = np.isin(np.arange(len(rows)), crowd)
    return replace(made, boxes=np.concatenate([x, 0 * x, x + 10, 0 * x + 10], 1), crowd=ignored)


def found(*rows: tuple[float, str, float]) -> Detections:
    """(x of the corner, class, score); the highest score first."""
    boxes = np.array([[x, 0, x + 10, 10] for x, _, _ in rows], np.float32).reshape(-1, 4)
    labels = np.array([NAMES.index(n) for _, n, _ in rows], np.int64)
    return Detections(boxes, np.array([s for _, _, s in rows]), labels, NAMES)


def test_unknown_objects_are_found_by_detections_that_stand_on_nothing_known():
    data = truth((0, "owl", 0), (0, "owl", 50), (0, "cat", 100), (1, "owl", 0), (1, "owl", 30), (1, "dog", 32))
    seen = [
        found((0, "cat", 0.9), (1, "dog", 0.8), (100, "cat", 0.7), (51, "dog", 0.04)),  # two on one owl; 51 is faint
        found((30, "dog", 0.9)),  # it stands on the dog too (8 of 12 pixels)
        found(),
    ]
    made = open_world.measure(seen, data, KNOWN)
    assert made.unknown_boxes == 4 and made.unknown_recall == 2 / 4  # owls at 0 and 50 of image 0
    assert made.open_set_error == 1  # with a score of 0.05


def test_wilderness_impact_at_recall_08():
    """Ten cats: nine are found; the list ends after the eighth, before the false alarm on an owl at 0.1."""
    data = truth(*[(0, "cat", 20 * k) for k in range(10)], (0, "owl", 500), (0, "owl", 600), (1, "dog", 0))
    cats = [(20 * k, "cat", 0.9 - 0.01 * k) for k in range(8)]
    beside = [(500, "cat", 0.895), (300, "cat", 0.894), (600, "cat", 0.1), (160, "cat", 0.05)]
    seen = [found(*sorted([*cats, *beside], key=lambda r: -r[2])), found((0, "dog", 0.9)), found()]
    made = open_world.measure(seen, data, KNOWN)
    # cat: 8 right, 1 wrong and 1 on an owl up to recall 0.8; dog: 1 right (recall 1 is the nearest there is)
    assert made.wilderness_impact == pytest.approx(1 / (8 + 1 + 1))
    assert made.unknown_recall == 1 and made.open_set_error == 2


def test_what_does_not_count():
    data = truth((0, "owl", 0), (0, "owl", 100), (0, "cat", 200), (0, "cat", 201), crowd=[1, 3])
    seen = [found((0, "owl", 0.9), (100, "cat", 0.8), (200, "cat", 0.7)), found(), found()]
    made = open_world.measure(seen, data, KNOWN)  # an owl is an unknown class; the crowd is not counted
    assert (made.unknown_recall, made.open_set_error, made.unknown_boxes) == (0.0, 0, 1)
    assert made.wilderness_impact == 0
    nothing = open_world.measure(seen, data, NAMES)
    assert nothing.unknown_recall is None and nothing.unknown_boxes == 0
    assert open_world.measure([found()] * 3, data, KNOWN).wilderness_impact is None
    with pytest.raises(ValueError, match="2 detections for 3 images; give one Detections per image"):
        open_world.measure(seen[:2], data, KNOWN)


def test_the_best_hundred_detections_of_an_image_count():
    data = truth((0, "owl", 0))
    many = [(500.0, "cat", 0.9)] * 100
    for n, recall in ((99, 1), (100, 0)):
        assert (
            open_world.measure([found(*many[:n], (0, "cat", 0.5)), found(), found()], data, KNOWN).unknown_recall
            == recall
        )


def test_lines():
    assert (
        open_world.OpenWorld(0.123, 40, 0.0512, 325).line()
        == "U-Recall 12.3 %  A-OSE 40  WI 0.051  (325 unknown objects)"
    )
    assert open_world.OpenWorld(None, 0, None, 0).line() == "U-Recall —  A-OSE 0  WI —  (0 unknown objects)"


def test_a_run_reports_them_while_classes_are_unknown(tmp_path, capsys):
    from ciod.config import load as config
    from ciod.data.shapes.scenes import write_shapes
    from ciod.runs import run as engine

    data = write_shapes(tmp_path / "shapes", train=8, val=4, size=64)
    words = ["split=6+4", "open_world=true", "detector=yolox-pico", "size=64", "device=cpu", "epochs=1", "batch=4"]
    out = engine.train(
        config.load(None, [*words, "method=finetune", f"data={data}", f"out={tmp_path / 'run'}"]), until=None
    )
    first, second = json.loads((out / "results.json").read_text())["tasks"]
    assert set(first["open_world"]) == {"unknown_recall", "open_set_error", "wilderness_impact", "unknown_boxes"}
    assert first["open_world"]["unknown_boxes"] > 0 and "open_world" not in second
    assert "  U-Recall " in capsys.readouterr().out and "After task 1: U-Recall" in (out / "report.html").read_text()
