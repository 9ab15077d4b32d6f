"""Data as other tools leave it: sizes, names, links, encodings, labelme; arrays of every range."""

from __future__ import annotations

import json
import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from ciod.core.errors import CiodError, DataError
from ciod.data import folders, formats
from ciod.data import images as reader
from ciod.data.images import as_array, image_size, save_image
from ciod.data.index import Problems
from ciod.detectors.files.weights import load
from ciod.inference.images import files
from ciod.inference.job import Job
from tests.detectors.common import make

GREY = np.full((100, 200, 3), 90, np.uint8)


def coco(root: Path, images: list[dict], boxes: list[dict], names=("cat",), name: str = "train.json") -> Path:
    (root / "images").mkdir(parents=True, exist_ok=True)
    content = {
        "images": images,
        "annotations": [{"id": i, "iscrowd": 0, **b} for i, b in enumerate(boxes, 1)],
        "categories": [{"id": i, "name": n} for i, n in enumerate(names, 1)],
    }
    (root / name).write_text(json.dumps(content))
    return root


def entry(i: int, file: str, width: int = 200, height: int = 100) -> dict:
    return {"id": i, "file_name": file, "width": width, "height": height}


# Sizes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.5, 2, 3, 4.5])
def test_boxes_follow_a_picture_that_was_resized(tmp_path, factor):
    """The JSON says in which size its boxes count; the picture in the folder is another size of equal shape."""
    stated = (int(200 * factor), int(100 * factor))
    box = [int(20 * factor), int(10 * factor), int(60 * factor), int(40 * factor)]
    root = coco(tmp_path, [entry(1, "a.jpg", *stated)], [{"image_id": 1, "category_id": 1, "bbox": box}])
    save_image(root / "images" / "a.jpg", GREY)
    index = formats.read(root, "train")
    np.testing.assert_allclose(index.boxes, [[20, 10, 80, 50]], atol=0.51)
    assert index.sizes.tolist() == [[100, 200]]
    assert any("a.jpg" in line for line in index.problems.lines())


def test_a_picture_of_another_shape_is_left_out(tmp_path):
    root = coco(
        tmp_path,
        [entry(1, "a.jpg", 300, 300), entry(2, "b.jpg")],
        [{"image_id": i, "category_id": 1, "bbox": [10, 10, 50, 50]} for i in (1, 2)],
    )
    for name in "ab":
        save_image(root / "images" / f"{name}.jpg", GREY)
    index = formats.read(root, "train")
    assert [f.name for f in index.files] == ["b.jpg"]
    assert any("a.jpg (300×300 annotated, 200×100 in the file)" in line for line in index.problems.lines())


# Folders and names ----------------------------------------------------------------------------------------------------


def test_linked_folders_are_read_and_loops_end(tmp_path):
    real, root = tmp_path / "real", tmp_path / "root"
    for folder, name in ((real, "a.jpg"), (root, "b.jpg")):
        folder.mkdir()
        save_image(folder / name, GREY)
    (root / "linked").symlink_to(real)
    (root / "loop").symlink_to(root)
    passed = Problems()
    found = [n for _, names in folders.pictures(root, passed.add) for n in names]
    assert sorted(found) == ["a.jpg", "b.jpg"] and len(passed.lines()) == 1


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refusing(folder):
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(folders.os, "scandir", refusing)
    passed = Problems()
    list(folders.pictures(tmp_path, passed.add))
    assert passed.lines() == [f"1 × folder that cannot be read, skipped: {tmp_path / 'closed'} (Permission denied)"]


