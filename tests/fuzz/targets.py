"""What is fuzzed: each target takes the content of one file; the outcome is a result or a CiodError, nothing else."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ciod import detectors
from ciod.config import load as config
from ciod.core.run_log import read_metrics
from ciod.data import formats, images
from ciod.data.index import Index
from ciod.data.scenarios import scenario
from ciod.detectors.files import weights
from ciod.report import compared, page, summary
from tests.report import fake

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Target:
    run: Callable[[bytes, Path], object]
    seeds: Callable[[], list[bytes]]


def picture(suffix: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(12 * 10 * 3, dtype=np.uint8).reshape(10, 12, 3)).save(file, suffix)
    return file.getvalue()


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def sound(index: Index) -> Index:
    """What every Index promises."""
    assert len(index.files) == len(index.sizes) == len(index.image_ids) > 0 and index.class_names
    assert len(set(index.class_names)) == len(index.class_names) and all(index.class_names)
    assert np.isfinite(index.boxes).all() and (index.boxes[:, 2:] > index.boxes[:, :2]).all()
    assert len(index.labels) == 0 or 0 <= index.labels.min() <= index.labels.max() < len(index.class_names)
    limits = index.sizes[index.image][:, ::-1] if len(index.image) else np.zeros((0, 2))
    assert (index.boxes >= 0).all() and (index.boxes[:, 2:] <= limits).all()
    return index


# Data sets ------------------------------------------------------------------------------------------------------------


def coco(content: bytes, folder: Path) -> object:
    put(folder / "a.png", picture())
    put(folder / "b.png", picture())
    path = put(folder / "train.json", content)
    formats.class_names(path)
    return sound(formats.read(path, check="headers"))


def coco_seeds() -> list[bytes]:
    return [
        json.dumps(
            {
                "images": [
                    {"id": 1, "file_name": "a.png", "height": 10, "width": 12},
                    {"id": "2", "file_name": "b.png"},
                ],
                "categories": [{"id": 3, "name": "cat", "supercategory": "animal"}, {"id": 7, "name": "dog"}],
                "annotations": [
                    {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 5], "area": 20, "iscrowd": 0},
                    {"id": 2, "image_id": 2, "category_id": 7, "bbox": [0, 0, 12, 10], "segmentation": [[1, 2, 3, 4]]},
                    {"id": 3, "image_id": 1, "category_id": 7, "bbox": [2, 2, 3.5, 4], "iscrowd": 1},
                ],
            }
        ).encode()
    ]


def voc(content: bytes, folder: Path) -> object:
    put(folder / "JPEGImages" / "a.png", picture())
    put(folder / "Annotations" / "a.xml", content)
    put(folder / "JPEGImages" / "b.png", picture())
    put(folder / "Annotations" / "b.xml", voc_seeds()[0].replace(b"a.png", b"b.png"))
    put(folder / "ImageSets" / "Main" / "train.txt", b"a\nb\n")
    return sound(formats.read(folder, check="headers"))


def voc_seeds() -> list[bytes]:
    return [
        b"""<?xml version="1.0" encoding="utf-8"?><annotation><filename>a.png</filename><size><width>12</width>
