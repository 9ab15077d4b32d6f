"""COCO AP: tiny cases by hand, random cases against pycocotools."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciod.core.types import Detections
from ciod.data.index import Index, empty_columns
from ciod.evaluation.ap import OVERALL, PER_CLASS, coco_ap

NAMES = ("cat", "dog", "owl")


def make_index(rows, names=NAMES, images=1, crowd=(), difficult=(), area=None) -> Index:
    """``rows``: (image, class name, x1, y1, x2, y2), sorted by image."""
    columns = empty_columns()
    if rows:
        boxes = np.array([r[2:] for r in rows], np.float32)
        columns = {
            "image": np.array([r[0] for r in rows], np.int64),
            "boxes": boxes,
            "labels": np.array([names.index(r[1]) for r in rows], np.int64),
            "crowd": np.isin(np.arange(len(rows)), crowd),
            "difficult": np.isin(np.arange(len(rows)), difficult),
            "area": np.prod(boxes[:, 2:] - boxes[:, :2], 1) if area is None else np.array(area, np.float32),
        }
    files = [Path(f"{i}.jpg") for i in range(images)]
    sizes = np.full((images, 2), 500, np.int32)
    return Index(names, files, sizes, np.arange(images) * 7 + 3, **columns)


def found(*rows, names=NAMES) -> Detections:
    """Each row: (class name, score, x1, y1, x2, y2)."""
    return Detections(
        np.array([r[2:] for r in rows], np.float32).reshape(-1, 4),
        np.array([r[1] for r in rows], np.float32),
        np.array([names.index(r[0]) for r in rows], np.int64),
        names,
    )


def random_case(seed: int, images: int = 25, classes: int = 4, per_image: int = 12):
    """Truth of mixed sizes with crowds and difficult boxes; detections are moved truth, wrong classes and noise."""
    rng = np.random.default_rng(seed)
    names = tuple(f"c{i}" for i in range(classes))
    rows, detections = [], []
    for i in range(images):
        n = int(rng.integers(0, 7))
        side = np.exp(rng.uniform(np.log(8), np.log(250), (n, 2)))
        corner = rng.uniform(0, 250, (n, 2))
        boxes = np.concatenate([corner, corner + side], 1)
        labels = rng.integers(0, classes - 1, n)  # the last class has no truth at all
        rows += [(i, names[y], *b) for y, b in zip(labels, boxes.tolist())]
        m = int(rng.integers(0, per_image)) if n else int(rng.integers(0, 3))
        pick = rng.integers(0, n, m) if n else np.zeros(0, int)
        moved = boxes[pick] + rng.normal(0, 0.06, (len(pick), 4)) * np.tile(side[pick], 2)
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        wrong = rng.random(len(pick)) < 0.15
        guess = np.where(wrong, rng.integers(0, classes, len(pick)), labels[pick] if n else pick)
        scores = np.sort(np.round(rng.random(len(pick)), 2))[::-1]  # rounded, so that there are ties
        detections.append(Detections(moved, scores, guess, names))
    flags = rng.random(len(rows))
    crowd, difficult = np.flatnonzero(flags < 0.08), np.flatnonzero(flags > 0.95)
    box = np.array([r[2:] for r in rows])
    area = np.prod(box[:, 2:] - box[:, :2], 1) * rng.uniform(0.5, 1, len(rows))  # as of masks
    return make_index(rows, names, images, crowd, difficult, area), detections


def oracle(truth: Index, detections, names, max_detections: int):
    """The same numbers from pycocotools, fed row by row."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    ids = {n: i + 11 for i, n in enumerate(names)}
    annotations = []
    for k, image in enumerate(truth.image.tolist()):
        name = truth.class_names[truth.labels[k]]
        x1, y1, x2, y2 = truth.boxes[k].astype(np.float64).tolist()
        row = {"id": k + 1, "image_id": int(truth.image_ids[image]), "bbox": [x1, y1, x2 - x1, y2 - y1]}
        row |= {"area": float(truth.area[k]), "iscrowd": int(truth.crowd[k] or truth.difficult[k])}
        if name in ids:
            annotations.append(row | {"category_id": ids[name]})
    results = []
    for image, d in zip(truth.image_ids.tolist(), detections):
        for b, s, y in zip(d.boxes.astype(np.float64).tolist(), d.scores.astype(np.float64).tolist(), d.labels):
            if d.class_names[y] in ids:
                bbox = [b[0], b[1], b[2] - b[0], b[3] - b[1]]
                results.append({"image_id": image, "category_id": ids[d.class_names[y]], "bbox": bbox, "score": s})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i, "height": 500, "width": 500} for i in truth.image_ids.tolist()],
            "categories": [{"id": i, "name": n} for n, i in ids.items()],
            "annotations": annotations,
        }
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(results), "bbox")
        run.params.maxDets = [max_detections]
        run.evaluate()
        run.accumulate()
        precision = run.eval["precision"][..., -1]  # [IoU, recall, class, area]

    def mean(part):
        part = part[part > -1]
        return float(part.mean()) if part.size else None

    whole = precision[..., 0]
    overall = [mean(whole), mean(whole[0]), mean(whole[5]), *(mean(precision[..., a]) for a in (1, 2, 3))]
    each = {n: [mean(whole[:, :, k]), mean(whole[0, :, k]), mean(whole[5, :, k])] for k, n in enumerate(names)}
    return overall, each


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("max_detections", [2, 100, 1000])
def test_equals_pycocotools(seed, max_detections):
    truth, detections = random_case(seed)
    table = coco_ap(detections, truth, max_detections=max_detections)
    overall, each = oracle(truth, detections, truth.class_names, max_detections)
    assert [table.overall[k] for k in OVERALL] == pytest.approx(overall, abs=1e-6)
    assert table.overall["AP"] not in (0, 1)
    for name, row in table.per_class.items():
        assert [row[k] for k in PER_CLASS] == pytest.approx(each[name], abs=1e-6)
    assert table.per_class["c3"]["AP"] is None