def test_a_dangling_link_and_a_picture_named_twice(tmp_path):
    root = coco(tmp_path / "data", [entry(1, "a.jpg")], [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}])
    save_image(root / "images" / "a.jpg", GREY)
    (root / "images" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    model = make("yolox-pico")
    lines: list[str] = []
    assert Job(model, [str(root / "images")], tmp_path / "out", say=lines.append, complain=lines.append).run() == 1
    assert any("link to a missing file, skipped" in line and "gone.jpg" in line for line in lines)
    save_image(tmp_path / "copy" / "a.jpg", GREY)
    with pytest.raises(CiodError, match=r"coco: .*a\.jpg and .*a\.jpg are one picture of .*; name it once"):
        Job(model, [str(root / "images" / "a.jpg"), str(tmp_path / "copy" / "a.jpg")], tmp_path / "out2",
            coco=tmp_path / "r.json", data=formats.read(root, "train"), say=lines.append).run()  # fmt: skip


def test_a_box_file_of_two_pictures_is_used_for_both(tmp_path):
    for name in ("a.jpg", "a.png"):
        save_image(tmp_path / "images" / name, GREY)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    index = formats.read(tmp_path, "train")
    assert len(index) == 2 and len(index.boxes) == 2
    assert any("of several pictures, its boxes are used for each" in line for line in index.problems.lines())


# Encodings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_class_names_in_every_unicode_encoding(tmp_path, encoding):
    yolo(tmp_path, "Löwe\nTür\n".encode(encoding))
    assert formats.read(tmp_path, "train").class_names == ("Löwe", "Tür")


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "gbk"])
def test_another_encoding_is_reported_with_advice(tmp_path, encoding):
    text = "ok\n汽车\n" if encoding == "gbk" else "ok\nTür\n"
    yolo(tmp_path, text.encode(encoding))
    with pytest.raises(DataError, match=r"classes\.txt cannot be read: line 2 is not UTF-8.*; save it as UTF-8"):
        formats.read(tmp_path, "train")


def yolo(root: Path, names: bytes) -> None:
    save_image(root / "images" / "a.jpg", GREY)
    (root / "labels").mkdir()
    (root / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.4 0.4\n")
    (root / "classes.txt").write_bytes(names)


def test_coco_and_voc_in_a_regional_encoding(tmp_path):
    root = coco(tmp_path / "coco", [entry(1, "a.jpg")], [])
    raw = (root / "train.json").read_text().replace('"cat"', '"Tür"').encode("latin-1")
    (root / "train.json").write_bytes(raw)
    save_image(root / "images" / "a.jpg", GREY)
    with pytest.raises(DataError, match=r"train\.json cannot be read as JSON: it is not UTF-8; save it as UTF-8"):
        formats.read(root, "train")
    voc = tmp_path / "voc"
    for name in "ab":
        save_image(voc / "JPEGImages" / f"{name}.jpg", GREY)
    save_image(voc / "JPEGImages" / "c.jpg", GREY)
    (voc / "Annotations").mkdir()
    box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    xml = f"<annotation><object><name>cat</name>{box}</object></annotation>"
    (voc / "Annotations" / "a.xml").write_text(xml)
    (voc / "Annotations" / "b.xml").write_bytes(b'<?xml version="1.0" encoding="utf-8"?>' + xml.replace(
        "cat", "Tür").encode("latin-1"))  # fmt: skip
    lines = formats.read(voc, "train").problems.lines()
    assert any("it is not in the encoding that it declares; save it as UTF-8" in line for line in lines)
    assert any("picture without XML, left out" in line and "c" in line for line in lines)


# labelme --------------------------------------------------------------------------------------------------------------


def shape(label: object = "cat", points: object = ((10, 10), (60, 40)), kind: object = "rectangle") -> dict:
    return {"label": label, "points": points, "shape_type": kind}


def labelme(folder: Path, stem: str, *shapes: object, picture: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if picture:
        save_image(folder / f"{stem}.jpg", GREY)
    content = {"shapes": shapes, "imagePath": f"{stem}.jpg", "imageHeight": 100, "imageWidth": 200, "imageData": None}
    (folder / f"{stem}.json").write_text(json.dumps(content))


def test_labelme_shapes_become_boxes(tmp_path):
    labelme(
        tmp_path, "a", shape(), shape("dog", ((50, 50), (50, 60)), "circle"),
        shape("dog", ((5, 5), (25, 5), (15, 35)), "polygon"),
    )  # fmt: skip
    index = formats.read(tmp_path, "train")
    assert index.class_names == ("cat", "dog")
    assert index.boxes.tolist() == [[10, 10, 60, 40], [40, 40, 60, 60], [5, 5, 25, 35]]
    assert index.labels.tolist() == [0, 1, 1]
    assert index.problems.lines() == ["2 × polygon, circle or mask, its box is used: dog in a.json, dog in a.json"]


def test_missing_parts_of_labelme_files_are_counted(tmp_path):
    labelme(tmp_path, "a", shape(), shape(kind="point"), shape(label=None), shape(points=((1, 2),)))
    labelme(tmp_path, "gone", shape(), picture=False)
    save_image(tmp_path / "plain.jpg", GREY)
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "listless.json").write_text('{"shapes": 3}')
    lines = " | ".join(formats.read(tmp_path, "train").problems.lines())
    for kind in (
        "shape that is neither rectangle, polygon, circle nor mask, left out: point in a.json",
        "shape without a label, left out: a.json",
        "shape without two points of two numbers, left out: cat in a.json",
        "missing image file, left out: picture of gone.json",
        "picture without JSON, left out",
        "broken.json (not valid JSON",
        "listless.json (it has no list of shapes)",
    ):
        assert kind in lines, kind
    with pytest.raises(DataError, match=r"a\.json is a labelme file of one picture; give its folder"):
        formats.read(tmp_path / "a.json", "train")


def test_a_labelme_file_that_names_another_picture(tmp_path):
    labelme(tmp_path, "a", shape())
    save_image(tmp_path / "b.jpg", np.full((60, 90, 3), 9, np.uint8))
    content = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({**content, "imagePath": "b.jpg", "imageHeight": 60, "imageWidth": 90}))
    index = formats.read(tmp_path, "train")
    assert [f.name for f in index.files] == ["b.jpg"]
    assert any("names another picture than its file name" in line for line in index.problems.lines())


