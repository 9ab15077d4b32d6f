"""Scenarios: how classes are assigned to tasks, and what each task may see, counted by hand on a few images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ciod.core.errors import CiodError, ConfigError
from ciod.data.scenarios.scenario import Protocol, Scenario, class_order, groups_of, parse_split, read_protocol
from tests.fixed import index_of

NAMES = ("dog", "ant", "cow", "bee")  # in the data set's order
#            image 0: ant dog   1: bee    2: ant bee cow      3: nothing    4: dog dog        5: cow
ROWS = [(0, "ant"), (0, "dog"), (1, "bee"), (2, "ant"), (2, "bee"), (2, "cow"), (4, "dog"), (4, "dog"), (5, "cow")]


def scenario(train=None, test=None, **protocol) -> Scenario:
    train = index_of(ROWS, NAMES, 6) if train is None else train
    return Scenario(Protocol(**{"split": "2+2", **protocol}), train, train if test is None else test)


def images(task) -> list[int]:
    return [int(f.stem) for f in task.train.files]


def labels(task) -> list[str]:
    return [task.train.class_names[y] for y in task.train.labels]


# Splits and orders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("all", [10]),
        ("6+4", [6, 4]),
        (" 6 + 4 ", [6, 4]),
        ("5+1x5", [5, 1, 1, 1, 1, 1]),
        ("2x5", [2] * 5),
        ("1x2+3x2", [1, 1, 3, 3]),
        ("10", [10]),
        ("3", [3]),
    ],
)
def test_splits(text, sizes):
    assert parse_split(text, 10) == sizes


@pytest.mark.parametrize("text", ["", "a", "3+", "+3", "3++3", "0+3", "3x0", "3x", "x3", "3-1", "3.5", "3+3x2x2"])
def test_text_that_is_not_a_split_is_refused(text):
    with pytest.raises(CiodError, match="is not a split; write 40\\+40"):
        parse_split(text, 10)


def test_orders():
    assert class_order("alphabetical", NAMES) == ["ant", "bee", "cow", "dog"]
    assert class_order("dataset", NAMES) == class_order("coco_id", NAMES) == list(NAMES)
    drawn = class_order("seed:1", NAMES)
    assert sorted(drawn) == sorted(NAMES) and drawn == class_order("seed:1", NAMES)
    assert len({tuple(class_order(f"seed:{i}", NAMES)) for i in range(20)}) > 5
    assert class_order(["cow", "ant"], NAMES) == ["cow", "ant"]
    with pytest.raises(CiodError, match="'seed:x' is not an order; allowed: alphabetical"):
        class_order("seed:x", NAMES)


@pytest.mark.parametrize(
    ("split", "order", "groups"),
    [
        ("2+2", "alphabetical", [("ant", "bee"), ("cow", "dog")]),
        ("2+2", "dataset", [("dog", "ant"), ("cow", "bee")]),
        ("1x2", "alphabetical", [("ant",), ("bee",)]),  # classes may be left over
        ([3, 1], "alphabetical", [("ant", "bee", "cow"), ("dog",)]),
        ("2+1", ["dog", "bee", "ant"], [("dog", "bee"), ("ant",)]),
        ([["cow"], ["ant", "dog"]], "alphabetical", [("cow",), ("ant", "dog")]),
        ("all", "dataset", [NAMES]),
    ],
)
def test_groups(split, order, groups):
    assert groups_of(Protocol(split=split, order=order), NAMES) == groups
    assert scenario(split=split, order=order).groups == groups


def test_problems_of_groups_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        groups_of(Protocol(split=[["cat"], ["ant", "ant", "dgo"]]), NAMES)
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError, match="needs 5 classes, but the data has 4"):
        groups_of(Protocol(split="3+2"), NAMES)


def test_all_published_class_orders_of_coco():
    """Alphabetical is not COCO's own order: person is the 50th class of one and the first of the other."""
    from ciod.data.names import COCO

    first, second = groups_of(Protocol(split="40+40"), COCO)
    assert (first[0], second[-1]) == ("airplane", "zebra") and second[9] == "person"
    assert groups_of(Protocol(split="40+40", order="dataset"), COCO)[0][0] == "person"


# What a task sees -----------------------------------------------------------------------------------------------------