def test_equals_pycocotools_with_hundreds_of_boxes_in_an_image():
    """Where 100 and 1000 detections per image differ: 150 objects of one class in one image, all found."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 400, (150, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (150, 2))], 1)
    truth = make_index([(0, "cat", *b) for b in boxes.tolist()])
    scores = np.sort(rng.random(150))[::-1]
    detections = [Detections(boxes, scores, np.zeros(150), NAMES)]
    by_limit = {}
    for limit in (100, 1000):
        table = coco_ap(detections, truth, max_detections=limit)
        overall, _ = oracle(truth, detections, NAMES, limit)
        assert [table.overall[k] for k in OVERALL] == pytest.approx(overall, abs=1e-6)
        by_limit[limit] = table.overall["AP"]
    assert by_limit[1000] == pytest.approx(1)
    assert by_limit[100] == pytest.approx(67 / 101)  # recall 100/150: the recall points 0, 0.01, … 0.66


def test_subset_of_classes_equals_pycocotools():
    truth, detections = random_case(11)
    table = coco_ap(detections, truth, classes=["c2", "c0"])
    overall, each = oracle(truth, detections, ["c2", "c0"], 100)
    assert list(table.per_class) == ["c2", "c0"]
    assert [table.overall[k] for k in OVERALL] == pytest.approx(overall, abs=1e-6)
    whole = coco_ap(detections, truth)
    for name in ("c0", "c2"):
        assert [table.per_class[name][k] for k in PER_CLASS] == pytest.approx(each[name], abs=1e-6)
        assert table.per_class[name] == whole.per_class[name]


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_perfect_detections_have_ap_1():
    truth = make_index([(0, "cat", 10, 10, 60, 60), (0, "dog", 100, 100, 300, 300), (1, "cat", 0, 0, 20, 20)], images=2)
    table = coco_ap(
        [found(("cat", 0.9, 10, 10, 60, 60), ("dog", 0.8, 100, 100, 300, 300)), found(("cat", 0.7, 0, 0, 20, 20))],
        truth,
    )
    assert table.per_class["cat"] == pytest.approx({"AP": 1, "AP50": 1, "AP75": 1})
    assert table.per_class["dog"] == pytest.approx({"AP": 1, "AP50": 1, "AP75": 1})
    assert table.per_class["owl"] == {"AP": None, "AP50": None, "AP75": None}
    assert table.overall == pytest.approx(dict.fromkeys(OVERALL, 1))  # owl does not count as 0


def test_a_false_alarm_above_the_hit_halves_precision():
    truth = make_index([(0, "cat", 0, 0, 100, 100)])
    table = coco_ap([found(("cat", 0.9, 200, 200, 300, 300), ("cat", 0.8, 0, 0, 100, 100))], truth)
    assert table.per_class["cat"]["AP"] == pytest.approx(0.5)


def test_iou_of_0_8_counts_at_seven_of_ten_thresholds():
    truth = make_index([(0, "cat", 0, 0, 100, 100)])
    table = coco_ap([found(("cat", 0.9, 0, 0, 100, 82))], truth)
    assert table.per_class["cat"] == pytest.approx({"AP": 0.7, "AP50": 1, "AP75": 1})


def test_one_of_two_found_is_51_of_101_recall_points():
    truth = make_index([(0, "cat", 0, 0, 50, 50), (0, "cat", 100, 100, 150, 150)])
    table = coco_ap([found(("cat", 0.9, 0, 0, 50, 50))], truth)
    assert table.per_class["cat"]["AP"] == pytest.approx(51 / 101)  # recall 0, 0.01, … 0.50


@pytest.mark.parametrize("kind", ["crowd", "difficult"])
def test_detections_in_a_crowd_or_difficult_box_are_ignored(kind):
    rows = [(0, "cat", 0, 0, 100, 100), (0, "cat", 200, 200, 400, 400)]
    noise = [("cat", 0.95, 210, 210, 240, 240), ("cat", 0.94, 300, 300, 350, 350), ("cat", 0.5, 0, 0, 100, 100)]
    assert coco_ap([found(*noise)], make_index(rows, **{kind: [1]})).per_class["cat"]["AP"] == pytest.approx(1)
    alone = coco_ap([found(*noise)], make_index(rows[1:], **{kind: [0]}))
    assert alone.per_class["cat"]["AP"] is None  # nothing that must be found


def test_sizes_come_from_the_area_column_not_the_box():
    truth = make_index([(0, "cat", 0, 0, 100, 100)], area=[900])
    overall = coco_ap([found(("cat", 0.9, 0, 0, 100, 100))], truth).overall
    assert (overall["APs"], overall["APm"], overall["APl"]) == (pytest.approx(1), None, None)


def test_classes_are_matched_by_name_not_by_number():
    truth = make_index([(0, "dog", 0, 0, 50, 50), (1, "owl", 0, 0, 50, 50)], images=2)
    one = found(("dog", 0.9, 0, 0, 50, 50), names=("dog",))
    two = found(("owl", 0.9, 0, 0, 50, 50), ("ufo", 0.95, 0, 0, 50, 50), names=("ufo", "owl", "dog"))
    table = coco_ap([one, two], truth)
    assert table.mean(["dog", "owl"]) == pytest.approx(1)  # a class that is not in the data set is left out


def test_nothing_found_is_0_where_there_is_truth():
    truth = make_index([(0, "cat", 0, 0, 50, 50)], images=2)
    table = coco_ap([found(), Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0))], truth)
    assert table.per_class["cat"]["AP"] == 0
    assert table.per_class["dog"]["AP"] is None
    assert table.overall["AP"] == 0


@pytest.mark.parametrize("images", [0, 2])
def test_nothing_to_find_is_none(images):
    seen = [found(("cat", 0.9, 0, 0, 50, 50))] * images
    table = coco_ap(seen, make_index([], images=images))
    assert set(table.overall.values()) == {None}
    assert table.mean(NAMES) is None
    assert table.line() == "AP —  AP50 —  AP75 —  APs —  APm —  APl —"
    assert coco_ap(seen, make_index([], images=images), classes=[]).per_class == {}


def test_class_that_the_data_set_does_not_know_is_none():
    truth = make_index([(0, "cat", 0, 0, 50, 50)])
    table = coco_ap([found(("cat", 0.9, 0, 0, 50, 50))], truth, classes=["cat", "ufo"])
    assert table.per_class["ufo"]["AP"] is None
    assert table.overall["AP"] == pytest.approx(1)


def test_wrong_input_is_refused():
    truth = make_index([(0, "cat", 0, 0, 50, 50)])
    with pytest.raises(ValueError, match="0 detections for 1 images"):
        coco_ap([], truth)
    with pytest.raises(ValueError, match="image 0 have no class_names"):
        coco_ap([Detections([[0, 0, 1, 1]], [0.5], [0])], truth)


def test_line_and_means():
    truth = make_index([(0, "cat", 0, 0, 30, 30), (0, "dog", 100, 100, 200, 200)])
    table = coco_ap([found(("cat", 0.9, 0, 0, 30, 30))], truth)
    assert table.line() == "AP 0.500  AP50 0.500  AP75 0.500  APs 1.000  APm —  APl 0.000"
    assert table.mean(["cat", "owl"]) == pytest.approx(1)
    assert table.mean(["dog"], "AP50") == 0
    with pytest.raises(KeyError):
        table.mean(["cow"])


def test_is_silent(capfd):
    truth, detections = random_case(1)
    coco_ap(detections, truth)
    assert capfd.readouterr() == ("", "")


def test_the_input_does_not_change():
    truth, detections = random_case(2)
    boxes, first = truth.boxes.copy(), detections[0].boxes.copy()
    coco_ap(detections, truth)
    assert (truth.boxes == boxes).all()
    assert (detections[0].boxes == first).all()


# -- properties -------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_renumbering_the_classes_only_reorders_them(seed, random):
    truth, detections = random_case(seed, images=6)
    order = list(range(4))
    random.shuffle(order)
    names = tuple(truth.class_names[i] for i in order)
    place = np.argsort(order)
    turned = [Detections(d.boxes, d.scores, place[d.labels], names) for d in detections]
    before, after = coco_ap(detections, truth), coco_ap(turned, truth.relabel(names))
    assert tuple(after.per_class) == names
    assert after.per_class == before.per_class
    assert list(after.overall.values()) == pytest.approx(list(before.overall.values()))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_values_are_none_or_0_to_1_and_ordered(seed):
    truth, detections = random_case(seed, images=6)
    table = coco_ap(detections, truth)
    for row in table.per_class.values():
        ap, ap50, ap75 = row["AP"], row["AP50"], row["AP75"]
        if ap is not None:
            assert ap50 is not None and ap75 is not None
            assert 0 <= ap <= ap50 <= 1 and ap75 <= ap50
    known = [r["AP"] for r in table.per_class.values() if r["AP"] is not None]
    assert table.overall["AP"] == (pytest.approx(np.mean(known)) if known else None)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 1))
def test_only_the_order_of_scores_matters(seed, factor):
    truth, detections = random_case(seed, images=6)
    scaled = [Detections(d.boxes, d.scores * factor, d.labels, d.class_names) for d in detections]
    before, after = coco_ap(detections, truth), coco_ap(scaled, truth)
    assert list(after.overall.values()) == pytest.approx(list(before.overall.values()))


def test_detections_need_names():
    from ciod.core.types import Detections
    from ciod.evaluation.ap import _detection_rows

    one = Detections(np.array([[0, 0, 1, 1]]), np.ones(1), np.zeros(1))
    with pytest.raises(ValueError, match="the detections of image 0 have no class_names; they are matched by name"):
        _detection_rows([one], ["a"])
