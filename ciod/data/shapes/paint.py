"""Colours, textures and backgrounds of the built-in scenes."""

from __future__ import annotations

import colorsys
import math

import numpy as np
from PIL import Image, ImageDraw

from ciod.data.shapes.objects import CLASSES, Item, overlap, polygon

# Images are planes [3, h, w] float32 0..255 here: numpy is several times faster on them than on [h, w, 3].


def _colour(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0, 255, (3, 1, 1)).astype(np.float32)


def _typical(rng: np.random.Generator, label: int) -> np.ndarray:
    """[3, 1, 1]: a typical colour of this class, like red for tomatoes; one object in twenty has a random colour.

    Without it, minutes of training on a small machine would not be enough to learn ten shapes.
    """
    hue = label / len(CLASSES) + rng.normal(0, 0.025)
    saturation, value, odd = rng.uniform(0.55, 1.0), rng.uniform(0.5, 1.0), rng.random() < 0.05
    if odd:
        return _colour(rng)
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32).reshape(3, 1, 1)


def _muted(rng: np.random.Generator) -> np.ndarray:
    """[3, 1, 1]: a greyish colour, for backgrounds."""
    colour = _colour(rng)
    return colour * 0.4 + colour.mean() * 0.6


def to_image(planes: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(np.clip(planes, 0, 255).astype(np.uint8).transpose(1, 2, 0)))


def _to_planes(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")


def _smooth_noise(rng: np.random.Generator, cells: int, h: int, w: int) -> np.ndarray:
    """[3, h, w]: coloured clouds of about h / cells pixels."""
    coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return _to_planes(Image.fromarray(coarse).resize((w, h), Image.Resampling.BILINEAR))


def _ramp(rng: np.random.Generator, h: int, w: int, period: float) -> np.ndarray:
    """[h, w] float32: rises by one every ``period`` pixels in a random direction."""
    a = rng.uniform(0, math.tau)
    x = np.arange(w, dtype=np.float32) * (round(math.cos(a), 6) / period)
    y = np.arange(h, dtype=np.float32) * (round(math.sin(a), 6) / period)
    return (x + np.float32(rng.random())) + y[:, None]


def _texture(rng: np.random.Generator, h: int, w: int, base: np.ndarray) -> np.ndarray:
    """[3, h, w]: plain, gradient, stripes, dots, checks or clouds of ``base`` and a second colour."""
    other = base + (_colour(rng) - base) * rng.uniform(0.15, 0.4)
    kind = int(rng.integers(6))
    if kind == 0:
        mix = np.zeros((h, w), np.float32)
    elif kind == 1:
        mix = np.clip(_ramp(rng, h, w, max(h, w)) % 2, 0, 1)
    elif kind == 2:
        mix = (_ramp(rng, h, w, rng.uniform(4, 11)) % 1 < 0.5).astype(np.float32)
    elif kind == 3:
        period = rng.uniform(5, 10)
        square = (np.arange(max(h, w), dtype=np.float32) % period - period / 2) ** 2
        mix = square[:w] + square[:h, None] < period**2 / 9
    elif kind == 4:
        period = rng.uniform(4, 9)
        mix = (_ramp(rng, h, w, period) % 1 < 0.5) ^ (_ramp(rng, h, w, period) % 1 < 0.5)
    else:
        return base + (_smooth_noise(rng, max(3, h // 6), h, w) - 127) * 0.5
    return base + (other - base) * mix


def _clutter(rng: np.random.Generator, canvas: Image.Image) -> None:
    """Lines, arcs, scribbles and lumps on the background: clutter to ignore, none of it similar to a class."""
    draw, s = ImageDraw.Draw(canvas, "RGBA"), canvas.width

    def ink() -> tuple[int, ...]:
        return (*(int(v) for v in rng.integers(0, 256, 3)), int(rng.integers(90, 230)))

    def walk(step: float, n: int) -> list[tuple[int, int]]:
        points = np.cumsum(np.concatenate([rng.uniform(0, s, (1, 2)), rng.uniform(-step, step, (n, 2))]), 0)
        return [(round(x), round(y)) for x, y in points.tolist()]

    for _ in range(int(rng.integers(1, 5))):  # straight lines across
        ends = rng.integers(0, s, 4).tolist()
        draw.line(ends, fill=ink(), width=int(rng.integers(1, max(3, s // 40))))
    for _ in range(int(rng.integers(0, 4))):  # open arcs
        x, y, r = rng.integers(0, s), rng.integers(0, s), rng.integers(s // 20, s // 4)
        a = int(rng.integers(360))
        box = [int(x - r), int(y - r), int(x + r), int(y + r)]
        draw.arc(box, a, a + int(rng.integers(50, 170)), fill=ink(), width=int(rng.integers(2, max(4, s // 40))))
    for _ in range(int(rng.integers(0, 4))):  # scribbles the size of letters, and longer
        draw.line(walk(s / rng.uniform(7, 16), int(rng.integers(3, 9))), fill=ink(), width=int(rng.integers(2, 6)))
    for _ in range(int(rng.integers(0, 3))):  # lumps
        cx, cy, a, b = *rng.uniform(0, s, 2), rng.uniform(0.04, 0.1) * s, rng.uniform(0.12, 0.2) * s
        lump = [
            (round(cx + x * a * k), round(cy + y * b * k)) for (x, y), k in zip(polygon(9), rng.uniform(0.55, 1, 9))
        ]
        draw.polygon(lump, fill=ink())


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """[3, size, size]: a gradient under clouds, sometimes a texture, then clutter."""
    ramp = _ramp(rng, size, size, size * 1.4) % 1
    first, second = _muted(rng), _muted(rng)
    image = first + (second - first) * rng.uniform(0.2, 0.9) * ramp
    if rng.random() < 0.4:
        image = image * 0.6 + _texture(rng, size, size, _muted(rng)) * 0.4
    clouds = _smooth_noise(rng, int(rng.integers(4, 24)), size, size)
    image = image + (clouds - 127) * rng.uniform(0.05, 0.3)
    canvas = to_image(image).resize((2 * size, 2 * size), Image.Resampling.NEAREST)
    _clutter(rng, canvas)
    return _to_planes(canvas.reduce(2))


def paint(rng: np.random.Generator, image: np.ndarray, item: Item) -> None:
    """Puts one object on the image, in colours that differ from what is under it."""
    (ys, xs), patch = overlap(item, image.shape[1])
    under = image[:, ys, xs][:, patch].mean(1).reshape(3, 1, 1)
    base = _typical(rng, item.label)
    for _ in range(6):
        if np.abs(base - under).sum() > 130:  # of 765; less is sometimes invisible
            break
        base = _typical(rng, item.label)
    colour = _texture(rng, len(item.alpha), len(item.alpha), base)
    line = _colour(rng) * rng.uniform(0, 0.6)
    colour = np.clip(colour + (line - colour) * item.edge, 0, 255)
    cut = slice(ys.start - item.y, ys.stop - item.y), slice(xs.start - item.x, xs.stop - item.x)
    image[:, ys, xs] += (colour[(slice(None), *cut)] - image[:, ys, xs]) * item.alpha[cut]
