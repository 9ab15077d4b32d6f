"""python -m benchmarks.branches

How much longer an ONNX file of an extended detector takes than that of the detector it stands on, in onnxruntime, in
turns in one process, with NMS in the graph and without: with the arbiter between the branches, and with the arbiter
off. ``--model`` is a model with branches; without one, branches of random weights and statistics are made, as many as
``--branches`` says, and ``--weights`` may name the checkpoint they stand on.

    python -m benchmarks.branches --threads 1 --weights yolox_nano_coco.pth --images photographs
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from benchmarks import timing
from ciod import detectors
from ciod.detectors.files import weights
from ciod.detectors.yolox import YOLOX
from ciod.exporters.onnx_file import export, pictures_to_compare

CLASSES = 4  # of each branch that is made


def extended(args: Any) -> YOLOX:
    """The detector with branches and an arbiter."""
    if args.model:
        found = weights.load(args.model, size=args.size)
    elif args.weights:
        found = weights.load(args.weights, size=args.size)
    else:
        found = detectors.build([f"class {i}" for i in range(80)], name=args.detector, size=args.size)
    assert isinstance(found, YOLOX)
    if args.model:
        return found.eval()
    known = found.num_classes
    for i in range(args.branches):
        found.add_branch([f"new {i} {j}" for j in range(CLASSES)])
    random = torch.Generator().manual_seed(0)
    arbiter = found.add_arbiter()
    row = torch.arange(known, found.num_classes).repeat(60)
    x = torch.randn(found.num_classes, arbiter.features, generator=random)[row]
    x = x + torch.randn(x.shape, generator=random)
    nothing = torch.randn(4 * args.branches, arbiter.features, generator=random)
    arbiter.add_nothing(nothing, torch.full((len(nothing),), 50.0))
    arbiter.learn(x, row, torch.arange(len(row)) * 4 // len(row))
    return found.eval()


def without_branches(detector: YOLOX) -> YOLOX:
    """The detector that the branches stand on."""
    bare = copy.deepcopy(detector)
    bare.select([bare.class_names[c] for c in bare.parts[0]])
    bare.arbiter = None
    return bare


def main() -> None:
    parser = timing.parser(__doc__, rounds=20, size=416, branches=5, detector="yolox-nano", images="")
    parser.add_argument("--model", default="")
    parser.add_argument("--weights", default="")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    detector = extended(args)
    picture = {"images": pictures_to_compare(detector, args.images or None)[:1].numpy()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = args.threads
    calls: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for nms in (True, False):
            for name, model, arbiter in (
                ("base", without_branches(detector), True),
                ("branches", detector, False),
                ("branches and arbiter", detector, True),
            ):
                file = Path(folder) / f"{len(calls)}.onnx"
                export(copy.deepcopy(model), file, nms=nms, size=args.size, arbiter=arbiter)
                session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
                calls[f"{name}, {'NMS' if nms else 'no NMS'}"] = partial(session.run, None, picture)
        found = timing.medians(timing.interleaved(calls, rounds=args.rounds, warm=2))
    figures = {}
    lines = [f"{len(detector.branches)} branches, {args.size} px, {args.threads} threads"]
    for name, seconds in found.items():
        ratio = seconds / found[f"base, {name.split(', ')[1]}"]
        figures[name] = {"seconds": seconds, "ratio": ratio}
        lines.append(f"  {name:30s} {1000 * seconds:7.2f} ms  × {ratio:.3f}")
    timing.tell(lines, {"branches": figures, "settings": timing.settings(args)}, args.json)


if __name__ == "__main__":
    main()