def test_several_jsons_of_boxes_are_named(tmp_path):
    for name in ("one.json", "two.json"):
        coco(tmp_path, [entry(1, "a.jpg")], [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}], name=name)
    save_image(tmp_path / "images" / "a.jpg", GREY)
    with pytest.raises(DataError, match=r"one\.json.*two\.json"):
        formats.read(tmp_path, "train")


# Arrays and headers ---------------------------------------------------------------------------------------------------

VALUES = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_of_both_ranges_are_the_same_picture(kind):
    np.testing.assert_allclose(as_array(VALUES.astype(kind)), VALUES, atol=1)
    np.testing.assert_allclose(as_array((VALUES / 255).astype(kind)), VALUES, atol=1)


@pytest.mark.filterwarnings("error")
def test_arrays_of_any_memory_are_the_same_picture():
    """Read-only, turned, strided, of the other byte order, tensors, lists, and batches of video frames."""
    detector = make("yolox-pico", ("cat",))
    fixed = VALUES.copy()
    fixed.flags.writeable = False
    strided = np.repeat(VALUES, 2, axis=1)[:, ::2]
    fortran = np.asfortranarray(VALUES)
    turned = VALUES[::-1, ::-1].copy()[::-1, ::-1]
    tensor = torch.from_numpy(VALUES.copy())
    alike = [fixed, strided, fortran, turned, VALUES.astype(">u2"), VALUES.astype(">f4"), VALUES.astype("f2") / 255]
    alike += [tensor, tensor.double() / 255, (tensor / 255).requires_grad_(), tensor.to(torch.bfloat16) / 255]
    for picture in alike:
        got = as_array(picture)
        assert got.flags.writeable and got.flags.c_contiguous
        np.testing.assert_allclose(got.astype(int), VALUES, atol=2)
    frames = np.stack([VALUES, VALUES]).astype(np.float32) / 255
    frames.flags.writeable = False
    want = detector.predict(VALUES, score_threshold=0.0).scores
    for several in (frames, alike[:4]):
        detected = detector.predict(several, score_threshold=0.0)
        assert isinstance(detected, list) and len(detected) == len(several)
        for found in detected:
            np.testing.assert_allclose(found.scores, want, atol=1e-3)


