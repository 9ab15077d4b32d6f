"""python -m benchmarks.evaluation

From raw outputs to the AP table at COCO size: 5,000 images, 80 classes, 100 detections per image. Decoding with NMS and
the table are timed apart, in seconds of this process's CPU time; peak memory is this process's.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from benchmarks import scenes, timing
from ciod.core.types import Detections
from ciod.data.index import Index
from ciod.detectors.yolox import YOLOX
from ciod.evaluation.ap import coco_ap
from ciod.runs.environment import peak_memory_mb


def truth(images: int, classes: int, boxes: int, rng: np.random.Generator) -> Index:
    """``boxes`` objects an image, as many as COCO has."""
    n = images * boxes
    corner = rng.uniform(0, 500, (n, 2))
    side = rng.uniform(10, 140, (n, 2))
    names = tuple(f"class {i}" for i in range(classes))
    return Index(
        names,
        [f"{i}.jpg" for i in range(images)],
        np.full((images, 2), 640, np.int32),
        np.arange(images) + 1,
        image=np.repeat(np.arange(images), boxes),
        boxes=np.concatenate([corner, corner + side], 1).astype(np.float32),
        labels=rng.integers(0, classes, n),
        crowd=np.zeros(n, bool),
        difficult=np.zeros(n, bool),
        area=side.prod(1).astype(np.float32),
        source="made up",
    )


def detections(index: Index, count: int, rng: np.random.Generator) -> list[Detections]:
    """Every object found once, roughly; the others anywhere."""
    out = []
    for i in range(len(index)):
        own = index.of_image(i)
        real = index.boxes[own] + rng.uniform(-4, 4, (len(index.boxes[own]), 4))  # sides are 10 pixels at least
        extra = count - len(real)
        corner = rng.uniform(0, 500, (extra, 2))
        boxes = np.concatenate([real, np.concatenate([corner, corner + rng.uniform(10, 140, (extra, 2))], 1)])
        labels = np.concatenate([index.labels[own], rng.integers(0, len(index.class_names), extra)])
        scores = np.sort(rng.uniform(0, 1, count))[::-1]
        out.append(Detections(boxes, scores, labels, index.class_names))
    return out


def main() -> None:
    args = timing.parser(__doc__, images=5000, classes=80, detections=100, size=416, batch=16).parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    index = truth(args.images, args.classes, 7, rng)
    found = detections(index, args.detections, rng)
    _, outputs, _ = scenes.scene(images=args.batch, size=args.size, classes=args.classes + 1, old=args.classes)
    detector = YOLOX([f"class {i}" for i in range(args.classes)], name="yolox-pico")
    began = time.process_time()
    for _ in range(args.images // args.batch):
        detector.decode(outputs, score_threshold=0.001, nms_iou=0.65, max_detections=1000)
    decoded = time.process_time() - began
    began = time.process_time()
    table = coco_ap(found, index)
    scored = time.process_time() - began
    peak = peak_memory_mb()
    timing.tell(
        [
            f"{args.images} images, {args.classes} classes, {args.detections} detections per image",
            f"decoding and NMS {decoded:.1f} s, AP table {scored:.1f} s, together {decoded + scored:.1f} s",
            f"peak memory {peak:.0f} MB; {table.line()}",
        ],
        {"decode": decoded, "table": scored, "peak_mb": peak},
        args.json,
    )


if __name__ == "__main__":
    main()