<height>10</height><depth>3</depth></size><object><name>cat</name><difficult>1</difficult><bndbox><xmin>1</xmin>
<ymin>2</ymin><xmax>7.5</xmax><ymax>9</ymax></bndbox></object><object><name>dog</name><bndbox><xmin>1</xmin>
<ymin>1</ymin><xmax>12</xmax><ymax>10</ymax></bndbox></object></annotation>"""
    ]


def yolo(content: bytes, folder: Path) -> object:
    """The box file of a picture."""
    put(folder / "data.yaml", b"train: images/train\nval: images/train\nnames: [cat, dog]\n")
    put(folder / "images" / "train" / "a.png", picture())
    put(folder / "labels" / "train" / "a.txt", content)
    return sound(formats.read(folder, check="headers"))


def yolo_yaml(content: bytes, folder: Path) -> object:
    put(folder / "images" / "train" / "a.png", picture())
    put(folder / "labels" / "train" / "a.txt", b"0 0.5 0.5 0.2 0.2\n")
    path = put(folder / "data.yaml", content)
    formats.class_names(path)
    return sound(formats.read(path))


# Settings, results, models, pictures ----------------------------------------------------------------------------------


def settings(content: bytes, folder: Path) -> object:
    return config.load(put(folder / "run.yaml", content), {"out": str(folder / "run")})


def words(content: bytes, folder: Path) -> object:
    """``key=value`` words, one per line."""
    return config.load(None, content.decode("utf-8", "replace").split("\n"))


def protocol(content: bytes, folder: Path) -> object:
    made = scenario.read_protocol(str(put(folder / "mine.yaml", content)))
    return scenario.groups_of(made, ("cat", "dog", "eel", "fox"))


def results(content: bytes, folder: Path) -> object:
    put(folder / "results.json", content)
    found = page.read_results(folder)
    summary.summary_table(found)
    compared.comparison_markdown([("a", found), ("b", found)])
    return _paged(content, folder) or summary.verdict(found)


def metrics(content: bytes, folder: Path) -> object:
    put(folder / "metrics.jsonl", content)
    return _paged(content, folder) or read_metrics(folder)


def _paged(content: bytes, folder: Path) -> object:
    """The whole page only for one input in sixteen, because it is slow to draw."""
    return page.write_report(folder) if zlib.crc32(content) % 16 == 0 else None


def model(content: bytes, folder: Path) -> object:
    return weights.load(put(folder / "model.safetensors", content))


@cache
def model_bytes() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        detector = detectors.build(("cat", "dog"), name="yolox-pico", size=64)
        detector.lineage = [{"classes": ["cat", "dog"]}]
        weights.save_model(Path(folder) / "m.safetensors", detector)
        return (Path(folder) / "m.safetensors").read_bytes()


def checkpoint(content: bytes, folder: Path) -> object:
    """A foreign .pth."""
    return weights.load(put(folder / "model.pth", content))


def checkpoint_seeds() -> list[bytes]:
    file = io.BytesIO()
    torch.save({"model": {"backbone.weight": torch.zeros(2, 2)}, "meta": {"CLASSES": ["a"]}}, file)
    return [file.getvalue()]


def image(content: bytes, folder: Path) -> object:
    path = put(folder / "a.jpg", content)
    height, width = images.image_size(path)
    pixels = images.read_image(path)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    return height, width


TARGETS: dict[str, Target] = {
    "coco": Target(coco, coco_seeds),
    "voc": Target(voc, voc_seeds),
    "yolo": Target(yolo, lambda: [b"0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.1 0.1 0.9\n0 0.1 0.1 0.2 0.2 0.3 0.1\n"]),
    "yolo_yaml": Target(
        yolo_yaml,
        lambda: [
            b"path: .\ntrain: images/train\nval: images/train\nnc: 2\nnames: [cat, dog]\n",
            b"train: ../train/images\nnames:\n  0: cat\n  1: dog\nval: images/train\n",
        ],
    ),
    "settings": Target(
        settings,
        lambda: [
            b"data: x\nscenario: voc-15+5\ndetector: {name: yolox-nano, size: 320}\nmethod: {name: ilyolox, weighted: "
            b"true}\ntrain: {epochs: [3, 4], lr: 1e-3, schedule: step, milestones: [0.5]}\nseed: 3\n",
            b"split: [[cat, dog], [eel]]\nmethod: finetune\nepochs: 3\naugment: {flip: 0.5}\nallow: data,code\n",
        ],
    ),
    "words": Target(words, lambda: [b"split=3+3\nepochs=5\nmethod=ilyolox\nmethod.nms_iou=0.5\nlr=1e-3\ndata=x"]),
    "protocol": Target(
        protocol,
        lambda: [b"split: 2+1x2\norder: [cat, dog, eel, fox]\nimages: disjoint\nboxes: new\n", b"split: [[cat]]\n"],
    ),
    "results": Target(results, lambda: [json.dumps(r).encode() for r in (fake.results(), fake.extension())]),
    "metrics": Target(metrics, lambda: [b'{"kind": "step", "task": 0, "step": 1, "losses": {"cls": 0.5}}\n' * 3]),
    "model": Target(model, lambda: [model_bytes()]),
    "checkpoint": Target(checkpoint, checkpoint_seeds),
    "image": Target(image, lambda: [picture(kind) for kind in ("png", "jpeg", "bmp", "gif", "tiff", "webp")]),
}  # fmt: skip


def corpus(name: str) -> list[bytes]:
    """Seeds, and what was found before."""
    kept = sorted((CORPUS / name).glob("*")) if (CORPUS / name).is_dir() else []
    return [*TARGETS[name].seeds(), *(p.read_bytes() for p in kept)]
