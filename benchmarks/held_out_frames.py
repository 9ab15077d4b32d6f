"""python -m benchmarks.held_out_frames DATA OUT

A development split of the training part of video frames in COCO format: of every run of frames with the same classes,
the last quarter is tested on and the frame before it is left out. The test part of DATA is not read.
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path
from typing import Any


def cut(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """``train`` and ``val``, in COCO's format."""
    shown: dict[int, set[int]] = {}
    for box in content["annotations"]:
        shown.setdefault(box["image_id"], set()).add(box["category_id"])
    frames = sorted(content["images"], key=lambda i: i["file_name"])
    parts: dict[str, list[Any]] = {"train": [], "val": []}
    for _, run in groupby(frames, key=lambda i: sorted(shown.get(i["id"], ()))):
        clip = list(run)
        tested = max(1, round(len(clip) / 4)) if len(clip) > 3 else 0
        parts["train"] += clip[: len(clip) - tested - 1] if tested else clip
        parts["val"] += clip[len(clip) - tested :]
    made = {}
    for name, images in parts.items():
        ids = {i["id"] for i in images}
        boxes = [a for a in content["annotations"] if a["image_id"] in ids]
        made[name] = {**content, "images": images, "annotations": boxes}
    return made


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("data", type=Path)
    parse.add_argument("out", type=Path)
    args = parse.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "images").symlink_to((args.data / "images").resolve())
    for name, part in cut(json.loads((args.data / "train.json").read_text(encoding="utf-8"))).items():
        (args.out / f"{name}.json").write_text(json.dumps(part), encoding="utf-8")
        print(f"{name}: {len(part['images'])} images")


if __name__ == "__main__":
    main()
