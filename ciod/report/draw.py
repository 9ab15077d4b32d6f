"""Draws boxes on images, legible also on small images.

This uses only Pillow. The annotators of torchvision and supervision cannot draw dashes or the dark rim that makes a box
visible on any background, and torchvision's labels overlap; supervision needs PyAV and SciPy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ciod.core.types import Detections

# Okabe and Ito's colours (without black), then Tol's: colour-blind people can distinguish classes that arrive together.
PALETTE = (
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
    "#332288", "#88CCEE", "#117733", "#DDCC77", "#AA4499", "#44AA99", "#882255", "#999933", "#BBBBBB",
)  # fmt: skip
_INK = (24, 24, 27)
_DARK = (0, 0, 0)
_WHITE = (255, 255, 255)
_GAP = 8  # pixels between images


def colour(label: int) -> tuple[int, int, int]:
    """The RGB colour of a class: by its position in the order of arrival, so it is the same in every image."""
    h = PALETTE[label % len(PALETTE)]
    return int(h[1:3], 16), int(h[3:5], 16), int(h[5:7], 16)


def draw_boxes(
    image: np.ndarray,
    detections: Detections,
    *,
    new: Collection[str] = (),
    truth: Detections | None = None,
    min_score: float = 0.0,
    at_least: int = 480,
    at_most: int | None = None,
) -> np.ndarray:
    """Draws detections as coloured boxes with "name score" labels, the best on top.

    Args:
        image: [H, W, 3] uint8 RGB.
        detections: boxes in pixels of ``image``.
        new: class names whose labels say "new" and whose lines are thicker.
        truth: ground truth below the detections: thin, white, dashed, without labels.
        min_score: detections with a lower score are left out.
        at_least, at_most: before drawing, the image is resized so that its longest side is in this range (pixels).

    Returns:
        [h, w, 3] uint8 RGB, the aspect ratio of ``image``.

    Raises:
        ValueError: ``image`` is not [H, W, 3] uint8.
    """
    canvas, scale = _canvas(image, at_least, at_most)
    draw = ImageDraw.Draw(canvas)
    size = max(13, round(max(canvas.size) / 42))
    line = max(2, round(max(canvas.size) / 240))
    for box in [] if truth is None else truth.boxes * scale:
        _dashed(draw, box, max(1, line // 2))
    order = [i for i in np.argsort(detections.scores, kind="stable") if detections.scores[i] >= min_score]
    for i in order:
        width = line + (line + 1) // 2 if _name(detections, i) in new else line
        _outline(draw, detections.boxes[i] * scale, colour(int(detections.labels[i])), width)
    taken: list[tuple[float, ...]] = []
    for i in reversed(order):  # the labels of the best detections are placed first
        name = _name(detections, i)
        text = f"{name} {detections.scores[i]:.2f}" + (" · new" if name in new else "")
        _label(draw, detections.boxes[i] * scale, text, colour(int(detections.labels[i])), size, taken)
    return np.asarray(canvas)


def draw_truth(
    image: np.ndarray, truth: Detections, *, new: Collection[str] = (), at_least: int = 480, at_most: int | None = None
) -> np.ndarray:
    """Draws only ground truth: thin white dashed boxes with class names. Arguments and result as in ``draw_boxes``."""
    canvas, scale = _canvas(image, at_least, at_most)
    draw = ImageDraw.Draw(canvas)
    size = max(13, round(max(canvas.size) / 42))
    for box in truth.boxes * scale:
        _dashed(draw, box, max(2, round(max(canvas.size) / 320)))
    taken: list[tuple[float, ...]] = []
    for i in range(len(truth)):
        name = _name(truth, i)
        _label(draw, truth.boxes[i] * scale, name + (" · new" if name in new else ""), _WHITE, size, taken)
    return np.asarray(canvas)


def side_by_side(images: Sequence[np.ndarray], titles: Sequence[str], *, caption: str | None = None) -> np.ndarray:
    """Images ([H, W, 3] uint8, sizes may differ) in a row, with a title bar over each and a common caption below.

    Raises:
        ValueError: there are no images, or not one title per image.
    """
    if not images or len(images) != len(titles):
        raise ValueError(f"one title per image is needed; got {len(images)} images, {len(titles)} titles")
    row = grid([_titled(_checked(i), t) for i, t in zip(images, titles, strict=True)], len(images))
    if not caption:
        return row
    size = 14
    lines = _wrapped(caption, size, row.shape[1] - 2 * _GAP)
    height = (size + 6) * len(lines) + _GAP
    canvas = Image.new("RGB", (row.shape[1], row.shape[0] + height), _WHITE)
    canvas.paste(Image.fromarray(row), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for k, text in enumerate(lines):
        draw.text((_GAP // 2, row.shape[0] + _GAP // 2 + k * (size + 6)), text, font=_font(size), fill=_INK)
    return np.asarray(canvas)


def grid(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Images ([H, W, 3] uint8) in rows of ``columns``: all cells have the size of the largest image, with white space
    between them.

    Raises:
        ValueError: there are no images or no columns.
    """
    if not images or columns < 1:
        raise ValueError(f"a grid needs images and columns; got {len(images)} images, {columns} columns")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    h, w = (max(_checked(i).shape[k] for i in images) for k in (0, 1))
    out = np.full((rows * (h + _GAP) - _GAP, columns * (w + _GAP) - _GAP, 3), 255, dtype=np.uint8)
    for k, image in enumerate(images):
        y, x = (k // columns) * (h + _GAP), (k % columns) * (w + _GAP)
        out[y : y + image.shape[0], x : x + image.shape[1]] = image
    return out


def _checked(image: np.ndarray) -> np.ndarray:
    """Raises ValueError for an array that is not an image."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"an image must be [H, W, 3] uint8; got {list(image.shape)} {image.dtype}")
    return image


def _canvas(image: np.ndarray, at_least: int, at_most: int | None) -> tuple[Image.Image, float]:
    """The image at drawing size, and drawn pixels per pixel of ``image``."""
    h, w = _checked(image).shape[:2]
    longest = max(h, w)
    scale = max(1.0, at_least / longest)
    if at_most is not None:
        scale = min(scale, at_most / longest)
    canvas = Image.fromarray(image)
    if scale != 1:
        canvas = canvas.resize((max(1, round(w * scale)), max(1, round(h * scale))), Image.Resampling.BICUBIC)
    return canvas, scale


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans, which is part of matplotlib: Pillow's own font has few characters beyond ASCII."""
    spec = find_spec("matplotlib")
    if spec is not None and spec.origin:
        path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size=size)


