"""The confusion matrix: one detection for each object, the own class first, and nothing is counted twice."""

from __future__ import annotations

import numpy as np

from ciod.core.types import Detections
from ciod.evaluation.ap import coco_ap
from ciod.evaluation.confusions import confusion
from ciod.evaluation.detect import Scored
from ciod.report import scored as pages
from ciod.report.scored_plots import confusion_matrix, precision_recall
from tests.fixed import index_of

NAMES = ("cat", "dog")


def found(*rows: tuple[float, str, float]) -> Detections:
    """(x of the corner, class, score), boxes of 10 pixels; the highest score first."""
    boxes = np.array([[x, x, x + 10, x + 10] for x, _, _ in rows], np.float32).reshape(-1, 4)
    labels = np.array([("cat", "dog", "owl").index(n) for _, n, _ in rows], np.int64)
    return Detections(boxes, np.array([s for _, _, s in rows]), labels, ("cat", "dog", "owl"))


def test_objects_take_their_own_class_first():
    """A dog's box with a higher score stands on the cat; the cat has its own, so the dog is a detection too many."""
    truth = index_of([(0, "cat")], NAMES, 1)
    counts = confusion([found((0, "dog", 0.9), (0, "cat", 0.5))], truth, NAMES).counts
    assert counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_missed_confused_and_invented():
    truth = index_of([(0, "cat"), (0, "cat"), (1, "dog")], NAMES, 2)  # corners at 0, 1 and 2
    seen = [found((0, "dog", 0.8), (70, "cat", 0.4)), found((2, "dog", 0.2))]
    made = confusion(seen, truth, NAMES)
    assert made.counts.tolist() == [[0, 1, 1], [0, 0, 1], [1, 0, 0]]
    assert made.most() == [("cat", "dog", 1, 2)]
    assert confusion(seen, truth, NAMES, score=0.1).counts[1].tolist() == [0, 1, 0]


def test_crowds_difficult_objects_and_other_classes_are_left_out():
    truth = index_of([(0, "cat"), (0, "dog"), (1, "cat")], NAMES, 2, crowd=(0,), difficult=(2,))
    seen = [found((0, "cat", 0.9), (0, "owl", 0.8)), found((2, "cat", 0.9))]
    assert confusion(seen, truth, ("cat",)).counts.tolist() == [[0, 0], [0, 0]]
    assert confusion([found(), found()], truth, NAMES).counts.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_the_mean_of_a_curve_is_the_ap():
    truth = index_of([(0, "cat"), (1, "cat"), (1, "dog")], NAMES, 2)
    table = coco_ap([found((0, "cat", 0.9)), found((40, "cat", 0.8), (1, "cat", 0.7))], truth, classes=NAMES)
    assert set(table.curves) == {"cat", "dog"}
    for name, curve in table.curves.items():
        assert curve.shape == (101,) and curve.mean() == table.per_class[name]["AP50"]


def test_figures_with_one_class_with_many_and_with_none():
    many = tuple(f"class {i}" for i in range(40))
    curves = {n: np.linspace(1, i / 40, 101) for i, n in enumerate(many)}
    drawn = precision_recall(curves, {n: float(c.mean()) for n, c in curves.items()})
    assert "the 10 lowest of 40 classes" in drawn and "class 39" not in drawn and "mean" in drawn
    assert "mean" not in precision_recall({"one": curves["class 3"]}, {"one": 0.5})
    assert precision_recall({}, {}) == ""
    truth = index_of([(0, n) for n in many], many, 1)
    empty = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0), many)
    drawn = confusion_matrix(confusion([empty], truth, many))
    assert drawn.count("class ") == 2 * 30 and "nothing" in drawn, "of forty classes the thirty that are confused most"
    assert confusion_matrix(confusion([empty], truth.select(boxes=np.zeros(40, bool)), many)) == ""


def test_unreadable_files_are_on_the_page(tmp_path):
    truth = index_of([(0, "cat")], NAMES, 1)
    table = coco_ap([found((0, "cat", 0.9))], truth, classes=NAMES)
    scored = Scored(table, ("cat",), (), (), 1, ["bad.jpg"])
    page = pages.write(scored, tmp_path / "out", model="m", settings={}).read_text(encoding="utf-8")
    assert "unreadable, scored as empty: bad.jpg" in page