class Odd:
    """Nothing that could be a picture, and that says so loudly."""

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise RuntimeError


@pytest.mark.parametrize(
    ("array", "message"),
    [
        *[
            (VALUES / VALUES.max() * top, rf"must be 0\.\.1 or 0\.\.255; this array has .*\.\.{top}, .*Scale it to")
            for top in (1.5, 2, 4, 15.5)
        ],
        (VALUES.tolist(), r"must not be a list of numbers; make it an array: numpy\.asarray\(…, dtype='uint8'\)"),
        (b"\xff\xd8", r"must not be an open file or its bytes; give its path, or PIL\.Image\.open"),
        (BytesIO(), r"must not be an open file or its bytes"),
        (Odd(), r"must be a path, a PIL image or an array, not Odd\."),
        (VALUES / 255 - 0.5, r"must be 0\.\.255.*; a normalized picture must be brought back to 0\.\.255 or 0\.\.1"),
        (np.full((6, 8, 3), np.nan), r"must be 0\.\.255; this array has nan"),
        (VALUES[None], r"give the pictures of a batch as a list"),
        (VALUES.transpose(2, 0, 1), r"transpose it: array\.transpose\(1, 2, 0\)"),
        (np.zeros((6, 8, 4), np.uint8), r"leave its alpha channel out: array\[\.\.\., :3\]"),
        (np.zeros((6, 8, 3), bool), r"make it uint8: array\.astype\('uint8'\) \* 255"),
    ],
)
def test_an_array_that_is_not_an_image_is_refused_with_advice(array, message):
    with pytest.raises(DataError, match=message):
        as_array(array)


def test_a_dark_picture_of_integers_is_not_scaled():
    dark = VALUES % 9
    np.testing.assert_array_equal(as_array(dark.astype(np.float32)), dark)


