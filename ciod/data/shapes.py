"""The built-in demo data: drawn scenes of ten shapes, because photographs cannot ship with the package.

    python -m ciod.data.shapes demo-data --train 600 --val 200

Every image has its own random stream (seed, split, number), so image 17 is the same however many are drawn, and the
same everywhere with the same Pillow and numpy. Sizes below are for a 128-pixel canvas and grow with it.
"""

from __future__ import annotations

import argparse
import colorsys
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFilter

from ciod.errors import DataError

# Alphabetical, as scenario shapes-6+4 takes them: the first six are old, the last four new. Both halves hold an easy
# class (cross, ring) and ones that the other half resembles (circle and ring, hexagon and square, arrow and triangle).
CLASSES = ("arrow", "circle", "crescent", "cross", "heart", "hexagon", "ring", "square", "star", "triangle")

VERSION = 1  # of the drawing: raise it when the pictures change, so that stored data sets are drawn anew
_SPLITS = {"train": 0, "val": 1}  # also the second number of each image's seed: never change
_FINE = 3  # outlines are drawn this many times larger and averaged down, which makes their edges smooth
_VISIBLE = 0.6  # an object must show at least this much of itself, or it is placed elsewhere

Loop = list[tuple[float, float]]  # closed outline around (0, 0) within radius about 1, y downwards


@dataclass
class _Item:
    """One object: its opacity patch, in place. ``x``, ``y`` may be negative; parts outside the canvas are cut."""

    label: int
    alpha: np.ndarray  # [h, w] float32 0..1
    edge: np.ndarray  # [h, w] float32 0..1: the drawn outline, within alpha
    x: int
    y: int


# -- outlines ---------------------------------------------------------------------------------------------------------


