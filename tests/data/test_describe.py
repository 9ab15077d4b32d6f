"""What `ciod list data` prints: counts a practitioner can check by hand."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from rich.console import Console

from ciod.core.errors import DataError
from ciod.data.describe import describe, describe_text
from tests.data.writers import sample_index, write_coco, write_voc, write_yolo


def row(text: str, first: str) -> list[str]:
    """The cells of the table row that begins with ``first``."""
    line = next(line for line in text.splitlines() if line.split()[:1] == [first])
    return re.split(r" {2,}", line.strip())


@pytest.fixture
def root(tmp_path):
    train = sample_index(tmp_path / "1", images=4, names=("cat", "dog"))
    val = sample_index(tmp_path / "2", images=2, names=("cat", "dog"), first=10)
    train.difficult[0] = True
    train.crowd[1] = True
    write_coco(train, tmp_path / "set", "train")
    return write_coco(val, tmp_path / "set", "val")


def test_counts_a_split_and_a_class(root):
    text = describe_text(root)
    assert "COCO, 2 classes" in text
    assert row(text, "split") == ["split", "images", "boxes", "images without boxes", "crowd", "difficult", "problems"]
    assert row(text, "train") == ["train", "4", "6", "1", "1", "1", "0"]
    assert row(text, "val") == ["val", "2", "2", "1", "0", "0", "0"]
    columns = ["class", "train boxes", "images", "val boxes", "images", "crowd", "difficult", "median box, px"]
    assert row(text, "class") == columns
    assert row(text, "cat") == ["cat", "3", "3", "1", "1", "0", "1", "12 × 10"]
    assert row(text, "dog") == ["dog", "3", "3", "1", "1", "1", "0", "13 × 10"]
    assert "No problems found; all pictures decode." in text


def test_problems_are_listed_with_examples(root):
    content = json.loads((root / "train.json").read_text())
    content["annotations"][0]["bbox"] = [1, 1, 0, 5]
    (root / "train.json").write_text(json.dumps(content))
    (root / "images" / "000002.png").write_bytes(b"\x89PNG")
    text = describe_text(root, width=300)
    assert "Problems in train:" in text
    assert "1 × box without area, left out: annotation 1 of image 1" in text
    assert "1 × unreadable picture, left out: 000002.png" in text
    assert "No problems found" not in text


def test_a_split_that_cannot_be_read_does_not_hide_the_other(root):
    (root / "val.json").write_text("{}")
    text = describe_text(root, width=300)
    assert "val cannot be used" in text
    assert "key 'images' is missing" in text
    assert row(text, "cat")[:2] == ["cat", "3"]


def test_no_readable_split(root):
    for name in ("train", "val"):
        (root / f"{name}.json").write_text("{}")
    with pytest.raises(DataError, match=r"train\.json is not COCO.*val\.json is not COCO"):
        describe(root)
    with pytest.raises(DataError, match="does not exist"):
        describe(root / "nowhere")


def test_remarks(tmp_path):
    train = sample_index(tmp_path / "1", names=("cat", "Cat"))
    write_coco(train, tmp_path / "set", "train")
    write_coco(sample_index(tmp_path / "2", names=("cat", "dog")), tmp_path / "set", "val")  # the same file names
    text = describe_text(tmp_path / "set", width=200)
    assert "no box in train: dog (1 of 3 classes)." in text
    assert "no box in val: Cat (1 of 3 classes)." in text
    assert "1 × names that look the same and are different classes: cat, Cat" in text
    assert "train and val have 4 pictures in common, such as 000001.png" in text
    assert row(text, "dog")[1:3] == ["0", "0"]


def test_voc_trainval_is_not_counted_again(tmp_path):
    index = sample_index(tmp_path / "1")
    for split in ("train", "val", "trainval"):
        write_voc(index, tmp_path / "set", split)
    text = describe_text(tmp_path / "set")
    assert "PASCAL VOC" in text
    assert [line.split()[0] for line in text.splitlines()[2:4]] == ["train", "val"]
    assert "trainval boxes" not in text


def test_promised_yolo_split(tmp_path):
    root = write_yolo(sample_index(tmp_path / "1"), tmp_path / "set", "train")
    write_yolo(sample_index(tmp_path / "2", first=9), root, "val")
    shutil.rmtree(root / "images" / "val")
    assert "val cannot be used: data.yaml says val: images/val, which does not exist." in describe_text(root, width=200)


def test_names_with_brackets_are_not_markup(tmp_path):
    index = sample_index(tmp_path / "1", names=("[red]apple[/red]", "[/]"))
    assert "[red]apple[/red]" in describe_text(write_coco(index, tmp_path / "set"))


@pytest.mark.parametrize(("check", "words"), [("files", "pictures exist"), ("headers", "have a readable header")])
def test_says_how_closely_it_looked(root, check, words):
    assert words in describe_text(root, check)


def test_prints_on_a_rich_console(root):
    console = Console(width=100, record=True, quiet=True)
    console.print(describe(root, "files"))
    assert np.all([len(line) <= 100 for line in describe_text(root, width=100).splitlines()])


def test_real_photographs(datasets):
    text = describe_text(datasets / "tiny")
    assert row(text, "train")[:3] == ["train", "26", "79"]
    assert row(text, "val")[:3] == ["val", "12", "38"]
    assert row(text, "person")[:5] == ["person", "23", "13", "17", "6"]
