"""Bootstrap over test pictures, confusions, and the figures made from them."""

from __future__ import annotations

import numpy as np
import pytest

from ciod.evaluation import pictures
from ciod.evaluation.pictures import Pictures
from ciod.report import by_picture, compared_figures
from ciod.report.by_picture import Outcome

from . import fake


def outcome(name: str, hits: list[bool], seed: int = 0, files: list[str] | None = None, taken=None, groups=None):
    """One picture per hit, with one object: of class a (old) in even pictures, of b (new) in odd ones."""
    n = len(hits)
    label = np.arange(n) % 2
    found = Pictures(
        ("a", "b"), tuple(files or [f"{i}.jpg" for i in range(n)]), np.arange(n), label, np.full(n, 0.9, np.float32),
        np.array(hits), np.arange(n), label, np.array(taken if taken is not None else np.where(hits, label, -1)),
    )  # fmt: skip
    return Outcome(name, seed, ("a",), ("b",), found, tuple(groups or found.files))


def test_two_equal_runs_differ_by_nothing_in_every_draw():
    hits = [True, False, True, True]
    found = by_picture.intervals([outcome("x", hits), outcome("base", hits)], "base")
    assert found == {"x": {"old_after": (0, 0), "new": (0, 0), "all_ap50": (0, 0)}}


def test_the_interval_covers_the_difference_and_zero_where_few_pictures_decide():
    better = outcome("x", [True] * 8)
    low, high = by_picture.intervals([better, outcome("base", [True] * 6 + [False] * 2)], "base")["x"]["all_ap50"]
    assert 0 <= low < 0.25 < high
    low, high = by_picture.intervals([better, outcome("base", [False] * 8)], "base")["x"]["all_ap50"]
    assert low == high == 1


def test_a_picture_of_two_blocks_is_drawn_as_often_in_both():
    """The same four pictures twice: twice as many runs make the interval no narrower."""
    one = [outcome("x", [True] * 4), outcome("base", [True, True, False, False])]
    two = [*one, outcome("x", [True] * 4, 1), outcome("base", [True, True, False, False], 1)]
    other = [f"{i}b.jpg" for i in range(4)]
    apart = [*one, outcome("x", [True] * 4, 1, other), outcome("base", [True, True, False, False], 1, other)]
    once, twice, separate = (np.ptp(by_picture.intervals(v, "base")["x"]["all_ap50"]) for v in (one, two, apart))
    assert twice == pytest.approx(once, abs=0.05) and separate < once


def test_pictures_of_one_group_are_drawn_together():
    """Eight frames of two videos, one of which is all hits: only whole videos vary, so the interval is as wide as it
    can be."""
    hits, groups = [False] * 4 + [True] * 4, ["1"] * 4 + ["2"] * 4
    alone, together = (
        by_picture.intervals([outcome("x", hits, groups=g), outcome("base", [False] * 8, groups=g)], "base")
        for g in (None, groups)
    )
    low, high = together["x"]["all_ap50"]
    assert (low, high) == (0, 1) and np.ptp(alone["x"]["all_ap50"]) < 1


def test_groups_are_those_of_the_folds(tmp_path):
    pictures.write(
        tmp_path / "task-2", outcome("x", [True] * 3, files=["a/v1_1.jpg", "a/v1_2.jpg", "a/v2_1.jpg"]).pictures
    )
    content = fake.results((1, 1), names=["a", "b"])
    for pattern, wanted in (("v[0-9]", ("v1", "v1", "v2")), (None, None), ("(", None), ("nothing", None)):
        content["scenario"]["group"] = pattern
        (found,) = by_picture.outcomes([("x", content, tmp_path)])
        assert found.groups == (wanted or found.pictures.files)


def test_without_a_partner_there_is_no_interval():
    assert by_picture.intervals([outcome("x", [True])], "base") == {}
    assert by_picture.intervals([outcome("x", [True]), outcome("base", [True], 1)], "base") == {}


def test_objects_by_the_boxes_on_them():
    """Objects a b a b a b: own, own, taken by b, taken by a, none, own."""
    found = [outcome("x", [True] * 6, taken=[0, 1, 1, 0, -1, 1])]
    counts = by_picture.confusion(found)["x"]
    assert counts["old"].tolist() == [1, 0, 1, 1] and counts["new"].tolist() == [2, 1, 0, 0]
    assert by_picture.pairs(found) == {"x": [("a", "b", 1, 3), ("b", "a", 1, 3)]}
    assert "objects of old classes" in compared_figures.confusion(by_picture.confusion(found))
    assert compared_figures.confusion({}) == ""


def test_outcomes_are_read_from_the_last_task(tmp_path):
    runs = [("x", fake.results((1, 1), names=["a", "b"]), tmp_path), ("y", fake.results(joint=True), tmp_path / "no")]
    assert by_picture.outcomes(runs) == []
    pictures.write(tmp_path / "task-2", outcome("x", [True, False]).pictures)
    (found,) = by_picture.outcomes(runs)
    assert (found.name, found.old, found.new) == ("x", ("a",), ("b",))


def test_the_matrix_shows_moments_with_one_order_and_roles_with_several():
    one = [("x", fake.results((2, 1), names=["a", "b", "c"]))]
    assert compared_figures.one_order(one) and "after task 2" in compared_figures.class_tasks(one)
    two = [*one, ("x", fake.results((2, 1), names=["c", "b", "a"], seed=1))]
    assert not compared_figures.one_order(two)
    drawn = compared_figures.class_tasks([*two, ("joint", fake.results((2, 1), names=["a", "b", "c"], joint=True))])
    assert "learnt in task 1" in drawn and ">joint<" in drawn


def test_figures_of_nothing():
    assert compared_figures.forest([], "a") == "" == compared_figures.stability_plasticity([("x", fake.results())])


def test_an_axis_of_per_cent_spans_a_point_at_least():
    assert compared_figures._span((-0.04, 0.04)) == (-0.5, 0.5)
    assert compared_figures._span((10.0, 30.0)) == (10.0, 30.0)
