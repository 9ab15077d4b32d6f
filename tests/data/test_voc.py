"""PASCAL VOC: its layouts, and every kind of trouble with XMLs, lists and pictures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ciod.core.errors import DataError
from ciod.data.formats import class_names, read, splits, voc
from ciod.data.formats.layout import Part
from ciod.data.index import Index, Problems
from tests.data.writers import assert_same, picture, sample_index, voc_xml, write_voc

BOMB = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]><annotation>&y;</annotation>'
XML_KIND = "unreadable XML, its picture is left out: its objects would be trained as background"


@pytest.fixture
def sample(tmp_path) -> Index:
    return sample_index(tmp_path / "source")


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def voc_set(root: Path, xml: str | None = None, objects: list | None = None) -> Path:
    picture(root / "JPEGImages" / "good.png")
    picture(root / "JPEGImages" / "a.png")
    (root / "Annotations").mkdir()
    (root / "Annotations" / "good.xml").write_text(voc_xml("good.png", (40, 60), [("cat", (1, 1, 9, 9), False)]))
    xml = voc_xml("a.png", (40, 60), objects or []) if xml is None else xml
    (root / "Annotations" / "a.xml").write_text(xml)
    return root


def voc_object(inner: str) -> str:
    size = "<size><width>60</width><height>40</height></size>"
    return f"<annotation><filename>a.png</filename>{size}<object>{inner}</object></annotation>"


def bndbox(*corners: Any) -> str:
    return (
        "<bndbox>" + "".join(f"<{s}>{c}</{s}>" for s, c in zip(("xmin", "ymin", "xmax", "ymax"), corners)) + "</bndbox>"
    )


JOINED = "object whose class name is written in another way, joined"


@pytest.mark.parametrize("nesting", ["", "VOC2007", "VOCdevkit/VOC2007"])
def test_voc_nesting(sample, root, nesting):
    write_voc(sample, root / nesting)
    assert_same(read(root), sample)


def test_voc_years_are_put_together(sample, root, tmp_path):
    other = sample_index(tmp_path / "other", images=2, first=50)
    write_voc(sample, root / "VOC2007", "trainval")
    write_voc(other, root / "VOC2012", "trainval")
    write_voc(other, root / "VOC2007", "test")
    assert splits(root) == ["trainval", "test"]
    assert len(read(root, "train")) == len(read(root, "trainval")) == 6
    assert_same(read(root, "val"), other)


def test_voc_splits_of_the_official_folder(sample, root, tmp_path):
    other = sample_index(tmp_path / "other", images=2, first=50)
    for split in ("train", "trainval"):
        write_voc(sample, root, split)
    for split in ("val", "test"):
        write_voc(other, root, split)
    (root / "ImageSets" / "Main" / "cat_train.txt").write_text("000001  1\n")
    assert splits(root) == ["train", "val", "trainval", "test"]
    assert_same(read(root, "train"), sample)


def test_voc_without_lists_is_all_train(sample, root):
    write_voc(sample, root)
    shutil.rmtree(root / "ImageSets")
    assert splits(root) == ["train"]
    assert_same(read(root), sample)


@pytest.mark.parametrize("beside", [True, False], ids=["side by side", "two folders"])
def test_voc_split_folders(sample, root, tmp_path, beside):
    for split, index in (("train", sample), ("valid", sample_index(tmp_path / "other", images=2, first=50))):
        write_voc(index, root / split)
        shutil.rmtree(root / split / "ImageSets")
        for folder in ("Annotations", "JPEGImages") if beside else ():
            for file in (root / split / folder).iterdir():
                shutil.move(file, root / split / file.name)
            (root / split / folder).rmdir()
    assert splits(root) == ["train", "val"]
    assert_same(read(root), sample)
    assert len(read(root, "val")) == 2


def test_voc_classes_are_alphabetical_over_all_splits(root, tmp_path):
    write_voc(sample_index(tmp_path / "1", names=("zebra", "bee")), root, "train")
    write_voc(sample_index(tmp_path / "2", names=("ant",), first=20), root, "val")
    assert read(root).class_names == read(root, "val").class_names == class_names(root) == ("ant", "bee", "zebra")


def test_voc_list_with_marks_suffixes_and_repeats(sample, root):
    write_voc(sample, root)
    (root / "ImageSets" / "Main" / "train.txt").write_text("000001  1\n000002.png\n\n000003 -1\n000001\n")
    index = read(root)
    assert [f.name for f in index.files] == ["000001.png", "000002.png", "000003.png"]
    assert index.problems.counts == {"picture listed twice, counted once": 1}


@pytest.mark.parametrize(
    ("xml", "where"),
    [
        ("<annotation><object>", "no element found"),
        ("", "no element found"),
        ("<html/>", "its root is <html>"),
        (BOMB, "DOCTYPE"),
        ("<!ENTITY x 'y'><annotation/>", "DOCTYPE or ENTITY"),
    ],
)
def test_unreadable_xml_leaves_its_picture_out(root, xml, where):
    index = read(voc_set(root, xml))
    assert [f.name for f in index.files] == ["good.png"]
    assert index.problems.counts == {XML_KIND: 1}
    assert where in index.problems.examples[XML_KIND][0]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
def test_xml_in_other_encodings(root, encoding):
    voc_set(root)
    declared = "utf-8" if encoding == "utf-8-sig" else encoding
    xml = voc_xml("a.png", (40, 60), [("größe", (1, 1, 9, 9), False)])
    raw = f'<?xml version="1.0" encoding="{declared}"?>\n{xml}'.encode(encoding)
    (root / "Annotations" / "a.xml").write_bytes(raw)
    assert read(root).class_names == ("cat", "größe")
    (root / "Annotations" / "a.xml").write_bytes(BOMB.encode(encoding))
    assert read(root).problems.counts == {XML_KIND: 1}


@pytest.mark.parametrize(
    ("inner", "kind", "box"),
    [
        (f"<name> cat </name>{bndbox(11, 21, 30, 40)}", JOINED, [10, 20, 30, 40]),
        (f"<name>cat</name>{bndbox('11.0', ' 21 ', 30, 40)}", None, [10, 20, 30, 40]),
        (f"<name>cat</name>{bndbox(0, 0, 60, 40)}", None, [0, 0, 60, 40]),  # counted from 0: a pixel, no message
        (f"<name>cat</name>{bndbox(1, 1, 90, 40)}", "box extends beyond its image, clipped", [0, 0, 60, 40]),
        (f"<name>cat</name>{bndbox(30, 1, 11, 40)}", "box with negative width or height, left out", None),
        (f"<name>cat</name>{bndbox('nan', 1, 11, 40)}", "box with a number that is NaN or infinite, left out", None),
        (f"<name>cat</name>{bndbox('ten', 1, 11, 40)}", "object without a bndbox of four numbers, left out", None),
        (f"<name>cat</name>{bndbox(1, 1, 11)}", "object without a bndbox of four numbers, left out", None),
        ("<name>cat</name><polygon/>", "object without a bndbox of four numbers, left out", None),
        (f"<name> </name>{bndbox(1, 1, 11, 40)}", "object without a class name, left out", None),
        (bndbox(1, 1, 11, 40), "object without a class name, left out", None),
    ],
)
def test_voc_objects(root, inner, kind, box):
    index = read(voc_set(root, voc_object(inner)))
    assert index.problems.counts == ({kind: 1} if kind else {})
    assert index.boxes[index.of_image(0)].tolist() == ([box] if box else [])  # a.png comes before good.png
    assert index.class_names == ("cat",)


def test_voc_parts_are_not_objects(root):
    part = f"<part><name>head</name>{bndbox(1, 1, 5, 5)}</part>"
    index = read(voc_set(root, voc_object(f"<name>cat</name>{part}{bndbox(11, 21, 30, 40)}")))
    assert index.class_names == ("cat",)
    assert index.boxes[0].tolist() == [10, 20, 30, 40]


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_voc_without_size_reads_the_header(root, size):
    index = read(voc_set(root, f"<annotation>{size}</annotation>"))
    assert index.sizes.tolist() == [[40, 60], [40, 60]]


def test_voc_picture_without_xml_and_xml_without_picture(root):
    voc_set(root)
    (root / "JPEGImages" / "a.png").rename(root / "JPEGImages" / "b.png")
    index = read(root)
    assert [f.name for f in index.files] == ["good.png"]
    assert index.problems.counts == {
        "picture without XML, left out: its objects would be trained as background": 1,
        "missing image file, left out": 1,
    }


def test_voc_picture_is_found_by_stem_first_then_by_filename(root):
    voc_set(root, voc_xml("real.png", (40, 60), []))
    assert read(root).files[0].name == "a.png"
    (root / "JPEGImages" / "a.png").rename(root / "JPEGImages" / "real.png")
    assert read(root).files[0].name == "real.png"


def test_voc_without_any_object_has_no_class(root):
    voc_set(root)
    (root / "Annotations" / "good.xml").unlink()
    with pytest.raises(DataError, match=r"has no class names"):
        read(root)
    with pytest.raises(DataError, match=r"has no class names"):
        class_names(root)


def test_a_list_that_cannot_be_read(tmp_path):
    part = Part(images=(tmp_path,), boxes=tmp_path, listing=tmp_path)  # a folder
    with pytest.raises(DataError, match="is a folder, not a file"):
        voc._keys(part, {}, {}, Problems())
