"""The built-in demo data: drawn scenes of ten shapes, because the package cannot include photographs.

    python -m ciod.data.shapes.scenes demo-data --train 600 --val 200

Every image has its own random stream (seed, split, number). Image 17 is thus the same for any number of images, and on
every machine with the same Pillow and numpy. Sizes below are for a canvas of 128 pixels and scale with it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageFilter

from ciod.core.errors import DataError
from ciod.core.files import explained
from ciod.core.reading import Unreadable, read_json
from ciod.data.shapes.objects import CLASSES, Item, overlap, place
from ciod.data.shapes.paint import background, paint, to_image

VERSION = 1  # version of the drawing: raise it when the images change, so that stored data sets are drawn again
_SPLITS = {"train": 0, "val": 1}  # also the second number of each image's seed: never change


def _scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[Item]]:
    items = place(rng, size)
    image = background(rng, size)
    for item in items:
        paint(rng, image, item)
    contrast = rng.uniform(0.65, 1.05)
    soft = to_image(image * contrast + (127 * (1 - contrast) + rng.uniform(-25, 25)))
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
        (ys, xs), patch = overlap(item, size)
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
    """The settings with which the data set at ``root`` was drawn; None if there is none."""
    try:
        return read_json(root / "shapes.json")
    except Unreadable:
        return None


def _is_foreign(root: Path) -> bool:
    """Whether ``root`` holds anything other than a built-in data set, which may be replaced."""
    if not root.is_dir():
        return root.exists()
    names = {p.name for p in root.iterdir()}
    return bool(names) and (not names <= _WRITTEN or _stored(root) is None)


def write_shapes(root: Path, *, train: int, val: int, seed: int = 0, size: int = 128) -> Path:
    """Draws a COCO data set (``images/*.jpg``, ``train.json``, ``val.json``, ``classes.txt``) at ``root``.

    It is drawn in a temporary folder and renamed at the end, so a data set is complete or absent. An existing data set
    with the same settings (``shapes.json``) is kept; one with other settings is replaced.

    Args:
        train, val: number of images.
        size: side in pixels, at least 32.

    Returns:
        ``root``.

    Raises:
        DataError: invalid numbers, or ``root`` holds files that this function did not write.
        WriteError: a full disk, no permission, or another fault of the disk.
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
        "pillow": PIL.__version__,  # other versions may draw other pixels
        "numpy": np.__version__,
    }
    if _stored(root) == settings:
        return root
    if _is_foreign(root):
        raise DataError(f"{root} holds other files than a shapes data set; choose another folder or empty this one")
    with explained(root, size=(train + val) * size * size // 2):
        _draw(root, settings)
    return root


def _draw(root: Path, settings: dict[str, Any]) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        made = fresh / "new"
        (made / "images").mkdir(parents=True)
        for split in _SPLITS:
            _write_split(made, split, settings[split], settings["seed"], settings["size"])
        (made / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
        (made / "shapes.json").write_text(json.dumps(settings, indent=1))
        if _stored(root) != settings:  # otherwise another process was faster
            if root.exists():
                root.rename(fresh / "old")
            made.rename(root)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


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
