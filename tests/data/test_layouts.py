"""Folders as annotation tools export them: read, or refused with the name of the tool and what to do; and the folder
that a refusal proposes is read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from ciod.config import commands
from ciod.core.errors import ConfigError, DataError
from ciod.data import formats
from ciod.data.describe import look
from ciod.data.images import save_image

GREY = np.full((100, 200, 3), 90, np.uint8)
LINE = "0 0.5 0.5 0.2 0.2\n"
VOC = (
    "<annotation><filename>a.jpg</filename><object><name>cat</name><bndbox><xmin>81</xmin><ymin>41</ymin>"
    "<xmax>120</xmax><ymax>60</ymax></bndbox></object></annotation>"
)


def put(root: Path, files: dict[str, str]) -> Path:
    """Files by name; pictures have no text."""
    for name, text in files.items():
        if name.endswith(".jpg"):
            save_image(root / name, GREY)
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
    return root


LAYOUTS = {
    "labelImg": {"a.jpg": "", "a.txt": LINE, "classes.txt": "cat\n"},
    "makesense": {"a.jpg": "", "a.txt": LINE, "labels.txt": "cat\n", "README.txt": "made by hand\n"},
    "CVAT without lists": {"obj_train_data/a.jpg": "", "obj_train_data/a.txt": LINE, "obj.names": "cat\n"},
    "FiftyOne YOLOv4": {"data/a.jpg": "", "data/a.txt": LINE, "obj.names": "cat\n", "images.txt": "data/a.jpg\n"},
    "pictures beside in images/": {"images/a.jpg": "", "images/a.txt": LINE, "classes.txt": "cat\n"},
    "Roboflow darknet": {"train/a.jpg": "", "train/a.txt": LINE, "train/_darknet.labels": "cat\n"},
    "FiftyOne VOC": {"data/a.jpg": "", "labels/a.xml": VOC},
    "labels and images in VOC": {"images/a.jpg": "", "labels/a.xml": VOC},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_of_a_tool_is_read(tmp_path, name):
    index = formats.read(put(tmp_path, LAYOUTS[name]), "train")
    assert index.class_names == ("cat",) and index.problems.lines() == []
    np.testing.assert_allclose(index.boxes, [[80, 40, 120, 60]], atol=0.01)


SHAPES = {
    "Roboflow": "<polygon><x1>81</x1><y1>41</y1><x2>120</x2><y2>41</y2><x3>100</x3><y3>60</y3></polygon>",
    "labelme": "<polygon><pt><x>81</x><y>60</y></pt><pt><x>120</x><y>41</y></pt></polygon>",
    "roLabelImg": "<robndbox><cx>100.5</cx><cy>50.5</cy><w>19</w><h>39</h><angle>1.570796</angle></robndbox>",
}


@pytest.mark.parametrize("tool", SHAPES)
def test_the_box_around_other_shapes_of_voc_is_used(tmp_path, tool):
    put(tmp_path, {"JPEGImages/a.jpg": "", "Annotations/a.xml": re.sub("<bndbox>.*</bndbox>", SHAPES[tool], VOC)})
    index = formats.read(tmp_path, "train")
    np.testing.assert_allclose(index.boxes, [[81, 41, 120, 60]], atol=0.01)
    assert index.problems.lines() == ["1 × polygon or rotated box, its box is used: cat in a.xml"]


@pytest.mark.parametrize(
    "shape", ["<polygon/>", "<polygon><x1>1</x1><y1>nan</y1></polygon>", "<robndbox/>", "<point/>"]
)
def test_objects_of_voc_without_a_box(tmp_path, shape):
    put(tmp_path, {"JPEGImages/a.jpg": "", "Annotations/a.xml": re.sub("<bndbox>.*</bndbox>", shape, VOC)})
    assert formats.read(tmp_path, "train").problems.lines() == [
        "1 × object without a bndbox of four numbers, left out: cat in a.xml"
    ]


def test_names_in_folders_of_splits_agree(tmp_path):
    files = {f"{s}/{name}": text for s in ("train", "valid") for name, text in (("a.jpg", ""), ("a.txt", LINE))}
    names = {"train/_darknet.labels": "cat\ndog\n", "valid/_darknet.labels": "cat\ndog\n"}
    root = put(tmp_path, {**files, **names})
    assert [formats.read(root, s).class_names for s in ("train", "val")] == [("cat", "dog")] * 2
    (root / "valid" / "_darknet.labels").write_text("dog\ncat\n")
    with pytest.raises(DataError, match=r"train/_darknet\.labels, valid/_darknet\.labels name other classes; the num"):
        formats.read(root, "train")


TEXTS = [
    "yes",
    "no",
    "on",
    "1_000",
    "0x1F",
    "1e3",
    "2024-01-01",
    "12:30",
    "007",
    "7",
    "1.0",
    ".5",
    "café",
    "true",
    "-x",
]


@pytest.mark.parametrize("form", ["list", "numbers"])
def test_names_in_data_yaml_are_what_is_written(tmp_path, form):
    names = f"[{', '.join(TEXTS)}]" if form == "list" else "".join(f"\n  {i}: {n}" for i, n in enumerate(TEXTS))
    root = put(tmp_path, {"images/a.jpg": "", "labels/a.txt": LINE, "data.yaml": f"train: images\nnames: {names}\n"})
    assert formats.class_names(root) == tuple(TEXTS)
    assert formats.read(root, "train").class_names == tuple(TEXTS)


def test_one_message_about_a_class_without_a_name(tmp_path):
    yaml = "train: images\nval: images\nnames: [cat, ~]\n"
    root = put(tmp_path, {"images/a.jpg": "", "labels/a.txt": LINE, "data.yaml": yaml})
    with pytest.raises(DataError) as error:
        look(root)
    assert str(error.value).count("class 1 has no name") == 1


VOTT = json.dumps({"name": "p", "tags": [{"name": "cat"}], "assets": {}})
BDD = json.dumps([{"name": "a.jpg", "labels": [{"category": "car", "box2d": {"x1": 1}}]}])
REFUSED = {
    "vott/p-export.json": (VOTT, r"p-export\.json looks like an export of VoTT; export it as COCO"),
    "labels/bdd100k_train.json": (BDD, r"looks like an export of BDD100K; convert it to COCO"),
    "ds0/ann/a.jpg.json": ("{}", r"ann/ looks like annotations of Supervisely"),
    "train/metadata.jsonl": ("{}", r"metadata\.jsonl is a file of JSON lines, as from Labelbox or Hugging Face"),
    "train/_annotations.csv": ("filename,width\n", r"_annotations\.csv is a table, which ciod does not read"),
    "train/cat/a.jpg": ("", r"only pictures in folders, as for classification"),
    "training/label_2/1.txt": ("Car 0", r"label_2/ looks like annotations of KITTI"),
    "inner/data.zip": ("PK", r"data\.zip is an archive; unpack it first"),
    "labels/a.txt": (
        LINE,
        r"a\.txt looks like a box file of YOLO; write the names of the classes, one per line, into c",
    ),
    "a.txt": (LINE, r"a\.txt looks like a box file of YOLO"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_layout_that_is_not_read_is_named(tmp_path, name):
    text, match = REFUSED[name]
    put(tmp_path, {name: text})
    with pytest.raises(DataError, match=match) as error:
        formats.read(tmp_path)
    assert "Did you mean" not in str(error.value)


def test_a_list_of_another_tool(tmp_path):
    for content, match in (
        (json.loads(BDD), "labels of BDD100K"),
        ([{"x": 1}], "an export of another tool; export it"),
    ):
        (tmp_path / "a.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=match):
            formats.read(tmp_path / "a.json")


@pytest.mark.parametrize("inner", ["export", "export/data"])
def test_the_folder_that_is_proposed_is_read(tmp_path, inner):
    put(tmp_path, {"aaa/notes.json": "[]", **{f"{inner}/{k}": v for k, v in LAYOUTS["labelImg"].items()}})
    with pytest.raises(DataError) as error:
        formats.read(tmp_path)
    proposed = re.search(r"Did you mean (.*)\?$", str(error.value))
    assert proposed and len(formats.read(proposed[1])) == 1


@pytest.mark.parametrize(
    ("target", "match"),
    [("nowhere", r"it is a link to .*nowhere, which is not there"), ("link", "a link that leads to i")],
)
def test_links_to_nothing(tmp_path, target, match):
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(DataError, match=match):
        formats.recognise(tmp_path / "link")
    with pytest.raises(ConfigError, match=match):
        commands.read(commands.EVAL, [f"data={tmp_path / 'link'}"])


def test_results_do_not_go_into_the_data(tmp_path):
    put(tmp_path, LAYOUTS["labelImg"])
    for words in ([f"data={tmp_path}", f"out={tmp_path}/."], [f"data={tmp_path}/", f"out={tmp_path}"]):
        for table in (commands.EVAL, commands.PREDICT):
            with pytest.raises(
                ConfigError, match=r"out: .* is the folder of data=; results and pictures would be mixed"
            ):
                commands.read(table, words)
    assert commands.read(commands.EVAL, [f"data={tmp_path}", f"out={tmp_path}/eval"])[1]["out"] == f"{tmp_path}/eval"
    for key, table in (("json", commands.EVAL), ("coco", commands.PREDICT), ("onnx", commands.EXPORT)):
        with pytest.raises(
            ConfigError, match=rf"{key}: .* cannot be written: it is a folder\. Give the name of a file"
        ):
            commands.read(table, [f"{key}={tmp_path}", *([f"data={tmp_path}"] if key == "json" else [])])
