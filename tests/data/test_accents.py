"""Names with accents, composed (é) or decomposed (e and a combining accent), are the same name everywhere."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

import ciod
from ciod import detectors
from ciod.config.checks import data_folder
from ciod.core.files import stored
from ciod.data import formats
from ciod.data.images import save_image
from ciod.data.scenarios.scenario import Protocol, groups_of
from ciod.data.text_files import same_names
from ciod.detectors.files import weights
from ciod.extension import names
from ciod.inference.images import files
from ciod.inference.job import Job
from ciod.memory import pools
from tests.detectors.common import make

FORMS = ["NFC", "NFD"]
BOTH = pytest.mark.parametrize(("one", "other"), [FORMS, FORMS[::-1]])
GREY = np.full((100, 200, 3), 90, np.uint8)


def form(kind: str, text: str = "café") -> str:
    return unicodedata.normalize(kind, text)


def test_names_that_would_become_one_are_left_alone():
    assert same_names([form("NFD"), "dog"]) == (form("NFC"), "dog")
    assert same_names([form("NFD"), form("NFC")]) == (form("NFD"), form("NFC"))


@BOTH
def test_a_path_of_the_other_form_is_found(tmp_path, one, other):
    (tmp_path / form(one) / form(one, "Übung")).mkdir(parents=True)
    there = tmp_path / form(one) / form(one, "Übung")
    assert stored(tmp_path / form(other) / form(other, "Übung")) == there == stored(there)
    assert data_folder(str(tmp_path / form(other) / form(other, "Übung"))) == str(there)
    absent = tmp_path / form(other) / "é"
    assert stored(absent) == absent


@BOTH
@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_pictures_and_labels_of_both_forms_meet(tmp_path, kind, one, other):
    a, b = form(one), form(other)
    place = {"voc": "JPEGImages", "yolo": "images", "coco": "images"}[kind]
    save_image(tmp_path / place / f"{a}.jpg", GREY)
    if kind == "coco":
        content = {
            "images": [{"id": 1, "file_name": f"{b}.jpg", "width": 200, "height": 100}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40]}],
            "categories": [{"id": 1, "name": b}],
        }
        (tmp_path / "train.json").write_text(json.dumps(content))
    elif kind == "voc":
        (tmp_path / "Annotations").mkdir()
        (tmp_path / "Annotations" / f"{b}.xml").write_text(
            f"<annotation><filename>{b}.jpg</filename><size><width>200</width><height>100</height></size><object>"
            f"<name>{b}</name><bndbox><xmin>10</xmin><ymin>10</ymin><xmax>50</xmax><ymax>50</ymax></bndbox></object>"
            "</annotation>",
            encoding="utf-8",
        )
    else:
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels" / f"{b}.txt").write_text("0 0.2 0.4 0.1 0.4\n")
        (tmp_path / "classes.txt").write_text(f"{b}\n", encoding="utf-8")
    index = formats.read(tmp_path, "train")
    assert (len(index), len(index.labels), index.class_names) == (1, 1, (form("NFC"),)), index.problems.lines()


@BOTH
def test_a_class_is_one_class_in_every_setting(tmp_path, one, other):
    a, b = form(one), form(other)
    assert groups_of(Protocol(split=[[a], ["dog"]]), (form("NFC"), "dog"))[0] == (form("NFC"),)
    assert groups_of(Protocol(order=[a, "dog"], split="1+1"), (form("NFC"), "dog"))[0] == (form("NFC"),)

    matched = names.match([a, "dog", "owl"], [form("NFC")], drop=["dog"], rename={"owl": b + "s"}, new=[])
    assert matched.new == () and matched.taught == (form("NFC"),) and matched.dropped == ("dog",)
    assert matched.old == (form("NFC"), form("NFC") + "s")
    assert names.match([a, "dog"], ["owl"], keep=[b]).old == (form("NFC"),)

    detector = make("yolox-pico", (a, "dog"))
    assert detector.class_names == (form("NFC"), "dog")
    with pytest.raises(ciod.CiodError, match="already knows"):
        detector.grow([b])
    detector.rename({b: form(one, "thé")})
    detector.select([form(other, "thé")])
    assert detector.class_names == (form("NFC", "thé"),)
    weights.save_model(tmp_path / "m.safetensors", detector)
    assert weights.load(tmp_path / "m.safetensors").class_names == (form("NFC", "thé"),)


@BOTH
def test_predict_finds_pictures_and_rows_of_the_data_set(tmp_path, one, other):
    picture = tmp_path / "images" / f"{form(one)}.jpg"
    save_image(picture, GREY)
    assert files(tmp_path / "images" / f"{form(other)}.jpg") == [picture]
    (tmp_path / form(one, "été")).mkdir()
    copy = save_copy(picture, tmp_path / form(one, "été") / f"{form(other)}.jpg")
    assert pools.read(tmp_path / form(other, "été")).files == [copy]
    content = {
        "images": [{"id": "the id", "file_name": picture.name, "width": 200, "height": 100}],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "val.json").write_text(json.dumps(content))
    detector = make("yolox-pico", ("cat",))
    job = Job(detector, [str(copy)], tmp_path / "out", coco=tmp_path / "r.json", data=formats.read(tmp_path, "val"))
    assert list(job.rows.values()) == [0]


def save_copy(picture: Path, to: Path) -> Path:
    to.write_bytes(picture.read_bytes())
    return to


def test_eval_takes_classes_of_either_form(tmp_path):
    save_image(tmp_path / "images" / "a.jpg", GREY)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.2 0.4 0.1 0.4\n9 0.2 0.4 0.1 0.4\n")
    (tmp_path / "classes.txt").write_text("café\n", encoding="utf-8")
    detector = detectors.build([form("NFD")], name="yolox-pico", size=64)
    scored = ciod.evaluate(detector, tmp_path, split="train", classes=[form("NFD")], device="cpu")
    assert scored.scored == ("café",) and scored.unknown_to_model == ()
    assert len(scored.problems) == 1 and "unknown class number" in scored.problems[0]