def _clean(text: str) -> str:
    """A single line that every font call accepts: no line breaks, control characters or lone surrogates."""
    text = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    return "".join(c for c in text if c.isprintable())


def _name(d: Detections, i: int) -> str:
    label = int(d.labels[i])
    return d.class_names[label] if label < len(d.class_names) else str(label)


def _fit(text: str, size: int, width: float) -> str:
    """``text``, cut with "…" until it is at most ``width`` pixels wide."""
    text, font = _clean(text), _font(size)
    if font.getlength(text) <= width:
        return text
    while len(text) > 1 and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _wrapped(text: str, size: int, width: float) -> list[str]:
    lines = [""]
    for word in _clean(text).split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _font(size).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_fit(line, size, width) for line in lines]


def _titled(image: np.ndarray, title: str) -> np.ndarray:
    size = 15
    bar = size + 12
    canvas = Image.new("RGB", (image.shape[1], image.shape[0] + bar), (39, 39, 42))
    canvas.paste(Image.fromarray(image), (0, bar))
    text = _fit(title, size, image.shape[1] - 16)
    ImageDraw.Draw(canvas).text((8, bar / 2), text, font=_font(size), fill=_WHITE, anchor="lm")
    return np.asarray(canvas)


def _sorted(box: np.ndarray) -> tuple[float, float, float, float]:
    """Corners in the right order, as PIL requires; a box that is not finite becomes a point in the corner."""
    x1, y1, x2, y2 = (float(v) for v in np.nan_to_num(np.clip(box, -1e4, 1e5)))
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _outline(draw: ImageDraw.ImageDraw, box: np.ndarray, fill: tuple[int, int, int], width: int) -> None:
    x1, y1, x2, y2 = _sorted(box)
    draw.rectangle(
        (x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_DARK, width=width + 2
    )  # a rim that is visible on any background
    draw.rectangle((x1, y1, x2, y2), outline=fill, width=width)


def _dashed(draw: ImageDraw.ImageDraw, box: np.ndarray, width: int) -> None:
    x1, y1, x2, y2 = _sorted(box)
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_DARK, width=width + 2)
    for a, b in _dashes(x1, x2, 5 * width + 3):
        draw.line((a, y1, b, y1), fill=_WHITE, width=width)
        draw.line((a, y2, b, y2), fill=_WHITE, width=width)
    for a, b in _dashes(y1, y2, 5 * width + 3):
        draw.line((x1, a, x1, b), fill=_WHITE, width=width)
        draw.line((x2, a, x2, b), fill=_WHITE, width=width)


def _dashes(start: float, stop: float, length: int) -> Iterator[tuple[float, float]]:
    at = start
    while at < stop:
        yield at, min(at + length, stop)
        at += 1.6 * length


def _label(
    draw: ImageDraw.ImageDraw,
    box: np.ndarray,
    text: str,
    fill: tuple[int, int, int],
    size: int,
    taken: list[tuple[float, ...]],
) -> None:
    """Draws a filled tag above the box, or inside or below it if space is short; ``taken`` collects the tags."""
    width, height = draw.im.size
    text = _fit(text, size, width - 6)
    w, h = _font(size).getlength(text) + 6, size + 5
    x1, y1, x2, y2 = _sorted(box)
    left = min(max(0.0, x1 - 1), width - w)
    right = min(max(0.0, x2 + 1 - w), width - w)
    places = [(x, min(max(0.0, y), height - h)) for y in (y1 - h, y1, y2 - h, y2) for x in (left, right)]
    if y1 < h:
        places = places[2:] + places[:2]
    x, y = min(places, key=lambda p: sum(_overlap((*p, p[0] + w, p[1] + h), t) for t in taken))
    taken.append((x, y, x + w, y + h))
    dark_text = 0.299 * fill[0] + 0.587 * fill[1] + 0.114 * fill[2] > 130
    draw.rectangle((x, y, x + w, y + h), fill=fill, outline=_DARK)
    draw.text((x + 3, y + h / 2), text, font=_font(size), fill=_DARK if dark_text else _WHITE, anchor="lm")


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
