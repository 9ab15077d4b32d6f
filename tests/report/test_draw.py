"""Pictures: legible at small sizes, the same colours everywhere, and no class name that crashes them."""

from __future__ import annotations

import numpy as np
import pytest

from ciod.core.types import Detections
from ciod.report.draw import PALETTE, colour, draw_boxes, draw_truth, grid, side_by_side

NAMES = ("cat", "dog", "bird")


def picture(h: int = 120, w: int = 160) -> np.ndarray:
    return np.full((h, w, 3), 90, np.uint8)


def found(boxes: list[list[float]], labels: list[int], names: tuple[str, ...] = NAMES) -> Detections:
    n = len(labels)
    d = Detections(np.zeros((n, 4)), np.linspace(0.9, 0.4, n), np.zeros(n), names)
    d.boxes, d.labels = np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)  # also ones refused
    return d


@pytest.mark.parametrize(("h", "w"), [(120, 160), (320, 200), (1, 1), (7, 400), (600, 800)])
def test_upscaled_to_a_legible_size(h: int, w: int) -> None:
    out = draw_boxes(picture(h, w), found([[1, 1, w / 2, h / 2]], [0]))
    assert out.dtype == np.uint8 and max(out.shape[:2]) == max(480, h, w)
    assert out.shape[0] / out.shape[1] == pytest.approx(h / w, rel=0.1, abs=1 / 480)


def test_shrunk_when_asked() -> None:
    assert draw_boxes(picture(600, 800), found([], []), at_most=400).shape == (300, 400, 3)


def test_box_is_where_it_should_be() -> None:
    image = picture(480, 480)
    before = image.copy()
    out = draw_boxes(image, found([[100, 200, 300, 400]], [1]))
    assert (image == before).all(), "the picture given is left alone"
    assert tuple(out[300, 100]) == colour(1) and tuple(out[400, 200]) == colour(1)
    assert (out[300, 200] == 90).all() and (out[300, 320] == 90).all()


def test_colours_follow_the_class() -> None:
    assert len({colour(i) for i in range(len(PALETTE))}) == len(PALETTE)
    teacher = draw_boxes(picture(480, 480), found([[100, 200, 300, 400]], [2]))
    student = draw_boxes(picture(480, 480), found([[20, 20, 60, 60], [100, 200, 300, 400]], [0, 2]))
    assert tuple(teacher[300, 100]) == tuple(student[300, 100]) == colour(2)


def test_new_classes_and_truth_show() -> None:
    d = found([[40, 50, 120, 100]], [2])
    plain = draw_boxes(picture(), d)
    assert (draw_boxes(picture(), d, new={"bird"}) != plain).any()
    assert (draw_boxes(picture(), d, new={"cat"}) == plain).all()
    truth = draw_boxes(picture(), d.keep(np.zeros(1, bool)), truth=d)
    assert (truth == 255).all(2).any(), "white dashes"
    assert (draw_truth(picture(), d) == 255).all(2).sum() > (truth == 255).all(2).sum(), "and a label on its own"
    assert (draw_boxes(picture(), d, min_score=0.95) == draw_boxes(picture(), found([], []))).all()


@pytest.mark.parametrize("name", ["Ähre", "鳥", "кот", "قط", "🐈", "a\nb\tc", "", "\ud800", "x" * 300, "\x00<b>"])
def test_any_name(name: str) -> None:
    d = found([[2, 2, 100, 80]], [0], (name,))
    out = draw_boxes(picture(), d, new=(name,))
    assert draw_truth(picture(), d).shape == out.shape
    assert side_by_side([out, out], [name, name], caption=name).ndim == 3


def test_odd_boxes() -> None:
    boxes = [[-50, -50, 900, 900], [100, 80, 20, 10], [5, 5, 5, 5], [np.nan, 0, np.inf, 1], [-90, -90, -80, -80]]
    assert draw_boxes(picture(), found(boxes, [0, 1, 2, 7, 0]), truth=found(boxes, [0] * 5)).shape == (360, 480, 3)


def test_crowd_of_labels_spreads() -> None:
    d = found([[60, 60, 100, 100]] * 3, [0, 1, 2])
    out = draw_boxes(picture(160, 160), d)
    assert all((out == colour(i)).all(2).sum() > 200 for i in range(3)), "no label hides another"


def test_side_by_side_and_grid() -> None:
    row = side_by_side([picture(100, 80), picture(60, 90)], ["teacher", "student"])
    assert row.shape == (127, 2 * 90 + 8, 3)
    assert side_by_side([picture(100, 80)], ["t"], caption="a long caption " * 9).shape[0] > 127 + 14
    assert grid([picture(10, 10)] * 5, 2).shape == (3 * 18 - 8, 2 * 18 - 8, 3)
    assert grid([picture(10, 10)], 4).shape == (10, 10, 3)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="uint8"):
        draw_boxes(np.zeros((4, 4, 3)), found([], []))
    with pytest.raises(ValueError, match=r"\[4, 4\]"):
        draw_boxes(np.zeros((4, 4), np.uint8), found([], []))
    with pytest.raises(ValueError, match="one title"):
        side_by_side([picture()], [])
    with pytest.raises(ValueError, match="grid"):
        grid([], 2)


def test_images_that_cannot_be_drawn_are_refused() -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="one title per image is needed; got 1 images, 2 titles"):
        side_by_side([picture], ["a", "b"])
    with pytest.raises(ValueError, match="a grid needs images and columns; got 1 images, 0 columns"):
        grid([picture], 0)
    with pytest.raises(ValueError, match=r"an image must be \[H, W, 3\] uint8; got \[8, 8\] float64"):
        side_by_side([np.zeros((8, 8))], ["a"])
