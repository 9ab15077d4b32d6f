"""The labelling loop: old objects go out as COCO, YOLO and Label Studio; corrected ones come back and are learnt."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ciod
from ciod import detectors
from ciod.core.errors import DataError
from ciod.core.types import KNOWN, Detections
from ciod.data import formats
from ciod.data.augment import Augment, TrainTransform
from ciod.data.loader import train_loader
from ciod.detectors.files import weights
from ciod.extension import known, names, old_objects, prelabels
from ciod.extension.data import open_folder, task_of
from ciod.methods.pseudo_label import PseudoLabel
from ciod.training.offline_labels import with_offline_labels
from ciod.training.progress import Reporter
from tests.data.writers import sample_index, write_coco

OLD = ("cat", "dog", "cow")
PLAIN = {"flip": 0.0, "mosaic": 0.0, "photometric": 0.0, "scale": (1.0, 1.0)}


@pytest.fixture
def folder(tmp_path) -> Path:
    write_coco(sample_index(tmp_path / "raw", images=6, names=("eel",)), tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def task(folder):
    opened = open_folder(str(folder), holdout=0.15, seed=0)
    return task_of(opened, names.match(OLD, opened.classes))


PLAN = names.match(OLD, ("eel",))


def look(task) -> tuple[old_objects.Found, list[Detections]]:
    """A sure dog in the first image, a doubtful cow in the second."""
    seen = [Detections(np.zeros((0, 4)), [], [], OLD) for _ in task.train.files]
    seen[0] = Detections([[20, 20, 30, 36]], [0.9], [1], OLD)
    seen[1] = Detections([[25, 2, 40, 12]], [0.41], [2], OLD)
    return old_objects.look(seen, task.train, OLD, dict.fromkeys(OLD, 0.4)), seen


def boxes_of(index, row: int) -> set[tuple[str, tuple[int, ...]]]:
    own = index.of_image(row)
    return {
        (index.class_names[y], tuple(np.round(b).astype(int).tolist()))
        for y, b in zip(index.labels[own], index.boxes[own], strict=True)
    }


def exported(tasks: list[dict]) -> list[dict]:
    """What Label Studio exports when predictions are accepted as they are."""
    return [{**t, "annotations": [{"result": t["predictions"][0]["result"]}], "predictions": []} for t in tasks]


@pytest.mark.parametrize("kind", ["coco", "yolo", "label studio", "yolo with pictures"])
def test_what_goes_out_comes_back(task, tmp_path, kind):
    """Labelled boxes and found ones, whatever the format."""
    found, seen = look(task)
    out = tmp_path / "out"
    assert "2 pictures with old objects can be corrected" in prelabels.write(out, found, seen, task.train)[0]
    assert prelabels.write(out, found, seen, task.train) == [], "files that may be corrected already are left alone"
    path = {"coco": out / "coco.json", "label studio": out / "export.json"}.get(kind, out / "yolo")
    if kind == "label studio":
        tasks = json.loads((out / "label_studio.json").read_text())
        assert (
            tasks[0]["data"]["image"].startswith("/data/local-files/?d=")
            and '<Label value="eel"/>' in (out / "label_studio.xml").read_text()
        )
        path.write_text(json.dumps(exported(tasks)))
    if kind == "yolo with pictures":
        (path / "images").mkdir()
        for row in (0, 1):
            shutil.copy(task.train.files[row], path / "images")
    back = known.take(str(path), task, PLAN, trains_old=True)
    assert back.rows.tolist() == [0, 1] and back.old == 2 and back.changed == 0
    assert ("dog", (20, 20, 30, 36)) in boxes_of(back.task.train, 0)
    assert ("cow", (25, 2, 40, 12)) in boxes_of(back.task.train, 1)
    for row in range(len(task.train)):
        assert boxes_of(task.train, row) <= boxes_of(back.task.train, row)
    assert len(back.task.train.labels) == len(task.train.labels) + 2
    assert known.take(str(path), task, PLAN, trains_old=False).task.train.labels.tolist() == task.train.labels.tolist()


def test_a_corrected_box_is_what_is_trained_on(task, tmp_path):
    """A script moves one box, and takes a false one away: the loader gives what it wrote, marked as complete, and the
    teacher adds nothing there."""
    found, seen = look(task)
    prelabels.write(tmp_path / "out", found, seen, task.train)
    path = tmp_path / "out" / "coco.json"
    content = json.loads(path.read_text())
    dog = next(a for a in content["annotations"] if a["category_id"] == 2)
    dog["bbox"] = [4, 6, 20, 10]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 3]
    path.write_text(json.dumps(content))
    back = known.take(str(path), task, PLAN, trains_old=True)
    assert back.without(seen)[0].scores.tolist() == [] and back.row() == {"images": 2, "changed": 0, "old_boxes": 1}
    mixed = known.mixture(back, None, 4, 2)
    transform = TrainTransform(Augment(**PLAIN), 64, 114)
    loader = train_loader(back.task.train, transform, batch=2, seed=0, task=1, workers=0, pin=False, mixture=mixed)
    checked = {}
    for batch in loader:
        for i, row in enumerate(batch.index.tolist()):
            checked[row] = (int(batch.source[i]), batch.targets.labels[i][batch.targets.valid[i]].tolist(), batch, i)
    assert checked[0][0] == checked[1][0] == KNOWN and checked[2][0] != KNOWN
    assert 1 in checked[0][1] and 2 not in checked[1][1]
    batch, i = checked[0][2:]
    box = batch.targets.boxes[i][batch.targets.labels[i] == 1][0]
    zoom = 64 / 60  # of a picture of 40 × 60 pixels
    assert torch.allclose(box[2:] - box[:2], torch.tensor([20.0, 10.0]) * zoom, atol=0.2)
    assert float(box[0]) == pytest.approx(4 * zoom, abs=0.2)


def test_the_teacher_adds_nothing_to_what_is_labelled_completely(task, tmp_path):
    found, seen = look(task)
    prelabels.write(tmp_path / "out", found, seen, task.train)
    back = known.take(str(tmp_path / "out" / "coco.json"), task, PLAN, trains_old=True)
    mixed = known.mixture(back, None, 4, 2)
    n = len(task.train)

    class Draws:
        old = 3

        def draw(self, images, workers):
            return images.with_boxes(np.arange(n), np.tile([1.0, 1, 9, 9], (n, 1)), np.zeros(n, np.int64))

    _, after, _ = with_offline_labels(back.task.train, mixed, Draws(), workers=0, reporter=Reporter(quiet=True))
    assert after is not None
    added = np.diff(after.index.starts) - np.diff(back.task.train.starts)
    assert added.tolist() == [0, 0, *[1] * (n - 2)]


def test_an_extension_learns_from_corrected_labels(folder, tmp_path):
    """From the model to the file, from the file to another model: results say how many, and other labels make another
    model."""
    torch.manual_seed(0)
    model = tmp_path / "m.safetensors"
    weights.save_model(model, detectors.build(OLD, name="yolox-pico", size=64).eval())
    train = open_folder(str(folder), holdout=0.15, seed=0).train
    content = prelabels.coco(
        [prelabels.Picture(0, np.array([[5, 5, 25, 25]]), ["dog"], [0.9], [False])],
        replace(train, class_names=(*OLD, "eel")),
    )
    quick = {"epochs": 1, "batch": 2, "device": "cpu", "method": "pseudo_label", "holdout": 0.15}
    made = {}
    for name, box in (("here", [5, 5, 20, 20]), ("there", [25, 15, 12, 20])):
        content["annotations"][0]["bbox"] = box
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        results = ciod.extend(model, folder, tmp_path / name, known=str(tmp_path / f"{name}.json"), **quick)
        assert results["extension"]["known"] == {"images": 1, "changed": 1, "old_boxes": 1}
        made[name] = weights.load(tmp_path / name / "model.safetensors").state_dict()
    assert any(not torch.equal(v, made["there"][k]) for k, v in made["here"].items())


def problem(task, path, **words) -> str:
    with pytest.raises(DataError) as caught:
        known.take(str(path), task, PLAN, trains_old=True, **words)
    return str(caught.value)


def test_labels_that_cannot_be_used(task, folder, tmp_path):
    assert problem(task, tmp_path / "none") == f"known: there is no file or folder {tmp_path / 'none'}."
    write_coco(sample_index(tmp_path / "o", images=3, names=("eel",), first=70), tmp_path / "others")
    assert "is among the training images" in problem(task, tmp_path / "others")
    write_coco(sample_index(tmp_path / "raw", images=3, names=("eels",)), tmp_path / "named")
    message = problem(task, tmp_path / "named")
    assert "has the class 'eels', which neither the model nor the folder has; did you mean 'eel'?" in message
    bare = tmp_path / "bare"
    (bare / "labels").mkdir(parents=True)
    (bare / "classes.txt").write_text("eel\n")
    stem = task.train.files[0].stem
    for line in ("1 0.5 0.5 0.1 0.1", "0 0.5 0.5 0.1", "eel 0.5 0.5 0.1 0.1"):
        (bare / "labels" / f"{stem}.txt").write_text(f"\n{line}\n")
        assert "line 2, is not a class of classes.txt and four numbers." in problem(task, bare)
    (bare / "labels" / f"{stem}.txt").write_text("")
    (bare / "labels" / "another.txt").write_text("")
    empty = known.take(str(bare), task, PLAN, trains_old=True)
    assert empty.changed == 1 and empty.left_out == ["another.txt"] and boxes_of(empty.task.train, 0) == set()
    assert "1 pictures are not among the training images, left out: another.txt" in empty.sentences()[-1]


def test_exports_of_label_studio_that_cannot_be_used(task, tmp_path):
    path = tmp_path / "export.json"
    picture = {"image": f"/data/upload/1/{task.train.files[0].name}"}
    path.write_text(json.dumps([{"data": picture, "annotations": [{"was_cancelled": True, "result": []}]}]))
    assert f"no task of {path} is annotated; submit some in Label Studio" in problem(task, path)
    value = {"x": 1, "rectanglelabels": ["eel"]}
    path.write_text(json.dumps([{"data": picture, "annotations": [{"result": [{"value": value}]}]}]))
    assert "that lacks x, y, width, height" in problem(task, path)
    path.write_text("[{")
    assert problem(task, path).startswith("known: ")


def test_a_branch_says_that_it_leaves_old_classes(task, tmp_path):
    found, seen = look(task)
    prelabels.write(tmp_path / "out", found, seen, task.train)
    back = known.take(str(tmp_path / "out" / "coco.json"), task, PLAN, trains_old=False)
    assert "leaves the old classes as they are, so their boxes are not trained on" in back.sentences()[1]
    assert PseudoLabel().learns_background is False and formats.is_data_set(tmp_path / "data")