def test_any_new_by_hand():
    """Images with a box of a new class; only new boxes shown; the rest counted."""
    first, second = scenario()
    assert first.new_classes == ("ant", "bee") and first.old_classes == ()
    assert images(first) == [0, 1, 2]
    assert labels(first) == ["ant", "bee", "ant", "bee"]
    assert (first.hidden_boxes, first.future_boxes) == (0, 2)  # later: dog of image 0, cow of image 2

    assert second.new_classes == ("cow", "dog") and second.old_classes == ("ant", "bee")
    assert images(second) == [0, 2, 4, 5]  # 0 and 2 are used again
    assert labels(second) == ["dog", "cow", "dog", "dog", "cow"]
    assert (second.hidden_boxes, second.future_boxes) == (3, 0)  # ant of 0, ant and bee of 2
    assert second.seen_classes == ("ant", "bee", "cow", "dog")


def test_only_new_by_hand():
    first, second = scenario(images="only-new")
    assert images(first) == [1] and images(second) == [4, 5]
    assert (second.hidden_boxes, second.future_boxes) == (0, 0)


def test_disjoint_by_hand():
    """Every image has one owner; a task trains on those of its own that show a new class."""
    many = index_of([(i, n) for i in range(100) for n in ("ant", "dog")], ("ant", "dog", "emu"), 100)
    first, second = scenario(many, split=[["ant"], ["dog"]], images="disjoint")
    assert not set(images(first)) & set(images(second))
    assert sorted(images(first) + images(second)) == list(range(100))
    assert len(images(first)) == 50
    other = scenario(many, split=[["ant"], ["dog"]], images="disjoint", image_seed=5)
    assert images(other.task(0)) != images(first)
    again = scenario(many, split=[["ant"], ["dog"]], images="disjoint")
    assert images(again.task(0)) == images(first)


def test_disjoint_shares_follow_the_number_of_classes():
    rows = [(i, n) for i in range(80) for n in ("ant", "bee", "cow", "dog")]
    tasks = list(scenario(index_of(rows, NAMES, 80), split="3+1", images="disjoint"))
    assert [len(t.train) for t in tasks] == [60, 20]


def test_boxes_seen_and_all():
    first, second = scenario(boxes="seen")
    assert labels(first) == ["ant", "bee", "ant", "bee"] and first.future_boxes == 2
    assert labels(second) == ["ant", "dog", "ant", "bee", "cow", "dog", "dog", "cow"] and second.hidden_boxes == 0
    first, second = scenario(boxes="all")
    assert sorted(labels(first)) == ["ant", "ant", "bee", "bee", "cow", "dog"] and first.future_boxes == 0


def test_eval_images():
    everything = scenario()
    assert [len(t.test) for t in everything] == [6, 6]
    assert [sorted({t.test.class_names[y] for y in t.test.labels}) for t in everything] == [
        ["ant", "bee"],
        ["ant", "bee", "cow", "dog"],
    ]
    seen = scenario(eval_images="seen")
    assert [[int(f.stem) for f in t.test.files] for t in seen] == [[0, 1, 2], [0, 1, 2, 4, 5]]


def test_joint_is_one_task_with_everything():
    joint = scenario(joint=True)
    (task,) = joint
    assert len(joint) == 1 and joint.parts == [("ant", "bee"), ("cow", "dog")]
    assert task.new_classes == ("ant", "bee", "cow", "dog") and task.old_classes == ()
    assert images(task) == [0, 1, 2, 4, 5] and len(task.train.labels) == len(ROWS)
    assert (task.hidden_boxes, task.future_boxes) == (0, 0)


def test_classes_outside_the_split_are_nowhere():
    tasks = list(scenario(split=[["bee"], ["cow"]]))
    assert [images(t) for t in tasks] == [[1, 2], [2, 5]]
    assert all({"ant", "dog"}.isdisjoint(t.train.class_names) for t in tasks)
    assert sum(t.hidden_boxes + t.future_boxes for t in tasks) == 2  # cow, later bee, of image 2


def test_crowd_boxes_choose_images_and_are_not_trained_on():
    crowd = index_of(ROWS, NAMES, 6, crowd=(2,))  # the bee of image 1
    first = scenario(crowd).task(0)
    assert images(first) == [0, 1, 2] and labels(first) == ["ant", "ant", "bee"]
    assert not first.train.crowd.any()
    assert first.test.crowd.sum() == 1  # evaluation ignores what lies in it


