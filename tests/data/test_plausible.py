"""Data sets that can be read and mean something else are refused with the cause, not read as they stand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ciod.core.errors import DataError
from ciod.data import formats
from ciod.data.formats.plausible import check_percent
from tests.data.writers import sample_index, write_coco, write_voc, write_yolo


def coco(folder: Path) -> tuple[Path, dict]:
    root = write_coco(sample_index(folder / "raw"), folder / "data")
    return root, json.loads((root / "train.json").read_text())


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("empty_first", [True, False])
def test_a_list_twice(tmp_path, key, empty_first):
    root, content = coco(tmp_path)
    parts = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in content.items()]
    parts.insert(0 if empty_first else 3, f'"{key}": []')
    (root / "train.json").write_text(f"{{{', '.join(parts)}}}")
    with pytest.raises(DataError, match=rf"train\.json has the key '{key}' twice; join the two lists into one"):
        formats.read(root)


def test_a_key_of_the_same_name_elsewhere(tmp_path):
    root, content = coco(tmp_path)
    content["info"] = {"images": 3, "annotations": "many"}
    (root / "train.json").write_text(json.dumps(content))
    assert len(formats.read(root).labels) == 9


@pytest.mark.parametrize("by", [-1, 1])
def test_categories_that_are_moved_by_one(tmp_path, by):
    root, content = coco(tmp_path)
    for i, category in enumerate(content["categories"]):
        category["id"] = i + 1
    for a in content["annotations"]:
        a["category_id"] = a["category_id"] // 3 + by
    (root / "train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"class numbers {1 + by} to {3 + by}, the list of classes has 1 to 3: they"):
        formats.read(root)
    content["annotations"][0]["category_id"] = 9  # another mistake: counted, as before
    (root / "train.json").write_text(json.dumps(content))
    assert any("unknown category" in kind for kind in formats.read(root).problems.counts)


def test_class_numbers_of_yolo_that_count_from_one(tmp_path):
    root = write_yolo(sample_index(tmp_path / "raw"), tmp_path / "data")
    for file in (root / "labels" / "train").iterdir():
        lines = [line.split(maxsplit=1) for line in file.read_text().splitlines()]
        file.write_text("\n".join(f"{int(n) + 1} {rest}" for n, rest in lines))
    with pytest.raises(DataError, match=r"class numbers 1 to 3, the list of classes has 0 to 2: they seem to be moved"):
        formats.read(root)


def test_no_box_is_left(tmp_path):
    root, content = coco(tmp_path)
    for a in content["annotations"]:
        a["image_id"] = "another"
    (root / "train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"none of its 9 boxes can be used: 9 × box of an unknown image, left out"):
        formats.read(root)
    yolo = write_yolo(sample_index(tmp_path / "raw2"), tmp_path / "yolo")
    for file in (yolo / "labels" / "train").iterdir():
        lines = [line.split() for line in file.read_text().splitlines()]
        file.write_text("\n".join(" ".join([n, *(str(40 * float(v)) for v in box)]) for n, *box in lines))
    with pytest.raises(DataError, match=r"none of its 9 boxes can be used: \d × box in pixels instead of fr"):
        formats.read(yolo)
    voc = write_voc(sample_index(tmp_path / "raw3"), tmp_path / "voc")
    for file in (voc / "Annotations").iterdir():
        file.write_text(file.read_text().replace("bndbox", "robndbox"))
    with pytest.raises(DataError, match=r"none of its 9 boxes can be used: 9 × object without a bndbox"):
        formats.read(voc)


def test_crowd_alone_is_reported(tmp_path):
    root, content = coco(tmp_path)
    for a in content["annotations"]:
        a["iscrowd"] = 1
    (root / "train.json").write_text(json.dumps(content))
    assert "crowd regions alone (iscrowd), which are neither trained on nor" in str(formats.read(root).problems.lines())


def test_percent_of_the_picture():
    g = np.random.default_rng(0)
    low = g.uniform(0, 60, (30, 2))
    boxes, sizes = np.concatenate([low, low + g.uniform(5, 40, (30, 2))], 1), np.full((30, 2), 480)
    with pytest.raises(DataError, match=r"all 30 boxes lie within 0\.\.100, as percent of the picture do; .* divide"):
        check_percent(boxes, sizes, "here.json")
    for fine in ((boxes * 4.8, sizes), (boxes, sizes // 4), (boxes[:5], sizes[:5]), (boxes / 2, sizes)):
        check_percent(*fine, "here.json")


@pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo])
def test_equal_boxes_are_counted_and_kept(tmp_path, write):
    index = sample_index(tmp_path / "raw")
    index = index.with_boxes(index.image[:2], index.boxes[:2], index.labels[:2])
    found = formats.read(write(index, tmp_path / "data"))
    assert len(found.labels) == 11
    assert found.problems.counts == {"box of the same class and corners as another one, kept": 2}


@pytest.mark.parametrize("line", ["0,0.5,0.5,0.2,0.3", "0 0,5 0,5 0,2 0,3", "cat 0.5 0.5 0.2 0.3"])
def test_lines_of_yolo_of_which_none_is_a_box(tmp_path, line):
    root = write_yolo(sample_index(tmp_path / "raw", images=5), tmp_path / "data")
    for file in (root / "labels" / "train").iterdir():
        file.write_text(f"{line}\n")
    with pytest.raises(DataError, match=r"none of its 5 boxes can be used: 5 × line with a value that is not a num"):
        formats.read(root)