def test_the_limit_of_pixels_is_a_setting(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png", GREY)
    monkeypatch.setenv("CIOD_MAX_PIXELS", "1e4")
    with pytest.raises(DataError, match=r"a\.png"):
        image_size(tmp_path / "a.png")
    monkeypatch.setenv("CIOD_MAX_PIXELS", "20_000")
    assert image_size(tmp_path / "a.png") == (100, 200)
    monkeypatch.setenv("CIOD_MAX_PIXELS", "many")
    with pytest.raises(DataError, match=r"CIOD_MAX_PIXELS=many is not a number of pixels; write for example 400e6"):
        image_size(tmp_path / "a.png")


def test_heic_is_reported_with_advice(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "READS_HEIF", False)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    with pytest.raises(DataError, match=r"a\.heic is not a picture in a format that ciod reads\. Convert it to JPEG"):
        image_size(tmp_path / "a.heic")


@pytest.mark.parametrize("line", ["photo 1", '"photo 1"', "'photo 1'", "photo 1.jpg", "photo 1 1", "photo 1 -1"])
def test_a_list_may_name_pictures_with_spaces(tmp_path, line):
    box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    for name in ("photo", "photo 1"):
        save_image(tmp_path / "JPEGImages" / f"{name}.jpg", GREY)
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        xml = f"<annotation><object><name>cat</name>{box}</object></annotation>"
        (tmp_path / "Annotations" / f"{name}.XML").write_text(xml)
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text(f"{line}\nabsent\n")
    index = formats.read(tmp_path, "train")
    assert [f.name for f in index.files] == ["photo 1.jpg"]
    assert any("picture without XML, left out: its objects" in x and "absent" in x for x in index.problems.lines())


def test_the_box_around_coco_polygons_is_used(tmp_path):
    polygon = [[10, 20, 70, 20, 70, 80], [12, 30, 40, 30, 40, 60]]
    root = coco(tmp_path, [entry(1, "a.jpg")], [{"image_id": 1, "category_id": 1, "segmentation": polygon}])
    save_image(root / "images" / "a.jpg", GREY)
    assert formats.read(root, "train").boxes.tolist() == [[10, 20, 70, 80]]


OTHERS = {
    "export.ndjson": ("{}", r"export\.ndjson is a file of JSON lines, as from Labelbox.*; export it as COCO"),
    "labels.csv": ("filename,class\n", r"labels\.csv is a table, which ciod does not read; export it as COCO"),
    "train.tfrecord": ("", r"train\.tfrecord is a TFRecord"),
    "train.parquet": ("", r"is a Hugging Face table"),
    "digitStruct.mat": ("", r"is a MATLAB file"),
    "data.zip": ("PK", r"data\.zip is an archive; unpack it first"),
    "annotations.xml": (
        "<annotations></annotations>",
        r"<annotations>, not <annotation>; CVAT can export as Pascal VOC",
    ),
    "via.json": (
        '{"a.jpg": {"regions": [{"shape_attributes": {}}]}}',
        r"looks like an export of VIA; export it as COCO",
    ),
    "annotations/default.json": ('{"categories": {"label": {}}, "items": []}', r"looks like an export of Datumaro"),
    "samples.json": ('{"samples": []}', r"looks like an export of FiftyOne"),
    "label_2/1.txt": ("Car 0", r"label_2/ looks like annotations of KITTI"),
    "labelTxt/a.txt": ("", r"labelTxt/ looks like annotations of DOTA"),
    "annotations/a.txt": ("", r"Text files in annotations/, as in VisDrone"),
    "d/ann/a.jpg.json": ("{}", r"looks like a project of Supervisely"),
    "cat/a.jpg": ("", r"only pictures in folders, as for classification: a detector needs boxes"),
    "result.json": ('[{"annotations": []}]', r"such as CreateML or Label Studio; export it as COCO"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_annotations_of_other_tools_are_refused_with_advice(tmp_path, name):
    content, match = OTHERS[name]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(content)
    if "ann/" in name:
        (tmp_path / "meta.json").write_text('{"classes": []}')
    with pytest.raises(DataError, match=match):
        formats.read(tmp_path)


def test_files_of_other_tools_are_refused_with_advice(tmp_path):
    (tmp_path / "data.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"data\.zip is an archive; unpack it first"):
        formats.read(tmp_path / "data.zip")


def test_addresses_are_not_files(tmp_path):
    for address in ("https://example.com/a.jpg", "rtsp://camera/1"):
        with pytest.raises(CiodError, match=r"camera|example.* is an address; ciod reads files only: download"):
            files(address)
        with pytest.raises(CiodError, match=r"is an address; ciod reads files only: download the picture first"):
            as_array(address)


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    for name, read in (("a.jpg", as_array), ("m.safetensors", load)):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n")
        with pytest.raises(
            CiodError, match=r"It is a pointer of Git LFS, not the file itself; fetch it with 'git lfs pull'"
        ):
            read(tmp_path / name)


def test_a_run_folder_is_not_a_data_set(tmp_path):
    (tmp_path / "results.json").write_text('{"format": 1, "scenario": {}, "detector": {}}')
    with pytest.raises(DataError, match=r"is of a run folder of ciod, not of a data set: the run's run\.yaml names"):
        formats.read(tmp_path)
    (tmp_path / "results.json").unlink()
    (tmp_path / "run.yaml").write_text("versions: {}\n")
    with pytest.raises(DataError, match=r"is of a run folder of ciod"):
        formats.recognise(tmp_path)
