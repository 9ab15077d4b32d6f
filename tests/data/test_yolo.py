"""YOLO: its layouts, and every kind of trouble with data.yaml, box files and their lines."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from ciod.core.errors import DataError
from ciod.data.formats import class_names, read, splits, yolo
from ciod.data.index import Index, Problems
from tests.data.writers import assert_same, picture, sample_index, write_yolo


@pytest.fixture
def sample(tmp_path) -> Index:
    return sample_index(tmp_path / "source")


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def yolo_set(root: Path, lines: str = "0 0.5 0.5 0.5 0.5", names: Any = ("cat", "dog"), **more: Any) -> Path:
    picture(root / "images" / "train" / "a.png")
    (root / "labels" / "train").mkdir(parents=True)
    (root / "labels" / "train" / "a.txt").write_text(lines)
    names = list(names) if isinstance(names, tuple) else names
    (root / "data.yaml").write_text(yaml.safe_dump({"names": names, "train": "images/train", **more}))
    return root


@pytest.mark.parametrize(
    "change",
    [
        {"train": "../train/images"},  # Roboflow: really train/images beside the YAML
        {"train": "train/images"},
        {"train": "./train/images/"},
        {"train": ["train/images"]},
        {"train": "images", "path": "train"},
        {"train": "train/images", "path": "/nowhere/on/this/machine"},
        {"train": "train.txt"},
        {"train": "train"},
    ],
    ids=str,
)
def test_yolo_yaml(sample, root, change):
    write_yolo(sample, root)
    (root / "train").mkdir()
    shutil.move(root / "images" / "train", root / "train" / "images")
    shutil.move(root / "labels" / "train", root / "train" / "labels")
    (root / "train.txt").write_text("".join(f"./train/images/{f.name}\n" for f in sample.files))
    (root / "data.yaml").write_text(yaml.safe_dump({"names": list(sample.class_names), **change}))
    assert_same(read(root), sample)
    assert_same(read(root / "data.yaml"), sample)


@pytest.mark.parametrize("form", ["plain", "splits inside", "splits outside"])
def test_yolo_without_yaml(sample, root, form):
    write_yolo(sample, root)
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("\n".join(sample.class_names) + "\n\n")
    if form != "splits inside":
        shutil.move(root / "images" / "train", root / "a")
        shutil.move(root / "labels" / "train", root / "b")
        shutil.rmtree(root / "images")
        shutil.rmtree(root / "labels")
        folder = root if form == "plain" else root / "train"
        folder.mkdir(exist_ok=True)
        (root / "a").rename(folder / "images")
        (root / "b").rename(folder / "labels")
    assert splits(root) == ["train"]
    assert_same(read(root), sample)


def test_yolo_names_as_dict_with_holes(root):
    yolo_set(root, "7 .5 .5 .5 .5\n2 .5 .5 .25 .25", names={7: " seven ", 2: "two"})
    index = read(root)
    assert index.class_names == ("two", "seven")
    assert index.labels.tolist() == [1, 0]


def test_yolo_boxes_follow_exif_rotation(root):
    yolo_set(root, "0 .5 .5 1 1")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(root / "images" / "train" / "a.png", exif=exif)
    index = read(root)
    assert index.sizes.tolist() == [[60, 40]]
    assert index.boxes.tolist() == [[0, 0, 40, 60]]
    kind = "picture that EXIF rotates, without a stated size, its boxes are taken as drawn on the rotated picture"
    assert index.problems.counts == {kind: 1}


@pytest.mark.parametrize(
    ("line", "kind", "box"),
    [
        ("1 .5 .5 .5 .5", None, [15, 10, 45, 30]),
        ("1.0 0.5 0.5 0.5 0.5\r\n\n", None, [15, 10, 45, 30]),
        ("1 .5 .5 .5 .5 .93", "line with a sixth number (a confidence), which is ignored", [15, 10, 45, 30]),
        ("1 .25 .25 .75 .25 .5 .75", "polygon, its box is used", [15, 10, 45, 30]),
        ("1 .25 .25 .75 .25 .75 .75 .25 .75", "polygon, its box is used", [15, 10, 45, 30]),
        ("1 .5 .5 .5 .5 .3 .3 2", "box with keypoints, which are ignored", [15, 10, 45, 30]),
        ("1 .5 .5 .5 .5 .3 .3 2 .7 .7 1", "box with keypoints, which are ignored", [15, 10, 45, 30]),
        ("1 .5 .5 .5 .5 .3 .3 .4 .7 .7 .9", "polygon, its box is used", [18, 12, 42, 36]),
        ("1 .5 .5 .5 .5 .1 .1 .2", "line that is neither box (5 numbers) nor polygon (an odd count), left out", None),
        ("1 .5 .5", "line that is neither box (5 numbers) nor polygon (an odd count), left out", None),
        ("2 .5 .5 .5 .5", "box of an unknown class number, left out", None),
        ("-1 .5 .5 .5 .5", "box of an unknown class number, left out", None),
        ("0.5 .5 .5 .5 .5", "box of an unknown class number, left out", None),
        ("cat .5 .5 .5 .5", "line with a value that is not a number, left out", None),
        ("1, .5, .5, .5, .5", "line with a value that is not a number, left out", None),
        ("1 nan .5 .5 .5", "box with a number that is NaN or infinite, left out", None),
        ("1 .5 inf .5 .5", "box with a number that is NaN or infinite, left out", None),
        ("1 .5 .5 0 .5", "box without area, left out", None),
        ("1 .5 .5 -.5 .5", "box with negative width or height, left out", None),
        ("1 1.5 .5 .5 .5", "box outside its image, left out", None),
        ("1 1 .5 .5 .5", "box extends beyond its image, clipped", [45, 10, 60, 30]),
        ("1 30 20 30 20", "box in pixels instead of fractions of the picture, left out", None),
    ],
)
def test_yolo_lines(root, line, kind, box):
    index = read(yolo_set(root, line))
    assert index.problems.counts == ({kind: 1} if kind else {})
    assert index.boxes.tolist() == ([box] if box else [])
    if kind:
        assert index.problems.examples[kind][0].startswith("a.")


def test_yolo_pose_rows_keep_their_box(root):
    index = read(yolo_set(root, "0 .5 .5 .5 .5 .1 .1 2 .2 .2 2", kpt_shape=[2, 3]))
    assert index.boxes.tolist() == [[15, 10, 45, 30]]
    assert not index.problems


def test_yolo_picture_without_box_file_is_background(root):
    yolo_set(root)
    picture(root / "images" / "train" / "b.png")
    picture(root / "images" / "train" / "c.png")
    (root / "labels" / "train" / "c.txt").write_text("\n")
    index = read(root)
    assert np.diff(index.starts).tolist() == [1, 0, 0]
    assert not index.problems


def test_yolo_box_file_without_picture(root):
    yolo_set(root)
    (root / "labels" / "train" / "lost.txt").write_text("0 .5 .5 .5 .5")
    (root / "labels" / "train" / "classes.txt").write_text("cat\ndog")
    index = read(root)
    assert len(index.labels) == 1
    assert list(index.problems.counts) == ["box file without its picture, left out"]
    assert index.problems.lines()[0].endswith("lost.txt")


def test_yolo_without_any_box_file_says_where_it_looked(root):
    yolo_set(root)
    shutil.rmtree(root / "labels")
    with pytest.raises(DataError, match=r"none of the 1 pictures has a box file; looked for .*/labels/train/a\.txt"):
        read(root)


def test_yolo_listed_pictures_missing_repeated_and_unreadable(root):
    yolo_set(root, train="train.txt")
    (root / "images" / "train" / "b.png").write_bytes(b"no picture")
    (root / "train.txt").write_text("images/train/a.png\nimages/train/a.png\nimages/train/z.png\nimages/train/b.png\n")
    index = read(root)
    assert [f.name for f in index.files] == ["a.png"]
    assert index.problems.counts == {
        "picture listed twice, counted once": 1,
        "missing image file, left out": 1,
        "unreadable picture, left out": 1,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("names: [a\ntrain: b", r"data\.yaml is not valid YAML: .*line 2"),
        ("just text", r"data\.yaml has no keys"),
        ("names: [a]\ntrain: nowhere", r"has no usable train or val images: data\.yaml says train: nowhere"),
        ("names: [a]", r"has no usable train or val images: it has no key train"),
        ("train: images/train", r"data\.yaml has no class names"),
        ("train: images/train\nnames: []", r"data\.yaml has no class names"),
        ("train: images/train\nnames: {a: b}", r"keys of 'names' must be the class numbers; got 'a'"),
        ("train: images/train\nnames: [cat, dog, cat]", r"two classes have the name 'cat': ids 0 and 2"),
        ("train: images/train\nnames: [cat, '']", r"class 1 has no name"),
    ],
)
def test_yolo_yaml_trouble(root, content, message):
    yolo_set(root)
    (root / "data.yaml").write_text(content)
    with pytest.raises(DataError, match=message):
        read(root)


def test_a_yolo_split_that_is_listed_but_missing(root):
    yolo_set(root, val="../elsewhere", test="")
    assert splits(root) == ["train"]
    with pytest.raises(DataError, match=r"no split 'val'; available: train\. \(data\.yaml says val: \.\./elsewhere"):
        read(root, "val")


def test_yolo_names_beside_a_yaml_without_any(root):
    yolo_set(root)
    (root / "data.yaml").write_text("train: images/train")
    (root / "classes.txt").write_text("cat\ndog\n")
    assert class_names(root) == ("cat", "dog")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="is a folder, not a file"):
        yolo._lines(tmp_path)  # a folder
    problems = Problems()
    yolo._Rows(None, {}, problems, False).add_file(str(tmp_path))
    assert "unreadable box file, its picture counts as one without boxes" in problems.lines()[0]
