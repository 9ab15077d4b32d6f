"""Pictures however they are given, in batches, with filters; what one bad picture must not spoil."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ciod
from ciod.core.errors import CiodError, DataError
from ciod.core.types import Detections
from ciod.data import formats
from ciod.data.images import read_image, save_image
from ciod.detectors.base import Detector
from ciod.detectors.inference import mask_of
from ciod.inference.images import files
from ciod.inference.job import Job, coco_results
from ciod.inference.target import LISTED
from tests.data.writers import sample_index, write_coco
from tests.inference.networks import NAMES, settled


@pytest.fixture(scope="module")
def model() -> Detector:
    return settled()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name, shape in (("a.png", (40, 60)), ("b c.png", (70, 30)), ("ü/c.png", (64, 64))):
        save_image(root / name, random.integers(0, 255, (*shape, 3), dtype=np.uint8))
    return root


def same(a: Detections, b: Detections) -> None:
    assert np.array_equal(a.labels, b.labels)
    np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-3)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)


LOW = {"score_threshold": 1e-4, "max_detections": 5}


def test_a_list_gives_what_each_gives_alone(model, folder):
    paths = files(folder)
    assert [p.name for p in paths] == ["a.png", "b c.png", "c.png"]
    alone = [model.predict(p, **LOW) for p in paths]
    assert all(isinstance(d, Detections) and len(d) == 5 for d in alone)
    for batch in (1, 2, 8):
        for one, other in zip(alone, model.predict(paths, batch=batch, **LOW), strict=True):
            same(one, other)
    mixed = [str(paths[0]), Image.open(paths[1]), read_image(paths[2])]
    for one, other in zip(alone, model.predict(mixed, **LOW), strict=True):
        same(one, other)
    stacked = np.stack([read_image(paths[2])] * 2)
    same(model.predict(stacked, **LOW)[1], alone[2])
    assert model.predict([], **LOW) == []


def test_the_boxes_lie_in_their_picture(model, folder):
    for path in files(folder):
        height, width = read_image(path).shape[:2]
        boxes = model.predict(path, **LOW).boxes
        assert (boxes >= 0).all() and (boxes[:, 0::2] <= width).all() and (boxes[:, 1::2] <= height).all()


def test_mode_is_restored(model, folder):
    model.train()
    model.predict(folder / "a.png")
    assert model.training
    model.eval()


def test_only_some_classes_are_looked_for(model, folder):
    every = model.predict(folder / "a.png", score_threshold=1e-6, max_detections=1000)
    cats = model.predict(folder / "a.png", classes=["cat"], score_threshold=1e-6, max_detections=1000)
    assert set(cats.labels) == {0}
    # A position whose best class is another one is a cat once cats alone are asked for.
    assert len(cats) > len(every.only("cat"))
    with pytest.raises(CiodError, match="2 problems") as caught:
        model.predict(folder / "a.png", classes=["cta", "cat", "Owl"])
    assert "no class 'cta'; did you mean 'cat'" in str(caught.value) and "did you mean 'owl'" in str(caught.value)


def test_a_batch_of_nothing(model, folder):
    with pytest.raises(CiodError, match=r"^batch: 0 is not at least 1\.$"):
        ciod.predict(model, folder, batch=0)


def test_a_bad_picture_is_reported_or_left_out(model, folder, tmp_path):
    (tmp_path / "damaged.jpg").write_bytes(b"damaged")
    (tmp_path / "good.png").write_bytes((folder / "a.png").read_bytes())
    with pytest.raises(DataError, match=r"damaged\.jpg is not a picture"):
        model.predict([folder / "a.png", tmp_path / "damaged.jpg"])
    found = ciod.predict(model, tmp_path, device="cpu", **LOW)
    assert [p.name for p in found] == ["good.png"]
    with pytest.raises(CiodError, match=r"for frame in ciod\.frames"):
        (tmp_path / "clip.mp4").write_bytes(b"")
        ciod.predict(model, tmp_path / "clip.mp4")


def test_files(tmp_path):
    for name in ("b.JPG", "a.webp", "notes.txt", ".hidden.png", "sub/c.gif", "clip.MP4", "out/old.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    names = [p.name for p in files([tmp_path, tmp_path / "b.JPG"], without=tmp_path / "out")]
    assert names == ["a.webp", "b.JPG", "c.gif"]
    assert "clip.MP4" in [p.name for p in files(tmp_path, videos=True)]
    with pytest.raises(CiodError, match=r"did you mean '.*b\.JPG'"):
        files(tmp_path / "b.jpg")


# Awkward pictures -----------------------------------------------------------------------------------------------------

AWKWARD = {
    "grey.png": lambda: Image.new("L", (50, 30), 90),
    "rgba.png": lambda: Image.new("RGBA", (50, 30), (9, 8, 7, 0)),
    "sixteen.png": lambda: Image.fromarray(np.full((30, 50), 40_000, np.uint16)),
    "palette.gif": lambda: Image.new("P", (50, 30)),
    "one.png": lambda: Image.new("RGB", (1, 1)),
    "line.png": lambda: Image.new("RGB", (4000, 1)),
    "column.png": lambda: Image.new("RGB", (2, 3000)),
}


def test_awkward_pictures_are_pictures(model, tmp_path):
    for name, make in AWKWARD.items():
        make().save(tmp_path / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 30)).save(tmp_path / "turned.jpg", exif=exif)
    printed: list[str] = []
    job = Job(model, [str(tmp_path)], tmp_path / "out", score=0.0, say=printed.append, complain=printed.append)
    assert job.run() == len(AWKWARD) + 1 == len(printed)
    assert not [line for line in printed if "cannot" in line]
    assert read_image(tmp_path / "out" / "turned.jpg").shape[0] > read_image(tmp_path / "out" / "turned.jpg").shape[1]


# What predict leaves --------------------------------------------------------------------------------------------------


def test_coco_results_take_the_ids_of_the_data_set(model, tmp_path):
    write_coco(sample_index(tmp_path / "source"), tmp_path / "data", "val")
    truth = json.loads((tmp_path / "data" / "val.json").read_text())
    for i, image in enumerate(truth["images"]):  # ids unlike the order
        image["id"] = 100 - i
    for i, category in enumerate(truth["categories"]):
        category["id"] = 7 * (i + 1)
    truth["annotations"] = []
    (tmp_path / "data" / "val.json").write_text(json.dumps(truth))
    data = formats.read(tmp_path / "data", "val")
    job = Job(model, [], tmp_path / "out", draw=False, coco=tmp_path / "r.json", data=data, say=lambda _: None)
    assert job.run() == 4
    results = json.loads((tmp_path / "r.json").read_text())
    assert {r["image_id"] for r in results} == {i["id"] for i in truth["images"]}
    ids = {c["name"]: c["id"] for c in truth["categories"]}
    assert {r["category_id"] for r in results} == {ids["cat"], ids["dog"]}  # the data set has no owl
    assert all(set(r) == {"image_id", "category_id", "bbox", "score"} for r in results)
    assert min(r["score"] for r in results) < 0.3, "a file for AP has doubtful detections too"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["predictions.json"]
    save_image(tmp_path / "other.png", np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(CiodError, match=r"\S+ is not in \S+; leave data= out, or name its own pictures"):
        Job(model, [str(tmp_path / "other.png")], tmp_path / "out", coco=tmp_path / "r.json", data=data)
    save_image(tmp_path / "third.png", np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(CiodError, match=r"other.png \(of 2 such pictures\) is not in"):
        strange = [str(tmp_path / "other.png"), str(tmp_path / "third.png")]
        Job(model, strange, tmp_path / "out", coco=tmp_path / "r.json", data=data)


def test_coco_results_without_a_data_set_count_files(model, folder, tmp_path):
    Job(model, [str(folder)], tmp_path / "out", draw=False, coco=tmp_path / "r.json", say=lambda _: None).run()
    results = json.loads((tmp_path / "r.json").read_text())
    assert {r["image_id"] for r in results} == {1, 2, 3} and {r["category_id"] for r in results} <= {1, 2, 3}
    box = coco_results(Detections([[1, 2, 11, 22]], [0.5], [1], NAMES), 9, [4, 5, 6])
    assert box == [{"image_id": 9, "category_id": 5, "bbox": [1, 2, 10, 20], "score": 0.5}]


def test_coco_results_score_as_eval_does(weights, datasets, tmp_path):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    nano = ciod.load(weights / "yolox_nano_coco.pth")
    data = formats.read(datasets / "tiny", "val")
    Job(nano, [], tmp_path / "out", draw=False, coco=tmp_path / "r.json", data=data, say=lambda _: None).run()
    truth = COCO(data.source)
    scorer = COCOeval(truth, truth.loadRes(str(tmp_path / "r.json")), "bbox")
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    scored = ciod.evaluate(nano, datasets / "tiny", device="cpu")
    assert scorer.stats[0] == pytest.approx(scored.table.overall["AP"], abs=2e-3)


def test_out_that_cannot_be_written(model, folder, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(CiodError, match="cannot be written"):
        Job(model, [str(folder)], tmp_path / "out", say=lambda _: None).run()


def test_an_input_is_never_overwritten(model, folder):
    with pytest.raises(CiodError, match=r"holds a\.png itself"):
        Job(model, [str(folder / "a.png")], folder)


def drawn_by(job: Job) -> dict[str, Any]:
    job.run()
    return {Path(line["image"]).name: line.get("drawn") for line in json.loads((job.out / LISTED).read_text())}


def test_an_earlier_prediction_is_replaced_only_on_request(model, folder, tmp_path):
    out, files = tmp_path / "out", [str(folder / "a.png"), str(folder / "b c.png")]
    assert drawn_by(Job(model, files, out, say=lambda _: None)) == {"a.png": "a.jpg", "b c.png": "b c.jpg"}
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    for draw in (True, False):
        with pytest.raises(CiodError, match=r"out: .* holds an earlier prediction .* or write overwrite=true"):
            Job(model, files[:1], out, draw=draw)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    (out / "mine.jpg").write_bytes(b"the user's")
    drawn_by(Job(model, files[1:], out, overwrite=True, say=lambda _: None))
    assert sorted(p.name for p in out.iterdir()) == ["b c.jpg", "mine.jpg", LISTED], "no stale picture, nor the user's"
    drawn_by(Job(model, files[1:], out, draw=False, overwrite=True, say=lambda _: None))
    assert sorted(p.name for p in out.iterdir()) == ["mine.jpg", LISTED]


def test_pictures_of_the_user_in_out_are_not_overwritten(model, folder, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"the user's")
    with pytest.raises(CiodError, match=r"out: .* would be overwritten in part \(a\.jpg\)\. Choose another out="):
        Job(model, [str(folder / "a.png")], tmp_path)
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(CiodError, match=r"coco: .*c\.json already exists \(c\.json\)\. Choose another coco="):
        Job(model, [str(folder / "a.png")], tmp_path / "out", coco=tmp_path / "c.json")
    with pytest.raises(CiodError, match=r"coco: .* is the file of the predictions themselves"):
        Job(model, [str(folder / "a.png")], tmp_path / "out", coco=tmp_path / "out" / LISTED)
    (tmp_path / "val.json").write_text('{"images": []}')  # annotations, not results
    with pytest.raises(CiodError, match=r"coco: .*val\.json exists and is not a file of COCO results"):
        Job(model, [str(folder / "a.png")], tmp_path / "out", coco=tmp_path / "val.json", overwrite=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").symlink_to(tmp_path / "a.jpg")
    with pytest.raises(CiodError, match="one of the inputs, which is never overwritten"):
        Job(model, [str(tmp_path / "elsewhere" / "a.jpg")], tmp_path, overwrite=True)
    assert (tmp_path / "a.jpg").read_bytes() == b"the user's"


def test_an_earlier_list_leads_to_no_other_file(model, folder, tmp_path):
    (tmp_path / "mine.jpg").write_bytes(b"the user's")
    (tmp_path / "out").mkdir()
    for content in ([{"drawn": "../mine.jpg"}, {"drawn": 3}, 4, {"drawn": str(tmp_path / "mine.jpg")}], {"a": 1}):
        (tmp_path / "out" / LISTED).write_text(json.dumps(content))
        Job(model, [str(folder / "a.png")], tmp_path / "out", overwrite=True, say=lambda _: None).run()
    assert (tmp_path / "mine.jpg").exists()


# Detections -----------------------------------------------------------------------------------------------------------


def found() -> Detections:
    return Detections([[0, 0, 4, 4], [1, 1, 5, 5], [2, 2, 3, 3]], [0.9, 0.6, 0.2], [1, 0, 1], NAMES)


def test_detections_are_validated():
    for boxes, scores, labels, match in (
        ([[0, 0, 1]], [0.5], [0], "must be"),
        ([[0, 0, 1, 1]], [1.5], [0], r"scores must be in 0\.\.1"),
        ([[0, 0, 1, 1]], [float("nan")], [0], r"scores must be in 0\.\.1"),
        ([[0, 0, 1, 1]], [0.5], [3], r"labels must be from 0 to 2, the number of the last class; got \[3\]"),
        ([[0, 0, 1, 1]], [0.5], [-1], "labels must be"),
        ([[0, 0, float("inf"), 1]], [0.5], [0], "finite"),
        ([[2, 0, 1, 1]], [0.5], [0], "x1 <= x2"),
    ):
        with pytest.raises(ValueError, match=match):
            Detections(boxes, scores, labels, NAMES)


def test_detections_are_filtered_and_counted():
    assert repr(found()) == "Detections(1 cat, 2 dog; scores 0.20 to 0.90)"
    assert repr(found().keep(np.zeros(3, bool))) == "Detections(nothing)"
    assert found().only("dog").scores.tolist() == pytest.approx([0.9, 0.2])
    assert found().only("dog", "cat").to_list() == found().to_list()
    assert len(found().above(0.6)) == 1
    with pytest.raises(CiodError, match="There is no class 'dgo'; did you mean 'dog'"):
        found().only("dgo")


def test_one_by_one():
    first, *others = found()
    assert (first.name, first.label, first.box) == ("dog", 1, tuple(found().boxes[0].tolist())) and len(others) == 2
    assert found()[0] == first and found()[-1] == others[-1]
    names = [name for name, score, box, label in found()[1:]]
    assert names == ["cat", "dog"]
    assert len(found()[found().scores > 2]) == 0 and len(found()[[]]) == 0
    assert [d.name for d in found()[[2, 0]]] == ["dog", "dog"]
    with pytest.raises(IndexError):
        found()[3]


def test_to_dataframe():
    pytest.importorskip("pandas", reason="pandas is absent: pip install pandas")
    table = found().to_dataframe()
    assert list(table.columns) == ["class", "score", "x1", "y1", "x2", "y2"]
    assert table["class"].tolist() == ["dog", "cat", "dog"] and len(found()[:0].to_dataframe()) == 0


def test_to_fiftyone(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "fiftyone", SimpleNamespace(Detection=SimpleNamespace, Detections=lambda detections: detections)
    )
    one = Detections([[10, 20, 60, 40]], [0.5], [1], NAMES).to_fiftyone(100, 200)[0]
    assert one.label == "dog" and one.confidence == 0.5 and one.bounding_box == pytest.approx([0.1, 0.1, 0.5, 0.1])


@pytest.mark.parametrize("package", ["pandas", "fiftyone"])
def test_a_package_that_is_absent(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CiodError, match=f"{package} is not installed: pip install {package}"):
        found().to_fiftyone(1, 1) if package == "fiftyone" else found().to_dataframe()


def test_draw():
    grey = np.full((40, 60, 3), 128, np.uint8)
    picture = ciod.draw(grey, Detections([[10, 10, 50, 30]], [0.9], [1], NAMES))
    assert picture.mode == "RGB" and picture.width / picture.height == pytest.approx(1.5, abs=0.01)
    assert np.asarray(picture).std() > 0 and np.asarray(ciod.draw(grey, found(), score=2)).std() == 0


def test_to_supervision(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=lambda **fields: fields))
    fields = found().to_supervision()
    assert fields["xyxy"].shape == (3, 4) and fields["class_id"].tolist() == [1, 0, 1]
    assert fields["confidence"].dtype == np.float32 and fields["data"]["class_name"].tolist() == ["dog", "cat", "dog"]
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(CiodError, match="pip install supervision"):
        found().to_supervision()


def test_the_real_supervision_takes_them():
    sv = pytest.importorskip("supervision", reason="supervision is absent: pip install supervision")
    detections = found().to_supervision()
    assert isinstance(detections, sv.Detections) and len(detections[detections.confidence > 0.5]) == 2
    assert len(Detections(np.zeros((0, 4)), [], [], NAMES).to_supervision()) == 0


def test_what_is_neither_file_nor_folder(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes on this system")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CiodError, match=r"pipe is neither a file nor a folder\."):
        files(tmp_path / "pipe")


def test_no_class_at_all():
    with pytest.raises(CiodError, match="classes: there is no name in it"):
        mask_of(NAMES, [])


def test_coco_results_of_only_videos(model, tmp_path):
    pytest.importorskip("av", reason="PyAV is absent: pip install 'ciod[video]'")
    (tmp_path / "a.mp4").touch()
    with pytest.raises(CiodError, match="coco: COCO results are of pictures; there are only videos here"):
        Job(model, [str(tmp_path / "a.mp4")], tmp_path / "out", coco=tmp_path / "c.json", say=lambda _: None)


def test_detections_must_fit_together():
    with pytest.raises(ValueError, match=r"boxes must be \[n, 4\], scores \[n\], labels \[n\]; got "):
        Detections(np.zeros((2, 4)), np.ones(1), np.zeros(1))
