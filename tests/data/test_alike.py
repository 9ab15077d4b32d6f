"""Class names that look the same: merging them is reported, keeping them separate gives a warning, in every format."""

from __future__ import annotations

import json

import pytest

from ciod.data import formats
from ciod.data.alike import alike, listed
from ciod.data.describe import describe_text
from ciod.runs.sanity_checks import about_names
from tests.data.writers import sample_index, write_coco, write_voc, write_yolo

PAIRS = [
    ("cat", "Cat"), ("cat", "cat\u200b"), ("cat", "\ufeffcat"), ("cat", "ca\u00adt"), ("hot dog", "hot\u00a0dog"),
    ("hot dog", "hot  dog"), ("hot dog", "hot_dog"), ("hot dog", "hot-dog"), ("cat", "ｃａｔ"), ("straße", "STRASSE"),
    ("ﬁsh", "fish"), ("cat", "c\u2060at"),
]  # fmt: skip
KIND = "names that look the same and are different classes"


@pytest.mark.parametrize(("one", "other"), PAIRS)
@pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo])
def test_names_that_look_the_same_are_reported(tmp_path, write, one, other):
    root = write(sample_index(tmp_path / "raw", names=(one, "dog", other)), tmp_path / "data")
    index = formats.read(root)
    assert len(index.class_names) == 3 and index.problems.counts[KIND] == 1
    assert len({*listed((one, other)).split(", ")}) == 2  # what does not show is written with its code
    assert KIND in describe_text(root)


def test_names_that_differ_are_not_reported():
    assert alike(["cat", "cats", "car", "dog", "a1", "a2", "猫", "犬", "ант", "c++", "c"]) == []


def test_ways_to_write_one_name_are_joined_and_counted(tmp_path):
    root = write_voc(sample_index(tmp_path / "raw", names=("cat",)), tmp_path / "data")
    files = sorted((root / "Annotations").iterdir())
    files[0].write_text(files[0].read_text().replace(">cat<", "> cat <"))
    index = formats.read(root)
    assert index.class_names == ("cat",)
    assert index.problems.lines() == ["1 × object whose class name is written in another way, joined: ' cat ' as cat"]
    for file in files:
        file.write_text(file.read_text().replace(">cat<", "> cat <"))
    assert not formats.read(root).problems  # all in the same way


def test_ways_in_labelme(tmp_path):
    picture = sample_index(tmp_path, images=2).files[0]
    shapes = [
        {"label": n, "points": [[1, 1], [9, 9]], "shape_type": "rectangle"} for n in ("cafe\u0301", "café", "café")
    ]
    content = {"version": "5", "shapes": shapes, "imagePath": picture.name, "imageHeight": 40, "imageWidth": 60}
    picture.with_suffix(".json").write_text(json.dumps(content))
    index = formats.read(tmp_path)
    assert index.problems.counts["object whose class name is written in another way, joined"] == 1


def test_names_of_training_and_test_data(tmp_path):
    train = sample_index(tmp_path / "a", names=("cat", "dog"))
    test = sample_index(tmp_path / "b", names=("Cat", "dog"))
    assert about_names(train, test) == [
        "cat, Cat: names of training and test data that look the same, but count as different classes; rename one of "
        "them."
    ]
    assert about_names(train, train) == []


def test_train_and_val_that_write_a_class_in_two_ways(tmp_path):
    for split, name in (("train", "cat"), ("val", "Cat")):
        write_coco(sample_index(tmp_path / split, names=(name, "dog")), tmp_path / "data", split)
    assert "different classes have names that look the same: cat, Cat" in describe_text(tmp_path / "data")
