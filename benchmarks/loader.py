"""python -m benchmarks.loader

Images per second that the training loader delivers, with decoded pictures kept or scaled down and loader processes,
next to those that the network takes: the loader keeps up if its ratio is above 1. The pictures are synthetic JPEGs.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import timing
from benchmarks.step import stepper
from ciod.data.augment import Augment, TrainTransform
from ciod.data.image_cache import Cache
from ciod.data.index import Index
from ciod.data.loader import train_loader


def pictures(folder: Path, count: int, width: int, height: int) -> Index:
    """JPEG files of smooth noise, two boxes each."""
    rng = np.random.default_rng(0)
    files = []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
        files.append(folder / f"{i}.jpg")
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(files[-1], quality=90)
    n = 2 * count
    corner = rng.uniform(0, min(width, height) / 2, (n, 2)).astype(np.float32)
    return Index(
        ("a", "b"),
        files,
        np.tile(np.array([[height, width]], np.int32), (count, 1)),
        np.arange(count) + 1,
        image=np.repeat(np.arange(count), 2),
        boxes=np.concatenate([corner, corner + 60], 1),
        labels=np.arange(n) % 2,
        crowd=np.zeros(n, bool),
        difficult=np.zeros(n, bool),
        area=np.full(n, 3600, np.float32),
        source="made up",
    )


def rate(index: Index, size: int, batch: int, workers: int, cache: Cache, *, presize: bool = False) -> float:
    """Images per second in the second epoch, when the kept pictures are in memory."""
    loader = train_loader(
        index,
        TrainTransform(Augment(), size, 114),
        batch=batch,
        seed=0,
        task=0,
        workers=workers,
        pin=False,
        cache=cache,
        presize=presize,
    )
    seconds = 0.0
    for epoch in range(2):
        loader.batch_sampler.epoch = epoch  # type: ignore[union-attr]
        began = time.perf_counter()
        seen = sum(len(b.names) for b in loader)
        seconds = (time.perf_counter() - began) / seen
    return 1 / seconds


def main() -> None:
    parse = timing.parser(
        __doc__, images=96, width=640, height=480, size=416, batch=16, detector="yolox-nano", workers=2
    )
    parse.set_defaults(classes=80, old=40, teacher="folded", amp="off", share_frozen=True, kept=94)
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        index = pictures(Path(folder), args.images, args.width, args.height)
        kinds: dict[str, tuple[int, Cache, bool]] = {
            "decoded each time": (0, "off", False),
            "each time, presize": (0, "off", True),
            "kept in memory": (0, "auto", False),
            "kept in memory, presize": (0, "auto", True),
            "kept on disk": (0, "disk", False),
            f"{args.workers} processes": (args.workers, "off", False),
            f"{args.workers} processes, presize": (args.workers, "off", True),
            f"{args.workers} processes, disk": (args.workers, "disk", False),
            f"{args.workers} processes, presize, disk": (args.workers, "disk", True),
        }
        figures = {
            name: rate(index, args.size, args.batch, workers, cache, presize=presize)
            for name, (workers, cache, presize) in kinds.items()
        }
    with stepper("finetune", args, torch.device("cuda" if torch.cuda.is_available() else "cpu")) as step:
        network = args.batch / timing.medians(timing.interleaved({"step": step}, rounds=3))["step"]
    lines = [f"{args.width}×{args.height} JPEG → {args.size} px; {args.detector} takes {network:.0f} images/s"]
    lines += [f"{name:27s} {value:6.0f} images/s  × {value / network:.2f}" for name, value in figures.items()]
    timing.tell(lines, {"images_per_second": figures, "network": network}, args.json)


if __name__ == "__main__":
    main()
