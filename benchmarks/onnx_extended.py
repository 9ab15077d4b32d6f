"""python -m benchmarks.onnx_extended OLD.onnx NEW.onnx --data FOLDER [FOLDER …] --input 0..255,bgr

An ONNX file against the same file after ``ciod extend``: processor milliseconds of a run on one thread, in turns, and
whether every old output is bit-equal on each validation image of the folders, at every optimisation level of
onnxruntime, on one thread and on two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import timing
from ciod.data import formats
from ciod.detectors.onnx import file
from ciod.detectors.onnx.detector import load
from ciod.detectors.onnx.recognise import Asked, equal, prepared
from ciod.extension import onnx_model

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


def main() -> None:
    parser = timing.parser(__doc__, rounds=100, images=1000, input="", names="", size=0)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--data", nargs="+", required=True, help="folders whose validation images are used")
    args = parser.parse_args()
    torch.set_num_threads(1)
    asked = Asked(input=args.input or None, names=args.names.split(",") if args.names else None, size=args.size or None)
    detector = load(args.old, asked)
    images = np.concatenate(
        [onnx_model.pictures(detector, formats.read(d, "val"), args.images) for d in args.data]
    )  # fmt: skip
    whole = detector.source.opened.whole
    batch = whole.picture.batch or 1
    ready = prepared(images, detector.input)
    feeds = [whole.feed(ready[i : i + batch]) for i in range(0, len(ready) - batch + 1, batch)]
    contents = {"old": whole.data, "new": args.new.read_bytes()}
    cost = latency(whole.path, contents, feeds[0], args.rounds)
    rows = [
        (level, threads, differing(whole, contents, feeds, level, threads)) for level in LEVELS for threads in (1, 2)
    ]
    ratio = cost["new"] / cost["old"]
    lines = [f"  {1000 * cost['old']:.1f} → {1000 * cost['new']:.1f} ms per run on one thread, × {ratio:.3f}"]
    lines += [
        f"  {level:20s} {threads} thread{'s' * (threads > 1)}: {len(feeds) - n} of {len(feeds)} runs bit-equal"
        for level, threads, n in rows
    ]
    figures: dict[str, Any] = {"seconds": cost, "ratio": ratio, "runs": len(feeds)}
    figures["differing"] = {f"{level} {threads}": n for level, threads, n in rows}
    timing.tell(lines, {"settings": timing.settings(args), **figures}, args.json)


def latency(path: Path, contents: dict[str, bytes], feed: Any, rounds: int) -> dict[str, float]:
    """Median processor seconds of a run of each file, all outputs wanted."""
    sessions = {name: file.start(path, data, threads=1) for name, data in contents.items()}
    calls = {name: lambda s=session: file.run(path, s, None, feed) for name, session in sessions.items()}
    return timing.medians(timing.interleaved(calls, rounds=rounds, warm=3))


def differing(whole: file.OnnxFile, contents: dict[str, bytes], feeds: list[Any], level: str, threads: int) -> int:
    """Runs in which an old output is not bit-equal."""
    old, new = (file.start(whole.path, data, level=level, threads=threads) for data in contents.values())
    count = 0
    for feed in feeds:
        pair = (file.run(whole.path, s, whole.outputs, feed) for s in (old, new))
        count += not all(equal(a, b) for a, b in zip(*pair, strict=True))
    return count


if __name__ == "__main__":
    main()
