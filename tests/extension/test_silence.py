"""Pictures without new objects: what they teach, what is measured on them, and what is reported."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import ciod
from ciod import detectors
from ciod.core.types import Detections
from ciod.data.index import Index, empty_columns
from ciod.detectors.files import weights
from ciod.extension import confusion, false_alarms, names, negatives
from ciod.extension.settings import Extend
from tests.data.writers import sample_index, write_coco

OLD = ("cat", "dog")
ALL = (*OLD, "eel")
QUICK = {"epochs": 1, "batch": 4, "device": "cpu"}


def pictures(count: int, boxes: dict[int, list[tuple[float, str]]], classes=ALL) -> Index:
    """``count`` pictures; boxes at (x, class) 20 pixels wide."""
    rows = [(i, x, classes.index(n)) for i in sorted(boxes) for x, n in boxes[i]]
    columns = empty_columns()
    if rows:
        columns |= {
            "image": np.array([r[0] for r in rows]),
            "boxes": np.array([[r[1], 0, r[1] + 20, 20] for r in rows], np.float32),
            "labels": np.array([r[2] for r in rows]),
            "area": np.full(len(rows), 400, np.float32),
            "crowd": np.zeros(len(rows), bool),
            "difficult": np.zeros(len(rows), bool),
        }
    files = [f"{i}.png" for i in range(count)]
    return Index(classes, files, np.full((count, 2), 64, np.int32), np.arange(count), **columns)


def found(rows: list[tuple[float, str, float]]) -> Detections:
    """From (x, class, score), the best first."""
    boxes = np.array([[x, 0, x + 20, 20] for x, _, _ in rows], np.float32).reshape(-1, 4)
    return Detections(boxes, [r[2] for r in rows], [ALL.index(r[1]) for r in rows], ALL)


NOTHING = found([])


def test_false_alarms_are_counted_where_the_class_is_not():
    new = pictures(14, {i: [(0, "eel")] for i in range(13)})
    on_new = [found([(0, "eel", 0.9), (40, "eel", 0.5)])] * 13 + [found([(0, "eel", 0.4)])]
    old = pictures(4, {0: [(0, "cat")], 1: [(0, "eel")]})
    on_old = [found([(0, "eel", 0.6)]), found([(0, "eel", 0.8)]), found([(0, "eel", 0.2)]), NOTHING]
    alarms = false_alarms.measure((new, on_new), {"old_data": (old, on_old)}, ["eel"], 100)
    assert [r["classes"]["eel"] for r in alarms.sources] == [1.0, pytest.approx(1 / 3)]
    assert alarms.measured and alarms.together is not None
    # 14 objects found above 0.8; alarms 0.6 and 0.4 in 4 pictures without eels, where 0.05 × 4 allows none
    assert alarms.thresholds == {"eel": pytest.approx(0.8)}
    alone = false_alarms.measure((new, on_new), {}, ["eel"], 100)
    assert not alone.measured and alone.together is None
    sentences = alarms.sentences()
    assert (
        sentences[1]
        == "false alarms above 0.3 in 4 pictures (old_data): 0.333 per picture and class, most of eel (0.333)"
    )
    assert sentences[2] == "suggested score thresholds: eel 0.80" and sentences[3].startswith(
        "new classes on new and other"
    )
    assert alarms.together["AP50"] == 1.0
    loud = [found([(30, "eel", 0.95)])] * 4
    assert false_alarms.measure((new, on_new), {"pool": (old, loud)}, ["eel"], 100).together["AP50"] < 0.9


def test_too_few_objects_for_a_threshold():
    few = pictures(5, {i: [(0, "eel")] for i in range(4)})
    alarms = false_alarms.measure((few, [found([(0, "eel", 0.9)])] * 4 + [NOTHING]), {}, ["eel"], 100)
    assert alarms.sentences() == [
        "false alarms above 0.3 in 5 pictures (the new pictures without the class): none",
        "no threshold is suggested for eel: that takes 12 labelled objects",
    ]


def test_a_threshold_rises_until_alarms_are_rare():
    new = pictures(12, {i: [(0, "eel")] for i in range(12)})
    on_new = [found([(0, "eel", 0.5 + i / 100)]) for i in range(12)]
    other = pictures(40, {})
    on_other = [found([(0, "eel", 0.55)])] * 3 + [NOTHING] * 37  # 0.05 × 40 allows two
    alarms = false_alarms.measure((new, on_new), {"pool": (other, on_other)}, ["eel"], 100)
    assert alarms.thresholds["eel"] > 0.55


def test_detections_on_an_object_are_counted_by_class():
    truth = pictures(2, {0: [(0, "eel"), (30, "eel"), (60, "eel")], 1: [(0, "dog")]})
    first = found([(0, "cat", 0.9), (0, "eel", 0.8), (30, "cat", 0.5), (60, "eel", 0.8), (60, "cat", 0.7)])
    on = [first, found([(0, "eel", 0.6), (0, "cat", 0.2)])]
    rows = confusion.table(on, truth, ALL)
    assert rows == [
        {"class": "dog", "objects": 1, "found": 0, "taken": {"eel": 1}, "beside": {}},
        {"class": "eel", "objects": 3, "found": 1, "taken": {"cat": 2}, "beside": {"cat": 1}},
    ]
    assert confusion.sentences(rows) == [
        "confused on the new pictures: 1 of 1 dog taken for eel, 2 of 3 eel taken for cat"
    ]
    (sentence,) = confusion.alike(rows[1:])
    assert sentence.startswith(
        "eel looks like the known class cat: the model as it was takes 3 of 3 objects for it (100 %),"
    )
    assert confusion.alike([{"class": "eel", "objects": 9, "found": 0, "taken": {"cat": 2}}]) == []


def test_confused_objects_are_drawn(tmp_path):
    truth = sample_index(tmp_path / "raw", images=3, names=("cat", "eel"))
    at = [truth.boxes[truth.of_image(i)] for i in range(3)]
    names = truth.class_names
    wrong = [Detections(b, np.full(len(b), 0.9), 1 - truth.labels[truth.of_image(i)], names) for i, b in enumerate(at)]
    right = Detections(at[0], np.full(len(at[0]), 0.9), truth.labels[truth.of_image(0)], names)
    assert confusion.draw(tmp_path / "confused", wrong, truth, names) == 2  # the third picture is empty
    assert len(list((tmp_path / "confused").glob("*.jpg"))) == 2
    assert confusion.draw(tmp_path / "none", [right], truth.select(np.arange(1)), names) == 0


def settings(**given) -> Extend:
    return Extend(model="m", data="d", out="o", **given)


def test_most_of_the_pool_trains_and_the_rest_measures():
    plan = names.match(OLD, ("eel",))
    parts = negatives.find(settings(), plan, pictures(20, {}), None)
    assert [len(i) for i in parts.train] == [17] and len(parts.measured["pool"]) == 3
    assert not {*parts.train[0].files} & {*parts.measured["pool"].files}
    assert parts.sentences(True) == ["17 pictures without new objects train the branch to be silent there"]
    assert negatives.find(settings(negatives=False), plan, pictures(20, {}), None).train == []
    known = names.match(OLD, ("eel", "dog"))  # the dogs of the pool are not labelled
    assert negatives.find(settings(), known, pictures(20, {}), None).train == []
    (sentence,) = negatives.find(settings(), plan, None, None).sentences(True)
    assert "is not measured, and the branch was not taught" in sentence
    (sentence,) = negatives.find(settings(), plan, None, None).sentences(False)
    assert "is not measured. pool=FOLDER" in sentence


def test_a_batch_has_a_share_of_pictures_without_new_objects():
    from ciod.data.scenarios.scenario import Task

    train = pictures(6, {i: [(0, "eel")] for i in range(6)})
    task = Task(1, ("eel",), OLD, train, train, 0, 0)
    parts = negatives.Negatives([pictures(3, {}), pictures(2, {0: [(0, "eel")]})])
    mixed = negatives.mixture(task, parts, 3, 8)
    assert mixed.counts == [6, 2] and [len(p) for p in mixed.parts] == [6, 5] and parts.used == 5
    assert mixed.known.all() and mixed.background.all() and len(mixed.index.labels) == 7
    assert negatives.mixture(task, negatives.Negatives(), 3, 8) is None


def test_extending_with_a_pool_and_old_data_measures_both_and_says_so(tmp_path, capsys):
    torch.manual_seed(0)
    detector = detectors.build(OLD, name="yolox-pico", size=64).eval()
    weights.save_model(tmp_path / "m.safetensors", detector)
    write_coco(sample_index(tmp_path / "raw", images=6, names=("eel", "fox")), tmp_path / "folder")
    write_coco(sample_index(tmp_path / "old", names=OLD), tmp_path / "old_data")
    write_coco(sample_index(tmp_path / "val", names=(*OLD, "eel"), first=50), tmp_path / "old_data", "val")
    sample_index(tmp_path / "pool", images=5)
    results = ciod.extend(
        tmp_path / "m.safetensors", tmp_path / "folder", tmp_path / "out",
        old_data=str(tmp_path / "old_data"), pool=str(tmp_path / "pool"), **QUICK,
    )  # fmt: skip
    extension = results["extension"]
    assert extension["negatives"] == 4 + 4
    assert [s["source"] for s in extension["false_alarms"]["sources"][1:]] == ["old_data", "pool"]
    assert extension["false_alarms"]["together"].keys() == {"AP", "AP50"}
    assert {r["class"] for r in extension["confusion"]} >= {"eel", "fox"}
    assert results["scenario"]["protocol"][1] == (
        "8 pictures without new objects were used in training, their old boxes were not."
    )
    assert "8 pictures without new objects train the branch to be silent there" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "False alarms of the new classes" in page and "Which classes take each other" in page
    made = weights.load(tmp_path / "out" / "model.safetensors")
    assert made.arbiter is not None and (made.arbiter.count[2:4] > 0).all()
    assert json.loads((tmp_path / "out" / "results.json").read_text())["extension"]["false_alarms"]["measured"]


def test_an_arbiter_does_not_outlive_the_weights_its_statistics_are_of(tmp_path):
    from ciod.detectors import statistics

    torch.manual_seed(0)
    detector = detectors.build(OLD, name="yolox-pico", size=64).eval()
    detector.add_branch(["eel"])
    statistics.gather(detector, sample_index(tmp_path / "gathered", images=3, names=ALL))
    weights.save_model(tmp_path / "m.safetensors", detector)
    write_coco(sample_index(tmp_path / "raw", names=("fox",)), tmp_path / "folder")
    results = ciod.extend(tmp_path / "m.safetensors", tmp_path / "folder", tmp_path / "out", method="finetune", **QUICK)
    assert weights.load(tmp_path / "out" / "model.safetensors").arbiter is None
    assert any(w.startswith("The arbiter between the branches is dropped") for w in results["warnings"])