def test_difficult_boxes():
    hard = index_of(ROWS, NAMES, 6, difficult=(0, 2))
    assert labels(scenario(hard).task(0)) == ["ant", "bee", "ant", "bee"]
    dropped = scenario(hard, difficult="drop").task(0)
    assert labels(dropped) == ["ant", "bee"] and dropped.test.difficult.sum() == 2


def test_labels_are_in_order_of_arrival():
    for task in scenario(split=[["cow"], ["bee", "ant"]]):
        assert task.train.class_names[: len(task.seen_classes)] == task.seen_classes
        assert task.test.class_names == task.seen_classes
        known = {task.train.class_names[y] for y in task.train.labels}
        assert known <= set(task.new_classes)
    assert scenario(split=[["cow"], ["bee", "ant"]]).classes == ("cow", "bee", "ant")


def test_another_class_order_permutes_labels_and_nothing_else():
    a = scenario(split=[["ant", "bee"], ["cow", "dog"]])
    b = scenario(split=[["bee", "ant"], ["dog", "cow"]])
    for x, y in zip(a, b):
        assert images(x) == images(y) and np.array_equal(x.train.boxes, y.train.boxes)
        assert labels(x) == labels(y) and not np.array_equal(x.train.labels, y.train.labels)
        assert (x.hidden_boxes, x.future_boxes) == (y.hidden_boxes, y.future_boxes)


def test_another_order_of_ids_changes_nothing():
    """Category order of the file does not matter to an alphabetical scenario."""
    shuffled = index_of(ROWS, ("bee", "cow", "dog", "ant"), 6)
    for x, y in zip(scenario(), scenario(shuffled)):
        assert images(x) == images(y) and np.array_equal(x.train.labels, y.train.labels)
        assert np.array_equal(x.test.labels, y.test.labels)


def test_train_and_test_may_number_their_classes_differently():
    test = index_of([(0, "cow"), (1, "ant")], ("cow", "ant"), 2)
    second = scenario(test=test).task(1)
    assert [second.test.class_names[y] for y in second.test.labels] == ["cow", "ant"]


def test_a_task_without_images_is_refused():
    with pytest.raises(CiodError, match=r"No training images for task 2 \(emu\) under images=any-new in a test"):
        scenario(index_of(ROWS, (*NAMES, "emu"), 6), split=[["ant"], ["emu"]])
    with pytest.raises(CiodError, match="under images=only-new"):
        scenario(index_of([(0, "ant"), (0, "bee")], NAMES, 1), split=[["ant"], ["bee"]], images="only-new")


def test_tasks_can_be_requested_again():
    s = scenario()
    a, b = s.task(1), list(s)[1]
    assert dataclasses.replace(a, train=b.train, test=b.test) == b
    assert np.array_equal(a.train.labels, b.train.labels) and np.array_equal(a.train.boxes, b.train.boxes)


def test_the_protocol_as_text():
    message = " ".join(Protocol(images="disjoint", boxes="seen", eval_images="seen").sentences())
    assert "one task only" in message and "seed 123" in message and "not old-data-free" in message
    assert "upper bound" in Protocol(joint=True).sentences()[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"order": ["cow", "ant"]}, "Class order: given by a list."),
        ({"split": [["ant"], ["cow"]], "reverse": True}, "Class order: given by the groups, groups in reverse."),
        ({"difficult": "drop"}, "Difficult boxes are not used for training."),
        ({"joint": True}, "Joint training: all classes in one task, with all their boxes (upper bound)."),
    ],
)
def test_a_protocol_as_sentences(given, message):
    assert message in Protocol(**{"split": "2+2", **given}).sentences()


def test_a_wrong_order_beside_other_problems():
    with pytest.raises(ConfigError, match="'seed:x' is not an order"):
        groups_of(Protocol(split="2+2", order="seed:x"), NAMES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("split: [", r"mine\.yaml is not YAML"),
        ("- a\n- b\n", r"mine\.yaml must be a mapping with split, order"),
        ("splitt: 2+2\n", "did you mean 'split'"),
    ],
)
def test_a_file_that_is_not_a_scenario_is_refused(content, message, tmp_path):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(CiodError, match=message):
        read_protocol(str(tmp_path / "mine.yaml"))


def test_an_unknown_scenario_is_refused():
    with pytest.raises(CiodError, match=r"scenario: there is no 'shapes-6\+5'; did you mean 'shapes-6\+4'"):
        read_protocol("shapes-6+5")
