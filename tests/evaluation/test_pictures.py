"""Outcomes per picture: AP50 from them is COCO's, weights count pictures, and every object has at most one taker."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ciod.core.errors import CiodError
from ciod.evaluation import pictures
from ciod.evaluation.ap import coco_ap

from .test_ap import found, make_index, random_case


def by_class(outcome: pictures.Pictures, weights: np.ndarray) -> list[float | None]:
    return [None if np.isnan(v) else float(v) for v in pictures.ap50(outcome, weights)[0]]


@pytest.mark.parametrize("seed", range(6))
def test_with_every_picture_once_it_is_the_ap50_of_coco(seed):
    truth, detections = random_case(seed)
    table = coco_ap(detections, truth)
    outcome = pictures.of(detections, truth, truth.class_names)
    theirs = [table.per_class[n]["AP50"] for n in truth.class_names]
    assert by_class(outcome, np.ones((1, len(truth)), int)) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_picture_that_is_drawn_twice_is_there_twice(seed):
    truth, detections = random_case(seed, images=5)
    weights = np.array([[2, 0, 1, 0, 2]])
    drawn = [0, 0, 2, 4, 4]
    rows = np.concatenate([np.arange(truth.starts[i], truth.starts[i + 1]) for i in drawn])
    columns = {k: getattr(truth, k)[rows] for k in ("boxes", "labels", "crowd", "difficult", "area")}
    image = np.repeat(np.arange(5), [truth.starts[i + 1] - truth.starts[i] for i in drawn])
    again = dataclasses.replace(truth, image=image, **columns)
    table = coco_ap([detections[i] for i in drawn], again)
    theirs = [table.per_class[n]["AP50"] for n in truth.class_names]
    mine = by_class(pictures.of(detections, truth, truth.class_names), weights)
    assert mine == pytest.approx(theirs, abs=0.02), "copies of one score are sorted in another order"


def test_the_shown_box_with_the_highest_score_takes_an_object():
    truth = make_index([(0, "cat", 0, 0, 10, 10), (0, "dog", 50, 50, 60, 60), (1, "owl", 0, 0, 10, 10)], images=2)
    detections = [
        found(("cat", 0.6, 0, 0, 10, 10), ("dog", 0.7, 1, 0, 10, 10), ("dog", 0.2, 50, 50, 60, 60)),
        found(("owl", 0.9, 0, 0, 10, 10)),
    ]
    outcome = pictures.of(detections, truth, ("cat", "dog", "owl"))
    assert outcome.taken.tolist() == [1, -1, 2], "cat is called dog; the box on dog is below the shown score"
    assert pictures.taken(outcome).tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
    assert outcome.right.tolist() == [True, False, True, True], "sorted by class, then by score"


def test_crowd_and_difficult_boxes_are_not_objects():
    truth = make_index([(0, "cat", 0, 0, 10, 10), (0, "cat", 20, 0, 40, 40)], crowd=(1,))
    outcome = pictures.of([found(("cat", 0.9, 22, 2, 30, 30), ("cat", 0.8, 0, 0, 10, 10))], truth, ("cat",))
    assert outcome.right.tolist() == [True] and outcome.object_label.tolist() == [0], "inside a crowd it does not count"


def test_a_class_without_objects_and_pictures_without_boxes():
    truth = make_index([(0, "cat", 0, 0, 10, 10)], images=2)
    outcome = pictures.of([found(), found()], truth, ("cat", "dog"))
    assert by_class(outcome, np.ones((1, 2), int)) == [0.0, None]
    assert by_class(outcome, np.array([[0, 2]])) == [None, None]


def test_it_comes_back_from_its_file(tmp_path):
    truth = make_index([(0, "cat", 0, 0, 10, 10)])
    outcome = pictures.of([found(("cat", 0.9, 0, 0, 10, 10))], truth, ("cat", "dog"))
    assert pictures.read(tmp_path) is None
    pictures.write(tmp_path / "task-1", outcome)
    again = pictures.read(tmp_path / "task-1")
    assert again is not None and again.classes == ("cat", "dog") and again.files == ("0.jpg",)
    assert all(np.array_equal(v, getattr(again, k)) for k, v in vars(outcome).items())
    (tmp_path / "task-1" / pictures.NAME).write_bytes(b"PK\3\4 damaged")
    with pytest.raises(CiodError, match=r"pictures.npz cannot be read \(.*\); remove it, or train the run again"):
        pictures.read(tmp_path / "task-1")
