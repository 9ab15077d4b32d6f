"""What effort chooses, as a pure function of data, start and machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ciod.training import effort
from ciod.training.effort import KEYS, Facts, choose, sentences

FACTS = Facts(effort="normal", images=296, classes=6, start="detector", machine="2 CPU cores")


def values(facts: Facts = FACTS, given: dict[str, Any] | None = None) -> dict[str, Any]:
    return {k: c.value for k, c in choose(facts, given or {}).items()}


def reasons(facts: Facts = FACTS, **given) -> str:
    return "\n".join(sentences(facts, choose(facts, {f"train.{k}": v for k, v in given.items()})))


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        # facts that differ from FACTS → epochs, batch, lr, trunk_lr, backbone_lr
        ({}, (30, 8, 5.2e-4, 1.0, None)),
        ({"effort": "quick"}, (8, 8, 1e-3, 1.0, None)),
        ({"effort": "thorough"}, (122, 8, 2.6e-4, 1.0, None)),
        ({"images": 3452, "classes": 20}, (9, 8, 2.8e-4, 1.0, None)),
        ({"images": 100_000, "classes": 80}, (8, 8, 2.5e-4, 1.0, None)),  # the most views, and the least epochs
        ({"images": 40, "classes": 1}, (120, 8, 7.1e-4, 1.0, None)),  # the most epochs
        ({"images": 12}, (120, 3, 7.9e-4, 1.0, None)),  # a quarter of the images
        ({"images": 1}, (120, 2, 1e-3, 1.0, None)),
        ({"start": "known"}, (30, 8, 2.1e-4, 1.0, None)),
        ({"start": "trunk"}, (61, 8, 4e-3, 0.1, None)),
        ({"start": "backbone"}, (61, 8, 2e-3, 1.0, 0.0)),
        ({"start": "backbone", "images": 3000, "classes": 20}, (20, 8, 2e-3, 1.0, 0.1)),
        ({"start": "nothing"}, (91, 8, 2e-3, 1.0, None)),
        ({"start": "trunk", "later": True}, (30, 8, 1e-3, 1.0, None)),  # by then the head is trained, too
        ({"later": True}, (30, 8, 3.1e-4, 1.0, None)),
        ({"later": True, "branch": True}, (91, 8, 1e-2, 1.0, None)),
        ({"device": "cuda"}, (30, 16, 7.3e-4, 1.0, None)),
        ({"device": "cuda", "processes": 3}, (30, 18, 7.7e-4, 1.0, None)),
        ({"parts": 10}, (30, 10, 5.8e-4, 1.0, None)),
        ({"sgd": True}, (30, 8, 5e-3, 1.0, None)),
        ({"query": True}, (30, 8, 5e-4, 1.0, None)),
        ({"query": True, "start": "trunk"}, (61, 8, 1e-3, 0.1, None)),
        ({"query": True, "start": "nothing"}, (91, 8, 1e-3, 1.0, None)),
        ({"query": True, "start": "trunk", "later": True}, (30, 8, 5e-4, 1.0, None)),
    ],
)
def test_the_choices(what, wanted):
    found = values(replace(FACTS, **what))
    keys = ("epochs", "batch", "lr", "trunk_lr", "backbone_lr")
    assert tuple(found.get(f"train.{k}") for k in keys) == wanted
    assert found.keys() <= set(KEYS) and "train.lr_later" not in found


@pytest.mark.parametrize("start", effort.LONGER)
def test_less_that_is_trained_is_trained_longer(start):
    whole, found = values(), values(replace(FACTS, start=start))
    assert found["train.epochs"] == pytest.approx(effort.LONGER[start] * whole["train.epochs"], abs=2)
    line = sentences(replace(FACTS, start=start), choose(replace(FACTS, start=start), {}))[0]
    assert ("times as many" in line) == (start not in ("known", "detector"))


def test_the_decay_of_the_average_follows_from_the_steps():
    ema = [values(replace(FACTS, images=n, classes=20))["train.ema"] for n in (300, 10_000, 100_000, 1_000_000)]
    assert ema[0] == 0.998 and ema == sorted(ema) and ema[-1] == 0.9998
    assert 0.998 < ema[1] < 0.9998


def test_a_batch_by_hand_brings_its_learning_rate():
    assert values(given={"train.batch": 8})["train.lr"] == 5.2e-4
    trunk = replace(FACTS, start="trunk")
    assert values(trunk, given={"train.batch": 32})["train.lr"] == 8e-3  # the square root, as for Adam
    assert values(given={"train.batch": 32})["train.lr"] == 2e-3  # and a fourth of the steps, which bring a rate, too
    assert values(replace(FACTS, sgd=True), {"train.batch": 64})["train.lr"] == 0.04
    assert "for a batch of 32" in reasons(batch=32)


def test_longer_training_of_a_whole_detector_takes_smaller_steps():
    def rate(steps: int, **facts: Any) -> float:
        return values(replace(FACTS, images=8, **facts), {"train.steps": steps})["train.lr"]

    assert [rate(n) for n in (1, 300, 1200, 4800, 48_000)] == [1e-3, 1e-3, 5e-4, 2.5e-4, 2.5e-4]
    assert [rate(n, start="known") for n in (300, 1200, 48_000)] == [4e-4, 2e-4, 1e-4]
    assert [rate(n, later=True) for n in (300, 1200, 48_000)] == [6e-4, 3e-4, 1.5e-4]
    assert rate(48_000, start="trunk") == effort.LR["trunk"] and rate(48_000, sgd=True) == 0.005


def test_settings_set_by_hand_are_kept():
    given = {"train.epochs": 3, "train.batch": 5, "train.lr": 0.1, "train.trunk_lr": 0.0, "train.ema": 0,
             "augment.scale": (1.0, 1.0), "augment.flip": 0.0}  # fmt: skip
    found = values(replace(FACTS, start="backbone"), given)
    assert {k: found[k] for k in given} == given and "train.backbone_lr" not in found
    lines = sentences(FACTS, choose(FACTS, given))
    assert sum("(as asked)" in line for line in lines) == 6  # one line for both of augmentation
    assert "no averaged weights (as asked)" in lines and "scale 1 to 1 (as asked)" in lines[-1]


def test_steps_become_whole_epochs():
    assert values(given={"train.steps": 608, "train.batch": 16})["train.epochs"] == 32
    assert values(given={"train.steps": 609, "train.batch": 16})["train.epochs"] == 33
    assert values(given={"train.steps": 1})["train.epochs"] == 1
    assert "608 steps (32 epochs of 296 images), for steps=600 (as asked), rounded up" in reasons(steps=600, batch=16)
    assert "608 steps (32 epochs of 296 images), for steps=608 (as asked)\n" in reasons(steps=608, batch=16)


def test_other_images_in_a_batch_make_an_epoch_longer():
    """A quarter of every batch comes from a pool: 296 images, six per step, are 50 steps."""
    facts = replace(FACTS, beside=lambda batch: batch // 4)
    assert [facts.per_epoch(b) for b in (1, 4, 8)] == [296, 99, 50] and facts.per_epoch(8, 12) == 2
    given = {"train.steps": 40, "train.batch": 8}
    assert values(given=given)["train.epochs"] == 2 and values(facts, given)["train.epochs"] == 1
    assert "50 steps (1 epoch of 296 images)" in sentences(facts, choose(facts, given))[0]
    assert values(facts, {"train.batch": 8})["train.epochs"] == values(given={"train.batch": 8})["train.epochs"]


def test_every_choice_has_its_reason():
    text = reasons()
    for part in (
        "effort=normal: 1,110 steps (30 epochs of 296 images), so that 6 classes are learnt from 8,880 views",
        "batch 8, for 2 CPU cores",
        "learning rate 0.00052, as everything except the class layer is trained already; for 1,110 steps",
        "trunk: 1 of the learning rate, as the head: both are trained",
        "averaged weights: decay 0.998, for 1,110 steps",
        "augmentation: flip 0.5, photometric 0.5, scale 0.7 to 1.3, mosaic 0",
    ):
        assert part in text.splitlines()
    branch = replace(FACTS, later=True, branch=True)
    assert not any(line.startswith("trunk") for line in sentences(branch, choose(branch, {})))
    few = replace(FACTS, start="backbone", images=12)
    lines = sentences(few, choose(few, {}))
    assert any("a quarter of 12 images" in line for line in lines)
    assert any(line.startswith("backbone: 0 of the learning rate, frozen") for line in lines)
