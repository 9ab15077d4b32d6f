"""The demo data: the same everywhere, boxes that fit, pictures that a scenario can be made of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ciod.core.errors import DataError
from ciod.data.shapes import objects, paint, scenes
from ciod.data.shapes.scenes import CLASSES, draw_scene, write_shapes

OLD = set(range(6))


def scene(i: int, size: int = 128):
    return draw_scene(np.random.default_rng([0, 0, i]), size)


def masks(i: int, size: int = 128) -> list[np.ndarray]:
    """Each object's own mask, put on a canvas wide enough that nothing need be cut before the end."""
    _, items = scenes._scene(np.random.default_rng([0, 0, i]), size)
    out = []
    for item in items:
        wide = np.zeros((3 * size, 3 * size), bool)
        h, w = item.alpha.shape
        wide[size + item.y : size + item.y + h, size + item.x : size + item.x + w] = item.alpha >= 0.5
        out.append(wide)
    return out


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_classes_are_alphabetical_and_all_can_be_drawn():
    assert list(CLASSES) == sorted(CLASSES)
    assert len(CLASSES) == 10
    assert set(objects.OUTLINES) == set(CLASSES)


@pytest.mark.parametrize("size", [32, 128, 200])
def test_scene_has_the_stated_shapes_and_types(size):
    for i in range(5):
        image, boxes, labels = scene(i, size)
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
        assert boxes.shape == (len(labels), 4)
        assert boxes.dtype == np.float32
        assert labels.dtype == np.int64
        assert 1 <= len(labels) <= 6
        assert (boxes >= 0).all()
        assert (boxes <= size).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_boxes_are_tight_around_the_shape_in_the_image():
    size, cut = 128, 0
    for i in range(30):
        _, boxes, _ = scene(i)
        for box, wide in zip(boxes, masks(i)):
            ys, xs = np.nonzero(wide[size : 2 * size, size : 2 * size])
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            cut += int(wide.sum() > len(xs))
    assert cut  # some do cross the border, so the clipping was tested


def test_every_object_shows_most_of_itself_and_some_are_covered():
    size, covered = 128, 0
    for i in range(40):
        own = masks(i)
        for k, wide in enumerate(own):
            above = np.any(own[k + 1 :], axis=0) if own[k + 1 :] else np.zeros_like(wide)
            seen = (wide & ~above)[size : 2 * size, size : 2 * size].sum()
            assert seen >= 0.6 * wide.sum()
            covered += bool((wide & above).any())
    assert covered > 10


def test_objects_differ_from_their_surroundings():
    """Nothing to learn from, if colours were the background's: the paint must change the picture."""
    for i in range(10):
        rng = np.random.default_rng([0, 0, i])
        items = objects.place(rng, 128)
        image = paint.background(rng, 128)
        for item in items:
            before = image.copy()
            paint.paint(rng, image, item)
            (ys, xs), patch = objects.overlap(item, 128)
            assert np.abs(image - before)[:, ys, xs][:, patch].mean() > 8


def test_same_seed_same_bytes_another_seed_others(tmp_path):
    first = content(write_shapes(tmp_path / "a", train=4, val=2, seed=3, size=64))
    again = content(write_shapes(tmp_path / "b", train=4, val=2, seed=3, size=64))
    other = content(write_shapes(tmp_path / "c", train=4, val=2, seed=4, size=64))
    assert first == again
    assert all(first[n] != other[n] for n in first if n.endswith(".jpg"))


def test_an_image_does_not_depend_on_how_many_are_drawn_and_splits_differ(tmp_path):
    few = content(write_shapes(tmp_path / "few", train=2, val=1, size=64))
    many = content(write_shapes(tmp_path / "many", train=5, val=4, size=64))
    pictures = [n for n in few if n.endswith(".jpg")]
    assert len(pictures) == 3
    assert all(few[n] == many[n] for n in pictures)
    assert many["images/train_00000.jpg"] != many["images/val_00000.jpg"]


def test_written_files_are_coco(tmp_path):
    root = write_shapes(tmp_path / "new" / "set", train=6, val=3)
    assert sorted(p.name for p in root.iterdir()) == ["classes.txt", "images", "shapes.json", "train.json", "val.json"]
    assert (root / "classes.txt").read_text().split() == list(CLASSES)
    for split, count in (("train", 6), ("val", 3)):
        coco = json.loads((root / f"{split}.json").read_text())
        assert [c["name"] for c in coco["categories"]] == list(CLASSES)
        assert [i["id"] for i in coco["images"]] == list(range(1, count + 1))
        for image in coco["images"]:
            with Image.open(root / "images" / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"]) == (128, 128)
        _, boxes, labels = draw_scene(np.random.default_rng([0, ["train", "val"].index(split), 0]))
        of_first = [a for a in coco["annotations"] if a["image_id"] == 1]
        assert [a["category_id"] - 1 for a in of_first] == labels.tolist()
        assert [a["bbox"] for a in of_first] == [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes.tolist()]
        assert all(a["area"] == a["bbox"][2] * a["bbox"][3] > 0 and a["iscrowd"] == 0 for a in coco["annotations"])
        assert len({a["id"] for a in coco["annotations"]}) == len(coco["annotations"])


def test_old_and_new_classes_share_images_and_are_balanced():
    label_sets = [set(scene(i, 64)[2].tolist()) for i in range(120)]
    mixed = sum(bool(s & OLD) and bool(s - OLD) for s in label_sets)
    assert mixed > 60
    counts = np.bincount([y for s in label_sets for y in s], minlength=10)
    assert counts.min() > 0.5 * counts.max()


def test_stored_set_is_reused_and_other_settings_replace_it(tmp_path):
    root = write_shapes(tmp_path / "set", train=2, val=1, size=64)
    marker = root / "images" / "train_00000.jpg"
    marker.write_bytes(b"kept")
    write_shapes(root, train=2, val=1, size=64)
    assert marker.read_bytes() == b"kept"
    write_shapes(root, train=1, val=1, size=64)
    assert marker.read_bytes() != b"kept"
    assert len(list((root / "images").iterdir())) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["set"]  # nothing temporary is left


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "draw_scene", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_shapes(tmp_path / "set", train=1, val=0)
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_are_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match="holds other files than a shapes data set"):
        write_shapes(tmp_path / "photos", train=1, val=1)
    root = write_shapes(tmp_path / "set", train=1, val=0, size=64)
    (root / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other files"):
        write_shapes(root, train=2, val=0, size=64)
    assert (root / "notes.txt").exists()


@pytest.mark.parametrize("wrong", [{"train": -1}, {"val": -1}, {"size": 31}, {"seed": -1}])
def test_impossible_numbers_are_refused(tmp_path, wrong):
    with pytest.raises(DataError, match="at least"):
        write_shapes(tmp_path / "set", **({"train": 1, "val": 1} | wrong))
    assert list(tmp_path.iterdir()) == []


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["shapes", str(tmp_path / "set"), "--train", "1", "--val", "1", "--size", "48"])
    scenes._main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "set")
    assert len(list((tmp_path / "set" / "images").iterdir())) == 2
