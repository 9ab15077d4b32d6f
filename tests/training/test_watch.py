"""Losses that go wrong: what is noticed, and the messages."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from ciod.core.types import Detections
from ciod.data.scenarios.scenario import Task
from ciod.evaluation.ap import APTable
from ciod.runs import sanity_checks
from ciod.training.hooks import Row
from ciod.training.watch import NotFinite, Watch, check_weights, first_bad, not_finite
from tests.fixed import index_of

DISTILS = frozenset({"distill_cls", "distill_box"})


def rows(*losses: dict[str, float], epoch: int = 0, first: int = 0) -> tuple[list[Row], torch.Tensor]:
    made = [
        Row(first + i, epoch, {k: torch.tensor(v) for k, v in loss.items()}, torch.tensor(1.0), [f"{i}.jpg"])
        for i, loss in enumerate(losses)
    ]
    return made, torch.tensor([list(loss.values()) for loss in losses])


def test_losses_that_explode_are_named_once():
    watch = Watch(1)
    watch.read(*rows({"cls": 2.0}))
    watch.read(*rows({"cls": 19.0}, first=1))
    assert watch.sentences == []
    for step in (2, 3):
        watch.read(*rows({"cls": 21.0}, first=step))
    (warning,) = watch.sentences
    assert warning.startswith("The losses of task 2 exploded: their sum was 2 at the beginning and 21 at step 3.")


def test_distillation_that_is_zero_for_a_whole_epoch_gives_a_warning():
    watch = Watch(1, DISTILS)
    watch.read(*rows({"cls": 1.0, "distill_cls": 0.0, "distill_box": 0.0}, epoch=0))
    assert watch.sentences == [], "the epoch may not be over"
    watch.read(*rows({"cls": 1.0, "distill_cls": 0.5, "distill_box": 0.0}, epoch=1))
    watch.end_epoch()
    assert "The teacher taught nothing in epoch 1 of task 2: distill_cls, distill_box was 0" in watch.sentences[0]
    assert watch.sentences[1] == "distill_box was 0 at every step of epoch 2 of task 2."


def test_one_step_that_teaches_is_enough_and_a_resumed_watch_knows_it():
    watch, other = Watch(1, DISTILS), Watch(1, DISTILS)
    watch.read(*rows({"distill_cls": 0.0}, {"distill_cls": 0.1}))
    other.load_state(json.loads(json.dumps(watch.state())))
    other.read(*rows({"distill_cls": 0.0}))
    other.end_epoch()
    assert other.sentences == [] and other.first == pytest.approx(0.05)


def test_which_step_and_which_loss():
    model = nn.Linear(2, 1)
    found, values = rows({"cls": 1.0, "box": 2.0}, {"cls": 1.0, "box": float("inf")}, {"cls": float("nan"), "box": 1.0})
    norms = torch.tensor([1.0, 1.0, float("nan")])
    assert first_bad(values, norms) == 1 and first_bad(values[:1], norms[:1]) is None
    message = str(not_finite(found[1], values[1], 1.0, 2, model))
    assert message.startswith("box became inf in task 3, step 2, images 1.jpg. A lower train.lr")


def test_a_gradient_names_its_layers():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model(torch.ones(1, 2)).sum().backward()
    model[1].weight.grad[0, 0] = float("nan")
    found, values = rows({"cls": 1.0})
    assert first_bad(values, torch.tensor([float("nan")])) == 0
    message = str(not_finite(found[0], values[0], float("nan"), 0, model))
    assert message.startswith("The gradient became nan (layers 1.weight) while every loss was finite in task 1, step 1")


def test_broken_weights_are_not_saved():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    check_weights(model, 0, 1)
    model[1].running_var[0] = float("inf")
    with pytest.raises(NotFinite, match=r"The weights of 1\.running_var became NaN or infinite by step 7 of task 1"):
        check_weights(model, 0, 7)


# Doubts about data and results ----------------------------------------------------------------------------------------


def task(labels: list[tuple[int, str]], new: tuple[str, ...], old: tuple[str, ...] = (), images: int = 2) -> Task:
    train = index_of(labels, old + new, images)
    test = index_of([(0, n) for n in old + new], old + new, 1)
    test.files = [test.files[0].with_name("test.jpg")]
    return Task(int(bool(old)), new, old, train, test, 0, 0)


def test_classes_without_boxes_and_starved_ones():
    many = [(i % 2, "cat") for i in range(200)]
    many = sorted([*many, (0, "eel")])
    warnings = sanity_checks.about_data(task(many, ("cat", "dog", "eel")))
    assert warnings == ["Task 1 has no training box of dog.",
                    "Task 1 has only 1 box of eel; its most frequent class has 200."]  # fmt: skip
    assert sanity_checks.about_data(task([(0, "cat"), (1, "dog")], ("cat", "dog"))) == [], (
        "a small data set is not an imbalance"
    )


def test_test_images_that_are_trained_on():
    made = task([(0, "cat")], ("cat",))
    made.test.files = [made.train.files[1]]
    (warning,) = sanity_checks.about_data(made)
    assert "1 of the test images of task 1 are also training images, for example" in warning


def table(**ap: float | None) -> APTable:
    return APTable({n: {"AP": v, "AP50": v, "AP75": v} for n, v in ap.items()}, {})


def found(names: tuple[str, ...], **scores: float) -> Detections:
    n = len(scores)
    values = sorted(((v, names.index(k)) for k, v in scores.items()), reverse=True)
    return Detections(np.tile([0, 0, 5, 5], (n, 1)), np.array([v for v, _ in values]), [y for _, y in values], names)


def test_rows_that_never_fire_and_strange_ap():
    names = ("ant", "bee", "cat", "dog", "eel")
    made = task([(0, n) for n in sorted(names)], names[2:], names[:2])
    seen = [found(names, ant=0.9, cat=0.04, dog=0.6), found(names, bee=0.8, eel=0.9)]
    warnings = sanity_checks.about_table(
        made, table(ant=0.0, bee=0.999, cat=0.0, dog=0.0, eel=None), seen, [{"ant": 0.1}]
    )
    assert [s.split(" are ")[0].split(": ")[0] for s in warnings] == [
        "After task 2 the new class rows of cat never fire",
        "After task 2 AP50 is exactly 0 for the new classes dog.",
        "After task 2 AP50 is exactly 0 for the old classes ant",
        "After task 2 AP50 is suspiciously near 1 for bee:",
    ]
    all_found, half = [found(names, cat=0.5, dog=0.5, eel=0.5)], dict.fromkeys(names, 0.5)
    assert sanity_checks.about_table(made, table(**half), all_found, []) == []
    never = [{"ant": 0.0, "bee": None}, {"ant": None}]
    assert sanity_checks.about_table(made, table(**{**half, "ant": 0.0}), all_found, never) == [], "nothing to forget"


def test_an_upper_bound_below_the_result_is_reported():
    tasks = [{"all": {"AP": ap}, "epochs": epochs} for ap, epochs in ((0.4, 3), (0.286, 5), (0.2, 5))]
    bounds = [None, {"AP": 0.282}, {"AP": 0.199}]
    (warning,) = sanity_checks.about_bounds(tasks, bounds)  # 0.2 is no more than 1 % above 0.199
    assert (
        warning.startswith("After task 2 AP is 28.6, more than the 28.2 of joint training")
        and "joint_epochs=8" in warning
    )
    assert sanity_checks.about_bounds(tasks[:2], [None, {"AP": 0.3}]) == []
    assert sanity_checks.about_bounds(tasks[:2], [{"AP": None}, None]) == sanity_checks.about_bounds(tasks, None) == []
    assert sanity_checks.about_bounds([{"all": {"AP": None}, "epochs": 1}], [{"AP": 0.3}]) == []
