"""Outlines of the ten classes of the built-in scenes, and placing objects on a canvas."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

# Alphabetical, as in scenario shapes-6+4: the first six are old, the last four new. Both groups have an easy class
# (cross, ring) and classes that resemble one of the other group (circle and ring, hexagon and square, arrow and
# triangle).
CLASSES = ("arrow", "circle", "crescent", "cross", "heart", "hexagon", "ring", "square", "star", "triangle")

_FINE = 3  # outlines are drawn this many times larger and then averaged, which makes their edges smooth
_VISIBLE = 0.6  # an object must be visible to at least this share, or it is placed elsewhere

Loop = list[tuple[float, float]]  # closed outline around (0, 0) within radius about 1, y downwards


@dataclass
class Item:
    """One object: its opacity patch and position. ``x``, ``y`` may be negative; parts outside the canvas are cut."""

    label: int
    alpha: np.ndarray  # [h, w] float32 0..1
    edge: np.ndarray  # [h, w] float32 0..1: the drawn outline, within alpha
    x: int
    y: int


def polygon(n: int, radius: float = 1.0, start: float = -90.0) -> Loop:
    """A regular polygon; ``start`` is the angle of its first corner in degrees."""
    angles = [math.radians(start + 360 * i / n) for i in range(n)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _star(rng: np.random.Generator) -> list[Loop]:
    inner = polygon(5, rng.uniform(0.4, 0.5), -54.0)
    return [[p for pair in zip(polygon(5, 1.1), inner) for p in pair]]


def _cross(rng: np.random.Generator) -> list[Loop]:
    a = rng.uniform(0.24, 0.36)
    corner = [(a, -1), (a, -a), (1, -a)]  # the other three quarters are rotations of this one
    turns: list[Callable[[float, float], tuple[float, float]]] = [
        lambda x, y: (x, y),
        lambda x, y: (-y, x),
        lambda x, y: (-x, -y),
        lambda x, y: (y, -x),
    ]
    return [[turn(x, y) for turn in turns for x, y in corner]]


def _arrow(rng: np.random.Generator) -> list[Loop]:
    shaft, head, neck = rng.uniform(0.18, 0.28), rng.uniform(0.62, 0.8), rng.uniform(-0.1, 0.2)
    return [[(-1, -shaft), (neck, -shaft), (neck, -head), (1, 0), (neck, head), (neck, shaft), (-1, shaft)]]


def _heart(rng: np.random.Generator) -> list[Loop]:
    turns = [math.tau * i / 40 for i in range(40)]
    curve = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    return [[(math.sin(t) ** 3, -(y + 2.5) / 15.5) for t, y in zip(turns, curve)]]


def _crescent(rng: np.random.Generator) -> list[Loop]:
    d, r = rng.uniform(0.5, 0.7), 0.85  # the bite: a circle of radius r around (d, 0)
    x = (1 - r * r + d * d) / (2 * d)
    y = math.sqrt(1 - x * x)
    tip, bite = math.atan2(y, x), math.atan2(y, x - d)
    outer = [tip + (math.tau - 2 * tip) * i / 30 for i in range(31)]
    inner = [-bite - (math.tau - 2 * bite) * i / 24 for i in range(25)]
    # moved right by 0.25, so that the crescent and not the full circle is centred
    return [
        [(math.cos(a) + 0.25, math.sin(a)) for a in outer]
        + [(d + r * math.cos(a) + 0.25, r * math.sin(a)) for a in inner]
    ]


OUTLINES: dict[str, Callable[[np.random.Generator], list[Loop]]] = {  # a second loop is a hole
    "arrow": _arrow,
    "circle": lambda rng: [polygon(48, 0.95)],
    "crescent": _crescent,
    "cross": _cross,
    "heart": _heart,
    "hexagon": lambda rng: [polygon(6)],
    "ring": lambda rng: [polygon(48), polygon(40, rng.uniform(0.42, 0.66))],
    "square": lambda rng: [polygon(4, 1.2, 45.0)],
    "star": _star,
    "triangle": lambda rng: [polygon(3, 1.15)],
}


def _reduce(image: Image.Image) -> np.ndarray:
    return np.asarray(image.reduce(_FINE), np.float32) / 255


def _draw_object(rng: np.random.Generator, label: int, diameter: float) -> Item:
    """A rotated, slightly stretched shape in a patch just larger than the shape."""
    turn, stretch = rng.uniform(-0.7, 0.7), rng.uniform(-0.12, 0.12)  # up to 40 degrees: few objects are upside down
    cos, sin = math.cos(turn), math.sin(turn)
    half = int(diameter * 0.75) + 2  # room for corners (radius 1.2), the stretch and the outline
    middle, scale = half * _FINE, diameter / 2 * _FINE
    loops = []
    for loop in OUTLINES[CLASSES[label]](rng):
        points = [(x * (1 + stretch), y * (1 - stretch)) for x, y in loop]
        # integers: the last bit of a machine's sine cannot change the image
        loops.append(
            [
                (round(middle + scale * (x * cos - y * sin)), round(middle + scale * (x * sin + y * cos)))
                for x, y in points
            ]
        )
    mask = Image.new("L", (2 * middle, 2 * middle))
    edge = Image.new("L", mask.size)
    width = round(rng.uniform(0.8, 2.0) * _FINE) if rng.random() < 0.35 else 0
    for i, loop in enumerate(loops):
        ImageDraw.Draw(mask).polygon(loop, fill=0 if i else 255)
        if width:
            joint = "curve" if len(loop) < 20 else None  # corners need it, curves do not, and it is slow
            ImageDraw.Draw(edge).line([*loop, loop[0], loop[1]], fill=255, width=2 * width, joint=joint)
    alpha = _reduce(mask)
    return Item(label, alpha, np.minimum(_reduce(edge), alpha) if width else np.zeros_like(alpha), 0, 0)


def overlap(item: Item, size: int) -> tuple[tuple[slice, slice], np.ndarray]:
    """The part of the canvas that an object covers, and its mask there."""
    h, w = item.alpha.shape
    y0, x0, y1, x1 = max(item.y, 0), max(item.x, 0), min(item.y + h, size), min(item.x + w, size)
    patch = item.alpha[y0 - item.y : y1 - item.y, x0 - item.x : x1 - item.x] >= 0.5
    return (slice(y0, y1), slice(x0, x1)), patch


def place(rng: np.random.Generator, size: int) -> list[Item]:
    """2 to 5 objects, later ones on top. If one is visible to less than ``_VISIBLE``, other places are tried."""
    items: list[Item] = []
    top = np.full((size, size), -1)  # the number of the topmost object at each pixel
    visible, total = np.zeros(0), np.zeros(0)  # visible pixels of each object; and all its pixels
    for _ in range(int(rng.integers(2, 6))):
        item = _draw_object(rng, int(rng.integers(len(CLASSES))), rng.uniform(26, 58) * size / 128)
        w = len(item.alpha)  # patches are square
        total_after = np.append(total, (item.alpha >= 0.5).sum())
        for _try in range(12):
            item.x, item.y = (int(v) for v in rng.integers(-w // 4, size - w + w // 4 + 1, 2))
            where, patch = overlap(item, size)
            lost = np.bincount(top[where][patch] + 1, minlength=len(items) + 1)[1:]
            visible_after = np.append(visible - lost, patch.sum())
            if (visible_after >= _VISIBLE * total_after).all():
                top[where][patch] = len(items)
                items.append(item)
                visible, total = visible_after, total_after
                break
    return items
