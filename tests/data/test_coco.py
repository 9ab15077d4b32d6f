"""COCO: its layouts, and every kind of trouble with files, images and boxes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ciod.core.errors import DataError
from ciod.data.formats import class_names, read, splits
from ciod.data.images import save_image
from ciod.data.index import Index
from tests.data.writers import assert_same, picture, sample_index, write_coco

EDIT = Callable[[dict[str, Any]], Any]


@pytest.fixture
def sample(tmp_path) -> Index:
    return sample_index(tmp_path / "source")


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def coco_content(**changes: Any) -> dict[str, Any]:
    """One picture a.png of 60 × 40 with one box."""
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 10]}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        **changes,
    }


def coco_set(root: Path, edit: EDIT | None = None, **changes: Any) -> Path:
    content = coco_content(**changes)
    if edit:
        edit(content)
    picture(root / "images" / "a.png")
    picture(root / "images" / "b.png")
    (root / "train.json").write_text(json.dumps(content))
    return root


def add(key: str, **item: Any) -> EDIT:
    return lambda content: content[key].append(item)


def moved_coco(sample: Index, root: Path, json_path: str, images: str) -> None:
    write_coco(sample, root / "made")
    (root / json_path).parent.mkdir(parents=True, exist_ok=True)
    (root / "made" / "train.json").rename(root / json_path)
    (root / images).mkdir(parents=True, exist_ok=True)
    for file in (root / "made" / "images").iterdir():
        shutil.move(file, root / images / file.name)
    shutil.rmtree(root / "made")


@pytest.mark.parametrize(
    ("json_path", "images", "split"),
    [
        ("train.json", "images", "train"),
        ("train.json", "images/train", "train"),
        ("annotations/instances_train2017.json", "train2017", "train"),
        ("annotations/instances_val2017.json", "images/val2017", "val"),
        ("annotations/instances_train.json", "train", "train"),
        ("annotations/train.json", "images", "train"),
        ("train/_annotations.coco.json", "train", "train"),
        ("valid/_annotations.coco.json", "valid", "val"),
        ("test/_annotations.coco.json", "test", "test"),
        ("mine.json", ".", "train"),
        ("mine.json", "images", "train"),
        ("annotations/mine.json", "images", "train"),
    ],
)
def test_coco_layouts(sample, root, json_path, images, split):
    moved_coco(sample, root, json_path, images)
    assert splits(root) == [split]
    assert_same(read(root, split), sample)
    assert_same(read(root / json_path, split), sample)  # pointing at the file does too
    assert_same(read(root / json_path), sample)


def test_val_falls_back_to_test(sample, root):
    moved_coco(sample, root, "test/_annotations.coco.json", "test")
    assert_same(read(root, "val"), sample)


def test_official_coco_folder_with_other_annotation_files(sample, root):
    moved_coco(sample, root, "annotations/instances_train2017.json", "train2017")
    for other in ("captions_train2017", "person_keypoints_train2017", "image_info_test2017", "instances_train2014"):
        (root / "annotations" / f"{other}.json").write_text("{}")
    assert splits(root) == ["train"]
    assert_same(read(root), sample)


def test_two_coco_files_for_one_split(sample, root):
    write_coco(sample, root)
    shutil.copyfile(root / "train.json", root / "my_train.json")
    with pytest.raises(DataError, match=r"2 files for the split 'train': my_train\.json, train\.json"):
        read(root)


def test_file_names_with_folders_of_another_machine(root):
    for name in ("images/a.png", "data/here/a.png", "C:\\data\\a.png", "./a.png"):
        index = read(coco_set(root, images=[{"id": 1, "file_name": name, "width": 60, "height": 40}]))
        assert index.files == [root / "images" / "a.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [],\n "annotations": [}', r"train\.json is not valid JSON: line 2, column 18"),
        ("", r"train\.json is not valid JSON: line 1, column 1"),
        ("[]", r"but holds a list.* detection results"),
        ("3", r"holds int"),
        ('{"images": [], "annotations": []}', r"key 'categories' is missing; it has images, annotations"),
        ('{"images": [], "categories": []}', r"key 'annotations' is missing"),
        ('{"images": {}, "annotations": [], "categories": []}', r"key 'images' is not a list"),
        ("[" * 100_000, r"train\.json"),
        (json.dumps(coco_content(categories=[])), r"has no class names: 1 × box of an unknown category"),
        (json.dumps(coco_content(images=[])), r"no usable image \(of 0\): 1 × box of an unknown image"),
        (
            json.dumps(coco_content(categories=[{"id": 4, "name": "cat"}, {"id": 9, "name": " cat "}])),
            r"two classes have the name 'cat': ids 4 and 9",
        ),
        (
            json.dumps(coco_content(categories=[{"id": 4, "name": "cat"}, {"id": 4, "name": "dog"}])),
            r"two classes have the category id 4",
        ),
        (json.dumps(coco_content(categories=[{"id": 4, "name": " "}])), r"class 4 has no name"),
        (
            json.dumps(coco_content(categories=[{"id": 4, "name": "\ud83d"}])),
            r"the name of class 4 is not text \('\\ud83d'\); give it another",
        ),
        (json.dumps(coco_content(categories=["cat"])), r'a category is not an object with id and name: "cat"'),
        (
            json.dumps(
                coco_content(annotations=[{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 2]]}])
            ),
            r"has segmentations or keypoints but no 'bbox' in any of its 1 annotations",
        ),
    ],
)
def test_unusable_coco_file(root, text, message):
    coco_set(root)
    (root / "train.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read(root)


def test_no_picture_found_lists_examples(root):
    coco_set(root)
    shutil.rmtree(root / "images")
    with pytest.raises(DataError, match=r"no usable image \(of 1\): 1 × missing image file, left out: a\.png"):
        read(root)


BOX_TROUBLE = [
    ([10, 10, 0, 10], "box without area, left out", None),
    ([10, 10, 20, 0], "box without area, left out", None),
    ([30, 10, -20, 10], "box with negative width or height, left out", None),
    ([100, 10, 20, 10], "box outside its image, left out", None),
    ([10, -50, 20, 10], "box outside its image, left out", None),
    ([float("nan"), 10, 20, 10], "box with a number that is NaN or infinite, left out", None),
    ([10, 10, float("inf"), 10], "box with a number that is NaN or infinite, left out", None),
    ([None, 10, 20, 10], "box with a number that is NaN or infinite, left out", None),
    ([1, 2, 3], "bbox that is not four numbers, left out", None),
    (["x", 2, 3, 4], "bbox that is not four numbers, left out", None),
    ([[1], 2, 3, 4], "bbox that is not four numbers, left out", None),
    ("box", "bbox that is not four numbers, left out", None),
    ([10**400, 2, 3, 4], "bbox that is not four numbers, left out", None),
    ([], "annotation without a bbox, left out", None),
    (None, "annotation without a bbox, left out", None),
    ([50, 30, 20, 20], "box extends beyond its image, clipped", [50, 30, 60, 40]),
    ([-5, -5, 20, 20], "box extends beyond its image, clipped", [0, 0, 15, 15]),
    ([-0.5, 0, 20, 20], None, [0, 0, 19.5, 20]),  # less than a pixel is rounding
    (["10", "10", "20", "10"], None, [10, 10, 30, 20]),
]


@pytest.mark.parametrize(("bbox", "kind", "expected"), BOX_TROUBLE, ids=lambda v: str(v)[:30])
def test_one_bad_box_does_not_end_reading(root, bbox, kind, expected):
    bad = {"id": 2, "image_id": 1, "category_id": 2, "bbox": bbox}
    index = read(coco_set(root, lambda c: c["annotations"].append(bad)))
    assert index.problems.counts == ({kind: 1} if kind else {})
    if kind:
        assert index.problems.examples[kind] == ["annotation 2 of image 1"]
    boxes = [[10, 10, 30, 20]] + ([expected] if expected else [])
    assert index.boxes.tolist() == boxes


@pytest.mark.parametrize(
    ("edit", "kind", "images", "boxes"),
    [
        (add("images", id=2, file_name="c.png", width=60, height=40), "missing image file, left out", 1, 1),
        (add("images", id=2, width=60, height=40), "image without id or file_name, left out", 1, 1),
        (add("images", file_name="b.png"), "image without id or file_name, left out", 1, 1),
        (lambda c: c["images"].append(7), "image without id or file_name, left out", 1, 1),
        (add("images", id=2, file_name="a.png"), "picture listed twice, its boxes are joined", 1, 1),
        (
            add("annotations", id=1, image_id=1, category_id=1, bbox=[1, 1, 2, 2]),
            "annotation id given twice, both boxes are kept",
            1,
            2,
        ),
        (
            add("annotations", id=1, image_id=1, category_id=1, bbox=[10, 10, 20, 10]),
            "annotation id given twice, the same box is left out",
            1,
            1,
        ),
        (
            add("annotations", id=2, image_id=5, category_id=1, bbox=[1, 1, 2, 2]),
            "box of an unknown image, left out",
            1,
            1,
        ),
        (
            add("annotations", id=2, image_id=1, category_id=5, bbox=[1, 1, 2, 2]),
            "box of an unknown category, left out",
            1,
            1,
        ),
        (
            add("annotations", id=2, image_id=1, category_id=[1], bbox=[1, 1, 2, 2]),
            "box of an unknown category, left out",
            1,
            1,
        ),
        (lambda c: c["annotations"].append("x"), "annotation that is not an object, left out", 1, 1),
    ],
)
def test_one_bad_entry_does_not_end_reading(root, edit, kind, images, boxes):
    index = read(coco_set(root, edit))
    assert index.problems.counts == {kind: 1}
    assert (len(index), len(index.labels)) == (images, boxes)


def test_boxes_of_a_missing_picture_go_with_it(root):
    def edit(content: dict[str, Any]) -> None:
        content["images"].insert(0, {"id": 9, "file_name": "gone.png", "width": 60, "height": 40})
        content["annotations"].append({"id": 2, "image_id": 9, "category_id": 2, "bbox": [1, 1, 5, 5]})
        content["images"].append({"id": 2, "file_name": "b.png", "width": 60, "height": 40})
        content["annotations"].append({"id": 3, "image_id": 2, "category_id": 2, "bbox": [1, 1, 5, 5]})

    index = read(coco_set(root, edit))
    assert index.problems.counts == {"missing image file, left out": 1}
    assert index.image_ids.tolist() == [1, 2]
    assert index.image.tolist() == [0, 1]
    assert index.labels.tolist() == [0, 1]


def test_picture_listed_twice_keeps_equal_boxes_once(root):
    def edit(content: dict[str, Any]) -> None:
        content["images"].append({"id": 2, "file_name": "a.png", "width": 60, "height": 40})
        content["annotations"].append({"id": 2, "image_id": 2, "category_id": 1, "bbox": [10, 10, 20, 10]})
        content["annotations"].append({"id": 3, "image_id": 2, "category_id": 2, "bbox": [10, 10, 20, 10]})

    index = read(coco_set(root, edit))
    assert index.labels.tolist() == [0, 1]


def test_empty_picture_is_left_out(root):
    coco_set(root, add("images", id=2, file_name="b.png", width=60, height=40))
    (root / "images" / "b.png").write_bytes(b"")
    index = read(root)
    assert index.problems.counts == {"empty image file, left out": 1}
    assert len(index) == 1


@pytest.mark.parametrize(
    ("check", "kind"),
    [
        ("files", None),
        ("headers", None),
        ("pixels", "picture that cannot be decoded, left out"),
    ],
)
def test_truncated_picture_is_found_by_decoding(root, check, kind):
    coco_set(root, add("images", id=2, file_name="b.png", width=60, height=40))
    save_image(root / "images" / "b.png", np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    content = (root / "images" / "b.png").read_bytes()
    (root / "images" / "b.png").write_bytes(content[:2000])
    index = read(root, check=check)
    assert index.problems.counts == ({kind: 1} if kind else {})
    assert len(index) == (1 if kind else 2)


@pytest.mark.parametrize("size", [{"width": 60, "height": 40}, {}], ids=["size annotated", "no size"])
def test_unreadable_header(root, size):
    coco_set(root, add("images", id=2, file_name="b.png", **size))
    (root / "images" / "b.png").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert len(read(root, check="files")) == (2 if size else 1)
    index = read(root)
    assert index.problems.counts == {"unreadable picture, left out": 1}
    assert "b.png is not a picture" in index.problems.examples["unreadable picture, left out"][0]


@pytest.mark.parametrize("size", [{}, {"width": 0, "height": 0}, {"width": None, "height": "?"}])
def test_absent_size_is_read_from_the_header(root, size):
    index = read(coco_set(root, images=[{"id": 1, "file_name": "a.png", **size}]))
    assert index.sizes.tolist() == [[40, 60]]
    assert not index.problems


def test_picture_of_another_shape_than_annotated_is_left_out(root):
    coco_set(root, add("images", id=2, file_name="b.png", width=60, height=40))
    content = json.loads((root / "train.json").read_text())
    content["images"][0] |= {"width": 25, "height": 15}
    (root / "train.json").write_text(json.dumps(content))
    index = read(root)
    assert [f.name for f in index.files] == ["b.png"] and not len(index.labels)
    assert index.problems.lines() == [
        "1 × picture whose shape differs from its annotation, left out: its boxes may belong to another picture: "
        "a.png (25×15 annotated, 60×40 in the file)"
    ]
    del content["images"][1]
    (root / "train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"no usable image \(of 1\): 1 × picture whose shape differs from its"):
        read(root)
    assert read(root, check="files").boxes.tolist() == [[10, 10, 25, 15]], "unchecked: the annotations are believed"


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 60)])
def test_size_before_and_after_exif_rotation_both_fit(root, width, height):
    coco_set(root, images=[{"id": 1, "file_name": "a.png", "width": width, "height": height}])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(root / "images" / "a.png", exif=exif)
    index = read(root, check="headers")
    assert index.sizes.tolist() == [[height, width]]
    assert not index.problems


def test_ids_of_other_types(root):
    def edit(content: dict[str, Any]) -> None:
        content["images"] = [
            {"id": "00012", "file_name": "a.png", "width": 60, "height": 40},
            {"id": 5.0, "file_name": "b.png", "width": 60, "height": 40},
        ]
        content["annotations"] = [
            {"id": 1, "image_id": 12, "category_id": "1", "bbox": [1, 1, 5, 5]},
            {"id": 2, "image_id": "5", "category_id": 2, "bbox": [1, 1, 5, 5]},
        ]

    index = read(coco_set(root, edit))
    assert index.image_ids.tolist() == [12, 5]
    assert index.image.tolist() == [0, 1]
    assert index.labels.tolist() == [0, 1]
    assert not index.problems


def test_ids_that_are_text_are_numbered(root):
    index = read(
        coco_set(
            root,
            images=[{"id": "frame-a", "file_name": "a.png", "width": 60, "height": 40}],
            annotations=[{"image_id": "frame-a", "category_id": 2, "bbox": [1, 1, 5, 5]}],
        )
    )
    assert index.image_ids.tolist() == [1]
    assert index.labels.tolist() == [1]


def test_category_ids_order_names_and_are_trimmed(root):
    names = [{"id": 90, "name": " zoo\t"}, {"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}, {"id": 5, "name": 7}]
    coco_set(root, categories=names)
    assert read(root).class_names == class_names(root) == ("cat", "dog", "7", "zoo")


@pytest.mark.parametrize("with_box", [False, True])
def test_dummy_category_of_roboflow(root, with_box):
    def edit(content: dict[str, Any]) -> None:
        content["categories"] = [
            {"id": 0, "name": "pets", "supercategory": "none"},
            {"id": 1, "name": "cat", "supercategory": "pets"},
            {"id": 2, "name": "dog", "supercategory": "pets"},
        ]
        if with_box:
            content["annotations"].append({"id": 2, "image_id": 1, "category_id": 0, "bbox": [1, 1, 5, 5]})

    coco_set(root, edit)
    expected = (("pets",) if with_box else ()) + ("cat", "dog")
    assert read(root).class_names == class_names(root) == expected


def test_category_that_is_its_own_supercategory_stays(root):
    coco_set(root, categories=[{"id": 1, "name": "cat"}, {"id": 2, "name": "person", "supercategory": "person"}])
    assert read(root).class_names == ("cat", "person")


def test_area_of_the_data_set_is_kept_and_absent_ones_filled(root):
    def edit(content: dict[str, Any]) -> None:
        content["annotations"][0]["area"] = 123.5
        for i, area in enumerate([0, None, "much"]):
            more = {"id": 10 + i, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 4], "area": area}
            content["annotations"].append(more)

    assert read(coco_set(root, edit)).area.tolist() == [123.5, 20, 20, 20]


def test_boxes_are_sorted_by_image_and_keep_their_order(root):
    def edit(content: dict[str, Any]) -> None:
        content["images"].append({"id": 2, "file_name": "b.png", "width": 60, "height": 40})
        content["annotations"] = [
            {"id": i, "image_id": 1 + (i % 2 == 0), "category_id": 1, "bbox": [i, 0, 5, 5]} for i in range(6)
        ]

    index = read(coco_set(root, edit))
    assert index.image.tolist() == [0, 0, 0, 1, 1, 1]
    assert index.boxes[:, 0].tolist() == [1, 3, 5, 0, 2, 4]


def test_examples_are_few_but_all_are_counted(root):
    bad = [{"id": 10 + i, "image_id": 1, "category_id": 1, "bbox": [1, 1, 0, 0]} for i in range(40)]
    index = read(coco_set(root, lambda c: c["annotations"].extend(bad)))
    kind = "box without area, left out"
    assert index.problems.counts == {kind: 40}
    assert len(index.problems.examples[kind]) == index.problems.limit


def test_pictures_without_boxes_are_kept_and_not_a_problem(root):
    index = read(coco_set(root, annotations=[]))
    assert (len(index), len(index.labels)) == (1, 0)
    assert index.boxes.shape == (0, 4)
    assert not index.problems


def test_class_names_are_read_without_the_boxes(root):
    coco_set(root)
    path = root / "train.json"
    text = json.dumps(json.loads(path.read_text()))
    path.write_text(text.replace('"annotations": [{', '"annotations": [not JSON {', 1))
    with pytest.raises(DataError, match="is not valid JSON"):
        read(root)
    assert class_names(root) == ("cat", "dog")


def test_class_names_when_the_word_appears_elsewhere(root):
    content = {"info": {"categories": ["not these"]}, **coco_content()}
    coco_set(root)
    (root / "train.json").write_text(json.dumps(content))
    assert class_names(root) == ("cat", "dog")


def test_polygons_are_cut_out_and_nothing_else(root):
    polygons = [[1.5, 2, -3e-1, 4], [5, 6]]
    keys = {"id": 1, "image_id": 1, "category_id": 2, "bbox": [10, 10, 20, 10]}
    annotations = [
        {"segmentation": polygons, **keys},
        {**keys, "id": 2, "segmentation": polygons},
        {**keys, "id": 3, "segmentation": [], "attributes": {"note": 'a "segmentation": [[1]] in text'}},
        {**keys, "id": 4, "segmentation": {"counts": [1, 2], "size": [40, 60]}, "iscrowd": 1},
    ]
    coco_set(root, annotations=annotations)
    for indent in (None, 2):
        (root / "train.json").write_text(json.dumps(coco_content(annotations=annotations), indent=indent))
        index = read(root)
        assert index.boxes.tolist() == [[10, 10, 30, 20]] * 4
        assert index.crowd.tolist() == [False, False, False, True]
    text = json.dumps(coco_content(annotations=annotations), indent=2)
    (root / "train.json").write_text(text + "}")
    with pytest.raises(DataError, match=f"line {text.count(chr(10)) + 1}, column 2"):
        read(root)


JUNK = [None, True, -1, 2.5, 10**30, 1e300, float("nan"), float("inf"), "", "x", "\0", [], [[]], {}, ["a", None]]
FIELDS = [
    *(("images", f) for f in ("id", "file_name", "width", "height")),
    *(("annotations", f) for f in ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "difficult")),
    *(("categories", f) for f in ("id", "name", "supercategory")),
]


@pytest.mark.parametrize(("key", "field"), FIELDS)
def test_no_value_of_any_field_ends_in_another_error(root, key, field):
    coco_set(root)
    for junk in JUNK:
        content = coco_content()
        content["images"].append({"id": 2, "file_name": "b.png", "width": 60, "height": 40})
        content["annotations"].append({"id": 2, "image_id": 2, "category_id": 2, "bbox": [1, 1, 5, 5]})
        content[key][0][field] = junk
        (root / "train.json").write_text(json.dumps(content))
        try:
            index = read(root, check="headers")
            assert class_names(root) == index.class_names
        except DataError:
            assert key == "categories"
        else:
            assert index.image.tolist()[-1] == len(index) - 1
            assert index.boxes[-1].tolist() == [1, 1, 6, 6]
            assert (index.boxes[:, 2:] > index.boxes[:, :2]).all()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"images": [{"id": ' + "9" * 6000 + "}]}", r"cannot be read as JSON: Exceeds the limit"),
        ('[{"image": "a.png", "annotations": []}]', r"It looks like an export of another tool, such as CreateML"),
        ('[{"image_id": 1, "bbox": []}]', r"It looks like detection results"),
        ("[1, 2]", r"should hold an object with images, annotations, categories, but holds a list\.$"),
    ],
)
def test_json_that_is_not_coco(root, text, match):
    (root / "train.json").write_text(text)
    picture(root / "images" / "a.png")
    with pytest.raises(DataError, match=match):
        read(root)


def test_boxes_of_an_id_of_two_pictures_are_given_to_neither(root):
    """Two files put together without new numbers: image 1 is a picture of each."""
    content = coco_content()
    content["images"] += [
        {"id": 1, "file_name": "b.png", "width": 60, "height": 40},
        {"id": 2, "file_name": "c.png", "width": 60, "height": 40},
        {"id": 2, "file_name": "c.png", "width": 60, "height": 40},
    ]
    content["annotations"].append({"id": 9, "image_id": 2, "category_id": 1, "bbox": [1, 1, 2, 2]})
    (root / "train.json").write_text(json.dumps(content))
    for name in ("a.png", "b.png", "c.png"):
        picture(root / "images" / name)
    index = read(root)
    assert [f.name for f in index.files] == ["c.png"]
    assert index.boxes.tolist() == [[1, 1, 3, 3]]
    kind = "image id of two pictures, both left out: its boxes may belong to either"
    assert index.problems.examples[kind] == ["1 (a.png and b.png)"]


def test_boxes_in_fractions_of_the_picture_are_refused(root):
    content = coco_content()
    content["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0.1, 0.1, 0.4, 0.4]}]
    (root / "train.json").write_text(json.dumps(content))
    picture(root / "images" / "a.png")
    with pytest.raises(DataError, match=r"all 1 boxes are within 0\.\.1, like fractions of the picture.*needs pixels"):
        read(root)
    content["annotations"][0]["bbox"] = [0, 0, 1, 1]  # a pixel is a box
    (root / "train.json").write_text(json.dumps(content))
    assert read(root).boxes.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("name", [["cat"], {"en": "cat"}])
def test_a_class_name_that_is_not_text(root, name):
    (root / "train.json").write_text(json.dumps(coco_content(categories=[{"id": 1, "name": name}])))
    picture(root / "images" / "a.png")
    with pytest.raises(DataError, match=r"the name of class 1 is not text \(.*cat.*\); give it another"):
        read(root)
