"""Small data sets on disk for tests: an Index made up, and written in each of the three formats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import yaml

from ciod.data.images import save_image
from ciod.data.index import Index


def sample_index(
    folder: Path, images: int = 4, names: tuple[str, ...] = ("cat", "dog", "fork & knife"), first: int = 1
) -> Index:
    """Noise pictures of differing sizes with whole-pixel boxes of every class; the last picture has no box.

    Files are <number>.png in ``folder``, numbered from ``first``, so that every format gives the same image ids.
    """
    rng = np.random.default_rng(first)
    files, sizes, image, boxes, labels = [], [], [], [], []
    for i in range(images):
        height, width = 40 + 4 * i, 60 - 2 * i
        files.append((folder / f"{first + i:06}.png").absolute())
        save_image(files[-1], rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        sizes.append((height, width))
        for c in range(len(names) if i < images - 1 else 0):
            x, y = 2 + 5 * c + i, 1 + 3 * c + i
            image.append(i)
            boxes.append((x, y, x + 12 + c, y + 9 + 2 * i))
            labels.append(c)
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Index(
        class_names=names,
        files=files,
        sizes=np.array(sizes, dtype=np.int32),
        image_ids=np.arange(first, first + images),
        image=np.array(image, dtype=np.int64),
        boxes=boxes,
        labels=np.array(labels, dtype=np.int64),
        crowd=np.zeros(len(boxes), dtype=bool),
        difficult=np.zeros(len(boxes), dtype=bool),
        area=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
    )


def write_coco(index: Index, root: Path, split: str = "train") -> Path:
    """root/<split>.json beside root/images/; category ids have holes: 3, 6, 9, …"""
    images = [
        {"id": int(k), "file_name": f.name, "height": int(h), "width": int(w)}
        for k, f, (h, w) in zip(index.image_ids, index.files, index.sizes)
    ]
    annotations = [
        {
            "id": a + 1,
            "image_id": int(index.image_ids[index.image[a]]),
            "category_id": 3 * int(index.labels[a]) + 3,
            "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
            "area": float(index.area[a]),
            "iscrowd": int(index.crowd[a]),
            "difficult": int(index.difficult[a]),
        }
        for a, (x0, y0, x1, y1) in enumerate(index.boxes)
    ]
    categories = [{"id": 3 * c + 3, "name": name} for c, name in enumerate(index.class_names)]
    _copy(index, root / "images")
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"{split}.json").write_text(json.dumps(content))
    return root


def write_voc(index: Index, root: Path, split: str = "train") -> Path:
    """root/Annotations/, root/JPEGImages/, root/ImageSets/Main/<split>.txt; boxes rounded, 1-based, inclusive."""
    _copy(index, root / "JPEGImages")
    for folder in (root / "Annotations", root / "ImageSets" / "Main"):
        folder.mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(index.files):
        rows = range(*index.of_image(i).indices(len(index.labels)))
        xml = voc_xml(
            file.name,
            tuple(index.sizes[i]),
            [(index.class_names[index.labels[a]], index.boxes[a], bool(index.difficult[a])) for a in rows],
        )
        (root / "Annotations" / f"{file.stem}.xml").write_text(xml)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{f.stem}\n" for f in index.files))
    return root


def voc_xml(file_name: str, size: tuple[int, int], objects: list) -> str:
    """``size`` is height, width; ``objects`` are (name, xyxy counted from 0, difficult)."""
    lines = [
        f"<annotation><filename>{file_name}</filename>",
        f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>",
    ]
    for name, (x0, y0, x1, y1), difficult in objects:
        corners = {"xmin": round(x0) + 1, "ymin": round(y0) + 1, "xmax": round(x1), "ymax": round(y1)}
        box = "".join(f"<{side}>{v}</{side}>" for side, v in corners.items())
        lines.append(
            f"<object><name>{escape(name)}</name><difficult>{int(difficult)}</difficult><bndbox>{box}</bndbox></object>"
        )
    return "\n".join([*lines, "</annotation>"])


def write_yolo(index: Index, root: Path, split: str = "train") -> Path:
    """root/data.yaml, root/images/<split>/, root/labels/<split>/; crowd and difficult cannot be stored in YOLO."""
    _copy(index, root / "images" / split)
    labels = root / "labels" / split
    labels.mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(index.files):
        height, width = index.sizes[i]
        lines = []
        for a in range(*index.of_image(i).indices(len(index.labels))):
            x0, y0, x1, y1 = (float(v) for v in index.boxes[a])
            numbers = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
            lines.append(f"{index.labels[a]} " + " ".join(f"{n:.8f}" for n in numbers))
        (labels / f"{file.stem}.txt").write_text("\n".join(lines))
    file = root / "data.yaml"
    content = yaml.safe_load(file.read_text()) if file.exists() else {}
    content = {**content, "names": list(index.class_names), split: f"images/{split}"}
    file.write_text(yaml.safe_dump(content))
    return root


def _copy(index: Index, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in index.files:
        shutil.copyfile(file, folder / file.name)


def picture(path: Path, height: int = 40, width: int = 60) -> None:
    """A black picture."""
    save_image(path, np.zeros((height, width, 3), np.uint8))


def assert_same(index: Index, expected: Index, tolerance: float = 1e-4) -> None:
    """The same classes, files, sizes and boxes, and the same types; corners within ``tolerance`` pixels."""
    assert index.class_names == expected.class_names
    assert [f.name for f in index.files] == [f.name for f in expected.files]
    assert all(f.is_absolute() and f.is_file() for f in index.files)
    for column in ("sizes", "image_ids", "image", "labels", "crowd", "difficult", "starts"):
        assert np.array_equal(getattr(index, column), getattr(expected, column)), column
        assert getattr(index, column).dtype == getattr(expected, column).dtype, column
    assert index.boxes.dtype == np.float32
    assert np.abs(index.boxes - expected.boxes).max() <= tolerance
    assert np.allclose(index.area, expected.area, rtol=1e-3)
