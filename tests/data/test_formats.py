"""The three formats agree, real photographs are read right, and other folders are refused with a message."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from ciod.core.errors import DataError
from ciod.data import formats
from ciod.data.formats import class_names, merge_names, read, recognise, splits
from ciod.data.index import Index
from tests.data.writers import assert_same, sample_index, write_coco, write_voc, write_yolo

WRITERS = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}


@pytest.fixture
def sample(tmp_path) -> Index:
    return sample_index(tmp_path / "source")


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


@pytest.mark.parametrize("check", ["files", "headers", "pixels"])
@pytest.mark.parametrize("kind", WRITERS)
def test_all_formats_give_the_same_index(sample, root, kind, check):
    WRITERS[kind](sample, root)
    layout = recognise(root)
    assert layout.kind == kind
    index = read(root, check=check)
    assert_same(index, sample)
    assert not index.problems
    assert class_names(root) == sample.class_names


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_crowd_and_difficult_survive(sample, root, kind):
    sample.difficult[2] = True
    sample.crowd[1] = kind == "coco"
    assert_same(read(WRITERS[kind](sample, root)), sample)


@pytest.mark.parametrize("kind", WRITERS)
def test_splits_differ_and_agree_on_classes(sample, root, tmp_path, kind):
    val = sample_index(tmp_path / "other", images=2, first=10)
    WRITERS[kind](sample, root, "train")
    WRITERS[kind](val, root, "val")
    assert splits(root) == ["train", "val"]
    assert_same(read(root, "train"), sample)
    assert_same(read(root, "val"), val)
    assert_same(read(root, "valid"), val)
    with pytest.raises(DataError, match=r"no split 'test'; available: train, val"):
        read(root, "test")


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_hidden_files_of_macos_are_skipped(sample, root, kind):
    WRITERS[kind](sample, root)
    for file in [f for f in root.rglob("*") if f.suffix in (".png", ".xml", ".txt")]:
        file.with_name(f"._{file.name}").write_bytes(b"Mac OS X")
    shutil.rmtree(root / "ImageSets", ignore_errors=True)
    index = read(root)
    assert_same(index, sample)
    assert not index.problems


def test_fractions_of_a_pixel_in_voc(sample, root):
    sample.boxes += 0.3
    index = read(write_voc(sample, root))
    assert np.abs(index.boxes - sample.boxes).max() <= 1


@pytest.mark.parametrize(
    ("name", "split", "images", "boxes", "per_class"),
    [
        ("tiny", "train", 26, 79, {"person": (23, 13), "toilet": (19, 8)}),
        ("tiny", "val", 12, 38, {"person": (17, 6), "car": (1, 1)}),
        ("cards6", "train", 296, 527, {"ace": (92, 82), "jack": (89, 77), "ten": (82, 76)}),
        ("cards6", "val", 67, 143, {"ace": (26, 20), "nine": (26, 19), "ten": (18, 15)}),
    ],
)
def test_real_photographs(datasets, name, split, images, boxes, per_class):
    index = read(datasets / name, split, check="headers")
    assert (len(index), len(index.labels)) == (images, boxes)
    assert not index.problems
    assert list(index.class_names) == (datasets / name / "classes.txt").read_text().split()
    counts = dict(zip(index.class_names, zip(index.boxes_per_class(), index.images_per_class())))
    assert {k: counts[k] for k in per_class} == per_class


def test_real_photographs_through_every_format(datasets, root):
    index = read(datasets / "tiny")
    for kind, write in WRITERS.items():
        again = read(write(index, root / kind), check="headers")
        assert np.abs(again.boxes[np.argsort(again.image, kind="stable")] - index.boxes).max() <= (kind == "voc") + 1e-3
        assert set(again.class_names) == set(index.class_names)


def test_an_unknown_folder_lists_what_was_expected_and_found(root):
    (root / "readme.md").write_text("")
    (root / "pics").mkdir()
    with pytest.raises(
        DataError, match=r"(?s)Looked for COCO: train\.json.*VOC: Annot.*YOLO: .*Found: pics/, readme\.md"
    ):
        recognise(root)


def test_empty_folder(root):
    with pytest.raises(DataError, match=r"Found: nothing"):
        recognise(root)


def test_data_set_one_folder_deeper(sample, root):
    write_coco(sample, root / "export")
    with pytest.raises(DataError, match=r"Did you mean .*export"):
        recognise(root)


def test_absent_path_and_near_spelling(sample, root):
    write_coco(sample, root)
    with pytest.raises(DataError, match=r"sett does not exist; did you mean '.*set'\?$"):
        recognise(root.parent / "sett")
    with pytest.raises(DataError, match=r"does not exist; nor does"):
        recognise(root / "no" / "where")


def test_file_of_another_kind(root):
    (root / "a.txt").write_text("")
    with pytest.raises(DataError, match=r"a\.txt is not a data set"):
        recognise(root / "a.txt")


def test_wrong_check_is_a_programming_error(sample, root):
    with pytest.raises(ValueError, match="'headers'"):
        read(write_coco(sample, root), check="all")


def test_names_are_merged_in_order_of_appearance(root, tmp_path):
    write_coco(sample_index(tmp_path / "1", names=("dog", "cat")), root, "train")
    write_coco(sample_index(tmp_path / "2", names=("cat", "ant"), first=20), root, "val")
    train, val = read(root, "train"), read(root, "val")
    assert val.class_names == class_names(root, "val") == ("cat", "ant")
    assert merge_names([train, val]) == class_names(root) == ("dog", "cat", "ant")


def test_public_names():
    assert all(hasattr(formats, name) for name in formats.__all__)


def test_rows_that_do_not_ascend_would_mix_up_boxes(tmp_path):
    images = sample_index(tmp_path, images=4)
    assert [f.name for f in images.select(np.array([1, 3])).files] == [images.files[i].name for i in (1, 3)]
    for rows in ([3, 1], [1, 1]):
        with pytest.raises(ValueError, match="rows to keep must ascend"):
            images.select(np.array(rows))


def test_neighbours_by_name_are_those_by_number(tmp_path):
    images = sample_index(tmp_path, images=3)
    images.files = [tmp_path / n for n in ("a10.png", "a9.png", "A2.png")]
    assert images.by_name().tolist() == [2, 1, 0]
