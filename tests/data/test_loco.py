"""LoCo: clusters of classes that share images, by hand; an image in one task only."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ciod.data.scenarios import loco
from ciod.data.scenarios.scenario import Protocol, Scenario
from tests.fixed import index_of

NAMES = ("ant", "bee", "cow", "dog")


def made(*images: str, **protocol) -> Scenario:
    rows = [(i, n) for i, names in enumerate(images) for n in names.split()]
    index = index_of(rows, NAMES, len(images))
    return Scenario(Protocol(**{"split": "2+2", "images": "loco", **protocol}), index, index)


def test_cooccurrence_counts_images_not_boxes():
    index = index_of([(0, "ant"), (0, "ant"), (0, "dog"), (1, "ant"), (1, "dog"), (2, "bee")], NAMES, 4)
    assert loco.cooccurrence(index).tolist() == [[0, 0, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]]


def test_classes_that_share_images_come_together():
    """ant is with dog three times, bee with cow twice; alphabetical order would part both pairs."""
    scenario = made("ant dog", "ant dog", "ant dog", "bee cow", "bee cow", "ant bee")
    assert scenario.groups == [("ant", "dog"), ("bee", "cow")]
    assert loco.shared_images(scenario.train, scenario.groups) == 1
    assert loco.shared_images(scenario.train, [("ant", "bee"), ("cow", "dog")]) == 5


def test_an_image_is_in_one_task_only():
    images = ["ant dog"] * 6 + ["bee cow"] * 5 + ["ant bee"] * 4 + ["dog cow"] * 3
    first, second = made(*images)
    files = [f for t in (first, second) for f in t.train.files]
    assert len(files) == len(set(files)) == len(images)
    assert first.hidden_boxes == 0 and second.hidden_boxes + first.future_boxes == 7  # one box of each contested image
    again = made(*images)
    assert [f for t in again for f in t.train.files] == files
    other = made(*images, image_seed=1)
    assert [f for t in other for f in t.train.files] != files


def test_swaps_reach_the_best_cut_of_small_graphs():
    """Against all partitions of eight classes into 4+4; greedy growth alone misses some."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        upper = np.triu(rng.integers(0, 10, (8, 8)), 1)
        together = upper + upper.T
        best = min(_cut(together, (0, *rest)) for rest in itertools.combinations(range(1, 8), 3))
        found = loco.clusters(together, [4, 4])
        assert sorted(np.concatenate(found)) == list(range(8)) and [len(g) for g in found] == [4, 4]
        assert _cut(together, tuple(found[0])) <= 1.1 * best


def _cut(together: np.ndarray, group: tuple[int, ...]) -> int:
    inside = np.isin(np.arange(len(together)), group)
    return int(together[inside][:, ~inside].sum())


def test_the_number_of_a_class_only_breaks_ties():
    rng = np.random.default_rng(1)
    upper = np.triu(rng.permutation(144).reshape(12, 12), 1)
    together = upper + upper.T
    order = rng.permutation(12)
    a = loco.clusters(together, [5, 4, 3])
    b = loco.clusters(together[np.ix_(order, order)], [5, 4, 3])
    assert [sorted(g.tolist()) for g in a] == [sorted(order[g].tolist()) for g in b]


def test_given_groups_are_kept_and_only_images_are_assigned():
    images = ["ant bee"] * 4 + ["cow"] * 2
    scenario = made(*images, split=[["ant", "cow"], ["bee", "dog"]])
    assert scenario.groups == [("ant", "cow"), ("bee", "dog")]
    assert sum(len(t.train) for t in scenario) == 6


def test_classes_may_be_left_over():
    scenario = made("ant dog", "ant dog", "bee", "cow", split="2+1")
    assert [len(g) for g in scenario.groups] == [2, 1] and set(scenario.groups[0]) == {"ant", "dog"}


@pytest.mark.parametrize("images", ["any-new", "only-new", "disjoint", "loco"])
def test_every_image_protocol_says_what_it_does(images):
    message = " ".join(Protocol(images=images).sentences())
    assert {
        "any-new": "used again",
        "only-new": "all of its new",
        "disjoint": "one task only",
        "loco": "no image is used twice",
    }[images] in message
