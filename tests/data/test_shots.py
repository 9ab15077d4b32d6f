"""Few-shot tasks: which images give each class its boxes, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ciod.core.errors import CiodError, ConfigError
from ciod.data.scenarios import shots
from ciod.data.scenarios.scenario import Protocol, Scenario
from tests.fixed import index_of

NAMES = ("ant", "bee", "cow", "dog")


def index():
    """Twenty images with one ant each; bees: two in each of images 0 to 4, and three in 5; one cow beside a bee in 0,
    cows alone in 10 and 11; one dog in total."""
    rows = [(i, "ant") for i in range(20)] + [(i, "bee") for i in range(5) for _ in range(2)] + [(5, "bee")] * 3
    return index_of(sorted([*rows, (0, "cow"), (10, "cow"), (11, "cow"), (19, "dog")]), NAMES, 20)


def chosen(names, number, seed=0):
    data = index()
    rows = np.unique(data.image[np.isin(np.array(NAMES)[data.labels], names)])
    found = shots.choose(data, rows, np.isin(np.array(NAMES)[data.labels], names), number, seed)
    boxes = dict(zip(NAMES, data.select(found).boxes_per_class().tolist(), strict=True))
    return list(found), {n: boxes[n] for n in names}


@pytest.mark.parametrize("seed", range(5))
def test_exactly_as_many_boxes_where_images_allow_it(seed):
    assert chosen(["ant"], 5, seed)[1] == {"ant": 5} and len(chosen(["ant"], 5, seed)[0]) == 5
    assert chosen(["bee"], 4, seed)[1] == {"bee": 4}
    rows, boxes = chosen(["bee", "cow"], 2, seed)
    assert boxes["cow"] == 2 and 2 <= boxes["bee"] <= 4 and rows == sorted(rows)


@pytest.mark.parametrize("seed", range(5))
def test_surplus_boxes_are_kept(seed):
    assert chosen(["bee"], 1, seed)[1] == {"bee": 2}  # no image has one bee: the fewest are two
    assert chosen(["ant", "dog"], 1, seed)[0] == [19]  # the dog's image has the ant
    assert chosen(["dog"], 3, seed)[1] == {"dog": 1}  # there are no more
    rows, boxes = chosen(["cow"], 3, seed)
    assert rows == [0, 10, 11] and boxes == {"cow": 3}


def test_the_seed_chooses():
    assert chosen(["ant"], 5, 1) == chosen(["ant"], 5, 1)
    assert len({tuple(chosen(["ant"], 5, s)[0]) for s in range(8)}) > 4


def scenario(**more):
    return Scenario(Protocol(split=[["ant"], ["bee", "cow", "dog"]], shots=3, **more), index(), index())


def test_the_base_task_keeps_all_images():
    made = scenario()
    first, second = made
    assert len(first.train) == 20 and len(second.test) == 20
    boxes = dict(zip(second.train.class_names, second.train.boxes_per_class(), strict=True))
    assert (boxes["ant"], boxes["cow"], boxes["dog"]) == (0, 3, 1) and 3 <= boxes["bee"] <= 4
    assert second.hidden_boxes == len(second.train)  # the ant of each
    (line,) = made.sizes()
    assert line.startswith(
        f"Few-shot: task 2 has {4 + boxes['bee']} boxes in {len(second.train)} images, at least 3 of"
    )
    assert line.endswith("; fewer in the data: 1 of dog.") and ("1 class with more, up to 4" in line) == (
        boxes["bee"] > 3
    )
    assert any("until every class of the task has 3 boxes" in s for s in made.sentences())
    other = [list(scenario(image_seed=s).rows(1)) for s in range(6)]
    assert len({tuple(r) for r in other}) > 1
    joint = scenario(joint=True)
    assert len(joint.task(0).train) == 20 and joint.sizes() == []


def test_few_shot_needs_a_second_task():
    with pytest.raises(CiodError, match="shots: there is no second task to learn from a few boxes"):
        Scenario(Protocol(split="all", shots=3), index(), index())
    from ciod.config import load as config

    with pytest.raises(ConfigError, match=r"shots: should be greater than or equal to 1 \(got 0\)"):
        config.load(None, ["data=shapes", "split=6+4", "shots=0"])
