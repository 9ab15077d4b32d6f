"""Boxes whose numbers mean something other than the format says are refused, in every format; right ones never are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from ciod.core.errors import DataError
from ciod.data import formats
from ciod.data.formats.corners import _CHANGE, _NUMBERS, _corners, _numbers, check_form
from ciod.data.index import Problems
from tests.data.writers import sample_index, write_coco, write_voc, write_yolo

WRITERS: dict[str, Callable[..., Path]] = {
    "corner and sides": write_coco, "two corners": write_voc, "centre and sides": write_yolo,
}  # fmt: skip


def photographs(seed: int, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Boxes as photographs have them: any place, sides from a twentieth of the picture to all of it."""
    g = np.random.default_rng(seed)
    limit = g.uniform(100, 900, (count, 2)).round()
    side = limit * np.exp(g.uniform(np.log(0.05), 0, (count, 2)))
    low = g.uniform(0, 1, (count, 2)) * (limit - side)
    return np.concatenate([low, low + side], 1), limit


@pytest.mark.parametrize("written", _NUMBERS)
@pytest.mark.parametrize("form", _NUMBERS)
@pytest.mark.parametrize("seed", range(3))
def test_every_wrong_form_is_refused_and_the_right_one_is_not(form, written, seed):
    boxes, limit = photographs(seed)
    problems = Problems()
    read = _corners(_numbers(boxes, written), form)
    if form == written:
        check_form(read, limit, form, "here.json", problems)
        assert not problems
        return
    with pytest.raises(DataError, match=rf"^here\.json: \d+% of the 300 boxes reach outside .* as {_NUMBERS[form]},"):
        check_form(read, limit, form, "here.json", problems)
    with pytest.raises(DataError, match=f"inside as {_NUMBERS[written]}. They seem .*: {_CHANGE[form, written]}"):
        check_form(read, limit, form, "here.json", problems)


@pytest.mark.parametrize("form", _NUMBERS)
def test_boxes_that_merely_stick_out_are_clipped_as_before(form):
    boxes, limit = photographs(0)
    g = np.random.default_rng(1)
    for share in (0.1, 0.5, 1.0):
        moved = boxes + np.tile(g.normal(0, 0.1, (300, 2)) * limit * (g.random((300, 1)) < share), 2)
        check_form(moved, limit, form, "", problems := Problems())
        assert not problems


def test_few_boxes_are_reported_and_read_as_the_format_says():
    boxes, limit = np.array([[10.0, 10, 60, 60], [50, 50, 140, 140], [1, 2, 9, 9]]), np.full((3, 2), 100.0)
    check_form(boxes, limit, "corner and sides", "", problems := Problems())
    assert problems.lines() == [
        "1 × data set whose boxes may be written in another form, read as x, y, width, height: 33% of the 3 boxes "
        "reach outside their pictures as x, y, width, height, which this format has, "
        "and all lie inside as x1, y1, x2, y2"
    ]
    check_form(np.full((3, 4), np.nan), np.ones((3, 2)), "corner and sides", "", problems := Problems())
    assert not problems


def test_the_data_sets_of_photographs_are_read(datasets):
    for name in ("tiny", "cards6", "coco671", "fod31", "voc07"):
        assert not any(
            "another form" in line for line in formats.read(datasets / name, "val", check="files").problems.lines()
        )


def rewrite(root: Path, form: str, written: str) -> None:
    """The data set's boxes with the numbers of another form."""
    if form == "corner and sides":
        content = json.loads((root / "train.json").read_text())
        for a in content["annotations"]:
            a["bbox"] = other(a["bbox"], form, written)
        (root / "train.json").write_text(json.dumps(content))
    if form == "two corners":
        for file in (root / "Annotations").iterdir():
            tree = ElementTree.parse(file)
            for box in tree.iter("bndbox"):
                for side, value in zip(box, other([float(s.text) - (i < 2) for i, s in enumerate(box)], form, written)):
                    side.text = str(round(value + (side.tag in ("xmin", "ymin")), 2))
            tree.write(file)
    if form == "centre and sides":
        for file in (root / "labels" / "train").iterdir():
            lines = [line.split() for line in file.read_text().splitlines()]
            file.write_text(
                "\n".join(" ".join([n, *map(str, other([*map(float, b)], form, written))]) for n, *b in lines)
            )


def other(numbers: list[float], form: str, written: str) -> list[float]:
    return _numbers(_corners(np.array([numbers]), form), written)[0].tolist()


@pytest.mark.parametrize("written", _NUMBERS)
@pytest.mark.parametrize("form", _NUMBERS)
def test_all_formats(tmp_path, form, written):
    index = sample_index(tmp_path / "pictures", images=16)
    rng = np.random.default_rng(0)
    for i in range(len(index)):
        rows = index.of_image(i)
        height, width = index.sizes[i]
        low = rng.uniform(0, 0.5, (rows.stop - rows.start, 2)) * (width, height)
        high = low + rng.uniform(0.4, 1, low.shape) * ((width, height) - low)
        index.boxes[rows] = np.concatenate([low, high], 1).round()
    root = WRITERS[form](index, tmp_path / "data")
    rewrite(root, form, written)
    if form == written:
        found = formats.read(root)
        assert np.abs(found.boxes - index.boxes).max() < 1.1 and "another form" not in str(found.problems.lines())
        return
    with pytest.raises(DataError, match=f"inside as {_NUMBERS[written]}"):
        formats.read(root)
    shutil.rmtree(root)