def _polygon(n: int, radius: float = 1.0, start: float = -90.0) -> Loop:
    """A regular polygon; ``start`` is the angle of its first corner in degrees."""
    angles = [math.radians(start + 360 * i / n) for i in range(n)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _star(rng: np.random.Generator) -> list[Loop]:
    inner = _polygon(5, rng.uniform(0.4, 0.5), -54.0)
    return [[p for pair in zip(_polygon(5, 1.1), inner) for p in pair]]


def _cross(rng: np.random.Generator) -> list[Loop]:
    a = rng.uniform(0.24, 0.36)
    corner = [(a, -1), (a, -a), (1, -a)]  # the other three quarters are this one turned
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
    # moved right by 0.25, so that the crescent and not its full moon sits in the middle
    return [
        [(math.cos(a) + 0.25, math.sin(a)) for a in outer]
        + [(d + r * math.cos(a) + 0.25, r * math.sin(a)) for a in inner]
    ]


_OUTLINES: dict[str, Callable[[np.random.Generator], list[Loop]]] = {  # a second loop is a hole
    "arrow": _arrow,
    "circle": lambda rng: [_polygon(48, 0.95)],
    "crescent": _crescent,
    "cross": _cross,
    "heart": _heart,
    "hexagon": lambda rng: [_polygon(6)],
    "ring": lambda rng: [_polygon(48), _polygon(40, rng.uniform(0.42, 0.66))],
    "square": lambda rng: [_polygon(4, 1.2, 45.0)],
    "star": _star,
    "triangle": lambda rng: [_polygon(3, 1.15)],
}


# -- objects ----------------------------------------------------------------------------------------------------------


def _reduce(image: Image.Image) -> np.ndarray:
    return np.asarray(image.reduce(_FINE), np.float32) / 255


def _draw_object(rng: np.random.Generator, label: int, diameter: float) -> _Item:
    """A turned, slightly stretched shape in a patch just larger than itself."""
    turn, stretch = rng.uniform(-0.7, 0.7), rng.uniform(-0.12, 0.12)  # up to 40 degrees: few things stand on their head
    cos, sin = math.cos(turn), math.sin(turn)
    half = int(diameter * 0.75) + 2  # room for corners (radius 1.2), the stretch and the outline
    middle, scale = half * _FINE, diameter / 2 * _FINE
    loops = []
    for loop in _OUTLINES[CLASSES[label]](rng):
        points = [(x * (1 + stretch), y * (1 - stretch)) for x, y in loop]
        # whole numbers: the last bit of a machine's sine cannot change the picture
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
    return _Item(label, alpha, np.minimum(_reduce(edge), alpha) if width else np.zeros_like(alpha), 0, 0)


def _overlap(item: _Item, size: int) -> tuple[tuple[slice, slice], np.ndarray]:
    """Where an object meets the canvas, and its mask there."""
    h, w = item.alpha.shape
    y0, x0, y1, x1 = max(item.y, 0), max(item.x, 0), min(item.y + h, size), min(item.x + w, size)
    patch = item.alpha[y0 - item.y : y1 - item.y, x0 - item.x : x1 - item.x] >= 0.5
    return (slice(y0, y1), slice(x0, x1)), patch


def _place(rng: np.random.Generator, size: int) -> list[_Item]:
    """2 to 5 objects, later ones on top; each shows ``_VISIBLE`` of itself, or it is tried elsewhere and given up."""
    items: list[_Item] = []
    top = np.full((size, size), -1)  # the number of the topmost object at each pixel
    shown, whole = np.zeros(0), np.zeros(0)  # pixels in sight of each object; and were it all in sight
    for _ in range(int(rng.integers(2, 6))):
        item = _draw_object(rng, int(rng.integers(len(CLASSES))), rng.uniform(26, 58) * size / 128)
        w = len(item.alpha)  # patches are square
        whole_after = np.append(whole, (item.alpha >= 0.5).sum())
        for _try in range(12):
            item.x, item.y = (int(v) for v in rng.integers(-w // 4, size - w + w // 4 + 1, 2))
            where, patch = _overlap(item, size)
            lost = np.bincount(top[where][patch] + 1, minlength=len(items) + 1)[1:]
            shown_after = np.append(shown - lost, patch.sum())
            if (shown_after >= _VISIBLE * whole_after).all():
                top[where][patch] = len(items)
                items.append(item)
                shown, whole = shown_after, whole_after
                break
    return items


# -- colours, textures, backgrounds -----------------------------------------------------------------------------------
# Pictures are planes [3, h, w] float32 0..255 here: numpy is several times faster on them than on [h, w, 3].


def _colour(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0, 255, (3, 1, 1)).astype(np.float32)


def _typical(rng: np.random.Generator, label: int) -> np.ndarray:
    """[3, 1, 1]: a colour things of this class often have, as a tomato is mostly red; one in twenty has any.

    Without it, minutes of training on a small machine would not be enough to tell ten shapes apart.
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


def _to_image(planes: np.ndarray) -> Image.Image:
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
    """Lines, arcs, scribbles and lumps on the background: things to ignore, none of them like a class."""
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
            (round(cx + x * a * k), round(cy + y * b * k)) for (x, y), k in zip(_polygon(9), rng.uniform(0.55, 1, 9))
        ]
        draw.polygon(lump, fill=ink())


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """[3, size, size]: a gradient under clouds, sometimes a texture, then clutter."""
    ramp = _ramp(rng, size, size, size * 1.4) % 1
    first, second = _muted(rng), _muted(rng)
    image = first + (second - first) * rng.uniform(0.2, 0.9) * ramp
    if rng.random() < 0.4:
        image = image * 0.6 + _texture(rng, size, size, _muted(rng)) * 0.4
    clouds = _smooth_noise(rng, int(rng.integers(4, 24)), size, size)
    image = image + (clouds - 127) * rng.uniform(0.05, 0.3)
    canvas = _to_image(image).resize((2 * size, 2 * size), Image.Resampling.NEAREST)
    _clutter(rng, canvas)
    return _to_planes(canvas.reduce(2))


def _paint(rng: np.random.Generator, image: np.ndarray, item: _Item) -> None:
    """Puts one object on the image, in colours that differ from what is under it."""
    (ys, xs), patch = _overlap(item, image.shape[1])
    under = image[:, ys, xs][:, patch].mean(1).reshape(3, 1, 1)
    base = _typical(rng, item.label)
    for _ in range(6):
        if np.abs(base - under).sum() > 130:  # of 765; less is at times invisible
            break
        base = _typical(rng, item.label)
    paint = _texture(rng, len(item.alpha), len(item.alpha), base)
    line = _colour(rng) * rng.uniform(0, 0.6)
    paint = np.clip(paint + (line - paint) * item.edge, 0, 255)
    cut = slice(ys.start - item.y, ys.stop - item.y), slice(xs.start - item.x, xs.stop - item.x)
    image[:, ys, xs] += (paint[(slice(None), *cut)] - image[:, ys, xs]) * item.alpha[cut]


# -- scenes and data sets ---------------------------------------------------------------------------------------------


def _scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[_Item]]:
    items = _place(rng, size)
    image = _background(rng, size)
    for item in items:
        _paint(rng, image, item)
    contrast = rng.uniform(0.65, 1.05)
    soft = _to_image(image * contrast + (127 * (1 - contrast) + rng.uniform(-25, 25)))
    soft = soft.filter(ImageFilter.BoxBlur(rng.uniform(0, 0.8) * size / 128))
    grain = rng.integers(-128, 128, (size, size, 3), dtype=np.int8) * np.float32(rng.uniform(0.01, 0.08))
    return np.clip(np.asarray(soft) + grain, 0, 255).astype(np.uint8), items


def draw_scene(rng: np.random.Generator, size: int = 128) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One scene of 1 to 5 objects on a square canvas of ``size`` pixels (at least 32).

    Returns:
        image [size, size, 3] uint8 RGB; boxes [n, 4] float32 xyxy in pixels, tight around each shape's own mask (also
        where another object covers it) and clipped to the image; labels [n] int64, rows of ``CLASSES``.
    """
    image, items = _scene(rng, size)
    boxes = np.zeros((len(items), 4), np.float32)
    for box, item in zip(boxes, items):
        (ys, xs), patch = _overlap(item, size)
        rows, columns = np.flatnonzero(patch.any(1)), np.flatnonzero(patch.any(0))
        box[:] = xs.start + columns[0], ys.start + rows[0], xs.start + columns[-1] + 1, ys.start + rows[-1] + 1
    return image, boxes, np.array([item.label for item in items], np.int64)


def _write_split(folder: Path, split: str, count: int, seed: int, size: int) -> None:
    """``<split>.json`` in COCO format and its images; categories are numbered from 1 in the order of ``CLASSES``."""
    images, annotations = [], []
    for i in range(count):
        rng = np.random.default_rng([seed, _SPLITS[split], i])
        pixels, boxes, labels = draw_scene(rng, size)
        name = f"{split}_{i:05d}.jpg"
        Image.fromarray(pixels).save(folder / "images" / name, quality=int(rng.integers(70, 96)))
        images.append({"id": i + 1, "file_name": name, "width": size, "height": size})
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    document = {
        "info": {"description": "ciod shapes: drawn, free of rights", "seed": seed},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)],
    }
    (folder / f"{split}.json").write_text(json.dumps(document))


_WRITTEN = {"images", "train.json", "val.json", "classes.txt", "shapes.json"}


def _stored(root: Path) -> object:
    """The settings that the data set at ``root`` was drawn with; None if there is none."""
    try:
        return json.loads((root / "shapes.json").read_text())
    except (OSError, ValueError):
        return None


def _is_foreign(root: Path) -> bool:
    """Whether ``root`` holds anything besides a data set of ours, which may be replaced."""
    if not root.is_dir():
        return root.exists()
    names = {p.name for p in root.iterdir()}
    return bool(names) and (not names <= _WRITTEN or _stored(root) is None)


def write_shapes(root: Path, *, train: int, val: int, seed: int = 0, size: int = 128) -> Path:
    """Draws a COCO data set (``images/*.jpg``, ``train.json``, ``val.json``, ``classes.txt``) at ``root``.

    Drawn in a folder beside and renamed at the end, so a data set is whole or absent. One that is there with the same
    settings (``shapes.json``) is kept; one with other settings is replaced.

    Args:
        train, val: number of images.
        size: pixels of a side, at least 32.

    Returns:
        ``root``.

    Raises:
        DataError: when the numbers make no data set, or ``root`` holds files that this function did not write.
    """
    root = Path(root)
    if train < 0 or val < 0 or size < 32 or seed < 0:
        raise DataError(
            f"shapes needs train, val, seed of at least 0 and size of at least 32; got {train}, {val}, {seed}, {size}"
        )
    settings = {
        "version": VERSION,
        "train": train,
        "val": val,
        "seed": seed,
        "size": size,
        "pillow": PIL.__version__,  # their next versions may draw other pixels
        "numpy": np.__version__,
    }
    if _stored(root) == settings:
        return root
    if _is_foreign(root):
        raise DataError(f"{root} holds other files than a shapes data set; choose another folder or empty this one")
    root.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        made = fresh / "new"
        (made / "images").mkdir(parents=True)
        for split, count in (("train", train), ("val", val)):
            _write_split(made, split, count, seed, size)
        (made / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
        (made / "shapes.json").write_text(json.dumps(settings, indent=1))
        if _stored(root) != settings:  # otherwise another process was quicker
            if root.exists():
                root.rename(fresh / "old")
            made.rename(root)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return root


def _main() -> None:
    parser = argparse.ArgumentParser(description="Draw the built-in demo data set.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--train", type=int, default=600)
    parser.add_argument("--val", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=128)
    print(write_shapes(**vars(parser.parse_args())))


if __name__ == "__main__":
    _main()
