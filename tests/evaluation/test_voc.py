"""VOC's AP, by hand: matching rules, difficult boxes, eleven points against area."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciod.core.types import Detections
from ciod.evaluation.ap import coco_ap
from ciod.evaluation.voc import _area, _eleven_points, voc_ap
from tests.evaluation.test_ap import found, make_index, random_case

A, B, C = (0, 0, 100, 100), (200, 0, 300, 100), (0, 200, 100, 300)


def both(detections, truth, name="cat") -> tuple[float | None, float | None]:
    voc07, voc = (voc_ap(detections, truth, metric=m)[name] for m in ("voc07", "voc"))
    return voc07, voc


def test_a_curve_by_hand():
    """Three boxes; right, wrong, right, wrong: recall 1/3, 1/3, 2/3, 2/3 at precision 1, 1/2, 2/3, 1/2.

    Eleven points: recall 0 … 0.3 → 1 (four), 0.4 … 0.6 → 2/3 (three), the rest 0: (4 + 2) / 11.
    Area: 1/3 × 1 + 1/3 × 2/3 = 5/9.
    """
    truth = make_index([(0, "cat", *A), (0, "cat", *B), (0, "cat", *C)])
    detections = found(
        ("cat", 0.9, *A), ("cat", 0.8, 400, 400, 450, 450), ("cat", 0.7, *B), ("cat", 0.6, 0, 400, 40, 450)
    )
    assert both([detections], truth) == (pytest.approx(6 / 11), pytest.approx(5 / 9))


def test_iou_of_exactly_a_half_counts():
    truth = make_index([(0, "cat", *A)])
    assert both([found(("cat", 0.9, 0, 0, 100, 50))], truth) == (1, 1)
    assert both([found(("cat", 0.9, 0, 0, 100, 49))], truth) == (0, 0)


def test_a_box_is_found_once():
    truth = make_index([(0, "cat", *A), (0, "cat", *B)])
    detections = found(("cat", 0.9, *A), ("cat", 0.8, *A), ("cat", 0.7, *B))
    assert both([detections], truth)[1] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_a_second_choice_is_not_tried():
    """VOC looks at the best overlap only: the second detection prefers a box that is taken, and is wrong."""
    truth = make_index([(0, "cat", 0, 0, 100, 100), (0, "cat", 0, 30, 100, 130)])
    detections = found(("cat", 0.9, 0, 0, 100, 100), ("cat", 0.8, 0, 10, 100, 110))
    assert both([detections], truth)[1] == pytest.approx(0.5)
    assert coco_ap([detections], truth).per_class["cat"]["AP50"] == pytest.approx(1)


def test_difficult_boxes_are_neither_found_nor_missed():
    truth = make_index([(0, "cat", *A), (0, "cat", *B)], difficult=[1])
    right = ("cat", 0.5, *A)
    assert both([found(right)], truth) == (1, 1)
    assert both([found(("cat", 0.9, *B), ("cat", 0.8, *B), right)], truth) == (1, 1)
    assert both([found(right)], make_index([(0, "cat", *A)], difficult=[0])) == (None, None)


def test_difficult_takes_the_best_overlap_too():
    """Unlike COCO, where an ordinary box is preferred to an ignored one."""
    truth = make_index([(0, "cat", 0, 0, 100, 100), (0, "cat", 0, 10, 100, 110)], difficult=[1])
    assert both([found(("cat", 0.9, 0, 9, 100, 109))], truth) == (0, 0)


def test_other_images_and_classes_are_apart():
    truth = make_index([(0, "cat", *A), (1, "dog", *A)], images=2)
    assert both([found(), found(("cat", 0.9, *A))], truth) == (0, 0)
    assert both([found(("cat", 0.9, *A)), found()], truth) == (1, 1)
    assert both([found(("cat", 0.9, *A)), found()], truth, "dog") == (0, 0)
    one = found(("cat", 0.9, *A), names=("owl", "cat"))
    assert voc_ap([one, found()], truth, metric="voc", classes=["cat", "ufo"]) == {"cat": 1, "ufo": None}


def test_recall_that_just_reaches_a_point():
    """7 of 10 found is recall 0.7, whichever way 0.7 is rounded."""
    recall = np.arange(1, 8) / 10
    assert _eleven_points(recall, np.ones(7)) == pytest.approx(8 / 11)
    assert _area(recall, np.ones(7)) == pytest.approx(0.7)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="0 detections for 1 images"):
        voc_ap([], make_index([(0, "cat", *A)]), metric="voc")


def slow_area(detections: list[Detections], truth, name: str) -> float | None:
    """Written from the definition as a loop over boxes, without vectorisation."""
    label = truth.class_names.index(name)
    boxes = {a: truth.boxes[a].tolist() for a in range(len(truth.labels)) if truth.labels[a] == label}
    easy = [a for a in boxes if not (truth.difficult[a] or truth.crowd[a])]
    ranked = []
    for i, d in enumerate(detections):
        rows = zip(d.scores.tolist(), d.boxes.tolist(), d.labels)
        ranked += [(s, i, b) for s, b, y in rows if d.class_names[y] == name]
    ranked.sort(key=lambda r: -r[0])
    used, points, right, wrong = set(), [], 0, 0
    for _, i, b in ranked:
        best, overlap = None, -1.0
        for a in boxes:
            if truth.image[a] != i:
                continue
            g = boxes[a]
            w, h = min(b[2], g[2]) - max(b[0], g[0]), min(b[3], g[3]) - max(b[1], g[1])
            common = w * h if w > 0 and h > 0 else 0.0
            iou = common / ((b[2] - b[0]) * (b[3] - b[1]) + (g[2] - g[0]) * (g[3] - g[1]) - common)
            if iou > overlap:
                best, overlap = a, iou
        if best is not None and overlap >= 0.5 and best not in easy:
            continue
        if best is not None and overlap >= 0.5 and best not in used:
            used.add(best)
            right += 1
        else:
            wrong += 1
        points.append((right, right / (right + wrong)))
    if not easy:
        return None
    return sum(max((p for r, p in points if r >= k), default=0.0) for k in range(1, len(easy) + 1)) / len(easy)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_area_is_the_mean_over_boxes_of_the_best_precision_that_reaches_them(seed):
    truth, detections = random_case(seed, images=6)
    ours = voc_ap(detections, truth, metric="voc")
    for name in truth.class_names:
        assert ours[name] == (pytest.approx(e) if (e := slow_area(detections, truth, name)) is not None else None)


def test_close_to_cocos_ap50_where_the_rules_agree():
    """Without difficult boxes and contested matches the area under the curve differs in sampling alone."""
    truth, detections = random_case(3, images=40)
    ours, cocos = voc_ap(detections, truth, metric="voc"), coco_ap(detections, truth).per_class
    for name in truth.class_names:
        assert ours[name] == pytest.approx(cocos[name]["AP50"], abs=0.06)


def test_the_line_names_the_metric():
    truth = make_index([(0, "cat", *A)])
    table = coco_ap([found(("cat", 0.9, *A))], truth)
    table.include("VOC07", voc_ap([found(("cat", 0.9, *A))], truth, metric="voc07"))
    assert table.line().startswith("VOC07 1.000  AP 1.000")
    assert table.per_class["cat"]["VOC07"] == 1 and table.overall["VOC07"] == 1
