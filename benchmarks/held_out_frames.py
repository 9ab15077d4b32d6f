"""python -m benchmarks.held_out_frames DATA OUT [--whole] [--quarter 4 | --quarters]

Another split of video frames in COCO format: of every run of frames with the same classes, one quarter is tested on,
and the frame on each side of it is left out, so that no tested frame has a neighbour in training. By default only the
training part of DATA is cut, for development, and its test part is not read; ``--whole`` cuts both parts together, for
results: four quarters test every frame once. ``--quarters`` writes one data set for ``ciod compare`` instead, whose
files are named after their quarter (``quarter-2-000004.jpg``), so that ``folds=4 group=^quarter-\\d`` tests each in
turn; the first frame of a quarter is left out, so no two quarters share neighbours.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any


def runs(content: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """The images of each run of frames with the same classes, in the order of their file names."""
    shown: dict[int, set[int]] = {}
    for box in content["annotations"]:
        shown.setdefault(box["image_id"], set()).add(box["category_id"])
    frames = sorted(content["images"], key=lambda i: i["file_name"])
    for _, run in groupby(frames, key=lambda i: sorted(shown.get(i["id"], ()))):
        yield list(run)


def cut(content: dict[str, Any], quarter: int = 4) -> dict[str, dict[str, Any]]:
    """``train`` and ``val``, in COCO's format; ``quarter``: 1 to 4, of each run of more than three frames."""
    parts: dict[str, list[Any]] = {"train": [], "val": []}
    for clip in runs(content):
        start, end = (round(q * len(clip) / 4) if len(clip) > 3 else 0 for q in (quarter - 1, quarter))
        beside = slice(max(0, start - 1), end + 1) if end > start else slice(0, 0)
        parts["train"] += [*clip[: beside.start], *clip[beside.stop :]]
        parts["val"] += clip[start:end]
    made = {}
    for name, images in parts.items():
        ids = {i["id"] for i in images}
        boxes = [a for a in content["annotations"] if a["image_id"] in ids]
        made[name] = {**content, "images": images, "annotations": boxes}
    return made


def whole(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Images and boxes of several parts together, with numbers of their own."""
    images, boxes = [], []
    for part in parts:
        number = {i["id"]: len(images) + n for n, i in enumerate(part["images"])}
        images += [{**i, "id": number[i["id"]]} for i in part["images"]]
        boxes += [
            {**a, "id": len(boxes) + n, "image_id": number[a["image_id"]]} for n, a in enumerate(part["annotations"])
        ]
    return {**parts[0], "images": images, "annotations": boxes}


def quarters(content: dict[str, Any]) -> dict[str, Any]:
    """All frames, named after the quarter of their run; without the first frame of the second to fourth quarter."""
    named: list[dict[str, Any]] = []
    for clip in runs(content):
        for q in range(4):
            start, end = (round(n * len(clip) / 4) for n in (q, q + 1))
            first = start + 1 if start else start
            named += [{**i, "file_name": f"quarter-{q + 1}-{i['file_name']}"} for i in clip[first:end]]
    ids = {i["id"] for i in named}
    return {**content, "images": named, "annotations": [a for a in content["annotations"] if a["image_id"] in ids]}


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("data", type=Path)
    parse.add_argument("out", type=Path)
    parse.add_argument("--whole", action="store_true", help="training and test part together")
    chosen = parse.add_mutually_exclusive_group()
    chosen.add_argument("--quarter", type=int, choices=(1, 2, 3, 4), default=4, help="of each run: the tested one")
    chosen.add_argument("--quarters", action="store_true", help="one data set of both parts, for folds=4")
    args = parse.parse_args()
    names = ["train", "val"] if args.whole or args.quarters else ["train"]
    content = whole([json.loads((args.data / f"{n}.json").read_text(encoding="utf-8")) for n in names])
    args.out.mkdir(parents=True, exist_ok=True)
    images = (args.data / "images").resolve()
    if args.quarters:
        (args.out / "images").mkdir()
        named = quarters(content)
        for name in (i["file_name"] for i in named["images"]):
            (args.out / "images" / name).symlink_to(images / name.split("-", 2)[2])
        (args.out / "train.json").write_text(json.dumps(named), encoding="utf-8")
        print(f"train: {len(named['images'])} images")
        return
    (args.out / "images").symlink_to(images)
    for name, part in cut(content, args.quarter).items():
        (args.out / f"{name}.json").write_text(json.dumps(part), encoding="utf-8")
        print(f"{name}: {len(part['images'])} images")


if __name__ == "__main__":
    main()
