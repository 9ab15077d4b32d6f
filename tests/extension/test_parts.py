"""The parts of an extension: held-out images, thresholds, agreement, mixtures, the dial."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from ciod import detectors
from ciod.core.distributed import World
from ciod.core.errors import ConfigError, DataError
from ciod.core.types import Detections
from ciod.extension import data, effort, old_objects, retention, settings, tradeoff, write
from ciod.extension.cost import cost
from ciod.training.effort import EPOCHS
from tests import fixed
from tests.data.writers import sample_index, write_coco

NAMES = ("ant", "bee")


def detections(*rows):
    """(class, score, x) → boxes of 10 pixels at (x, 0)."""
    boxes = np.array([[x, 0, x + 10, 10] for _, _, x in rows], np.float32).reshape(-1, 4)
    return Detections(boxes, np.array([s for _, s, _ in rows]), np.array([NAMES.index(n) for n, _, _ in rows]), NAMES)


# Held-out images ------------------------------------------------------------------------------------------------------


def test_every_class_gives_to_both_sides():
    rows = [(i, "common") for i in range(20)] + [(20, "pair"), (21, "pair"), (22, "single")]
    index = fixed.index_of(rows, ("common", "pair", "single"), 24)
    held = data.hold_out(index, 0.15, seed=0)
    val, train = index.select(held), index.select(np.setdiff1d(np.arange(24), held))
    assert val.boxes_per_class().tolist() == [3, 1, 0]
    assert train.boxes_per_class().tolist() == [17, 1, 1]
    assert (np.diff(held) > 0).all()
    assert data.hold_out(index, 0.15, seed=0).tolist() == held.tolist()
    assert data.hold_out(index, 0.15, seed=1).tolist() != held.tolist()


def test_one_image_cannot_be_shared():
    with pytest.raises(DataError, match="has one image; two are needed"):
        data.hold_out(fixed.index_of([(0, "a")], ("a",), 1), 0.2, 0)


def test_a_folder_without_validation_says_what_it_does(tmp_path):
    root = write_coco(sample_index(tmp_path / "raw", images=8, names=NAMES), tmp_path / "folder")
    folder = data.open_folder(str(root), holdout=0.25, seed=0)
    assert folder.held_out and len(folder.train) + len(folder.val) == 8
    assert any("no validation split: 2 of 8 images are held out (seed 0)" in line for line in folder.notes)
    write_coco(sample_index(tmp_path / "raw2", images=3, names=NAMES, first=50), root, "val")
    assert not data.open_folder(str(root), holdout=0.25, seed=0).held_out


def test_classes_without_a_box_or_an_image_to_spare_are_named(tmp_path):
    index = sample_index(tmp_path / "raw", images=8, names=("ant", "bee", "cow"))
    bee = index.labels == 1
    one = index.select(boxes=(index.labels == 0) | (bee & (index.image == 0)))  # bee on a single image, cow nowhere
    folder = data.open_folder(str(write_coco(one, tmp_path / "folder")), holdout=0.25, seed=0)
    assert folder.classes == ("ant", "bee")
    assert "no box in the training images, left out: cow" in folder.notes
    assert folder.notes[-1] == (
        "no validation split: 2 of 8 images are held out (seed 0); in too few images to hold one out, so not "
        "measured: bee"
    )


# Thresholds and old objects -------------------------------------------------------------------------------------------


def test_a_threshold_lies_between_two_groups_of_scores():
    many = [detections(*[("ant", s, 0) for s in (0.12, 0.14, 0.16, 0.78, 0.8, 0.82)]) for _ in range(3)]
    limits = old_objects.thresholds(many, NAMES)
    assert limits["ant"] == pytest.approx(0.47, abs=0.01)
    assert limits["bee"] == old_objects.USUAL  # never seen


def test_with_old_data_a_threshold_is_that_of_best_f1():
    truth = fixed.index_of([(i, "ant") for i in range(12)], NAMES, 12)
    judged = []
    for i in range(12):  # right ones from 0.5 on, wrong ones below
        x = float(truth.boxes[i][0])
        right = Detections(truth.boxes[[i]], [0.5 + i / 100], [0], NAMES)
        wrong = Detections([[x + 30, 0, x + 35, 5]], [0.45], [0], NAMES)
        judged.append(Detections(np.concatenate([right.boxes, wrong.boxes]), [0.5 + i / 100, 0.45], [0, 0], NAMES))
    assert old_objects.thresholds([], NAMES, truth, judged)["ant"] == 0.5


def test_old_objects_are_counted_and_labelled_boxes_left_out():
    index = fixed.index_of([(0, "bee")], ("bee",), 2)  # its box is (0, 0, 10, 10)
    given = [detections(("ant", 0.9, 0), ("ant", 0.8, 40), ("ant", 0.35, 80)), detections(("ant", 0.1, 0))]
    seen = old_objects.look(given, index, ["ant"], {"ant": 0.4})
    assert seen.total == 1 and seen.table == [
        {"class": "ant", "boxes": 1, "images": 1, "doubtful": 1, "threshold": 0.4}
    ]
    assert seen.doubtful == [(0, 1.0)]


# Retention ------------------------------------------------------------------------------------------------------------


def test_agreement_is_pairs_over_boxes_worst_first():
    before = [detections(("ant", 0.9, 0), ("ant", 0.8, 40), ("bee", 0.9, 0)), detections(("ant", 0.2, 0))]
    after = [detections(("ant", 0.5, 1), ("bee", 0.9, 0)), detections(("ant", 0.4, 0))]
    kept = retention.by_agreement(before, after, NAMES)
    assert kept.rows == [
        {"class": "ant", "before": 2, "after": 2, "kept": 0.5},
        {"class": "bee", "before": 1, "after": 1, "kept": 1.0},
    ]
    assert kept.value == pytest.approx(4 / 6) and "agreement, not accuracy" in kept.sentence()
    assert retention.by_agreement([detections()], [detections()], NAMES).value is None


def test_old_classes_in_the_terminal_worst_first():
    rows = [{"class": f"c{i}", "before": 0.5, "after": 0.25, "kept": 0.5} for i in range(13)]
    kept = retention.Retention("AP", 0.5, rows, 7)
    assert kept.sentence() == "The old classes keep 50.0 % of their AP, measured on 7 images of old data."
    console = Console(width=100, record=True)
    console.print(write.old_table(kept))
    text = console.export_text()
    assert "old classes, worst first: AP (%)" in text and "c11" in text and "c12" not in text
    assert "1 more in report.html" in text


# Mixtures -------------------------------------------------------------------------------------------------------------


def test_a_mixture_lies_between_and_new_tensors_are_new():
    old = {"w": torch.tensor([0.0, 2.0])}
    new = {"w": torch.tensor([4.0, 2.0]), "new": torch.tensor([7.0])}
    mixed = tradeoff.mix(old, new, 0.25)
    assert mixed["w"].tolist() == [1.0, 2.0] and mixed["new"].tolist() == [7.0]
    assert torch.equal(tradeoff.mix(old, new, 0.0)["w"], old["w"])
    assert tradeoff.moved(old, new) and not tradeoff.moved(old, {"w": old["w"].clone()})


def test_the_best_mixture_keeps_enough_and_learnt_most():
    way = [tradeoff.Mixture(s, k, n) for s, k, n in ((0.0, 1.0, 0.0), (0.5, 0.95, 0.6), (1.0, 0.6, 0.9))]
    assert tradeoff.best(way, 0.9).share == 0.5
    assert tradeoff.best(way, 0.5).share == 1.0
    assert tradeoff.best(way[1:], 0.99).share == 0.5  # none keeps enough: the one that keeps most


# The dial and the settings --------------------------------------------------------------------------------------------


def chosen(images=100, **given):
    index = fixed.index_of([(i, "ant") for i in range(images)], NAMES, images)
    detector = detectors.build(NAMES, name="yolox-pico", size=64)
    s = settings.Extend(model="m", data="d", out="o", **given)
    return effort.choose(s, index, 2, detector, "finetune", World())


def test_effort_sizes_the_work_and_says_why():
    quick, normal, thorough = (chosen(effort=e) for e in ("quick", "normal", "thorough"))
    assert quick.epochs < normal.epochs < thorough.epochs
    assert chosen(images=10).epochs == EPOCHS["normal"][1] and chosen(images=9000).epochs == 8
    assert chosen(images=6).batch == 2
    assert any("60 epochs of 100 images" in line for line in normal.why)
    own = chosen(epochs=3, batch=5, lr=0.1, size=96)
    assert (own.epochs, own.batch, own.lr, own.size) == (3, 5, 0.1, 96)
    assert sum("as asked" in line for line in own.why) == 4


def test_a_branch_is_put_where_the_objects_are():
    detector = detectors.build(NAMES, name="yolox-pico", size=64)
    large = fixed.index_of([(i, "ant") for i in range(4)], NAMES, 4)  # 10 of 64 pixels: small at any size
    assert effort.branch_widths(large, detector) is None
    large.boxes[:] = [0, 0, 64, 64]
    assert effort.branch_widths(large, detector) == (0, 11, 20)
    other: Any = SimpleNamespace(traits={"branches"}, width=32, input=detector.input)
    assert effort.branch_widths(large, other) == (0, 14, 24), "without a second stage it may be wider"


def test_cost_counts_convolutions():
    detector = detectors.build((), name="yolox-pico", size=64)
    before = cost(detector)
    detector.grow(["ant"])
    after = cost(detector)
    width = int(detector.width)
    assert after.parameters - before.parameters == 3 * (width + 1)
    assert after.multiply_adds - before.multiply_adds == 84 * width


def test_settings_take_short_and_full_names(tmp_path):
    given = {"model": "m", "data": str(tmp_path), "out": "o", "clip": 3, "train.ema": 0.9, "method": "pseudo_label"}
    s = settings.load({**given, "method.score": 0.5, "drop": "cat, dog", "rename": {"a": "b"}})
    assert s.train.clip == 3 and s.train.ema == 0.9 and s.drop == ["cat", "dog"] and s.rename == {"a": "b"}
    assert s.method == {"name": "pseudo_label", "score": 0.5}
    with pytest.raises(ConfigError, match="method=auto takes no settings"):
        settings.load({**given, "method": "auto", "method.score": 0.5})
